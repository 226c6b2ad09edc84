//! Streams that go on at another worker when theirs is lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::upstream::{Act, Seen, Upstream, chunk, chunked};
use espalier_tests::{HttpClient, alert, fast, metrics, prompt, until, until_ready};
use http_body_util::BodyExt as _;
use router_core::Load;
use router_grpc::{PolicyName, RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::{Sim, SimConfig};

const TOKENS: usize = 60;

async fn before(urls: Vec<String>, change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    let count = urls.len();
    let mut config = alert(urls);
    config.faults.continue_streams = true;
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, count).await;
    router
}

/// Engines slow enough to be lost in the middle of an answer.
async fn engines() -> (Vec<Sim>, RunningRouter) {
    let mut sims = Vec::new();
    for _ in 0..2 {
        let config = SimConfig { time_scale: 2.0, ..fast() };
        sims.push(Sim::start(config).await.unwrap());
    }
    let router = before(sims.iter().map(Sim::url).collect(), |_| {}).await;
    (sims, router)
}

/// Asks for a stream, ends its worker once three events have come, and returns the whole of it.
async fn lose_its_worker(sims: &mut Vec<Sim>, router: &RunningRouter, path: &str, body: &Value) -> String {
    let response = HttpClient::of(router).open("POST", path, body.to_string()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-espalier-continuable"], "true");
    let worker = response.headers()["x-espalier-worker"].to_str().unwrap().to_owned();
    let (mut body, mut text, mut engines) = (response.into_body(), String::new(), Some(&mut *sims));
    while let Some(frame) = body.frame().await {
        text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        if text.matches("data:").count() >= 3
            && let Some(sims) = engines.take()
        {
            sims.retain(|sim| sim.url() != worker);
        }
    }
    text
}

fn events(stream: &str) -> Vec<Value> {
    let data = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn a_stream_of_token_ids_is_what_it_would_have_been() {
    let (mut sims, router) = engines().await;
    let body = json!({"input_ids": prompt(7, 300), "stream": true,
        "sampling_params": {"max_new_tokens": TOKENS, "temperature": 0}});
    let stream = lose_its_worker(&mut sims, &router, "/generate", &body).await;
    assert_eq!(stream.matches(&format!(": continued at {}\n\n", sims[0].url())).count(), 1, "{stream}");
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");

    let whole = lose_its_worker(&mut Vec::new(), &router, "/generate", &body).await;
    let (told, expected) = (events(&stream), events(&whole));
    let (last, wanted) = (told.last().unwrap(), expected.last().unwrap());
    assert_eq!(last["output_ids"].as_array().unwrap().len(), TOKENS);
    assert_eq!((&last["output_ids"], &last["text"]), (&wanted["output_ids"], &wanted["text"]));
    for field in ["prompt_tokens", "completion_tokens", "finish_reason"] {
        assert_eq!(last["meta_info"][field], wanted["meta_info"][field], "{field}");
    }
    // Nothing is told twice, and nothing is left out.
    let counts: Vec<u64> =
        told.iter().map(|event| event["meta_info"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted(), "{counts:?}");
    assert!(told.iter().all(|event| event["meta_info"]["id"] == told[0]["meta_info"]["id"]));

    let shown = metrics(&router).await;
    assert!(shown.contains("espalier_streams_continued_total 1"), "{shown}");
    until("nothing is in flight", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.targets.iter().all(|target| target.load.read() == Load::default())
    })
    .await;
}

#[tokio::test]
async fn a_completion_goes_on_with_its_text_and_its_name() {
    let (mut sims, router) = engines().await;
    let body =
        json!({"prompt": "Once upon a time there was a router.", "stream": true, "max_tokens": TOKENS});
    let stream = lose_its_worker(&mut sims, &router, "/v1/completions", &body).await;
    assert!(stream.contains(": continued at "), "{stream}");
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    let whole = lose_its_worker(&mut Vec::new(), &router, "/v1/completions", &body).await;
    let text = |stream: &str| -> String {
        events(stream).iter().map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned()).collect()
    };
    // The simulator's words are other tokens when they are read again, but as many.
    let (going_on, whole) = (text(&stream), text(&whole));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&going_on).len(), TOKENS, "{going_on}");
    assert_eq!(words(&going_on)[..3], words(&whole)[..3]);
    let told = events(&stream);
    assert!(told.iter().all(|event| event["id"] == told[0]["id"]));
}

/// Answers with a stream of two tokens and half of an event, and goes away.
fn breaks_off(_: &Seen) -> Vec<Act> {
    let event = |ids: &[u32]| {
        let meta_info = json!({"id": "a", "prompt_tokens": 3, "completion_tokens": ids.len(), "cached_tokens": 0,
            "finish_reason": null});
        format!("data: {}\n\n", json!({"text": "x", "output_ids": ids, "meta_info": meta_info}))
    };
    let cut = event(&[1, 2, 3]);
    vec![
        chunked("content-type: text/event-stream\r\n"),
        chunk(&event(&[1, 2])),
        chunk(&cut[..cut.len() / 2]),
        Act::Close,
    ]
}

/// What a worker was asked for: prompt, and how many tokens.
fn asked(seen: &Seen) -> (Value, Value) {
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    (body["input_ids"].clone(), body["sampling_params"]["max_new_tokens"].clone())
}

/// A stream of a worker that has nobody beside it.
async fn ask_alone(only: &Upstream) -> Vec<Value> {
    let router = before(vec![only.url()], |config| config.policy = PolicyName::RoundRobin).await;
    let body = json!({"input_ids": [5, 6, 7], "stream": true, "sampling_params": {"max_new_tokens": 8}});
    let answer = HttpClient::of(&router).post("/generate", &body).await;
    let mut told = events(&answer.text);
    let error = told.pop().unwrap();
    assert_eq!(error["error"]["code"], "stream_broken", "{}", answer.text);
    let whole = told.iter().all(|event| event["output_ids"].is_array());
    assert!(whole, "{}", answer.text);
    told
}

#[tokio::test]
async fn it_goes_on_for_as_long_as_it_comes_further_and_ends_after_whole_events() {
    let only = Upstream::start(1, breaks_off).await;
    let told = ask_alone(&only).await;
    assert_eq!(told.last().unwrap()["output_ids"], json!([1, 2, 1, 2, 1, 2]));
    let asked: Vec<_> = only.requests().iter().map(asked).collect();
    let expected = [
        (json!([5, 6, 7]), json!(8)),
        (json!([5, 6, 7, 1, 2]), json!(6)),
        (json!([5, 6, 7, 1, 2, 1, 2]), json!(4)),
    ];
    assert_eq!(asked, expected, "three attempts in all");
}

#[tokio::test]
async fn what_may_kill_its_workers_goes_on_once() {
    let only = Upstream::start(1, |seen| match asked(seen).0.as_array().unwrap().len() {
        3 => breaks_off(seen),
        _ => vec![chunked("content-type: text/event-stream\r\n"), chunk("data: {"), Act::Close],
    })
    .await;
    assert_eq!(ask_alone(&only).await.len(), 1);
    assert_eq!(only.requests().len(), 2);
}

#[tokio::test]
async fn nothing_goes_on_that_was_not_asked_to_or_cannot() {
    let only = Upstream::start(1, breaks_off).await;
    let mut body = json!({"input_ids": [5, 6, 7], "stream": true, "sampling_params": {"max_new_tokens": 8}});
    for (asked, penalty) in [(false, 0.0), (true, 0.5)] {
        body["sampling_params"]["presence_penalty"] = json!(penalty);
        let router = before(vec![only.url()], |config| {
            config.policy = PolicyName::RoundRobin;
            config.faults.continue_streams = asked;
        })
        .await;
        let before = only.requests().len();
        let answer = HttpClient::of(&router).post("/generate", &body).await;
        assert!(answer.text.contains("stream_broken"), "{}", answer.text);
        assert_eq!(answer.header("x-espalier-continuable"), "");
        assert_eq!(only.requests().len(), before + 1);
    }
}
