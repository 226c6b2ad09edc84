//! Engines with a hierarchical cache: what their hosts hold is claimed as what their devices hold, and nothing is inferred of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::HashSet;

use espalier_proto::{Accuracy, ExplainRequest, ListWorkersRequest, Target};
use espalier_tests::{
    HttpClient, admin, agent, alert, claimed, fast, generate, held, metrics, prompt, until, until_exact,
    until_ready,
};
use router_core::key::{BlockHash, Salt, Unit};
use router_grpc::{ClaimArgs, LevelName, RouterConfig, RunningRouter};
use serde_json::Value;
use sglang_sim::WritePolicy::{WriteBack, WriteThrough, WriteThroughSelective};
use sglang_sim::{HicacheArgs, Sim, SimConfig, WritePolicy};

const DEVICE_TOKENS: usize = 2_048;
const DEVICE_BLOCKS: usize = DEVICE_TOKENS / 64;

/// An engine whose host holds so many times what its device does.
async fn engine(hicache_write_policy: WritePolicy, hicache_ratio: f64) -> Sim {
    let hicache = HicacheArgs {
        enable_hierarchical_cache: true,
        hicache_ratio,
        hicache_write_policy,
        ..fast().hicache
    };
    Sim::start(SimConfig { hicache, max_total_tokens: DEVICE_TOKENS, ..fast() }).await.unwrap()
}

/// Conversations that come back, each longer than before, and much that comes once.
fn churn() -> Vec<Value> {
    let conversation = |turn: u32| {
        let which = [0, 1, 0, 2, 3, 0, 4, 1, 5][turn as usize % 9];
        generate(&prompt(1 + which, 300 + 20 * (turn / 9)), 20)
    };
    let once = |turn: u32| generate(&prompt(100 + turn, 250 + 50 * (turn % 4)), 20);
    (0..60).map(|turn| if turn % 3 == 2 { once(turn) } else { conversation(turn) }).collect()
}

/// Tokens that answers say were found on the host.
async fn run(client: &HttpClient, bodies: &[Value]) -> u64 {
    let mut from_host = 0;
    for body in bodies {
        let answer = client.post("/generate", body).await;
        assert_eq!(answer.status, 200);
        from_host += answer.json()["meta_info"]["cached_tokens_details"]["host"].as_u64().unwrap_or(0);
    }
    from_host
}

async fn target(router: &RunningRouter) -> Target {
    let listed = admin(router).await.list_workers(ListWorkersRequest {}).await.unwrap().into_inner();
    listed.workers[0].targets[0].clone()
}

async fn accuracy(router: &RunningRouter) -> Accuracy {
    target(router).await.accuracy.unwrap()
}

/// That nothing is inferred, and why, wherever it is said.
async fn assert_infers_nothing(router: &RunningRouter, sim: &Sim, below: usize) {
    let body = generate(&prompt(1, 300), 1).to_string();
    let explain = ExplainRequest { path: "/generate".to_owned(), body };
    let explained = admin(router).await.explain(explain).await.unwrap().into_inner();
    let reason = format!("stays cached in a lower tier ({below} tokens beside those of the device)");
    for accuracy in [accuracy(router).await, explained.candidates[0].accuracy.clone().unwrap()] {
        assert!(
            accuracy.inference.starts_with("off: ") && accuracy.inference.contains(&reason),
            "{accuracy:?}"
        );
    }
    let shown = target(router).await;
    assert_eq!((shown.capacity_tokens, shown.lower_tier_tokens), (DEVICE_TOKENS as u64, Some(below as u64)));
    let text = metrics(router).await;
    for (family, value) in [("infers_evictions", 0), ("lower_tier_tokens", below)] {
        let metric = format!("espalier_{family}{{worker=\"{}\"}} {value}", sim.url());
        assert!(text.contains(&metric), "{metric} is missing in\n{text}");
    }
}

async fn agents_word_is_enough(write_policy: WritePolicy, below: usize, report_level: LevelName) {
    let sim = engine(write_policy, 3.0).await;
    // What is wrong stays wrong.
    let config = RouterConfig { report_level, reconcile_interval_secs: 0.0, ..alert(Vec::new()) };
    let router = router_grpc::start(config).await.unwrap();
    let first_agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    assert_infers_nothing(&router, &sim, below).await;
    let client = HttpClient::of(&router);
    let (mut blocks, mut from_host) = (0, 0);
    for bodies in churn().chunks(15) {
        from_host += run(&client, bodies).await;
        blocks = until_exact(&router, &sim).await;
    }
    assert!(from_host > 500, "{from_host} tokens came from the host");
    let stats = sim.stats(0).unwrap();
    assert!(stats.totals.evicted_tokens > 4_000 && stats.host_tokens > 0, "{stats:?}");
    if write_policy != WriteThroughSelective {
        assert!(blocks > 2 * DEVICE_BLOCKS, "{blocks} blocks are more than two devices have room for");
        let counts_both = async || {
            accuracy(&router).await.counts.is_some_and(|counts| counts.held_tokens > 2 * DEVICE_TOKENS as u64)
        };
        until("its agent counts both tiers", counts_both).await;
    }
    // Another agent goes on where this one ended.
    drop(first_agent);
    let unheard = HttpClient::at(&sim.url());
    run(&unheard, &churn()[..15]).await;
    let _agent = agent(&sim, &[&router]);
    until_exact(&router, &sim).await;
    run(&client, &churn()[30..]).await;
    until_exact(&router, &sim).await;
}

#[tokio::test]
async fn claims_are_what_an_engine_holds_on_either_tier() {
    // A page more than its ratio says, but for what is on the device, too, in any case.
    agents_word_is_enough(WriteThrough, 2 * DEVICE_TOKENS, LevelName::Full).await;
    agents_word_is_enough(WriteThroughSelective, 3 * DEVICE_TOKENS, LevelName::Full).await;
    agents_word_is_enough(WriteBack, 3 * DEVICE_TOKENS, LevelName::Full).await;
}

#[tokio::test]
async fn removals_alone_keep_claims_exact_on_either_tier() {
    agents_word_is_enough(WriteThrough, 2 * DEVICE_TOKENS, LevelName::Removals).await;
    agents_word_is_enough(WriteBack, 3 * DEVICE_TOKENS, LevelName::Removals).await;
}

#[tokio::test]
async fn without_an_agent_what_has_left_the_device_is_claimed_on_and_found() {
    let sim = engine(WriteThrough, 3.0).await;
    let claims = ClaimArgs { engine_counts_interval_secs: 0.05, ..RouterConfig::default().claims };
    let router = router_grpc::start(RouterConfig { claims, ..alert(vec![sim.url()]) }).await.unwrap();
    until_ready(&router, 1).await;
    assert_infers_nothing(&router, &sim, 2 * DEVICE_TOKENS).await;
    let client = HttpClient::of(&router);
    // 384 tokens each are whole pages and blocks: more than twice what the device has room for.
    let bodies: Vec<_> = (1..=12).map(|first| generate(&prompt(first, 390), 1)).collect();
    run(&client, &bodies).await;
    until("all are claimed", async || claimed(&router, &sim).await.len() == 12 * 6).await;
    assert!(sim.stats(0).unwrap().totals.evicted_tokens > 2_000);
    let asked = async || {
        let counts = accuracy(&router).await.counts;
        counts.is_some_and(|counts| counts.asked_of_engine && counts.evicted_tokens_total > Some(2_000))
    };
    until("the engine was asked for its counts", asked).await;
    assert_eq!(
        claimed(&router, &sim).await,
        held(&router, &sim).await,
        "a count of the device takes none away"
    );
    assert_eq!(accuracy(&router).await.divergence, None, "nor does it tell of a divergence");
    assert!(run(&client, &bodies).await > 2_000, "tokens came from the host");
    until("all answers are counted", async || accuracy(&router).await.checked_responses == 24).await;
    let shown = accuracy(&router).await;
    assert!(shown.causes.is_empty(), "every answer found what was predicted: {shown:?}");
}

fn blocks(router: &RunningRouter, tokens: &[u32]) -> HashSet<BlockHash> {
    let space = router.router().key_space(Unit::Token);
    space.key_of_tokens(Salt::new("", "", ""), tokens).hashes().iter().copied().collect()
}

/// Selective writing keeps what two requests have stored, whatever was used before or after it.
#[tokio::test]
async fn a_short_answer_takes_no_claim_from_what_the_host_has() {
    let sim = engine(WriteThroughSelective, 3.0).await;
    let router = router_grpc::start(alert(vec![sim.url()])).await.unwrap();
    until_ready(&router, 1).await;
    let client = HttpClient::of(&router);
    let (kept, lost) = (prompt(1, 650), prompt(2, 650));
    let (keep, lose) = (generate(&kept, 1), generate(&lost, 1));
    run(&client, &[keep.clone(), keep, lose]).await;
    until("both are claimed", async || claimed(&router, &sim).await.len() == 20).await;
    // What somebody else sends pushes both from the device, the one that the host has first.
    let foreign: Vec<_> = (3..6).map(|first| generate(&prompt(first, 650), 1)).collect();
    run(&HttpClient::at(&sim.url()), &foreign).await;
    assert_eq!(client.post("/generate", &generate(&lost[..330], 1)).await.cached_tokens(), 0);
    until("the answer is counted", async || accuracy(&router).await.checked_responses == 4).await;
    let kept = blocks(&router, &kept);
    assert_eq!(kept.len(), 10);
    assert!(kept.is_subset(&held(&router, &sim).await), "the host has it");
    assert!(kept.is_subset(&claimed(&router, &sim).await), "and it is claimed");
}
