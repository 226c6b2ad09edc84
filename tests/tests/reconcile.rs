//! Reconciliation, end to end: what was not told is found by comparing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::{
    HttpClient, agent, alert, claimed, fast, generate, held, metrics, prompt, until, until_exact, until_ready,
};
use router_grpc::RouterConfig;
use router_grpc::config::LevelName;
use sglang_sim::Sim;

#[tokio::test]
async fn what_the_level_does_not_tell_is_found_on_schedule() {
    let sim = Sim::start(fast()).await.unwrap();
    let config = RouterConfig {
        report_level: LevelName::Removals,
        reconcile_interval_secs: 0.2,
        ..alert(vec![sim.url()])
    };
    let router = router_grpc::start(config).await.unwrap();
    let _agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    // Whose blocks the router knows, and others that another router has sent.
    let (routed, foreign) = (HttpClient::of(&router), HttpClient::at(&sim.url()));
    for first in 0..8 {
        assert_eq!(routed.post("/generate", &generate(&prompt(first, 700), 150)).await.status, 200);
        assert_eq!(foreign.post("/generate", &generate(&prompt(100 + first, 400), 5)).await.status, 200);
    }
    assert!(until_exact(&router, &sim).await > 100);
    let metrics = metrics(&router).await;
    assert!(metrics.contains("espalier_reconciled_blocks_total{kind=\"missing\"}"), "{metrics}");
}

#[tokio::test]
async fn an_agent_that_comes_again_is_compared_and_sends_no_baseline() {
    let sim = Sim::start(fast()).await.unwrap();
    let config = RouterConfig { reconcile_interval_secs: 0.0, ..alert(vec![sim.url()]) };
    let router = router_grpc::start(config).await.unwrap();
    let first = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    let (routed, foreign) = (HttpClient::of(&router), HttpClient::at(&sim.url()));
    for name in 0..10 {
        assert_eq!(routed.post("/generate", &generate(&prompt(name, 700), 5)).await.status, 200);
    }
    until_exact(&router, &sim).await;
    first.shutdown().await;
    for name in 0..3 {
        assert_eq!(foreign.post("/generate", &generate(&prompt(100 + name, 400), 5)).await.status, 200);
    }
    until("the engine holds what nobody has told", async || {
        held(&router, &sim).await.len() > claimed(&router, &sim).await.len()
    })
    .await;
    let again = agent(&sim, &[&router]);
    until_exact(&router, &sim).await;
    let stats = again.stats();
    assert_eq!((stats.routers[0].reconciliations, stats.routers[0].baselines_sent), (1, 0));
}
