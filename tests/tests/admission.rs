//! Bounds on what is in flight, and the queue before them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;

use espalier_tests::upstream::{Act, Seen, Upstream, answer, chunk, chunked};
use espalier_tests::{Answer, HttpClient, alert, metrics, until, until_ready};
use router_core::Load;
use router_grpc::{PoolConfig, RouterConfig, RunningRouter};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A worker that answers one request each time it is told to.
struct Gated {
    upstream: Upstream,
    gate: Arc<Notify>,
}

impl Gated {
    async fn start() -> Self {
        let gate = Arc::new(Notify::new());
        let opens = gate.clone();
        let upstream = Upstream::start(1, move |_: &Seen| {
            let mut acts = vec![Act::Await(opens.clone())];
            acts.extend(answer("{}"));
            acts
        })
        .await;
        Self { upstream, gate }
    }

    fn url(&self) -> String {
        self.upstream.url()
    }

    /// The names of the requests that came, in their order.
    fn names(&self) -> Vec<String> {
        let name = |seen: &Seen| serde_json::from_slice::<Value>(&seen.body).unwrap()["rid"].clone();
        self.upstream.requests().iter().map(|seen| name(seen).as_str().unwrap().to_owned()).collect()
    }

    async fn until_count(&self, count: usize) {
        until("so many requests have come", async || self.upstream.requests().len() == count).await;
    }

    /// Lets it answer until it has seen so many requests.
    async fn drain(&self, count: usize) {
        for seen in self.upstream.requests().len()..=count {
            self.until_count(seen.min(count)).await;
            self.gate.notify_one();
        }
    }
}

async fn bounded(urls: Vec<String>, change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    let count = urls.len();
    let mut config = alert(urls);
    config.admission.max_concurrent_requests_per_target = 1;
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, count).await;
    router
}

fn named(name: &str) -> Value {
    json!({"text": name, "rid": name})
}

fn send(client: &HttpClient, body: Value) -> JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.post("/generate", &body).await })
}

async fn until_waiting(router: &RunningRouter, count: usize) {
    let line = format!("espalier_queue_waiting_requests {count}\n");
    until("so many wait", async || metrics(router).await.contains(&line)).await;
}

async fn until_idle(router: &RunningRouter) {
    until("nothing is in flight", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.targets.iter().all(|target| target.load.read() == Load::default())
    })
    .await;
}

#[tokio::test]
async fn no_worker_gets_more_than_its_bound_and_everybody_is_served() {
    let workers = [Gated::start().await, Gated::start().await];
    let router = bounded(workers.iter().map(Gated::url).collect(), |_| {}).await;
    let client = HttpClient::of(&router);
    let answers: Vec<_> = (0..6).map(|at| send(&client, named(&at.to_string()))).collect();
    until_waiting(&router, 4).await;
    assert!(workers.iter().all(|worker| worker.upstream.requests().len() == 1));
    // One worker alone takes all that wait.
    workers[1].drain(5).await;
    workers[0].gate.notify_one();
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!((workers[0].upstream.requests().len(), workers[1].upstream.requests().len()), (1, 5));
    until_idle(&router).await;
    until_waiting(&router, 0).await;
}

#[tokio::test]
async fn priorities_go_first_and_tenants_in_turn() {
    let worker = Gated::start().await;
    let router = bounded(vec![worker.url()], |config| {
        config.admission.tenant_header = "x-team".to_owned();
        config.admission.tenant_weights = vec!["heavy=2".to_owned()];
    })
    .await;
    let of = |team: &str, priority: &str| {
        HttpClient::of(&router).with_header("x-team", team).with_header("x-espalier-priority", priority)
    };
    let mut answers = vec![send(&of("a", "0"), named("first"))];
    worker.until_count(1).await;
    let sent = [
        ("light", "0", "light 1"),
        ("light", "0", "light 2"),
        ("light", "5", "light urgent"),
        ("heavy", "0", "heavy 1"),
        ("heavy", "0", "heavy 2"),
        ("heavy", "0", "heavy 3"),
        ("heavy", "0", "heavy 4"),
    ];
    for (at, (team, priority, name)) in sent.into_iter().enumerate() {
        answers.push(send(&of(team, priority), named(name)));
        until_waiting(&router, at + 1).await;
    }
    worker.drain(8).await;
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let names = worker.names();
    let of_team =
        |team: &str| -> Vec<String> { names.iter().filter(|name| name.starts_with(team)).cloned().collect() };
    assert_eq!(of_team("light"), ["light urgent", "light 1", "light 2"]);
    assert_eq!(of_team("heavy"), ["heavy 1", "heavy 2", "heavy 3", "heavy 4"]);
    // Of the first six that waited four are of the tenant with twice the weight.
    assert_eq!(names[1..7].iter().filter(|name| name.starts_with("heavy")).count(), 4, "{names:?}");
}

#[tokio::test]
async fn whoever_has_the_longest_prefix_cached_goes_first() {
    let worker = Gated::start().await;
    let router = bounded(vec![worker.url()], |_| {}).await;
    let client = HttpClient::of(&router);
    let long = "a system prompt that many share. ".repeat(100);
    let mut answers = vec![send(&client, json!({"text": format!("{long} first"), "rid": "first"}))];
    worker.until_count(1).await;
    until("its prompt is claimed", async || router.router().snapshot().size.blocks > 0).await;
    answers.push(send(&client, json!({"text": "something else. ".repeat(100), "rid": "other"})));
    until_waiting(&router, 1).await;
    answers.push(send(&client, json!({"text": format!("{long} second"), "rid": "second"})));
    until_waiting(&router, 2).await;
    worker.drain(3).await;
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(worker.names(), ["first", "second", "other"]);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let worker = Gated::start().await;
    let router = bounded(vec![worker.url()], |config| config.admission.queue_size = 1).await;
    let client = HttpClient::of(&router);
    let first = send(&client, named("first"));
    worker.until_count(1).await;
    let second = send(&client, named("second"));
    until_waiting(&router, 1).await;
    let refused = client.post("/v1/completions", &json!({"prompt": "third"})).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&seconds));
    // Another tenant's first request has more right to the place than the second one's.
    let other = send(&client.clone().with_header("x-espalier-priority", "1"), named("urgent"));
    let displaced = second.await.unwrap();
    assert_eq!((displaced.status, &displaced.json()["error"]["code"]), (429, &json!("queue_full")));
    worker.drain(2).await;
    assert_eq!((first.await.unwrap().status, other.await.unwrap().status), (200, 200));
    assert_eq!(worker.names(), ["first", "urgent"]);
    let shown = metrics(&router).await;
    for line in [
        "espalier_queue_refused_total{reason=\"full\"} 1",
        "espalier_queue_refused_total{reason=\"displaced\"} 1",
        "espalier_failures_total{code=\"queue_full\",source=\"router\"} 2",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    let worker = Gated::start().await;
    let router = bounded(vec![worker.url()], |config| config.admission.queue_timeout_secs = 0.02).await;
    let client = HttpClient::of(&router);
    let first = send(&client, named("first"));
    worker.until_count(1).await;
    let refused = client.post("/generate", &named("second")).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("queue_timeout")));
    assert!(!refused.header("retry-after").is_empty());
    let hurried = client.clone().with_header("x-request-timeout", "1ms");
    assert_eq!(hurried.post("/generate", &named("third")).await.status, 504);
    worker.drain(1).await;
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(worker.names(), ["first"]);
    until_idle(&router).await;
}

#[tokio::test]
async fn whoever_leaves_is_out_of_the_queue_at_once() {
    let worker = Gated::start().await;
    let router = bounded(vec![worker.url()], |_| {}).await;
    let first = send(&HttpClient::of(&router), named("first"));
    worker.until_count(1).await;
    let second = send(&HttpClient::of(&router), named("second"));
    until_waiting(&router, 1).await;
    second.abort();
    until_waiting(&router, 0).await;
    worker.drain(1).await;
    assert_eq!(first.await.unwrap().status, 200);
    until_idle(&router).await;
    assert_eq!(worker.names(), ["first"]);
}

#[tokio::test]
async fn control_calls_do_not_wait_and_streams_hold_their_place_to_their_end() {
    let gate = Arc::new(Notify::new());
    let opens = gate.clone();
    let worker = Upstream::start(1, move |seen: &Seen| {
        if !seen.head.starts_with("POST /generate ") {
            return answer("{}");
        }
        let chunks = [chunked("content-type: text/event-stream\r\n"), chunk("data: {}\n\n")];
        let mut acts = chunks.to_vec();
        acts.push(Act::Await(opens.clone()));
        acts.push(chunk(""));
        acts
    })
    .await;
    let router = bounded(vec![worker.url()], |config| {
        config.admission.max_concurrent_requests_per_target = 0;
        config.admission.max_concurrent_requests = 1;
    })
    .await;
    let client = HttpClient::of(&router);
    let stream = json!({"text": "a", "stream": true}).to_string();
    let first = client.open("POST", "/generate", stream.clone()).await;
    assert_eq!(first.status(), 200);
    let second = tokio::spawn({
        let client = client.clone();
        async move { client.send("POST", "/generate", stream).await }
    });
    until_waiting(&router, 1).await;
    assert_eq!(client.send("POST", "/flush_cache", String::new()).await.status, 200);
    until_waiting(&router, 1).await;
    // Leaving makes room.
    drop(first);
    until_waiting(&router, 0).await;
    gate.notify_waiters();
    until("the second one has come", async || {
        gate.notify_waiters();
        second.is_finished()
    })
    .await;
    assert_eq!(second.await.unwrap().status, 200);
    until_idle(&router).await;
}

#[tokio::test]
async fn a_worker_that_comes_takes_what_waits() {
    let (worker, later) = (Gated::start().await, Gated::start().await);
    let router = bounded(vec![worker.url()], |_| {}).await;
    let client = HttpClient::of(&router);
    let first = send(&client, named("first"));
    worker.until_count(1).await;
    let second = send(&client, named("second"));
    until_waiting(&router, 1).await;
    let mut admin = espalier_tests::admin(&router).await;
    let request = espalier_proto::AddWorkerRequest { url: later.url(), ..Default::default() };
    admin.add_worker(request).await.unwrap();
    later.until_count(1).await;
    later.gate.notify_one();
    assert_eq!(second.await.unwrap().header("x-espalier-worker"), later.url());
    worker.gate.notify_one();
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test]
async fn pairs_wait_for_both_of_their_workers() {
    let (prefill, decode) = (Gated::start().await, Gated::start().await);
    let pools =
        PoolConfig { prefill_worker_urls: vec![prefill.url()], decode_worker_urls: vec![decode.url()] };
    let mut config = alert(Vec::new());
    config.pools = pools;
    config.admission.max_concurrent_requests_per_target = 1;
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 2).await;
    let client = HttpClient::of(&router);
    let first = send(&client, named("first"));
    decode.until_count(1).await;
    prefill.until_count(1).await;
    let second = send(&client, named("second"));
    until_waiting(&router, 1).await;
    for count in [1, 2] {
        decode.until_count(count).await;
        prefill.until_count(count).await;
        prefill.gate.notify_one();
        decode.gate.notify_one();
    }
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    until_idle(&router).await;
}

#[tokio::test]
async fn headers_that_mean_nothing_are_refused() {
    let worker = Upstream::start(1, |_: &Seen| answer("{}")).await;
    let router = bounded(vec![worker.url()], |_| {}).await;
    let client = HttpClient::of(&router);
    let answer =
        client.clone().with_header("x-espalier-priority", "soon").post("/generate", &named("a")).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("invalid_priority")));
    let long = "x".repeat(200);
    let answer = client.clone().with_header("x-espalier-tenant", &long).post("/generate", &named("a")).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("invalid_tenant")));
    assert_eq!(
        client.with_header("x-espalier-priority", "9").post("/generate", &named("a")).await.status,
        200
    );
    assert!(worker.requests()[0].header("x-espalier-priority").is_empty());
}
