//! Prefill and decode pools, end to end: pairs, what ties them together, and what becomes of either half's failure.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_proto::{AddWorkerRequest, ListWorkersRequest, WorkerRole};
use espalier_tests::upstream::{Act, Seen, Upstream, answer, chunk, chunked};
use espalier_tests::{
    HttpClient, admin, agent, alert, fast, generate, metrics, prompt, until, until_ready, worker,
};
use http_body_util::BodyExt as _;
use router_core::key::Unit;
use router_core::{Load, Role};
use router_grpc::{PoolConfig, RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::{DisaggregationMode, Sim, SimConfig};

async fn sim(mode: DisaggregationMode, change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut config = SimConfig { disaggregation_mode: mode, ..fast() };
    change(&mut config);
    Sim::start(config).await.unwrap()
}

async fn prefill_sim() -> Sim {
    sim(DisaggregationMode::Prefill, |_| {}).await
}

async fn decode_sim() -> Sim {
    sim(DisaggregationMode::Decode, |_| {}).await
}

/// A router whose workers say themselves what they are.
async fn before(sims: &[&Sim]) -> RunningRouter {
    before_with(sims, |_| {}).await
}

async fn before_with(sims: &[&Sim], change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    // One that died stays a candidate.
    let mut config = RouterConfig {
        health_failure_threshold: u32::MAX,
        ..alert(sims.iter().map(|sim| sim.url()).collect())
    };
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, sims.len()).await;
    router
}

/// A router of scripted workers, which are told apart by flags.
async fn of_scripts(prefill: &[&Upstream], decode: &[&Upstream]) -> RunningRouter {
    let pools = PoolConfig {
        prefill_worker_urls: prefill.iter().map(|worker| format!("{}@7777", worker.url())).collect(),
        decode_worker_urls: decode.iter().map(|worker| worker.url()).collect(),
    };
    let mut config = RouterConfig { pools, ..alert(Vec::new()) };
    config.faults.ejection_failures = 2;
    config.faults.ejection_secs = 1_000.0;
    config.faults.max_ejection_secs = 1_000.0;
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, prefill.len() + decode.len()).await;
    router
}

/// An error of the server.
fn fails(_: &Seen) -> Vec<Act> {
    vec![Act::Say(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".to_vec())]
}

fn body(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

async fn until_idle(router: &RunningRouter) {
    until("nothing is in flight", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.targets.iter().all(|target| target.load.read() == Load::default())
    })
    .await;
}

fn usage(cached: u64) -> String {
    json!({"text": "a", "meta_info": {"prompt_tokens": 256, "cached_tokens": cached, "x": 0}}).to_string()
}

#[tokio::test]
async fn a_pair_serves_whole_answers_and_streams_of_every_api() {
    let (prefill, decode) = (prefill_sim().await, decode_sim().await);
    let router = before(&[&prefill, &decode]).await;
    assert_eq!(worker(&router, &prefill.url()).unwrap().role, Role::Prefill);
    assert_eq!(worker(&router, &decode.url()).unwrap().role, Role::Decode);
    let client = HttpClient::of(&router);
    let first = client.post("/generate", &generate(&prompt(1, 400), 5)).await;
    assert_eq!(first.status, 200, "{}", first.text);
    assert_eq!(first.header("x-espalier-worker"), decode.url());
    assert_eq!(first.header("x-espalier-prefill-worker"), prefill.url());
    assert_eq!(first.json()["output_ids"].as_array().unwrap().len(), 5);
    let mut stream = generate(&prompt(1, 400), 5);
    stream["stream"] = json!(true);
    let streamed = client.post("/generate", &stream).await;
    assert!(streamed.text.ends_with("data: [DONE]\n\n"), "{}", streamed.text);
    assert!(streamed.text.contains("\"cached_tokens\":384"), "what the prefill side had cached");
    let chat =
        json!({"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 3, "stream": true});
    assert!(client.post("/v1/chat/completions", &chat).await.text.ends_with("data: [DONE]\n\n"));
    let two = json!({"prompt": ["one two", "three four"], "max_tokens": 2});
    let both = client.post("/v1/completions", &two).await;
    assert_eq!(both.json()["choices"].as_array().unwrap().len(), 2, "{}", both.text);
    // What was generated, and where: the prompts here, the outputs there.
    assert_eq!(decode.stats(0).unwrap().totals.prefilled_tokens, 0);
    assert!(prefill.stats(0).unwrap().totals.prefilled_tokens >= 400);
    assert_eq!(client.send("GET", "/v1/models", String::new()).await.status, 200, "any worker can say that");
    until_idle(&router).await;
}

#[tokio::test]
async fn both_halves_get_the_client_s_bytes_and_the_same_fields() {
    let done = |seen: &Seen| answer(&usage(u64::from(seen.body.contains(&b'7'))));
    let (prefill, decode) = (Upstream::start(2, done).await, Upstream::start(1, done).await);
    let router = of_scripts(&[&prefill], &[&decode]).await;
    until("both ranks are known", async || router.router().snapshot().fleet.targets.len() == 3).await;
    let client = HttpClient::of(&router);
    let given = r#"{ "text":"a" , "bootstrap_host":"evil","bootstrap_room":1,"routed_dp_rank":1 } "#;
    assert_eq!(client.send("POST", "/generate", given.to_owned()).await.status, 200);
    until("both have it", async || prefill.requests().len() + decode.requests().len() == 2).await;
    let (at_prefill, at_decode) = (prefill.requests().remove(0), decode.requests().remove(0));
    let kept = given.trim_end().trim_end_matches('}').as_bytes();
    assert!(at_prefill.body.starts_with(kept) && at_decode.body.starts_with(kept), "byte for byte");
    let (one, other) = (body(&at_prefill), body(&at_decode));
    let room = one["bootstrap_room"].as_u64().unwrap();
    assert_eq!((&one["bootstrap_host"], &one["bootstrap_port"]), (&json!("127.0.0.1"), &json!(7777)));
    for field in ["bootstrap_host", "bootstrap_port", "bootstrap_room", "disagg_prefill_dp_rank"] {
        assert_eq!(one[field], other[field], "{field}");
    }
    assert!(room > 1 && room < 1 << 63 && room % 2 == 1, "63 bits, and the rank that was asked for: {room}");
    assert_eq!((&one["routed_dp_rank"], &one["disagg_prefill_dp_rank"]), (&json!(1), &json!(1)));
    assert_eq!(other["routed_dp_rank"], 0, "the rank that was asked for is not the decode worker's");
    // Lists for lists, each prompt with a room of its own, and a new one every time.
    client.post("/generate", &json!({"text": ["a", "b"]})).await;
    until("both have it", async || prefill.requests().len() + decode.requests().len() == 4).await;
    let lists = body(&decode.requests().remove(1));
    let rooms = lists["bootstrap_room"].as_array().unwrap().clone();
    assert_eq!(lists["bootstrap_host"], json!(["127.0.0.1", "127.0.0.1"]));
    assert_eq!(lists["bootstrap_port"], json!([7777, 7777]));
    assert!(rooms.len() == 2 && rooms[0] != rooms[1] && rooms[0] != json!(room), "{rooms:?}");
    assert_eq!(lists["bootstrap_room"], body(&prefill.requests().remove(1))["bootstrap_room"]);
}

#[tokio::test]
async fn prefixes_stay_at_their_prefill_worker_and_decode_workers_claim_nothing() {
    let (one, two) = (prefill_sim().await, prefill_sim().await);
    let (small, large) =
        (sim(DisaggregationMode::Decode, |config| config.max_total_tokens = 4_096).await, decode_sim().await);
    let router = before(&[&one, &two, &small, &large]).await;
    let client = HttpClient::of(&router);
    for first in 0..4 {
        let fresh = client.post("/generate", &generate(&prompt(first, 2_000), 1)).await;
        let home = fresh.header("x-espalier-prefill-worker").to_owned();
        assert_eq!(fresh.header("x-espalier-worker"), large.url(), "half of the small pool would be full");
        let snapshot = router.router().snapshot();
        let id = snapshot.fleet.worker_by_url(&home).unwrap().id;
        let target = snapshot.fleet.targets_of(id).next().unwrap().id;
        until("the prompt is claimed", async || !router.claims(target, Unit::Token).await.is_empty()).await;
        for _ in 0..3 {
            let again = client.post("/generate", &generate(&prompt(first, 2_000), 1)).await;
            assert_eq!(again.header("x-espalier-prefill-worker"), home);
            assert_eq!(again.header("x-espalier-predicted-tokens"), "1984");
            assert_eq!(again.cached_tokens(), 1_984);
        }
    }
    let snapshot = router.router().snapshot();
    for sim in [&small, &large] {
        let id = snapshot.fleet.worker_by_url(&sim.url()).unwrap().id;
        let target = snapshot.fleet.targets_of(id).next().unwrap().id;
        assert!(router.claims(target, Unit::Token).await.is_empty());
    }
}

#[tokio::test]
async fn what_an_agent_reports_of_a_decode_pool_decides() {
    let (prefill, busy, free) = (prefill_sim().await, decode_sim().await, decode_sim().await);
    let router = before(&[&prefill, &busy, &free]).await;
    let _agents = [agent(&busy, &[&router]), agent(&free, &[&router])];
    // Somebody else's work: a long output over a long prompt, of which this router knows nothing but the report.
    let other = before(&[&prefill, &busy]).await;
    let request = generate(&prompt(9, 100_000), 50_000);
    let foreign = tokio::spawn(async move { HttpClient::of(&other).post("/generate", &request).await });
    until("the report is here", async || {
        let snapshot = router.router().snapshot();
        let id = snapshot.fleet.worker_by_url(&busy.url()).unwrap().id;
        snapshot.fleet.targets_of(id).any(|target| target.foreign_used_tokens > 90_000)
    })
    .await;
    let client = HttpClient::of(&router);
    for first in 0..8 {
        let answer = client.post("/generate", &generate(&prompt(first, 100), 1)).await;
        assert_eq!(answer.header("x-espalier-worker"), free.url());
    }
    assert_eq!(worker(&router, &busy.url()).unwrap().role, Role::Decode, "the agent says it too");
    foreign.abort();
}

#[tokio::test]
async fn a_prefill_worker_that_dies_takes_the_waiting_decode_half_with_it() {
    let prefill = Upstream::start(1, |_| vec![Act::Close]).await;
    let decode = Upstream::start(1, |_| vec![Act::Hang]).await;
    let router = of_scripts(&[&prefill], &[&decode]).await;
    let left = decode.closed();
    let lost = HttpClient::of(&router).post("/generate", &generate(&prompt(1, 256), 1)).await;
    assert_eq!((lost.status, &lost.json()["error"]["code"]), (502, &json!("worker_lost")));
    until("both decode halves are cancelled", async || decode.closed() >= left + 2).await;
    let rooms: Vec<_> = decode.requests().iter().map(|seen| body(seen)["bootstrap_room"].clone()).collect();
    assert!(rooms.len() == 2 && rooms[0] != rooms[1], "repeated once, in a new room: {rooms:?}");
    until_idle(&router).await;
}

#[tokio::test]
async fn workers_of_either_pool_that_fail_are_left_out() {
    let done = |_: &Seen| answer(&usage(0));
    for bad_prefills in [true, false] {
        let (bad, good) = (Upstream::start(1, fails).await, Upstream::start(1, done).await);
        let other = Upstream::start(1, done).await;
        let router = match bad_prefills {
            true => of_scripts(&[&bad, &good], &[&other]).await,
            false => of_scripts(&[&other], &[&bad, &good]).await,
        };
        let client = HttpClient::of(&router);
        let mut first = 0;
        until("it has failed twice", async || {
            // Another prompt each time, lest all follow the first one's prefix.
            first += 1;
            client.post("/generate", &generate(&prompt(first, 256), 1)).await;
            metrics(&router).await.contains("espalier_ejections_total 1")
        })
        .await;
        let asked = bad.requests().len();
        for first in 100..110 {
            assert_eq!(client.post("/generate", &generate(&prompt(first, 256), 1)).await.status, 200);
        }
        assert_eq!(bad.requests().len(), asked);
        until_idle(&router).await;
    }
}

#[tokio::test]
async fn a_prefill_worker_that_dies_is_replaced() {
    let (doomed, other, decode) = (prefill_sim().await, prefill_sim().await, decode_sim().await);
    let router = before(&[&doomed, &other, &decode]).await;
    doomed.kill().await;
    let client = HttpClient::of(&router);
    for first in 0..8 {
        let mut request = generate(&prompt(first, 100), 2);
        request["stream"] = json!(first % 2 == 0);
        let answer = client.post("/generate", &request).await;
        assert_eq!((answer.status, answer.header("x-espalier-prefill-worker")), (200, &*other.url()));
        assert!(!answer.text.contains("\"error\""), "{}", answer.text);
    }
    until_idle(&router).await;
}

#[tokio::test]
async fn a_decode_worker_that_dies_before_its_first_byte_is_replaced() {
    let prefill = prefill_sim().await;
    let (doomed, other) = (decode_sim().await, decode_sim().await);
    let router = before(&[&prefill, &doomed, &other]).await;
    doomed.kill().await;
    let client = HttpClient::of(&router);
    for first in 0..8 {
        let mut request = generate(&prompt(first, 100), 2);
        request["stream"] = json!(first % 2 == 0);
        let answer = client.post("/generate", &request).await;
        assert_eq!((answer.status, answer.header("x-espalier-worker")), (200, &*other.url()));
        assert!(!answer.text.contains("\"error\""), "{}", answer.text);
    }
    until_idle(&router).await;
}

#[tokio::test]
async fn a_decode_worker_that_says_why_it_failed_is_replaced_and_else_its_words_are_passed_on() {
    let head = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 15\r\n\r\nKVTransferError";
    let failing = Upstream::start(1, move |_| vec![Act::Say(head.as_bytes().to_vec())]).await;
    let event = "data: {\"error\":{\"message\":\"KVTransferError\",\"code\":500}}\n\n";
    let in_stream = Upstream::start(1, move |_| {
        vec![chunked("content-type: text/event-stream\r\n"), chunk(event), chunk("")]
    })
    .await;
    let good = Upstream::start(1, |_| answer(&usage(0))).await;
    let other = Upstream::start(1, |_| answer(&usage(0))).await;
    for bad in [&failing, &in_stream] {
        let router = of_scripts(&[&good], &[bad, &other]).await;
        let client = HttpClient::of(&router);
        for first in 0..6 {
            let answered = client.post("/generate", &generate(&prompt(first, 256), 1)).await;
            assert_eq!((answered.status, answered.text.contains("KVTransferError")), (200, false));
        }
        let router = of_scripts(&[&good], &[bad]).await;
        let client = HttpClient::of(&router);
        let answered = client.post("/generate", &generate(&prompt(1, 256), 1)).await;
        assert!(answered.text.contains("KVTransferError"), "{}", answered.text);
        until_idle(&router).await;
    }
    assert!(!failing.requests().is_empty() && !in_stream.requests().is_empty(), "they were tried");
}

#[tokio::test]
async fn a_request_that_the_prefill_worker_refuses_is_answered_with_its_words() {
    let refusal = "HTTP/1.1 400 Bad Request\r\ncontent-length: 8\r\n\r\ntoo long";
    let prefill = Upstream::start(1, move |_| vec![Act::Say(refusal.as_bytes().to_vec())]).await;
    let decode = Upstream::start(1, |_| vec![Act::Hang]).await;
    let router = of_scripts(&[&prefill], &[&decode]).await;
    let answered = HttpClient::of(&router).post("/generate", &generate(&prompt(1, 256), 1)).await;
    assert_eq!((answered.status, &*answered.text), (400, "too long"));
    assert_eq!(answered.header("x-espalier-worker"), prefill.url());
    assert_eq!(prefill.requests().len(), 1, "nothing is repeated that is wrong");
    until_idle(&router).await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_both_halves() {
    let hang = |_: &Seen| vec![Act::Hang];
    let stream = |_: &Seen| {
        vec![chunked("content-type: text/event-stream\r\n"), chunk("data: {\"text\":\"a\"}\n\n"), Act::Hang]
    };
    let prefill = Upstream::start(1, hang).await;
    for decode in [Upstream::start(1, hang).await, Upstream::start(1, stream).await] {
        let router = of_scripts(&[&prefill], &[&decode]).await;
        let client = HttpClient::of(&router);
        let (at_prefill, left) = (prefill.requests().len(), (prefill.closed(), decode.closed()));
        let request = tokio::spawn(async move {
            let request = generate(&prompt(1, 256), 1).to_string();
            let mut answer = client.open("POST", "/generate", request).await.into_body();
            while answer.frame().await.is_some() {}
        });
        until("both are under way", async || {
            prefill.requests().len() > at_prefill && decode.requests().len() == 1
        })
        .await;
        request.abort();
        until("both connections are closed", async || prefill.closed() > left.0 && decode.closed() > left.1)
            .await;
        until_idle(&router).await;
    }
}

#[tokio::test]
async fn a_decode_worker_that_dies_in_the_middle_ends_the_stream_with_an_error_and_the_prefill_with_it() {
    let prefill = Upstream::start(1, |_| vec![Act::Hang]).await;
    let decode = Upstream::start(1, |_| {
        vec![chunked("content-type: text/event-stream\r\n"), chunk("data: {\"text\":\"a\"}\n\n"), Act::Close]
    })
    .await;
    let router = of_scripts(&[&prefill], &[&decode]).await;
    let left = prefill.closed();
    let answer = HttpClient::of(&router).post("/generate", &generate(&prompt(1, 256), 1)).await;
    assert!(answer.text.contains("stream_broken"), "{}", answer.text);
    until("the prefill is cancelled", async || prefill.closed() > left).await;
    until_idle(&router).await;
}

#[tokio::test]
async fn what_was_cached_is_taken_from_the_prefill_worker_s_answer() {
    let prefill = Upstream::start(1, |_| answer(&usage(0))).await;
    let decode = Upstream::start(1, |_| answer(&usage(240))).await;
    let router = of_scripts(&[&prefill], &[&decode]).await;
    let client = HttpClient::of(&router);
    let id = worker(&router, &prefill.url()).unwrap().id;
    let target = router.router().snapshot().fleet.targets_of(id).next().unwrap().id;
    for first in [1, 2] {
        client.post("/generate", &generate(&prompt(first, 256), 1)).await;
    }
    until("both prompts are claimed", async || router.claims(target, Unit::Token).await.len() == 8).await;
    // The prefill worker says that nothing of it is cached any more: so what was used earlier is gone too.
    let again = client.post("/generate", &generate(&prompt(2, 256), 1)).await;
    assert_eq!(again.header("x-espalier-predicted-tokens"), "240");
    until("the older prompt is gone", async || router.claims(target, Unit::Token).await.len() == 4).await;
    until("and counted", async || {
        let text = metrics(&router).await;
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        value("espalier_prompt_tokens_total") == Some(768.0)
            && value("espalier_cached_tokens_total") == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn an_empty_pool_is_named_unless_a_unified_worker_takes_its_place() {
    let (prefill, unified) = (prefill_sim().await, sim(DisaggregationMode::Null, |_| {}).await);
    let router = before(&[&prefill]).await;
    let client = HttpClient::of(&router);
    let request = generate(&prompt(1, 100), 1);
    let refused = client.post("/generate", &request).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("pool_empty")));
    assert!(refused.text.contains("no decode worker is ready"), "{}", refused.text);
    // Roles and ports may also be said where workers are added.
    let mut admin = admin(&router).await;
    let add = AddWorkerRequest { url: unified.url(), ..AddWorkerRequest::default() };
    admin.add_worker(add).await.unwrap();
    until_ready(&router, 2).await;
    let whole = client.post("/generate", &request).await;
    assert_eq!((whole.status, whole.header("x-espalier-worker")), (200, &*unified.url()));
    assert_eq!(whole.header("x-espalier-prefill-worker"), "");
    let decode = decode_sim().await;
    let add = AddWorkerRequest { url: decode.url(), role: WorkerRole::Decode.into(), bootstrap_port: 0 };
    admin.add_worker(add).await.unwrap();
    until_ready(&router, 3).await;
    let shared = client.post("/generate", &request).await;
    assert_eq!((shared.status, shared.header("x-espalier-worker")), (200, &*decode.url()));
    let listed = admin.list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers;
    let roles: Vec<_> = listed.iter().map(|worker| worker.role()).collect();
    assert_eq!(roles, [WorkerRole::Prefill, WorkerRole::Unified, WorkerRole::Decode]);
    assert!(listed[0].bootstrap_port.is_some() && listed[1].bootstrap_port.is_none());
    let bad = AddWorkerRequest { url: "http://h:1".to_owned(), role: 0, bootstrap_port: 70_000 };
    assert!(admin.add_worker(bad).await.unwrap_err().message().contains("bootstrap_port"));
}
