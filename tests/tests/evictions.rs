//! Engines that evict by another rule than LRU: nothing is inferred of them, and their agents' word is enough.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::HashSet;

use espalier_proto::{ExplainRequest, ListWorkersRequest, MispredictionCause};
use espalier_tests::{
    HttpClient, admin, agent, alert, claimed, fast, generate, held, metrics, prompt, until, until_exact,
    until_ready,
};
use router_core::key::{BlockHash, Salt, Unit};
use router_grpc::{LevelName, RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::EvictionPolicy::{Fifo, Filo, Lfu, Lru, Mru, Priority, Slru, Tlru};
use sglang_sim::{EvictionPolicy, EvictionTuning, Sim, SimConfig};

async fn engine(radix_eviction_policy: EvictionPolicy, max_total_tokens: usize) -> Sim {
    let tuning = EvictionTuning { threshold: Some(300), ..EvictionTuning::default() };
    let radix_eviction_policy_config = (radix_eviction_policy == Tlru).then_some(tuning);
    let config =
        SimConfig { radix_eviction_policy, radix_eviction_policy_config, max_total_tokens, ..fast() };
    Sim::start(config).await.unwrap()
}

fn of_priority(mut body: Value, priority: i64) -> Value {
    body["priority"] = json!(priority);
    body
}

/// Conversations that come back at different rates and with different priorities, and much that comes once.
fn churn() -> Vec<Value> {
    let conversation = |turn: u32| {
        let which = [0, 1, 0, 2, 0, 1, 3][turn as usize % 7];
        let body = generate(&prompt(1 + which, 300 + 20 * (turn / 7)), 20);
        of_priority(body, i64::from(which % 3))
    };
    let once = |turn: u32| of_priority(generate(&prompt(100 + turn, 250 + 50 * (turn % 4)), 20), 1);
    (0..42).map(|turn| if turn % 3 == 2 { once(turn) } else { conversation(turn) }).collect()
}

async fn run(client: &HttpClient, bodies: &[Value]) {
    for body in bodies {
        assert_eq!(client.post("/generate", body).await.status, 200);
    }
}

async fn paths(sim: &Sim) -> HashSet<Vec<u32>> {
    sim.cached_paths(0).await.into_iter().map(|(_, tokens)| tokens).collect()
}

/// That nothing is inferred, wherever it is said.
async fn assert_infers_nothing(router: &RunningRouter, sim: &Sim) {
    let body = generate(&prompt(1, 300), 1).to_string();
    let mut admin = admin(router).await;
    let listed = admin.list_workers(ListWorkersRequest {}).await.unwrap().into_inner();
    let explained = admin.explain(ExplainRequest { path: "/generate".to_owned(), body }).await.unwrap();
    let candidate = explained.into_inner().candidates.remove(0);
    for accuracy in [&listed.workers[0].targets[0].accuracy, &candidate.accuracy] {
        let inference = &accuracy.as_ref().unwrap().inference;
        assert!(inference.starts_with("off: the engine does not evict the least recently"), "{inference}");
    }
    let metric = format!("espalier_infers_evictions{{worker=\"{}\"}} 0", sim.url());
    assert!(metrics(router).await.contains(&metric));
}

async fn agents_word_is_enough(report_level: LevelName) {
    let lru = engine(Lru, 4_000).await;
    run(&HttpClient::at(&lru.url()), &churn()).await;
    for policy in [Lfu, Fifo, Mru, Filo, Priority, Slru, Tlru] {
        let sim = engine(policy, 4_000).await;
        let router = router_grpc::start(RouterConfig { report_level, ..alert(Vec::new()) }).await.unwrap();
        let _agent = agent(&sim, &[&router]);
        until_ready(&router, 1).await;
        assert_infers_nothing(&router, &sim).await;
        let client = HttpClient::of(&router);
        for bodies in churn().chunks(14) {
            run(&client, bodies).await;
            assert!(until_exact(&router, &sim).await > 30, "{policy:?}");
        }
        assert!(sim.stats(0).unwrap().totals.evicted_tokens > 2_000, "{policy:?}");
        assert_ne!(paths(&sim).await, paths(&lru).await, "{policy:?} leaves something else than LRU");
    }
}

#[tokio::test]
async fn claims_are_what_an_engine_holds_whatever_it_evicts_first() {
    agents_word_is_enough(LevelName::Full).await;
}

#[tokio::test]
async fn removals_alone_keep_claims_exact_whatever_is_evicted_first() {
    agents_word_is_enough(LevelName::Removals).await;
}

fn blocks(router: &RunningRouter, tokens: &[u32]) -> HashSet<BlockHash> {
    let space = router.router().key_space(Unit::Token);
    space.key_of_tokens(Salt::new("", "", ""), tokens).hashes().iter().copied().collect()
}

/// `kept` is used before `lost`, and yet `lost` goes first. Whoever takes the engine for LRU concludes that both are gone.
#[tokio::test]
async fn without_an_agent_a_short_answer_says_nothing_of_what_was_used_before() {
    // What is stored comes to whole pages and blocks: 640 tokens each.
    let (kept, lost) = (prompt(1, 650), prompt(2, 650));
    let (keep, lose) = (generate(&kept, 1), generate(&lost, 1));
    for (policy, requests) in [
        (Lfu, vec![keep.clone(), keep.clone(), lose.clone()]),
        (Slru, vec![keep.clone(), keep.clone(), lose.clone()]),
        (Fifo, vec![lose.clone(), keep.clone(), lose.clone()]),
        (Priority, vec![of_priority(keep.clone(), 1), lose.clone()]),
    ] {
        let sim = engine(policy, 1_904).await;
        let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
        until_ready(&router, 1).await;
        let client = HttpClient::of(&router);
        run(&client, &requests).await;
        until("both are claimed", async || claimed(&router, &sim).await.len() == 20).await;
        // Somebody else's fits only where one of them was.
        run(&HttpClient::at(&sim.url()), &[generate(&prompt(3, 700), 1)]).await;
        let back = client.post("/generate", &generate(&lost[..330], 1)).await;
        assert_eq!(back.cached_tokens(), 0, "{policy:?}");
        let accuracy = async || {
            let listed = admin(&router).await.list_workers(ListWorkersRequest {}).await.unwrap();
            listed.into_inner().workers[0].targets[0].accuracy.clone().unwrap()
        };
        let answers = requests.len() as u64 + 1;
        until("the answer is counted", async || accuracy().await.checked_responses == answers).await;
        assert_eq!(accuracy().await.causes[0].cause(), MispredictionCause::Evicted, "{policy:?}");
        let (kept, claimed) = (blocks(&router, &kept), claimed(&router, &sim).await);
        assert_eq!(kept.len(), 10);
        assert!(kept.is_subset(&held(&router, &sim).await), "{policy:?} keeps it");
        assert!(
            kept.is_subset(&claimed),
            "{policy:?}: {} of 10 blocks are claimed",
            kept.intersection(&claimed).count()
        );
        assert_infers_nothing(&router, &sim).await;
    }
}
