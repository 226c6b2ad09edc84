//! What is generated is cached where it was generated, and the router knows it without an agent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::{HttpClient, alert, fast, prompt, until, until_ready};
use router_grpc::RunningRouter;
use serde_json::{Value, json};
use sglang_sim::Sim;

/// Tokens of a block, within which predictions may err.
const BLOCK: u64 = 64;

async fn engines() -> (Vec<Sim>, RunningRouter) {
    let mut sims = Vec::new();
    for _ in 0..2 {
        sims.push(Sim::start(fast()).await.unwrap());
    }
    let router = router_grpc::start(alert(sims.iter().map(Sim::url).collect())).await.unwrap();
    until_ready(&router, sims.len()).await;
    (sims, router)
}

/// Tokens claimed anywhere.
fn claimed(router: &RunningRouter) -> u64 {
    router.router().snapshot().fleet.targets.iter().map(|target| target.claimed_tokens).sum()
}

fn last_event(stream: &str) -> Value {
    let data = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
    serde_json::from_str(&format!("{{{}", data.last().unwrap())).unwrap()
}

#[tokio::test]
async fn the_next_turn_finds_the_answer_before_it() {
    for stream in [false, true] {
        let (_sims, router) = engines().await;
        let client = HttpClient::of(&router);
        let ask = async |ids: &[u32]| {
            let body =
                json!({"input_ids": ids, "stream": stream, "sampling_params": {"max_new_tokens": 500}});
            let answer = client.post("/generate", &body).await;
            let predicted: u64 = answer.header("x-espalier-predicted-tokens").parse().unwrap();
            (predicted, if stream { last_event(&answer.text) } else { answer.json() })
        };
        let mut ids = prompt(3, 400);
        let (_, answer) = ask(&ids).await;
        ids.extend(answer["output_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32));
        let held = (ids.len() as u64 - 1) / BLOCK * BLOCK;
        until("the answer is claimed", async || claimed(&router) == held).await;
        ids.extend(prompt(4, 100));
        let (predicted, answer) = ask(&ids).await;
        let cached = answer["meta_info"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(predicted, held, "of {cached} cached");
        assert!(cached.abs_diff(predicted) < BLOCK, "{cached}, and predicted {predicted}");
    }
}

#[tokio::test]
async fn it_is_not_claimed_where_responses_are_not_believed() {
    let sim = Sim::start(fast()).await.unwrap();
    let mut config = alert(vec![sim.url()]);
    config.claims.disable_response_correction = true;
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 1).await;
    let body = json!({"input_ids": prompt(3, 400), "sampling_params": {"max_new_tokens": 500}});
    assert_eq!(HttpClient::of(&router).post("/generate", &body).await.status, 200);
    until("the prompt is claimed", async || claimed(&router) == 400 / BLOCK * BLOCK).await;
}
