//! The main job, end to end: real HTTP, real gRPC, real ZeroMQ, simulated engines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_proto::{
    AddWorkerRequest, DrainRequest, ExplainRequest, GetWorkerRequest, ListWorkersRequest,
    RemoveWorkerRequest, UndrainRequest,
};
use espalier_tests::{
    HttpClient, PATIENCE, admin, agent, alert, claimed, fast, generate, metrics, prompt, until, until_exact,
    until_ready, worker,
};
use http_body_util::BodyExt as _;
use router_core::key::Unit;
use router_core::{Done, Query, Update, WorkerState};
use router_grpc::RouterConfig;
use serde_json::{Value, json};
use sglang_sim::{Sim, SimConfig};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test]
async fn prompts_follow_their_prefix_and_claims_are_exact() {
    let sims = [Sim::start(fast()).await.unwrap(), Sim::start(fast()).await.unwrap()];
    let router = router_grpc::start(alert(sims.iter().map(Sim::url).collect())).await.unwrap();
    let _agents: Vec<_> = sims.iter().map(|sim| agent(sim, &[&router])).collect();
    until_ready(&router, 2).await;
    let client = HttpClient::of(&router);
    for first in 0..10 {
        let answer = client.post("/generate", &generate(&prompt(first, 700), 100)).await;
        assert_eq!((answer.status, answer.cached_tokens()), (200, 0));
    }
    for sim in &sims {
        until_exact(&router, sim).await;
    }
    for first in 0..10 {
        let answer = client.post("/generate", &generate(&prompt(first, 700), 5)).await;
        // 699 tokens may be cached: 43 pages of 16, of which 10 blocks of 64 are known.
        assert_eq!(answer.cached_tokens(), 688);
        assert_eq!(answer.header("x-espalier-predicted-tokens"), "640");
    }
    // The generated tokens were cached too, which only the agents could tell: 799 tokens with KV, 12 blocks.
    let first = client.post("/generate", &generate(&prompt(3, 700), 100)).await.json();
    let output: Vec<u32> = serde_json::from_value(first["output_ids"].clone()).unwrap();
    let next: Vec<u32> = prompt(3, 700).into_iter().chain(output).chain([5; 100]).collect();
    let mut admin = admin(&router).await;
    let explained =
        admin.explain(ExplainRequest { path: "/generate".to_owned(), body: generate(&next, 1).to_string() });
    let explained = explained.await.unwrap().into_inner();
    let chosen = explained.candidates.iter().find(|candidate| candidate.chosen).unwrap();
    assert_eq!((chosen.matched_tokens, chosen.confirmed_tokens), (768, 768));
    router.shutdown().await;
}

#[tokio::test]
async fn evictions_and_flushes_are_followed_exactly() {
    let sim = Sim::start(SimConfig { max_total_tokens: 4_000, ..fast() }).await.unwrap();
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    let _agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    let client = HttpClient::of(&router);
    for first in 0..20 {
        assert_eq!(client.post("/generate", &generate(&prompt(first, 900), 10)).await.status, 200);
    }
    assert!(sim.stats(0).unwrap().totals.evicted_tokens > 10_000);
    assert!(until_exact(&router, &sim).await > 20);
    assert_eq!(client.send("POST", "/flush_cache", String::new()).await.status, 200);
    assert_eq!(until_exact(&router, &sim).await, 0);
}

#[tokio::test]
async fn chat_and_streams_pass_and_are_routed_by_text() {
    let sims = [Sim::start(fast()).await.unwrap(), Sim::start(fast()).await.unwrap()];
    let router = router_grpc::start(alert(sims.iter().map(Sim::url).collect())).await.unwrap();
    until_ready(&router, 2).await;
    let client = HttpClient::of(&router);
    let system = "You are a patient gardener who trains trees flat against a wall. ".repeat(40);
    let chat = |turns: usize, stream: bool| {
        let turn = |i: usize| json!({"role": if i.is_multiple_of(2) {"user"} else {"assistant"}, "content": format!("turn {i}")});
        let mut messages = vec![json!({"role": "system", "content": system})];
        messages.extend((0..turns).map(turn));
        json!({"model": "sim", "messages": messages, "max_tokens": 4, "stream": stream})
    };
    let first = client.post("/v1/chat/completions", &chat(1, false)).await;
    assert_eq!(first.json()["choices"][0]["message"]["role"], "assistant");
    until("the first turn is known", async || router.router().snapshot().size.blocks > 0).await;
    let second = client.post("/v1/chat/completions", &chat(3, true)).await;
    assert_eq!(second.header("x-espalier-worker"), first.header("x-espalier-worker"));
    assert!(second.header("x-espalier-predicted-tokens").parse::<u64>().unwrap() > 300);
    assert!(second.text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn workers_come_when_they_come() {
    let router = router_grpc::start(alert(Vec::new())).await.unwrap();
    let client = HttpClient::of(&router);
    let refused = client.post("/generate", &generate(&prompt(1, 10), 1)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    assert_eq!(refused.json()["error"]["code"], "no_workers");
    // An agent announces its worker.
    let sim = Sim::start(fast()).await.unwrap();
    let _agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    assert_eq!(client.post("/generate", &generate(&prompt(1, 10), 1)).await.status, 200);
    let unknown = json!({"model": "other", "messages": [{"role": "user", "content": "hi"}]});
    let refused = client.post("/v1/chat/completions", &unknown).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[tokio::test]
async fn a_killed_engine_is_nobodys_problem_and_comes_back_empty() {
    let sims = [Sim::start(fast()).await.unwrap(), Sim::start(fast()).await.unwrap()];
    let [doomed, other] = sims;
    let router = router_grpc::start(alert(vec![doomed.url(), other.url()])).await.unwrap();
    let agents = [agent(&doomed, &[&router]), agent(&other, &[&router])];
    until_ready(&router, 2).await;
    let client = HttpClient::of(&router);
    for first in 0..12 {
        assert_eq!(client.post("/generate", &generate(&prompt(first, 500), 2)).await.status, 200);
    }
    assert!(until_exact(&router, &doomed).await > 0);
    let (url, port) = (doomed.url(), doomed.address().port());
    doomed.kill().await;
    // At once, before anything has noticed: what goes to the dead one is sent elsewhere.
    let mut requests = JoinSet::new();
    for first in 0..24 {
        let client = client.clone();
        requests.spawn(async move {
            client.post("/generate", &generate(&prompt(first % 12, 500), 2)).await.status
        });
    }
    assert!(requests.join_all().await.into_iter().all(|status| status == 200));
    until("the dead one is seen to be dead", async || {
        worker(&router, &url).is_some_and(|worker| worker.state == WorkerState::Unreachable)
    })
    .await;
    let again = Sim::start(SimConfig { port, ..fast() }).await.unwrap();
    until_ready(&router, 2).await;
    // Nothing of its former life is believed of it.
    assert_eq!(until_exact(&router, &again).await, 0);
    for first in 100..112 {
        assert_eq!(client.post("/generate", &generate(&prompt(first, 500), 2)).await.status, 200);
    }
    assert!(until_exact(&router, &again).await > 0, "it gets its share again, and its reports are followed");
    drop(agents);
}

#[tokio::test]
async fn a_restarted_router_learns_everything_from_the_agents() {
    let sim = Sim::start(fast()).await.unwrap();
    let first = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    let ports = (first.http_addr().port(), first.grpc_addr().port());
    let _agent = agent(&sim, &[&first]);
    until_ready(&first, 1).await;
    assert_eq!(HttpClient::of(&first).post("/generate", &generate(&prompt(1, 700), 5)).await.status, 200);
    let blocks = until_exact(&first, &sim).await;
    first.shutdown().await;
    let mut config = alert(vec![sim.url()]);
    (config.port, config.grpc_port) = ports;
    let second = router_grpc::start(config).await.unwrap();
    until_ready(&second, 1).await;
    until("the agent is back", async || worker(&second, &sim.url()).is_some_and(|w| w.agent.is_some())).await;
    assert_eq!(until_exact(&second, &sim).await, blocks);
}

#[tokio::test]
async fn a_restarted_agent_says_it_all_again() {
    let sim = Sim::start(fast()).await.unwrap();
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    let first = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    let client = HttpClient::of(&router);
    client.post("/generate", &generate(&prompt(1, 700), 5)).await;
    until_exact(&router, &sim).await;
    first.shutdown().await;
    client.post("/generate", &generate(&prompt(2, 700), 200)).await;
    let _second = agent(&sim, &[&router]);
    until("the new agent is here", async || worker(&router, &sim.url()).is_some_and(|w| w.agent.is_some()))
        .await;
    assert!(until_exact(&router, &sim).await >= 23, "outputs of the time without an agent included");
}

#[tokio::test]
async fn two_routers_converge_through_the_agents() {
    let sim = Sim::start(fast()).await.unwrap();
    let one = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    let other = router_grpc::start(alert(Vec::new())).await.unwrap();
    let _agent = agent(&sim, &[&one, &other]);
    until_ready(&one, 1).await;
    until_ready(&other, 1).await;
    HttpClient::of(&one).post("/generate", &generate(&prompt(1, 700), 5)).await;
    assert_eq!(until_exact(&one, &sim).await, until_exact(&other, &sim).await);
    let answer = HttpClient::of(&other).post("/generate", &generate(&prompt(1, 700), 5)).await;
    assert_eq!(answer.header("x-espalier-predicted-tokens"), "640", "learned from traffic it never saw");
}

#[tokio::test]
async fn every_dp_rank_has_its_own_tree_and_is_pinned() {
    let sim = Sim::start(SimConfig { dp_size: 2, ..fast() }).await.unwrap();
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    let _agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    until("both ranks are known", async || router.router().snapshot().fleet.targets.len() == 2).await;
    let client = HttpClient::of(&router);
    let mut ranks = std::collections::HashSet::new();
    for first in 0..16 {
        let answer = client.post("/generate", &generate(&prompt(first, 300), 2)).await;
        let rank = answer.header("x-espalier-dp-rank").to_owned();
        assert_eq!(answer.json()["meta_info"]["dp_rank"].to_string(), rank);
        ranks.insert(rank);
    }
    assert_eq!(ranks.len(), 2);
    for first in 0..16 {
        assert_eq!(client.post("/generate", &generate(&prompt(first, 300), 2)).await.cached_tokens(), 288);
    }
    let pinned =
        json!({"input_ids": prompt(3, 300), "routed_dp_rank": 1, "sampling_params": {"max_new_tokens": 1}});
    assert_eq!(client.post("/generate", &pinned).await.json()["meta_info"]["dp_rank"], 1);
    let nowhere = json!({"input_ids": prompt(3, 300), "routed_dp_rank": 7});
    assert_eq!(client.post("/generate", &nowhere).await.status, 400);
    until_exact(&router, &sim).await;
}

#[tokio::test]
async fn a_drain_loses_no_request() {
    let slow = || SimConfig { time_scale: 4.0, ..fast() };
    let sims = [Sim::start(slow()).await.unwrap(), Sim::start(slow()).await.unwrap()];
    let router = router_grpc::start(alert(sims.iter().map(Sim::url).collect())).await.unwrap();
    until_ready(&router, 2).await;
    let client = HttpClient::of(&router);
    let send = |first| {
        let client = client.clone();
        let body = json!({"input_ids": prompt(first, 200), "sampling_params": {"max_new_tokens": 150}, "stream": true});
        async move { client.post("/generate", &body).await }
    };
    let (mut before, mut during) = (JoinSet::new(), JoinSet::new());
    (0..20).for_each(|first| _ = before.spawn(send(first)));
    let draining = sims[0].url();
    // Others may be decided as the drain begins: what is still sent there is counted before the drain says how much it is.
    until("both are busy", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.targets.iter().all(|target| target.load.read().in_flight > 0)
    })
    .await;
    let mut admin = admin(&router).await;
    let mut progress = admin.drain(DrainRequest { url: draining.clone() }).await.unwrap().into_inner();
    (20..40).for_each(|first| _ = during.spawn(send(first)));
    let mut last = u64::MAX;
    while let Some(step) = progress.message().await.unwrap() {
        assert!(step.in_flight <= last, "nothing new is sent to it");
        last = step.in_flight;
        assert_eq!(step.done, step.in_flight == 0);
    }
    assert_eq!(last, 0);
    for answer in during.join_all().await {
        assert_ne!(answer.header("x-espalier-worker"), draining);
        assert_eq!(answer.status, 200);
    }
    for answer in before.join_all().await {
        assert!(answer.status == 200 && answer.text.ends_with("data: [DONE]\n\n"));
    }
    let answer = client.post("/generate", &generate(&prompt(50, 200), 1)).await;
    assert_ne!(answer.header("x-espalier-worker"), draining);
    let shown = admin.get_worker(GetWorkerRequest { url: draining.clone() }).await.unwrap().into_inner();
    assert_eq!(shown.state(), espalier_proto::WorkerState::Draining);
    admin.remove_worker(RemoveWorkerRequest { url: draining }).await.unwrap();
    assert_eq!(admin.list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers.len(), 1);
}

#[tokio::test]
async fn a_drain_that_is_called_off_says_so() {
    let sim = Sim::start(SimConfig { time_scale: 1.0, ..fast() }).await.unwrap();
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    until_ready(&router, 1).await;
    let body =
        json!({"input_ids": prompt(1, 64), "sampling_params": {"max_new_tokens": 100_000}, "stream": true});
    let mut response = HttpClient::of(&router).open("POST", "/generate", body.to_string()).await;
    response.body_mut().frame().await.unwrap().unwrap();
    let mut admin = admin(&router).await;
    let mut progress = admin.drain(DrainRequest { url: sim.url() }).await.unwrap().into_inner();
    assert_eq!(progress.message().await.unwrap().unwrap().in_flight, 1);
    admin.undrain(UndrainRequest { url: sim.url() }).await.unwrap();
    let ended = timeout(PATIENCE, progress.message()).await.unwrap().unwrap_err();
    assert!(ended.code() == tonic::Code::Aborted && ended.message().contains("undrained"), "{ended:?}");
}

#[tokio::test]
async fn a_router_without_its_writer_serves_on_and_says_so() {
    let sims = [Sim::start(fast()).await.unwrap(), Sim::start(fast()).await.unwrap()];
    let router = router_grpc::start(alert(sims.iter().map(Sim::url).collect())).await.unwrap();
    until_ready(&router, 2).await;
    let client = HttpClient::of(&router);
    assert_eq!(client.send("GET", "/liveness", String::new()).await.status, 200);
    let first = client.post("/generate", &generate(&prompt(1, 700), 5)).await;
    until("it is claimed", async || {
        !claimed(&router, &sims[0]).await.is_empty() || !claimed(&router, &sims[1]).await.is_empty()
    })
    .await;
    // A question whose answer nobody survives.
    let target = router.router().snapshot().fleet.targets[0].id;
    let done = Done::new(|_| panic!("a test ends the writer"));
    let fatal = Update::Query(Query::Claims { target, unit: Unit::Token, done });
    router.router().updates().try_send(fatal).unwrap();
    timeout(PATIENCE, router.writer_died()).await.unwrap();
    assert_eq!(first.status, 200);
    for _ in 0..4 {
        let answer = client.post("/generate", &generate(&prompt(1, 700), 5)).await;
        assert_eq!((answer.status, answer.header("x-espalier-predicted-tokens")), (200, "0"));
    }
    assert_eq!(client.send("GET", "/liveness", String::new()).await.status, 503);
    assert!(metrics(&router).await.contains("espalier_writer_alive 0"));
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", router.grpc_addr())).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    until("the health service knows", async || {
        let check = HealthCheckRequest { service: "espalier.v1.Agent".to_owned() };
        health.check(check).await.unwrap().into_inner().status() == ServingStatus::NotServing
    })
    .await;
    let refused = admin(&router).await.drain(DrainRequest { url: sims[0].url() }).await.err().unwrap();
    assert!(refused.message().contains("restart"), "{refused:?}");
    router.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_does_not_answer_delays_no_other() {
    // Connections to it are made by the kernel, and nobody ever reads them.
    let black_hole = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", black_hole.local_addr().unwrap());
    let sim = Sim::start(fast()).await.unwrap();
    let config = RouterConfig { health_check_timeout_secs: 3600.0, ..alert(vec![silent, sim.url()]) };
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 1).await;
    let url = sim.url();
    sim.kill().await;
    until("the dead one is seen to be dead", async || {
        worker(&router, &url).is_some_and(|worker| worker.state == WorkerState::Unreachable)
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_is_added_is_checked_at_once() {
    let sim = Sim::start(fast()).await.unwrap();
    let config = RouterConfig { health_check_interval_secs: 3600.0, ..alert(Vec::new()) };
    let router = router_grpc::start(config).await.unwrap();
    admin(&router)
        .await
        .add_worker(AddWorkerRequest { url: sim.url(), ..AddWorkerRequest::default() })
        .await
        .unwrap();
    until_ready(&router, 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_worker() {
    let sim = Sim::start(SimConfig { time_scale: 1.0, ..fast() }).await.unwrap();
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    until_ready(&router, 1).await;
    let client = HttpClient::of(&router);
    let body =
        json!({"input_ids": prompt(1, 64), "sampling_params": {"max_new_tokens": 100_000}, "stream": true});
    let mut response = client.open("POST", "/generate", body.to_string()).await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop((response, client));
    until("the engine aborts it", async || sim.stats(0).unwrap().totals.aborted == 1).await;
    until("nothing is in flight", async || {
        router.router().snapshot().fleet.targets[0].load.read() == router_core::Load::default()
    })
    .await;
    assert!(!claimed(&router, &sim).await.is_empty(), "what was computed stays claimed");
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let sim = Sim::start(fast()).await.unwrap();
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    let _agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    until("its agent is there", async || {
        worker(&router, &sim.url()).is_some_and(|worker| worker.agent.is_some())
    })
    .await;
    let client = HttpClient::of(&router);
    for _ in 0..2 {
        client.post("/generate", &generate(&prompt(1, 700), 5)).await;
        // The next one is to find what this one has left.
        until_exact(&router, &sim).await;
    }
    let text = metrics(&router).await;
    for family in [
        "espalier_requests_total{route=\"generate\",outcome=\"answered\"} 2",
        "espalier_prompt_tokens_total 1400",
        "espalier_predicted_cached_tokens_total 640",
        "espalier_cached_tokens_total 688",
        "espalier_in_flight_requests 0",
        "espalier_workers{state=\"ready\"} 1",
        "espalier_unvouched 0",
        "espalier_decision_seconds_count 2",
        "espalier_agent_report_age_seconds{worker=",
        "espalier_agent_report_bytes_total{worker=",
        "espalier_index_blocks 11",
        "espalier_epoch ",
        "espalier_epoch_age_seconds ",
        "espalier_updates_refused_total 0",
        "espalier_claimed_tokens{worker=",
        "# EOF",
    ] {
        assert!(text.contains(family), "{family} is missing in\n{text}");
    }
    until("the divergence is known to be none", async || {
        let text = metrics(&router).await;
        let mut lines = text.lines().filter(|line| line.starts_with("espalier_divergence_tokens{"));
        lines.any(|line| line.ends_with("} 0") || line.ends_with("} 0.0"))
    })
    .await;
    let _: Value = client.post("/generate", &generate(&prompt(2, 10), 1)).await.json();
}
