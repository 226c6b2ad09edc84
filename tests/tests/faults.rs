//! What becomes of requests whose worker fails, and of the worker.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use espalier_tests::upstream::{Act, Seen, Upstream, answer, chunk, chunked, raw};
use espalier_tests::{HttpClient, alert, metrics, until, until_ready};
use router_core::Load;
use router_grpc::{PolicyName, RouterConfig, RunningRouter};
use serde_json::json;

/// A router in front of scripted workers, which takes them in turn.
async fn before(upstreams: &[&Upstream], change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    let mut config = alert(upstreams.iter().map(|upstream| upstream.url()).collect());
    config.policy = PolicyName::RoundRobin;
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, upstreams.len()).await;
    router
}

/// An answer of a status, with more header lines.
fn says(status: &str, more: &str, body: &str) -> Vec<Act> {
    let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n{body}", body.len());
    vec![Act::Say(head.into_bytes())]
}

fn generate() -> serde_json::Value {
    json!({"text": "hello"})
}

/// Nothing is in flight any more, anywhere.
async fn until_idle(router: &RunningRouter) {
    until("nothing is in flight", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.targets.iter().all(|target| target.load.read() == Load::default())
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_cannot_is_asked_no_more_and_nobody_notices() {
    let bad = Upstream::start(1, |_: &Seen| says("503 Service Unavailable", "", "busy")).await;
    let good = Upstream::start(1, |_: &Seen| answer("{}")).await;
    let router = before(&[&bad, &good], |config| {
        config.faults.ejection_failures = 3;
        config.faults.ejection_secs = 1_000.0;
        config.faults.max_ejection_secs = 1_000.0;
        config.faults.slow_start_secs = 0.0;
    })
    .await;
    let client = HttpClient::of(&router);
    for _ in 0..40 {
        let answer = client.post("/generate", &generate()).await;
        assert_eq!((answer.status, answer.header("x-espalier-worker")), (200, &*good.url()));
    }
    assert_eq!(bad.requests().len(), 3, "three failures in a row, and none after them");
    let shown = metrics(&router).await;
    for line in ["espalier_ejections_total 1", "espalier_worker_faults_total{kind=\"status\"} 3"] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    until_idle(&router).await;
}

#[tokio::test]
async fn the_last_workers_own_words_are_passed_on() {
    let first = Upstream::start(1, |_: &Seen| says("503 Service Unavailable", "", "one is busy")).await;
    let second = Upstream::start(1, |_: &Seen| says("503 Service Unavailable", "", "two is busy")).await;
    let dying = Upstream::start(1, |_: &Seen| vec![Act::Close]).await;
    let router = before(&[&first, &second], |_| {}).await;
    let client = HttpClient::of(&router);
    let answer = client.post("/generate", &generate()).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text.ends_with("is busy"), "{}", answer.text);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1), "never the same one twice");
    until_idle(&router).await;
    // Also where what came after it brought nothing at all.
    let router = before(&[&first, &dying], |_| {}).await;
    let client = HttpClient::of(&router);
    let mut heard = 0;
    for _ in 0..4 {
        let answer = client.post("/generate", &generate()).await;
        heard += usize::from(answer.status == 503 && answer.header("x-espalier-worker") == first.url());
    }
    assert_eq!(heard, 4);
    until_idle(&router).await;
}

#[tokio::test]
async fn without_a_budget_answers_are_passed_on_as_they_are() {
    let bad = Upstream::start(1, |_: &Seen| says("503 Service Unavailable", "", "busy")).await;
    let good = Upstream::start(1, |_: &Seen| answer("{}")).await;
    let router = before(&[&bad, &good], |config| {
        config.faults.retry_budget = 0.0;
        config.faults.min_retries_per_sec = 0;
        config.faults.ejection_failures = 0;
    })
    .await;
    let client = HttpClient::of(&router);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.post("/generate", &generate()).await.status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503]);
    assert!(metrics(&router).await.contains("espalier_retries_refused_total 2"));
}

#[tokio::test]
async fn a_worker_that_asks_for_rest_gets_it() {
    let tired =
        Upstream::start(1, |_: &Seen| says("429 Too Many Requests", "retry-after: 600\r\n", "later")).await;
    let good = Upstream::start(1, |_: &Seen| answer("{}")).await;
    let router = before(&[&tired, &good], |config| config.faults.ejection_failures = 0).await;
    let client = HttpClient::of(&router);
    for _ in 0..10 {
        client.post("/generate", &generate()).await;
    }
    assert_eq!(tired.requests().len(), 1);
}

#[tokio::test]
async fn what_waits_at_a_worker_that_hangs_goes_elsewhere_once_it_is_unreachable() {
    let hangs = Upstream::start(1, |_: &Seen| vec![Act::Hang]).await;
    let good = Upstream::start(1, |_: &Seen| answer("{}")).await;
    let router = before(&[&hangs, &good], |config| config.health_check_timeout_secs = 0.05).await;
    let client = HttpClient::of(&router);
    // One of two goes to the one that hangs.
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { (client.post("/generate", &generate()).await, client.post("/generate", &generate()).await) }
    });
    until("it has the request", async || hangs.requests().len() == 1).await;
    let id = router.router().snapshot().fleet.worker_by_url(&hangs.url()).unwrap().id;
    hangs.stop();
    until("its checks fail", async || {
        let snapshot = router.router().snapshot();
        snapshot
            .fleet
            .workers
            .iter()
            .any(|worker| worker.id == id && worker.state == router_core::WorkerState::Unreachable)
    })
    .await;
    let (first, second) = waiting.await.unwrap();
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(good.requests().len(), 2);
    until_idle(&router).await;
}

#[tokio::test]
async fn a_deadline_ends_what_waits_and_what_streams() {
    let streams = Arc::new(AtomicBool::new(false));
    let script = streams.clone();
    let hangs = Upstream::start(1, move |_: &Seen| {
        if script.load(Ordering::Relaxed) {
            vec![chunked("content-type: text/event-stream\r\n"), chunk("data: {}\n\n"), Act::Hang]
        } else {
            vec![Act::Hang]
        }
    })
    .await;
    let router = before(&[&hangs], |_| {}).await;
    let ask = async |timeout: &str| {
        let body = generate().to_string();
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-request-timeout: {timeout}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        raw(router.http_addr(), &[&head, &body]).await
    };
    let refused = ask("soon").await;
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("invalid_request_timeout"), "{refused}");
    assert!(hangs.requests().is_empty());
    let late = ask("50ms").await;
    assert!(late.starts_with("HTTP/1.1 504") && late.contains("deadline_exceeded"), "{late}");
    assert!(hangs.requests()[0].header("x-request-timeout").is_empty());
    until("its connection was dropped", async || hangs.closed() == 1).await;
    streams.store(true, Ordering::Relaxed);
    let cut = ask("0.2").await;
    assert!(cut.starts_with("HTTP/1.1 200") && cut.contains("deadline_exceeded"), "{cut}");
    until_idle(&router).await;
}

#[tokio::test]
async fn a_stream_that_is_cut_says_so_in_the_words_of_its_api() {
    let cut = Upstream::start(1, |_: &Seen| {
        vec![chunked("content-type: text/event-stream\r\n"), chunk("data: {}\n\n"), Act::Close]
    })
    .await;
    let router = before(&[&cut], |_| {}).await;
    let client = HttpClient::of(&router);
    for (path, begins) in [("/generate", "data: {\"error\""), ("/v1/messages", "event: error\ndata: {")] {
        let answer = client.post(path, &generate()).await;
        let last = answer.text.trim_end().rsplit("\n\n").next().unwrap();
        assert!(last.starts_with(begins) && last.contains("stream_broken"), "{path}: {}", answer.text);
    }
    let shown = metrics(&router).await;
    assert!(shown.contains("espalier_worker_faults_total{kind=\"broken\"} 2"), "{shown}");
    until_idle(&router).await;
}
