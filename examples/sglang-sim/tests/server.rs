//! A simulated server over real HTTP and ZeroMQ.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sglang_sim::{DisaggregationMode, Sim, SimConfig};
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket as _, SocketRecv as _, SocketSend as _, SubSocket, ZmqMessage};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn start(change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut config = SimConfig { time_scale: 100.0, ..SimConfig::default() };
    change(&mut config);
    Sim::start(config).await.unwrap()
}

async fn send(sim: &Sim, method: &str, path: &str, body: &str) -> (u16, String) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = http::Request::builder().method(method).uri(format!("{}{path}", sim.url()));
    let request =
        request.header("x-data-parallel-rank", "0").body(Full::<bytes::Bytes>::from(body.to_owned()));
    let response = timeout(PATIENCE, client.request(request.unwrap())).await.unwrap().unwrap();
    let status = response.status().as_u16();
    let body = timeout(PATIENCE, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(sim: &Sim, path: &str, body: Value) -> (u16, Value) {
    let (status, body) = send(sim, "POST", path, &body.to_string()).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

async fn get(sim: &Sim, path: &str) -> (u16, Value) {
    let (status, body) = send(sim, "GET", path, "").await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn prompt(len: u32) -> Vec<u32> {
    (0..len).map(|i| 1_000 + i).collect()
}

#[tokio::test]
async fn a_prompt_is_cached_the_second_time() {
    let sim = start(|_| {}).await;
    let body = json!({"input_ids": prompt(100), "sampling_params": {"max_new_tokens": 3}});
    let (status, first) = post(&sim, "/generate", body.clone()).await;
    assert_eq!((status, &first["meta_info"]["cached_tokens"]), (200, &json!(0)));
    assert_eq!(first["output_ids"].as_array().unwrap().len(), 3);
    let (_, second) = post(&sim, "/generate", body).await;
    assert_eq!(second["meta_info"]["cached_tokens"], 96);
    assert_eq!(second["text"], first["text"], "equal prompts, equal answers");
    let other =
        json!({"input_ids": prompt(100), "cache_salt": "tenant", "sampling_params": {"max_new_tokens": 1}});
    assert_eq!(post(&sim, "/generate", other).await.1["meta_info"]["cached_tokens"], 0);
    assert_eq!(post(&sim, "/flush_cache", json!({})).await.0, 200);
    assert_eq!(sim.stats(0).unwrap().cached_tokens, 0);
}

#[tokio::test]
async fn chat_and_completions_answer_in_openais_shape() {
    let sim = start(|_| {}).await;
    let words = "The quick brown fox jumps over the lazy dog. ".repeat(10);
    let chat = json!({"model": "sim", "messages": [{"role": "user", "content": words}], "max_tokens": 4});
    let (_, answer) = post(&sim, "/v1/chat/completions", chat.clone()).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let (_, again) = post(&sim, "/v1/chat/completions", chat).await;
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 80);
    let batch = json!({"prompt": ["one two", "three"], "max_tokens": 2});
    let (_, answer) = post(&sim, "/v1/completions", batch).await;
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn streams_are_cumulative_natively_and_incremental_for_openai() {
    let sim = start(|config| config.stream_interval = 4).await;
    let native = json!({"input_ids": prompt(50), "sampling_params": {"max_new_tokens": 10}, "stream": true});
    let (_, body) = send(&sim, "POST", "/generate", &native.to_string()).await;
    let events: Vec<_> = body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let lengths: Vec<_> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap()["output_ids"].as_array().unwrap().len())
        .collect();
    assert_eq!(lengths, [1, 5, 9, 10]);
    let chat = json!({"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 6, "stream": true,
        "stream_options": {"include_usage": true}});
    let (_, body) = send(&sim, "POST", "/v1/chat/completions", &chat.to_string()).await;
    let events: Vec<Value> =
        body.split("\n\n").filter_map(|e| serde_json::from_str(e.strip_prefix("data: ")?).ok()).collect();
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text.split_whitespace().count(), 6);
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn bad_requests_are_refused_in_the_apis_shape() {
    let sim = start(|config| config.max_total_tokens = 1_024).await;
    let (status, body) = send(&sim, "POST", "/generate", "{nonsense").await;
    assert_eq!(status, 400);
    assert!(body.contains("\"error\""));
    for body in [json!({}), json!({"text": 5}), json!({"input_ids": []}), json!({"input_ids": [-1]})] {
        assert_eq!(post(&sim, "/generate", body).await.0, 400);
    }
    let (status, body) = post(&sim, "/generate", json!({"input_ids": prompt(1_020)})).await;
    assert_eq!(status, 400);
    assert!(body["error"]["message"].as_str().unwrap().contains("maximum allowed length (1018 tokens)"));
    let (status, body) = post(&sim, "/generate", json!({"text": "x", "routed_dp_rank": 7})).await;
    assert_eq!((status, &body["error"]["message"]), (400, &json!("routed_dp_rank=7 out of range [0, 1)")));
    let (status, body) = post(&sim, "/v1/chat/completions", json!({"model": "sim"})).await;
    assert_eq!((status, &body["object"]), (400, &json!("error")));
    assert_eq!(get(&sim, "/get_loads").await, (404, json!({"detail": "Not Found"})));
}

#[tokio::test]
async fn paused_it_is_alive_and_not_ready() {
    let sim = start(|_| {}).await;
    assert_eq!(post(&sim, "/pause_generation", json!({"mode": "retract"})).await.0, 200);
    assert_eq!(get(&sim, "/ready").await.0, 503);
    assert_eq!(get(&sim, "/ping").await.0, 200);
    post(&sim, "/continue_generation", json!({})).await;
    assert_eq!(get(&sim, "/ready").await.0, 200);
    assert_eq!(post(&sim, "/pause_generation", json!({"mode": "nap"})).await.0, 400);
}

/// A request runs when each kind of pause comes, and a second one arrives in the pause.
#[tokio::test]
async fn requests_live_through_a_pause_or_end_with_it() {
    for (mode, reason, may_flush) in
        [("abort", "abort", 200), ("retract", "length", 200), ("in_place", "length", 400)]
    {
        let sim = start(|config| config.time_scale = 50.0).await;
        let body = |length: u32| json!({"input_ids": prompt(length), "sampling_params": {"max_new_tokens": 2_000, "ignore_eos": true}});
        let running = async { post(&sim, "/generate", body(64)).await.1 };
        let meddling = async {
            while sim.stats(0).unwrap().totals.output_tokens < 5 {
                tokio::task::yield_now().await;
            }
            assert_eq!(post(&sim, "/pause_generation", json!({"mode": mode})).await.0, 200);
            assert_eq!(post(&sim, "/flush_cache", json!({})).await.0, may_flush, "{mode}");
            let late = async { post(&sim, "/generate", body(48)).await.1 };
            let resuming = async {
                while sim.stats(0).unwrap().live_requests < if mode == "abort" { 1 } else { 2 } {
                    tokio::task::yield_now().await;
                }
                let produced = sim.stats(0).unwrap().totals.output_tokens;
                assert_eq!(get(&sim, "/ready").await.0, 503);
                assert_eq!(sim.stats(0).unwrap().totals.output_tokens, produced, "nothing runs");
                post(&sim, "/continue_generation", json!({})).await;
            };
            tokio::join!(late, resuming).0
        };
        let (first, late) = timeout(PATIENCE, async { tokio::join!(running, meddling) }).await.unwrap();
        assert_eq!(first["meta_info"]["finish_reason"]["type"], reason);
        assert_eq!(first["meta_info"]["num_retractions"], u32::from(mode == "retract"));
        assert_eq!(late["meta_info"]["completion_tokens"], 2_000);
    }
}

/// The flush's batch comes with what follows the pause, not before.
#[tokio::test]
async fn a_flush_in_a_pause_is_published_after_it() {
    let sim = start(|_| {}).await;
    post(&sim, "/generate", json!({"input_ids": prompt(64), "sampling_params": {"max_new_tokens": 1}})).await;
    let before = replayed(&sim, 0).await;
    post(&sim, "/pause_generation", json!({"mode": "retract"})).await;
    assert_eq!(post(&sim, "/flush_cache", json!({})).await.0, 200);
    assert_eq!(sim.stats(0).unwrap().cached_tokens, 0);
    assert_eq!(replayed(&sim, 0).await, before);
    post(&sim, "/continue_generation", json!({})).await;
    let cleared = async {
        while replayed(&sim, 0).await.len() == before.len() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, cleared).await.unwrap();
}

#[tokio::test]
async fn metrics_tell_evictable_tokens_from_held_ones() {
    let sim = start(|config| config.time_scale = 1.0).await;
    let gauge = async |name: &str| {
        let (_, text) = send(&sim, "GET", "/metrics", "").await;
        let line =
            text.lines().find(|line| line.starts_with(&format!("sglang:{name}{{"))).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    post(&sim, "/generate", json!({"input_ids": prompt(64), "sampling_params": {"max_new_tokens": 1}})).await;
    assert_eq!((gauge("kv_evictable_tokens").await, gauge("num_used_tokens").await), (64.0, 0.0));
    let body = json!({"input_ids": prompt(80), "sampling_params": {"max_new_tokens": 100_000}});
    let running = post(&sim, "/generate", body);
    let looking = async {
        while sim.stats(0).unwrap().totals.output_tokens < 2 {
            tokio::task::yield_now().await;
        }
        gauge("kv_evictable_tokens").await
    };
    tokio::select! {
        _ = running => panic!("it runs for long"),
        evictable = timeout(PATIENCE, looking) => assert_eq!(evictable.unwrap(), 0.0),
    }
}

#[tokio::test]
async fn a_host_tier_is_told_and_found() {
    let sim = start(|config| {
        config.max_total_tokens = 2_048;
        config.hicache.enable_hierarchical_cache = true;
    })
    .await;
    let (_, info) = get(&sim, "/server_info").await;
    assert_eq!(info["enable_hierarchical_cache"], true);
    assert_eq!((&info["hicache_ratio"], &info["hicache_size"]), (&json!(2.0), &json!(0)));
    assert_eq!(info["hicache_write_policy"], "write_through");
    assert_eq!(info["internal_states"][0]["memory_usage"]["kvcache"], 0.5);
    let ask = async |first: u32| {
        let input_ids: Vec<u32> = (0..1_200).map(|i| first + i).collect();
        let body = json!({"input_ids": input_ids, "sampling_params": {"max_new_tokens": 1}});
        post(&sim, "/generate", body).await.1["meta_info"]["cached_tokens_details"].clone()
    };
    assert_eq!(ask(0).await, Value::Null);
    assert_eq!(ask(10_000).await, Value::Null);
    assert_eq!(ask(0).await, json!({"device": 0, "host": 1_184}));
    assert_eq!(ask(0).await, json!({"device": 1_184, "host": 0}));
    let (_, metrics) = get(&sim, "/metrics").await;
    let metrics = metrics.as_str().unwrap();
    let host = metrics.lines().find(|line| line.starts_with("sglang:hicache_host_used_tokens{")).unwrap();
    assert!(host.ends_with(" 2400"), "{host}");
}

#[tokio::test]
async fn a_key_is_asked_for_except_for_health() {
    let sim = start(|config| config.api_key = Some("secret".to_owned())).await;
    assert_eq!(get(&sim, "/health").await.0, 200);
    assert_eq!(get(&sim, "/server_info").await, (401, json!({"error": "Unauthorized"})));
}

/// Numbers of all batches of a rank that can be replayed.
async fn replayed(sim: &Sim, rank: u64) -> Vec<i64> {
    let (_, info) = get(sim, "/server_info").await;
    let port = info["kv_events"]["replay_endpoint_port_base"].as_u64().unwrap() + rank;
    let mut dealer = DealerSocket::new();
    dealer.connect(&format!("tcp://127.0.0.1:{port}")).await.unwrap();
    let request = vec![bytes::Bytes::new(), bytes::Bytes::copy_from_slice(&0_u64.to_be_bytes())];
    dealer.send(ZmqMessage::try_from(request).unwrap()).await.unwrap();
    let mut sequence = Vec::new();
    loop {
        let frames = timeout(PATIENCE, dealer.recv()).await.unwrap().unwrap().into_vec();
        let [_, topic, seq, payload] = &frames[..] else { panic!("four frames: {frames:?}") };
        let seq = i64::from_be_bytes(seq[..].try_into().unwrap());
        if seq == -1 {
            assert!(topic.is_empty() && payload.is_empty());
            return sequence;
        }
        assert_eq!(&topic[..], b"kv-events");
        assert_eq!(payload.last(), Some(&(rank as u8)), "the rank is the last field");
        sequence.push(seq);
    }
}

#[tokio::test]
async fn events_are_published_replayed_and_discoverable() {
    let sim = start(|config| config.dp_size = 2).await;
    let (_, info) = get(&sim, "/server_info").await;
    let port = |name: &str| info["kv_events"][name].as_u64().unwrap() + 1;
    post(
        &sim,
        "/generate",
        json!({"input_ids": prompt(64), "routed_dp_rank": 1,
        "sampling_params": {"max_new_tokens": 1}}),
    )
    .await;
    // What was published before anyone subscribed comes from the ring.
    let sequence = replayed(&sim, 1).await;
    assert_eq!(sequence, (0..sequence.len() as i64).collect::<Vec<_>>());
    assert!(sequence.len() >= 2, "the cleared cache, and the prompt");
    // What is published from now on comes by itself.
    let mut subscriber = SubSocket::new();
    subscriber.subscribe("kv-events").await.unwrap();
    subscriber.connect(&format!("tcp://127.0.0.1:{}", port("endpoint_port_base"))).await.unwrap();
    let live = timeout(PATIENCE, async {
        loop {
            // The subscription takes effect at a moment nobody is told of: ask until an event arrives.
            post(&sim, "/flush_cache", json!({})).await;
            if let Ok(message) = timeout(Duration::from_millis(50), subscriber.recv()).await {
                return message.unwrap().into_vec();
            }
        }
    });
    assert_eq!(live.await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let sim = start(|config| config.time_scale = 1.0).await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let body =
        json!({"input_ids": prompt(64), "sampling_params": {"max_new_tokens": 100_000}, "stream": true});
    let request = http::Request::post(format!("{}/generate", sim.url()))
        .body(Full::<bytes::Bytes>::from(body.to_string()))
        .unwrap();
    let mut response = client.request(request).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(sim.stats(0).unwrap().live_requests, 1);
    drop((response, client));
    let ended = async {
        while sim.stats(0).unwrap().live_requests > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, ended).await.expect("the request ends when its client leaves");
    assert_eq!(sim.stats(0).unwrap().totals.aborted, 1);
}

#[tokio::test]
async fn killed_and_started_again_on_the_same_port_it_is_another_life() {
    let sim = start(|_| {}).await;
    let (_, before) = get(&sim, "/server_info").await;
    let address = sim.address();
    sim.kill().await;
    let again = start(|config| config.port = address.port()).await;
    let (_, after) = get(&again, "/server_info").await;
    assert_ne!(before["startup_time"], after["startup_time"]);
}

/// A request for one side of a pair.
fn half(prefill: &Value, room: u64, stream: bool) -> Value {
    json!({"input_ids": prompt(64), "sampling_params": {"max_new_tokens": 3}, "stream": stream,
        "bootstrap_host": "127.0.0.1", "bootstrap_port": prefill["disaggregation_bootstrap_port"],
        "bootstrap_room": room})
}

#[tokio::test]
async fn two_sides_of_a_generation_meet_by_their_room() {
    let prefill = start(|config| config.disaggregation_mode = DisaggregationMode::Prefill).await;
    let decode = start(|config| config.disaggregation_mode = DisaggregationMode::Decode).await;
    let (_, info) = get(&prefill, "/server_info").await;
    assert_eq!(info["disaggregation_mode"], "prefill");
    assert_eq!(get(&decode, "/server_info").await.1["disaggregation_mode"], "decode");
    let request = half(&info, 5, false);
    let (there, here) =
        tokio::join!(post(&prefill, "/generate", request.clone()), post(&decode, "/generate", request));
    assert_eq!((there.0, there.1["output_ids"].as_array().unwrap().len()), (200, 1));
    assert_eq!((here.0, here.1["output_ids"].as_array().unwrap().len()), (200, 3));
    assert_eq!(there.1["output_ids"][0], here.1["output_ids"][0], "the first token is the prompt's");
    assert_eq!(decode.stats(0).unwrap().totals.prefilled_tokens, 0);
    let (status, refused) =
        post(&decode, "/generate", json!({"text": "a", "sampling_params": {"max_new_tokens": 1}})).await;
    assert_eq!(status, 400, "{refused}");
}

#[tokio::test]
async fn a_side_that_waits_in_vain_says_so() {
    let alone = |mode| {
        start(move |config| {
            config.disaggregation_mode = mode;
            config.disaggregation_timeout = 0.05;
        })
    };
    let (prefill, decode) =
        (alone(DisaggregationMode::Prefill).await, alone(DisaggregationMode::Decode).await);
    let (_, info) = get(&prefill, "/server_info").await;
    let (status, body) = post(&prefill, "/generate", half(&info, 1, false)).await;
    assert!(status == 500 && body.to_string().contains("KVPoll.Bootstrapping"), "{body}");
    let (status, body) = post(&decode, "/generate", half(&info, 2, false)).await;
    assert!(status == 500 && body.to_string().contains("KVPoll.WaitingForInput"), "{body}");
    let (status, body) = send(&decode, "POST", "/generate", &half(&info, 3, true).to_string()).await;
    assert!(status == 200 && body.contains("\"code\":500") && body.ends_with("data: [DONE]\n\n"), "{body}");
    let request = half(&info, 4, false);
    prefill.kill().await;
    let (status, body) = post(&decode, "/generate", request).await;
    assert!(status == 500 && body.to_string().contains("lost connection"), "{body}");
}

#[tokio::test]
async fn it_does_wrong_what_it_is_told_to() {
    let sim = start(|_| {}).await;
    let body = json!({"input_ids": prompt(20), "sampling_params": {"max_new_tokens": 2}});
    assert_eq!(post(&sim, "/sim/faults", json!({"status": 503})).await.0, 200);
    assert_eq!(post(&sim, "/generate", body.clone()).await.0, 503);
    assert_eq!(get(&sim, "/ready").await.0, 200, "only generations fail");
    assert_eq!(post(&sim, "/sim/faults", json!({"reset_every": 2})).await.0, 200);
    assert_eq!(post(&sim, "/generate", body.clone()).await.0, 200);
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = http::Request::post(format!("{}/generate", sim.url()));
    let request = request.body(Full::<bytes::Bytes>::from(body.to_string())).unwrap();
    timeout(PATIENCE, client.request(request)).await.unwrap().unwrap_err();
    for bad in [json!({"slowdown": 0}), json!({"status": 200}), json!({"unknown": 1}), json!(7)] {
        assert_eq!(post(&sim, "/sim/faults", bad).await.0, 400);
    }
    assert_eq!(post(&sim, "/sim/faults", json!({})).await.0, 200);
    for _ in 0..4 {
        assert_eq!(post(&sim, "/generate", body.clone()).await.0, 200);
    }
}
