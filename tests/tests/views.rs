//! What the router knows of its own error, and counts without an agent: over real HTTP and gRPC.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_proto::agent_client::AgentClient;
use espalier_proto::agent_message::Message as Said;
use espalier_proto::{
    Accept, Accuracy, AgentMessage, CacheKind as WireCacheKind, DivergenceSource, Event, EventKind,
    EvictionPolicy, ExplainRequest, Hello, KeyUnit, ListWorkersRequest, ListWorkersResponse, LowerTier,
    MispredictionCause, ReportLevel, WatchEventsRequest,
};
use espalier_tests::{
    HttpClient, PATIENCE, admin, agent, alert, claimed, fast, generate, held, metrics, prompt, until,
    until_exact, until_ready,
};
use router_core::key::SCHEME;
use router_grpc::{ApiArgs, ClaimArgs, LevelName, RouterConfig, RunningRouter};
use serde_json::json;
use sglang_sim::{CacheKind, Sim, SimConfig};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use worker_agent::{Agent, AgentConfig};

async fn listed(router: &RunningRouter) -> ListWorkersResponse {
    admin(router).await.list_workers(ListWorkersRequest {}).await.unwrap().into_inner()
}

/// What is shown of the only target.
async fn accuracy(router: &RunningRouter) -> Accuracy {
    listed(router).await.workers[0].targets[0].accuracy.clone().unwrap()
}

#[tokio::test]
async fn error_divergence_and_reconciliation_of_a_target_are_told() {
    let sim = Sim::start(fast()).await.unwrap();
    let config = RouterConfig { reconcile_interval_secs: 0.2, ..alert(vec![sim.url()]) };
    let router = router_grpc::start(config).await.unwrap();
    let _agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    until("its agent is there", async || listed(&router).await.workers[0].agent.is_some()).await;
    let client = HttpClient::of(&router);
    for _ in 0..2 {
        for first in 0..8 {
            client.post("/generate", &generate(&prompt(first, 700), 5)).await;
        }
        // The next round finds what this one has left.
        until_exact(&router, &sim).await;
    }
    until("every response is counted", async || accuracy(&router).await.checked_responses == 16).await;
    let shown = accuracy(&router).await;
    assert_eq!((shown.mean_error_tokens, shown.mean_absolute_error_tokens), (0.0, 0.0), "{shown:?}");
    assert!(shown.causes.is_empty() && !shown.unvouched, "{shown:?}");
    assert!(shown.vouched_by.contains("its agent, which reports full"), "{}", shown.vouched_by);
    assert_eq!(shown.inference, "of what the agent does not name");
    let compared = async || {
        let shown = accuracy(&router).await;
        shown.reconciliations.first().is_some_and(|last| last.tokens == 0)
            && shown.divergence.is_some_and(|found| found.tokens == 0)
            && shown.counts.is_some_and(|counts| counts.held_tokens > 5_000)
    };
    until("blocks have been compared, and counted", compared).await;
    let shown = accuracy(&router).await;
    let last = &shown.reconciliations[0];
    assert_eq!((last.unit(), last.false_claims, last.missing), (KeyUnit::Token, 0, 0));
    assert!(last.bytes >= 384, "{last:?}");
    assert_ne!(shown.divergence.unwrap().source(), DivergenceSource::Counts, "blocks say more");
    assert!(!shown.counts.unwrap().asked_of_engine);
    let worker = listed(&router).await.workers.remove(0);
    let session = worker.agent.clone().unwrap();
    assert!(session.messages > 3 && session.bytes > 8 * 80, "{session:?}");
    assert_eq!((session.wanted_level(), worker.report_level()), (ReportLevel::Full, ReportLevel::Full));
    assert!(session.shortfall.contains("text is not reported"), "{}", session.shortfall);
    assert_eq!(session.units().collect::<Vec<_>>(), [KeyUnit::Token]);
    let body = generate(&prompt(1, 700), 1).to_string();
    let mut admin = admin(&router).await;
    let explained = admin.explain(ExplainRequest { path: "/generate".to_owned(), body });
    let candidate = explained.await.unwrap().into_inner().candidates.remove(0);
    assert_eq!(candidate.accuracy.unwrap().checked_responses, 16);
    let text = metrics(&router).await;
    let labels = format!("{{worker=\"{}\",rank=\"0\"", sim.url());
    for family in [
        format!("espalier_target_checked_predictions_total{labels}}} 16"),
        format!("espalier_target_mispredicted_tokens_total{labels},cause=\"evicted\"}} 0"),
        format!("espalier_target_mean_error_tokens{labels}}} 0"),
        format!("espalier_target_mean_absolute_error_tokens{labels}}} 0"),
        format!("espalier_divergence_age_seconds{labels}}} "),
        format!("espalier_reconciliation_age_seconds{labels}}} "),
        format!("espalier_held_tokens{labels}}} "),
        format!("espalier_target_unvouched{labels}}} 0"),
        format!("espalier_agent_below_wanted_level{{worker=\"{}\",level=\"full\"}} 0", sim.url()),
        format!("espalier_infers_evictions{{worker=\"{}\"}} 1", sim.url()),
    ] {
        assert!(text.contains(&family), "{family} is missing in\n{text}");
    }
}

#[tokio::test]
async fn errors_are_told_with_sign_and_cause() {
    let sim = Sim::start(SimConfig { max_total_tokens: 4_000, ..fast() }).await.unwrap();
    let claims = ClaimArgs { engine_counts_interval_secs: 0.0, ..RouterConfig::default().claims };
    let router = router_grpc::start(RouterConfig { claims, ..alert(vec![sim.url()]) }).await.unwrap();
    until_ready(&router, 1).await;
    let (client, foreign) = (HttpClient::of(&router), HttpClient::at(&sim.url()));
    client.post("/generate", &generate(&prompt(1, 700), 1)).await;
    until("it is counted", async || accuracy(&router).await.checked_responses == 1).await;
    // What somebody else sends pushes it out.
    for first in 100..110 {
        foreign.post("/generate", &generate(&prompt(first, 700), 1)).await;
    }
    assert_eq!(client.post("/generate", &generate(&prompt(1, 700), 1)).await.cached_tokens(), 0);
    until("both responses are counted", async || accuracy(&router).await.checked_responses == 2).await;
    let shown = accuracy(&router).await;
    assert_eq!((shown.mean_error_tokens, shown.mean_absolute_error_tokens), (320.0, 320.0));
    let cause = &shown.causes[0];
    assert_eq!((cause.cause(), cause.responses, cause.tokens), (MispredictionCause::Evicted, 1, 640));
    // What somebody else has left is there although nobody expects it.
    let cached = client.post("/generate", &generate(&prompt(109, 700), 1)).await.cached_tokens() as f64;
    assert!(cached > 600.0);
    until("the third is counted", async || accuracy(&router).await.checked_responses == 3).await;
    let shown = accuracy(&router).await;
    assert!((shown.mean_error_tokens - (640.0 - cached) / 3.0).abs() < 1e-9, "{shown:?}");
    assert!((shown.mean_absolute_error_tokens - (640.0 + cached) / 3.0).abs() < 1e-9, "{shown:?}");
    assert_eq!(shown.causes[1].cause(), MispredictionCause::OtherTraffic);
    assert_eq!(shown.vouched_by, "3 responses");
    assert_eq!(shown.counts, None);
}

#[tokio::test]
async fn an_agent_that_reports_less_than_wanted_says_why() {
    let sim = Sim::start(fast()).await.unwrap();
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    let config = AgentConfig {
        worker_url: sim.url(),
        routers: vec![format!("http://{}", router.grpc_addr())],
        report_level: worker_agent::Level::Counts,
        ..AgentConfig::default()
    };
    let _agent = Agent::start(config).unwrap();
    until("its agent is there", async || listed(&router).await.workers[0].agent.is_some()).await;
    let worker = listed(&router).await.workers.remove(0);
    let session = worker.agent.clone().unwrap();
    assert_eq!((session.wanted_level(), worker.report_level()), (ReportLevel::Full, ReportLevel::Counts));
    assert!(session.shortfall.contains("no more than counts"), "{}", session.shortfall);
    assert!(session.units.is_empty());
    let metric = format!("espalier_agent_below_wanted_level{{worker=\"{}\",level=\"counts\"}} 1", sim.url());
    assert!(metrics(&router).await.contains(&metric));
    // A router that wants no more is content.
    let config = RouterConfig { report_level: LevelName::Counts, ..alert(Vec::new()) };
    let content = router_grpc::start(config).await.unwrap();
    let _other = agent(&sim, &[&content]);
    let is_there =
        async || listed(&content).await.workers.first().is_some_and(|worker| worker.agent.is_some());
    until("an agent is there", is_there).await;
    assert_eq!(listed(&content).await.workers[0].agent.as_ref().unwrap().shortfall, "");
}

async fn next(events: &mut Streaming<Event>, wanted: EventKind) -> Event {
    let found = async {
        loop {
            let event = events.message().await.unwrap().unwrap();
            if event.kind() == wanted {
                return event;
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap()
}

#[tokio::test]
async fn claims_that_nothing_vouches_for_raise_an_alarm() {
    let sim = Sim::start(fast()).await.unwrap();
    let api = ApiArgs { disable_stream_usage: true, ..RouterConfig::default().api };
    let router = router_grpc::start(RouterConfig { api, ..alert(vec![sim.url()]) }).await.unwrap();
    until_ready(&router, 1).await;
    let mut watching = admin(&router).await;
    let mut events = watching.watch_events(WatchEventsRequest {}).await.unwrap().into_inner();
    let client = HttpClient::of(&router);
    assert!(listed(&router).await.alarms.is_empty());
    for first in 0..20 {
        let body = json!({"model": "sim", "prompt": prompt(first, 300), "max_tokens": 2, "stream": true});
        assert_eq!(client.post("/v1/completions", &body).await.status, 200);
    }
    let event = next(&mut events, EventKind::Unvouched).await;
    assert_eq!((&event.worker_url, event.rank), (&sim.url(), Some(0)));
    assert!(event.detail.contains("no agent is connected"), "{}", event.detail);
    until("it is listed", async || !listed(&router).await.alarms.is_empty()).await;
    let alarm = listed(&router).await.alarms.remove(0);
    assert!(alarm.contains(&sim.url()) && alarm.contains("cache_aware"), "{alarm}");
    let shown = accuracy(&router).await;
    assert!(shown.unvouched && shown.checked_responses == 0 && shown.vouched_by == "nothing", "{shown:?}");
    let text = metrics(&router).await;
    assert!(text.contains("espalier_unvouched 1"), "{text}");
    let metric = format!("espalier_target_unvouched{{worker=\"{}\",rank=\"0\"}} 1", sim.url());
    assert!(text.contains(&metric), "{text}");
    // One response that tells is enough.
    client.post("/generate", &generate(&prompt(3, 300), 1)).await;
    next(&mut events, EventKind::Vouched).await;
    until("it is over", async || listed(&router).await.alarms.is_empty()).await;
    assert!(metrics(&router).await.contains("espalier_unvouched 0"));
}

#[tokio::test]
async fn engines_without_an_agent_are_asked_what_they_hold() {
    let sim = Sim::start(SimConfig { max_total_tokens: 4_000, ..fast() }).await.unwrap();
    let with = |engine_counts_interval_secs| {
        let claims = ClaimArgs { engine_counts_interval_secs, ..RouterConfig::default().claims };
        router_grpc::start(RouterConfig { claims, ..alert(vec![sim.url()]) })
    };
    let (asking, deaf) = (with(0.05).await.unwrap(), with(0.0).await.unwrap());
    for (router, firsts) in [(&asking, 1..3), (&deaf, 3..5)] {
        until_ready(router, 1).await;
        for first in firsts {
            HttpClient::of(router).post("/generate", &generate(&prompt(first, 700), 1)).await;
        }
        until("they are claimed", async || claimed(router, &sim).await.len() == 20).await;
    }
    let known = claimed(&asking, &sim).await;
    // Neither router sees what pushes them out.
    let foreign = HttpClient::at(&sim.url());
    let mut first = 100;
    until("what must be gone is not claimed", async || {
        first += 1;
        foreign.post("/generate", &generate(&prompt(first, 700), 1)).await;
        claimed(&asking, &sim).await.is_empty()
    })
    .await;
    assert!(known.is_disjoint(&held(&asking, &sim).await), "nothing was given up that was there");
    assert_eq!(claimed(&deaf, &sim).await.len(), 20, "who does not ask does not know");
    let shown = accuracy(&asking).await;
    let counts = shown.counts.unwrap();
    assert!(counts.asked_of_engine && counts.evicted_tokens_total.unwrap() > 4_000, "{counts:?}");
    assert!(shown.vouched_by.contains("the engine's own counts"), "{}", shown.vouched_by);
    assert_eq!(accuracy(&deaf).await.counts, None);
}

#[tokio::test]
async fn a_flush_behind_the_routers_back_is_found_by_counting() {
    let sim = Sim::start(fast()).await.unwrap();
    let claims = ClaimArgs { engine_counts_interval_secs: 0.05, ..RouterConfig::default().claims };
    let router = router_grpc::start(RouterConfig { claims, ..alert(vec![sim.url()]) }).await.unwrap();
    until_ready(&router, 1).await;
    let client = HttpClient::of(&router);
    for first in 0..20 {
        client.post("/generate", &generate(&prompt(first, 900), 1)).await;
    }
    until("all is claimed", async || claimed(&router, &sim).await.len() == 280).await;
    assert_eq!(HttpClient::at(&sim.url()).send("POST", "/flush_cache", String::new()).await.status, 200);
    // A margin of a 64th of the capacity: 4,096 tokens.
    until("no more is claimed than the margin", async || claimed(&router, &sim).await.len() <= 64).await;
    until("that is said", async || {
        let shown = accuracy(&router).await.divergence;
        shown.is_some_and(|it| it.source() == DivergenceSource::Counts && it.tokens <= 4_096)
    })
    .await;
}

#[tokio::test]
async fn ranks_are_counted_apart() {
    let sim = Sim::start(SimConfig { dp_size: 2, ..fast() }).await.unwrap();
    let claims = ClaimArgs { engine_counts_interval_secs: 0.05, ..RouterConfig::default().claims };
    let router = router_grpc::start(RouterConfig { claims, ..alert(vec![sim.url()]) }).await.unwrap();
    until_ready(&router, 1).await;
    let client = HttpClient::of(&router);
    for (rank, len) in [(0, 320), (1, 640)] {
        let body = json!({"input_ids": prompt(rank, len), "routed_dp_rank": rank,
            "sampling_params": {"max_new_tokens": 1}});
        assert_eq!(client.post("/generate", &body).await.status, 200);
    }
    until("each rank has its count", async || {
        let targets = listed(&router).await.workers.remove(0).targets;
        let counts = targets.into_iter().filter_map(|target| target.accuracy?.counts);
        counts.map(|counts| counts.held_tokens).collect::<Vec<_>>() == [320, 640]
    })
    .await;
}

/// What is said of the inference from a worker of which nothing is known but what its agent says.
async fn inference_of(
    eviction_policy: EvictionPolicy,
    cache_kind: WireCacheKind,
    lower_tier: Option<LowerTier>,
) -> (String, String) {
    let router = router_grpc::start(alert(Vec::new())).await.unwrap();
    let (say, said) = mpsc::channel(4);
    let hello = Hello {
        protocol_version: 1,
        worker_url: "http://127.0.0.1:9".to_owned(),
        incarnation: 100,
        dp_size: 1,
        page_size: 16,
        eviction_policy: eviction_policy.into(),
        cache_kind: cache_kind.into(),
        lower_tier,
        schemes: vec![SCHEME.to_owned()],
        max_level: ReportLevel::Counts.into(),
        ..Hello::default()
    };
    say.send(AgentMessage { message: Some(Said::Hello(hello)) }).await.unwrap();
    say.send(AgentMessage { message: Some(Said::Accept(Accept::default())) }).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", router.grpc_addr())).unwrap();
    let mut client = AgentClient::new(channel.connect().await.unwrap());
    let _hear = client.connect(ReceiverStream::new(said)).await.unwrap();
    until("its worker is there", async || !listed(&router).await.workers.is_empty()).await;
    (accuracy(&router).await.inference, metrics(&router).await)
}

#[tokio::test]
async fn where_evictions_tell_nothing_of_others_nothing_is_inferred_and_that_is_said() {
    for (policy, kind, reason, metric) in [
        (EvictionPolicy::Lru, WireCacheKind::Full, "on", "full"),
        (EvictionPolicy::Lru, WireCacheKind::Unspecified, "on", "unknown"),
        (
            EvictionPolicy::Other,
            WireCacheKind::Full,
            "off: the engine does not evict the least recently used leaf",
            "full",
        ),
        (
            EvictionPolicy::Lru,
            WireCacheKind::SlidingWindow,
            "off: the model has sliding windows",
            "sliding_window",
        ),
        (
            EvictionPolicy::Lru,
            WireCacheKind::RecurrentState,
            "off: the model has recurrent state",
            "recurrent_state",
        ),
    ] {
        let (inference, text) = inference_of(policy, kind, None).await;
        assert!(inference.starts_with(reason), "{inference}");
        let infers = u8::from(reason == "on");
        for family in [
            format!("espalier_infers_evictions{{worker=\"http://127.0.0.1:9\"}} {infers}"),
            format!("espalier_cache_kind{{worker=\"http://127.0.0.1:9\",kind=\"{metric}\"}} 1"),
        ] {
            assert!(text.contains(&family), "{family} is missing in\n{text}");
        }
    }
}

#[tokio::test]
async fn a_lower_tier_and_its_size_are_told() {
    for (capacity_tokens, size) in [(0, ""), (4096, " (4096 tokens beside those of the device)")] {
        let tier = LowerTier { capacity_tokens };
        let (inference, text) = inference_of(EvictionPolicy::Other, WireCacheKind::Full, Some(tier)).await;
        let expected = format!("off: what leaves the engine's device stays cached in a lower tier{size}, so");
        assert!(inference.starts_with(&expected), "{inference}");
        let metric = format!("espalier_lower_tier_tokens{{worker=\"http://127.0.0.1:9\"}} {capacity_tokens}");
        assert!(text.contains(&metric), "{metric} is missing in\n{text}");
    }
    let (_, text) = inference_of(EvictionPolicy::Other, WireCacheKind::Full, None).await;
    assert!(!text.contains("espalier_lower_tier_tokens{"), "{text}");
}

/// What a router claims of two prompts with 6 blocks in common, and 6 of their own, after one of them was found evicted, and whether it says
/// that this tells of the other.
async fn claims_after_an_eviction(cache_kind: CacheKind, with_agent: bool) -> (usize, String, String) {
    let config = SimConfig { max_total_tokens: 4_000, cache_kind, ..fast() };
    let sim = Sim::start(config).await.unwrap();
    let claims = ClaimArgs { engine_counts_interval_secs: 0.0, ..RouterConfig::default().claims };
    let config = RouterConfig { claims, report_level: LevelName::Counts, ..alert(vec![sim.url()]) };
    let router = router_grpc::start(config).await.unwrap();
    let _agent = with_agent.then(|| agent(&sim, &[&router]));
    until_ready(&router, 1).await;
    if with_agent {
        until("its agent is there", async || listed(&router).await.workers[0].agent.is_some()).await;
    }
    let (client, foreign) = (HttpClient::of(&router), HttpClient::at(&sim.url()));
    let branch = |second: u32| -> Vec<u32> { [prompt(1, 384), prompt(second, 400)].concat() };
    for second in [2, 3] {
        client.post("/generate", &generate(&branch(second), 1)).await;
    }
    until("both are counted", async || accuracy(&router).await.checked_responses == 2).await;
    assert_eq!(claimed(&router, &sim).await.len(), 18);
    for first in 100..110 {
        foreign.post("/generate", &generate(&prompt(first, 700), 1)).await;
    }
    assert_eq!(client.post("/generate", &generate(&branch(2), 1)).await.cached_tokens(), 0);
    until("the third is counted", async || accuracy(&router).await.checked_responses == 3).await;
    let inference = accuracy(&router).await.inference;
    (claimed(&router, &sim).await.len(), inference, metrics(&router).await.replace(&sim.url(), "URL"))
}

#[tokio::test]
async fn a_cache_with_another_pool_gets_no_inference_and_that_is_said() {
    for with_agent in [false, true] {
        let (claimed, inference, text) = claims_after_an_eviction(CacheKind::Full, with_agent).await;
        assert_eq!((claimed, inference.as_str()), (12, "on"));
        for family in [
            "espalier_infers_evictions{worker=\"URL\"} 1",
            "espalier_cache_kind{worker=\"URL\",kind=\"full\"} 1",
        ] {
            assert!(text.contains(family), "{family} is missing in\n{text}");
        }
        for (cache_kind, name) in
            [(CacheKind::SlidingWindow, "sliding_window"), (CacheKind::RecurrentState, "recurrent_state")]
        {
            let (claimed, inference, text) = claims_after_an_eviction(cache_kind, with_agent).await;
            assert_eq!(claimed, 18, "{name}: nothing follows for the other branch");
            assert!(inference.starts_with("off: ") && inference.contains(name), "{inference}");
            for family in [
                "espalier_infers_evictions{worker=\"URL\"} 0".to_owned(),
                format!("espalier_cache_kind{{worker=\"URL\",kind=\"{name}\"}} 1"),
            ] {
                assert!(text.contains(&family), "{family} is missing in\n{text}");
            }
        }
    }
}
