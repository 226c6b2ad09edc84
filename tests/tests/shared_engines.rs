//! Several routers in front of the same engines: each learns what the others send, and is not told what it has sent itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::{HttpClient, agent, alert, fast, generate, prompt, until, until_exact, until_ready};
use router_grpc::{LevelName, RouterConfig, RunningRouter};
use sglang_sim::Sim;

/// A router that is told of removals, and compares nothing by itself.
async fn router(sim: &Sim) -> RunningRouter {
    let config = RouterConfig {
        report_level: LevelName::Removals,
        reconcile_interval_secs: 0.0,
        ..alert(vec![sim.url()])
    };
    router_grpc::start(config).await.unwrap()
}

async fn send(router: &RunningRouter, prompts: std::ops::Range<u32>) {
    let client = HttpClient::of(router);
    for first in prompts {
        assert_eq!(client.post("/generate", &generate(&prompt(first, 1_500), 20)).await.status, 200);
    }
}

#[tokio::test]
async fn a_router_learns_what_another_has_sent() {
    let sim = Sim::start(fast()).await.unwrap();
    let (one, other) = (router(&sim).await, router(&sim).await);
    let agent = agent(&sim, &[&one, &other]);
    for router in [&one, &other] {
        until_ready(router, 1).await;
    }
    until("both have its baseline", async || {
        agent.stats().routers.iter().all(|router| router.baselines_in_force > 0)
    })
    .await;
    // One has said that it uses tokens: it names what it sends. The other sends nothing.
    send(&one, 0..1).await;
    for router in [&one, &other] {
        until_exact(router, &sim).await;
    }
    let bytes = || agent.stats().routers.iter().map(|router| router.bytes_sent).collect::<Vec<_>>();
    let before = bytes();
    send(&one, 100..140).await;
    for router in [&one, &other] {
        assert!(until_exact(router, &sim).await > 40 * 23, "23 blocks of 64 tokens a prompt");
    }
    let after = bytes();
    let told = [after[0] - before[0], after[1] - before[1]];
    assert!(told[1] > 40 * 23 * 8, "all that the other could not know: {told:?}");
    assert!(told[0] < told[1], "and less to who had sent it: {told:?}");
}

#[tokio::test]
async fn a_router_that_is_alone_is_told_of_no_stores() {
    let sim = Sim::start(fast()).await.unwrap();
    let one = router(&sim).await;
    let agent = agent(&sim, &[&one]);
    until_ready(&one, 1).await;
    until("its baseline is in force", async || agent.stats().routers[0].baselines_in_force > 0).await;
    let before = agent.stats().routers[0].deltas_sent;
    send(&one, 0..20).await;
    until_exact(&one, &sim).await;
    assert_eq!(agent.stats().routers[0].deltas_sent, before, "nothing was removed");
}
