//! Usage in OpenAI's streams is asked for on the client's behalf, and kept from it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::{HttpClient, alert, fast, metrics, until, until_ready};
use router_grpc::{RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::Sim;

async fn before(sim: &Sim, change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    let mut config = alert(vec![sim.url()]);
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 1).await;
    until("the engine is known", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.workers.iter().all(|worker| worker.profile.usage_on_request == Some(true))
    })
    .await;
    router
}

/// A long prompt, so that some of it can be cached.
fn completion(stream_options: Option<Value>) -> Value {
    let mut body = json!({"prompt": "word ".repeat(400), "max_tokens": 4, "stream": true});
    if let Some(options) = stream_options {
        body["stream_options"] = options;
    }
    body
}

fn chat(stream_options: Option<Value>) -> Value {
    let mut body = completion(stream_options);
    let prompt = body.as_object_mut().unwrap().remove("prompt").unwrap();
    body["messages"] = json!([{"role": "user", "content": prompt}]);
    body
}

/// A stream without what differs between any two.
async fn stream(client: &HttpClient, path: &str, body: &Value) -> String {
    let answer = client.post(path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let own = |event: &str| {
        let Some(data) = event.strip_prefix("data: {") else { return event.to_owned() };
        let mut data: Value = serde_json::from_str(&format!("{{{data}")).unwrap();
        for name in ["id", "created"] {
            data[name] = Value::Null;
        }
        format!("data: {data}")
    };
    answer.text.split("\n\n").map(own).collect::<Vec<_>>().join("\n\n")
}

fn counter(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn what_was_cached_becomes_known_and_the_client_gets_what_it_asked_for() {
    let sim = Sim::start(fast()).await.unwrap();
    let router = before(&sim, |_| {}).await;
    let (direct, routed) = (HttpClient::at(&sim.url()), HttpClient::of(&router));
    for (path, body) in [("/v1/completions", completion(None)), ("/v1/chat/completions", chat(None))] {
        let before = metrics(&router).await;
        // What was generated before is cached for both.
        stream(&direct, path, &body).await;
        let expected = stream(&direct, path, &body).await;
        let got = stream(&routed, path, &body).await;
        assert_eq!(got, expected);
        assert!(!got.contains("prompt_tokens"), "{got}");
        let after = metrics(&router).await;
        let more = |name| counter(&after, name) - counter(&before, name);
        assert!(more("espalier_prompt_tokens_total") > 300, "{after}");
        assert!(more("espalier_cached_tokens_total") > 300, "{after}");
    }
}

#[tokio::test]
async fn who_says_what_is_to_be_told_is_told_that() {
    let sim = Sim::start(fast()).await.unwrap();
    let router = before(&sim, |_| {}).await;
    let client = HttpClient::of(&router);
    let told = stream(&client, "/v1/completions", &completion(Some(json!({"include_usage": true})))).await;
    assert!(told.contains("prompt_tokens"), "{told}");
    let before = metrics(&router).await;
    let untold = stream(&client, "/v1/completions", &completion(Some(json!({"include_usage": false})))).await;
    assert!(!untold.contains("prompt_tokens"), "{untold}");
    let after = metrics(&router).await;
    let name = "espalier_prompt_tokens_total";
    assert_eq!(counter(&before, name), counter(&after, name), "the worker was asked what the client asked");
}

#[tokio::test]
async fn it_can_be_turned_off() {
    let sim = Sim::start(fast()).await.unwrap();
    let router = before(&sim, |config| config.api.disable_stream_usage = true).await;
    stream(&HttpClient::of(&router), "/v1/completions", &completion(None)).await;
    assert_eq!(counter(&metrics(&router).await, "espalier_prompt_tokens_total"), 0);
}
