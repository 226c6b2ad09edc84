//! The data plane's contract, over the wire: what is refused and how, what passes and what does not, what a worker's faults become.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::upstream::{Act, Upstream, answer, chunk, chunked, raw};
use espalier_tests::{HttpClient, alert, fast, generate, metrics, prompt, until, until_ready};
use http_body_util::BodyExt as _;
use router_core::key::Unit;
use router_grpc::{PolicyName, RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::{Sim, SimConfig};

/// A router in front of one scripted worker.
async fn before(upstream: &Upstream, change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    let mut config = alert(vec![upstream.url()]);
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 1).await;
    router
}

/// Sends a request as it stands, asking for the connection to be closed, and returns head and body of the answer.
async fn ask(router: &RunningRouter, head: &str, body: &str) -> (String, String) {
    let request = format!("{head}\r\nhost: router\r\nconnection: close\r\n\r\n{body}");
    split(&raw(router.http_addr(), &[&request]).await)
}

fn split(answer: &str) -> (String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    (head.to_owned(), body.to_owned())
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn what_is_refused_is_refused_clearly_and_says_who_is_at_fault() {
    let upstream = Upstream::start(1, |_| answer("{}")).await;
    let router = before(&upstream, |config| {
        config.api_key = Some("k3y".to_owned());
        config.max_payload_size = 200;
    })
    .await;
    let post = |path: &str, more: &str, body: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nauthorization: Bearer k3y\r\n{more}");
        (format!("{head}content-length: {}", body.len()), body.to_owned())
    };
    let bare = |head: &str| (head.to_owned(), String::new());
    let long = "POST /generate HTTP/1.1\r\nauthorization: bearer k3y\r\n";
    let chunks = format!("{long}transfer-encoding: chunked");
    let chunked_body = format!("c8\r\n{}\r\n1\r\nx\r\n0\r\n\r\n", "s".repeat(200));
    let cases: Vec<((String, String), u16, &str, &str)> = vec![
        (bare(&format!("{long}content-length: 201")), 413, "body_too_large", "client"),
        ((chunks, chunked_body), 413, "body_too_large", "client"),
        (bare("POST /generate HTTP/1.1\r\ncontent-length: 0"), 401, "invalid_api_key", "client"),
        (bare("GET /v1/models HTTP/1.1\r\nauthorization: Bearer k3x"), 401, "invalid_api_key", "client"),
        (post("/generate", "", r#"{"text":"s3cret"#), 400, "malformed_json", "client"),
        (post("/v1/chat/completions", "", r#"["s3cret"]"#), 400, "malformed_json", "client"),
        (post("/generate", "", r#"{"text":{"s3cret":1}}"#), 400, "invalid_field", "client"),
        (post("/v1/completions", "", r#"{"prompt":7,"x":"s3cret"}"#), 400, "invalid_field", "client"),
        (post("/v1/chat/completions", "", r#"{"messages":"s3cret"}"#), 400, "invalid_field", "client"),
        (
            post("/v1/chat/completions", "x-data-parallel-rank: a\r\n", r#"{"messages":[]}"#),
            400,
            "invalid_field",
            "client",
        ),
        (post("/generate", "", r#"{"text":"s3cret","routed_dp_rank":9}"#), 400, "unknown_dp_rank", "client"),
        (
            bare("CONNECT s3cret:443 HTTP/1.1\r\nauthorization: Bearer k3y"),
            405,
            "connect_not_served",
            "client",
        ),
    ];
    for ((head, body), wanted, code, source) in cases {
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let (answered, text) = ask(&router, &head, &body).await;
        assert_eq!(status(&answered), wanted, "{head}\n{answered}\n{text}");
        assert!(answered.contains(&format!("x-espalier-error-source: {source}")), "{answered}");
        assert!(!text.contains("s3cret") && !text.contains("k3y"), "{text}");
        let error = serde_json::from_str::<Value>(&text).unwrap()["error"].clone();
        assert_eq!((&error["code"], &error["source"]), (&json!(code), &json!(source)), "{text}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        // OpenAI's clients look for a type; SGLang's own shape has none.
        assert_eq!(error["type"].is_string(), path.starts_with("/v1/"), "{text}");
    }
    assert!(upstream.requests().is_empty(), "nothing of it reached the worker");
    // What does not need a key, and what is the router's own.
    assert_eq!(status(&ask(&router, "GET /liveness HTTP/1.1", "").await.0), 200);
    assert_eq!(status(&ask(&router, "OPTIONS * HTTP/1.1", "").await.0), 200);
    let h2c = "GET /v1/models HTTP/1.1\r\nauthorization: BEARER k3y\r\nupgrade: h2c";
    assert_eq!(
        status(&ask(&router, h2c, "").await.0),
        200,
        "an offer of HTTP/2 is ignored, and the scheme knows no case"
    );
}

#[tokio::test]
async fn what_concerns_one_connection_does_not_pass_and_the_rest_does() {
    let upstream = Upstream::start(1, |seen| match seen.head.starts_with("HEAD") {
        true => vec![Act::Say(b"HTTP/1.1 200 OK\r\ncontent-length: 42\r\nx-kept: yes\r\n\r\n".to_vec())],
        false => vec![
            chunked("connection: x-private\r\nx-private: no\r\nkeep-alive: timeout=9\r\nx-kept: yes\r\n"),
            chunk("pa"),
            chunk("ssed"),
            Act::Say(b"0\r\n\r\n".to_vec()),
        ],
    })
    .await;
    let router = before(&upstream, |_| {}).await;
    let head = "POST /generate?a=b HTTP/1.1\r\nhost: router\r\nx-hop: no\r\nte: trailers\r\nkeep-alive: timeout=9\r\n\
        connection: close, x-hop\r\nproxy-authorization: no\r\nx-forwarded-for: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\n\
        x-kept: yes\r\nauthorization: Bearer own\r\ntransfer-encoding: chunked\r\n\r\n";
    let answered =
        raw(router.http_addr(), &[head, "8\r\n{\"text\":\r\n", "4\r\n\"a\"}\r\n", "0\r\n\r\n"]).await;
    let (answer_head, body) = split(&answered);
    assert!(status(&answer_head) == 200 && body.contains("pa") && body.contains("ssed"), "{answered}");
    assert!(answer_head.contains("x-kept: yes"), "{answer_head}");
    for gone in ["x-private", "timeout=9"] {
        assert!(!answer_head.contains(gone), "{answer_head}");
    }
    let seen = upstream.requests().pop().unwrap();
    assert!(seen.head.starts_with("POST /generate?a=b HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.body, br#"{"text":"a"}"#, "chunks arrive as one body");
    assert_eq!(seen.header("content-length"), ["12"]);
    assert_eq!(seen.header("x-forwarded-for"), ["10.0.0.1, 10.0.0.2, 127.0.0.1"]);
    assert_eq!(
        seen.header("authorization"),
        ["Bearer own"],
        "without a key of its own the router passes the client's"
    );
    assert_eq!(seen.header("host"), [upstream.url().trim_start_matches("http://")]);
    assert_eq!(seen.header("x-kept"), ["yes"]);
    for gone in ["x-hop", "te", "keep-alive", "proxy-authorization", "transfer-encoding"] {
        assert!(seen.header(gone).is_empty(), "{gone}: {}", seen.head);
    }
    let (head, body) = ask(&router, "HEAD /v1/models HTTP/1.1", "").await;
    assert_eq!((status(&head), &*body), (200, ""));
    assert!(head.contains("content-length: 42") && head.contains("x-kept: yes"), "{head}");
}

#[tokio::test]
async fn keys_go_to_clients_and_workers_as_sglangs_own_router_has_it() {
    let upstream = Upstream::start(1, |_| answer("{}")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "w0rkers\n").unwrap();
    for (own_file, expected) in [(None, "Bearer k3y"), (Some(file.path().to_owned()), "Bearer w0rkers")] {
        let router = before(&upstream, |config| {
            config.api_key = Some("k3y".to_owned());
            config.worker_api_key_file = own_file;
        })
        .await;
        let get = "GET /v1/models HTTP/1.1\r\nauthorization: Bearer k3y";
        assert_eq!(status(&ask(&router, get, "").await.0), 200);
        assert_eq!(upstream.requests().pop().unwrap().header("authorization"), [expected]);
        assert_eq!(upstream.health_check().unwrap().header("authorization"), [expected]);
    }
    for bad in ["", " ", "a\nb"] {
        let config = RouterConfig { api_key: Some(bad.to_owned()), ..alert(Vec::new()) };
        let error = router_grpc::start(config).await.unwrap_err().to_string();
        assert!(error.contains("--api-key"), "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_where_that_can_be_understood() {
    let event = "data: {\"text\":\"a\"}\n\n";
    let stream = |more: &str, act: Act| {
        vec![chunked(&format!("content-type: text/event-stream\r\n{more}")), chunk(event), act]
    };
    let compressed = "content-encoding: gzip\r\n";
    let upstream = Upstream::start(1, move |seen| match seen.head.split(' ').nth(1).unwrap() {
        "/broken" => stream("", Act::Close),
        "/identity" => stream("content-encoding: identity\r\n", Act::Close),
        "/silent" => stream("", Act::Hang),
        "/compressed" => stream(compressed, Act::Close),
        _ => vec![
            Act::Say(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99\r\n\r\n".to_vec(),
            ),
            Act::Say(event.as_bytes().to_vec()),
            Act::Close,
        ],
    })
    .await;
    let router = before(&upstream, |config| config.idle_timeout_secs = 1).await;
    let client = HttpClient::of(&router);
    for path in ["/broken", "/identity", "/silent"] {
        let text = client.send("GET", path, String::new()).await.text;
        let error = text.strip_prefix(event).and_then(|rest| rest.trim().strip_prefix("data: ")).unwrap();
        let error: Value = serde_json::from_str(error).unwrap();
        assert_eq!(
            (&error["error"]["code"], &error["error"]["source"]),
            (&json!("stream_broken"), &json!("worker"))
        );
        assert_eq!(error["error"]["message"].as_str().unwrap().contains("silent for 1 s"), path == "/silent");
    }
    for path in ["/compressed", "/announced"] {
        let broken = client.open("GET", path, String::new()).await.into_body().collect().await;
        assert!(broken.is_err(), "{path}: an end that looks whole would be a lie");
    }
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_frees_its_worker() {
    let upstream = Upstream::start(1, |_| vec![Act::Hang]).await;
    let router = before(&upstream, |_| {}).await;
    let client = HttpClient::of(&router);
    let request = tokio::spawn(async move { client.post("/generate", &json!({"text": "a"})).await });
    until("it is at the worker", async || upstream.requests().len() == 1).await;
    let closed = upstream.closed();
    request.abort();
    until("the worker's connection is closed", async || upstream.closed() > closed).await;
    until("nothing is in flight", async || {
        router.router().snapshot().fleet.targets[0].load.read() == router_core::Load::default()
    })
    .await;
}

#[tokio::test]
async fn a_request_that_was_lost_is_repeated_once_where_that_is_harmless() {
    let upstream = Upstream::start(1, |_| vec![Act::Close]).await;
    let router = before(&upstream, |config| config.max_attempts = 5).await;
    let client = HttpClient::of(&router);
    for (method, path, attempts) in
        [("GET", "/v1/models", 2), ("POST", "/generate", 2), ("POST", "/flush_cache", 1)]
    {
        let before = upstream.requests().len();
        let answer = client.send(method, path, r#"{"text":"a"}"#.to_owned()).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!("worker_lost")));
        assert_eq!(upstream.requests().len() - before, attempts, "{method} {path}");
    }
}

#[tokio::test]
async fn retries_go_to_other_workers_and_not_to_other_ranks_of_a_dead_one() {
    let doomed = Sim::start(SimConfig { dp_size: 4, ..fast() }).await.unwrap();
    let other = Sim::start(fast()).await.unwrap();
    let config = RouterConfig {
        max_attempts: 2,
        policy: PolicyName::RoundRobin,
        // The dead one stays a candidate.
        health_failure_threshold: u32::MAX,
        ..alert(vec![doomed.url(), other.url()])
    };
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 2).await;
    until("all ranks are known", async || router.router().snapshot().fleet.targets.len() == 5).await;
    doomed.kill().await;
    let client = HttpClient::of(&router);
    for first in 0..10 {
        let answer = client.post("/generate", &generate(&prompt(first, 50), 1)).await;
        assert_eq!((answer.status, answer.header("x-espalier-worker")), (200, &*other.url()));
    }
}

#[tokio::test]
async fn the_usage_of_several_prompts_says_nothing_about_the_first() {
    let usage = |prompt_tokens: usize| {
        json!({"text": "", "meta_info": {"prompt_tokens": prompt_tokens, "cached_tokens": 0, "x": 0}})
            .to_string()
    };
    let upstream = Upstream::start(1, move |seen| {
        answer(&usage(String::from_utf8_lossy(&seen.body).matches(',').count() + 1))
    })
    .await;
    let router = before(&upstream, |_| {}).await;
    let client = HttpClient::of(&router);
    let target = router.router().snapshot().fleet.targets[0].id;
    for (first, claimed) in [(3, 4), (1, 8)] {
        client.post("/generate", &json!({"input_ids": prompt(first, 256)})).await;
        until("the prompt is claimed", async || router.claims(target, Unit::Token).await.len() == claimed)
            .await;
    }
    let both = json!({"input_ids": [prompt(1, 256), prompt(2, 256)]});
    assert_eq!(client.post("/generate", &both).await.header("x-espalier-predicted-tokens"), "240");
    assert_eq!(router.claims(target, Unit::Token).await.len(), 8, "nothing was evicted");
    // Said of one prompt, the same tells that what was used earlier is gone too.
    client.post("/generate", &json!({"input_ids": prompt(1, 256)})).await;
    until("the older prompt is gone", async || router.claims(target, Unit::Token).await.len() == 4).await;
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_stay() {
    let upstream = Upstream::start(1, |_| answer("{}")).await;
    let router = before(&upstream, |config| {
        config.header_timeout_secs = 1;
        config.upload_idle_timeout_secs = 1;
    })
    .await;
    let address = router.http_addr();
    let half = ["POST /generate HTTP/1.1\r\nhost: router\r\ncontent-length: 100\r\n\r\n{\"text\":"];
    let (silent, begun, preface, half, idle) = tokio::join!(
        raw(address, &[]),
        raw(address, &["GET /v1/mod"]),
        raw(address, &["PRI * HTTP/2.0\r\n"]),
        raw(address, &half),
        raw(address, &["GET /liveness HTTP/1.1\r\nhost: router\r\n\r\n"]),
    );
    assert_eq!((&*silent, &*preface), ("", ""));
    assert!(begun.is_empty() || status(&begun) == 408, "{begun}");
    let (head, body) = split(&half);
    assert_eq!(status(&head), 408, "{half}");
    assert!(body.contains("body_timeout"), "{body}");
    assert_eq!(status(&idle), 200, "{idle}");
    until("all of them have ended", async || metrics(&router).await.contains("espalier_connections 0\n"))
        .await;
    let metrics = metrics(&router).await;
    assert!(metrics.contains("espalier_connections_silent_total 3\n"), "a request came over the others");
}

/// The kernel's table says which timer runs for a connection: 2 is keepalive.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connections_to_workers_are_kept_under_watch() {
    let upstream = Upstream::start(1, |_| vec![Act::Hang]).await;
    let router = before(&upstream, |_| {}).await;
    let client = HttpClient::of(&router);
    let request = tokio::spawn(async move { client.post("/generate", &json!({"text": "a"})).await });
    until("it is at the worker", async || upstream.requests().len() == 1).await;
    let remote = format!(":{:04X}", upstream.port());
    until("its connection is probed while it is silent", async || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        table.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let watched = fields.get(5).is_some_and(|timer| timer.starts_with("02:"));
            watched && fields[2].ends_with(&remote) && fields[3] == "01"
        })
    })
    .await;
    request.abort();
}

#[tokio::test]
async fn a_stream_that_ends_before_its_first_data_begins_elsewhere() {
    let head = || chunked("content-type: text/event-stream\r\n");
    let doomed = Upstream::start(1, move |_| vec![head(), Act::Close]).await;
    let whole =
        move |_: &_| vec![head(), chunk("data: {\"text\":\"a\"}\n\n"), chunk("data: [DONE]\n\n"), chunk("")];
    let other = Upstream::start(1, whole).await;
    let config = RouterConfig {
        policy: PolicyName::RoundRobin,
        health_failure_threshold: u32::MAX,
        ..alert(vec![doomed.url(), other.url()])
    };
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 2).await;
    let client = HttpClient::of(&router);
    for _ in 0..4 {
        let answer = client.post("/generate", &json!({"text": "a", "stream": true})).await;
        assert_eq!((answer.status, answer.header("x-espalier-worker")), (200, &*other.url()));
        assert_eq!(answer.text, "data: {\"text\":\"a\"}\n\ndata: [DONE]\n\n");
    }
    assert!(!doomed.requests().is_empty(), "it was tried");
    // Where nobody else can, the client hears of it as of any answer that never came.
    let only = router_grpc::start(alert(vec![doomed.url()])).await.unwrap();
    until_ready(&only, 1).await;
    let answer = HttpClient::of(&only).post("/generate", &json!({"text": "a", "stream": true})).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (502, &json!("worker_lost")));
}
