//! Invariant 13: prompts, tokens and keys never reach logs, metrics or error bodies, whatever becomes of a request.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;

use espalier_tests::upstream::{Act, Upstream, answer};
use espalier_tests::{HttpClient, alert, metrics, until_ready};
use router_grpc::RouterConfig;
use serde_json::json;
use tracing_subscriber::EnvFilter;

/// Words and token ids that occur in prompts and keys only.
const MARKS: [&str; 4] = ["s3cretpr0mpt", "4199001", "k3yofthedoor", "w0rkerskey"];

#[tokio::test]
async fn no_prompt_and_no_key_appears_in_what_the_router_says() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let ours = EnvFilter::new("info,router_core=trace,router_http=trace,router_grpc=trace,espalier=trace");
    let writer = Arc::new(log.reopen().unwrap());
    tracing_subscriber::fmt().with_env_filter(ours).with_writer(writer).init();

    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "w0rkerskey").unwrap();
    // It answers, closes without an answer, or breaks off, as the path says.
    let upstream = Upstream::start(1, |seen| {
        let path = seen.head.split(' ').nth(1).unwrap().to_owned();
        match &*path {
            "/v1/completions" => vec![Act::Close],
            "/v1/chat/completions" => vec![
                Act::Say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n".to_vec()),
                Act::Close,
            ],
            _ => answer(r#"{"meta_info":{"prompt_tokens":3,"cached_tokens":0,"x":0}}"#),
        }
    })
    .await;
    let config = RouterConfig {
        api_key: Some("k3yofthedoor".to_owned()),
        worker_api_key_file: Some(key.path().to_owned()),
        ..alert(vec![upstream.url()])
    };
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 1).await;

    let client = HttpClient::of(&router).with_key("k3yofthedoor");
    let mut said = Vec::new();
    for (path, body) in [
        ("/generate", json!({"text": "s3cretpr0mpt"}).to_string()),
        ("/generate", json!({"input_ids": [4_199_001, 4_199_001]}).to_string()),
        ("/generate", json!({"input_ids": ["s3cretpr0mpt"]}).to_string()),
        ("/generate", json!({"text": "a", "routed_dp_rank": 4_199_001}).to_string()),
        ("/generate", r#"{"text": "s3cretpr0mpt"#.to_owned()),
        ("/v1/completions", json!({"prompt": "s3cretpr0mpt"}).to_string()),
        ("/v1/completions", json!({"prompt": {"s3cretpr0mpt": 1}}).to_string()),
    ] {
        let answer = client.send("POST", path, body).await;
        said.push(answer.text);
    }
    let chat = json!({"messages": [{"role": "user", "content": "s3cretpr0mpt"}]}).to_string();
    drop(client.open("POST", "/v1/chat/completions", chat).await);
    let wrong = HttpClient::of(&router).with_key("4199001");
    said.push(wrong.send("GET", "/v1/models", String::new()).await.text);
    said.push(metrics(&router).await);
    router.shutdown().await;
    let logged = std::fs::read_to_string(log.path()).unwrap();
    assert!(logged.matches("espalier::access").count() >= 8, "{logged}");
    said.push(logged);
    for mark in MARKS {
        // The client's own number of a rank is no prompt.
        let shown = said.iter().find(|text| text.replace("dp rank 4199001", "").contains(mark));
        assert!(shown.is_none(), "{mark} in {}", shown.unwrap());
    }
}
