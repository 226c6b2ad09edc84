//! Prompts given as text are claimed exactly as tokens are, where the agent has the model's tokenizer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::HashSet;
use std::sync::Arc;

use espalier_tests::text::{both, tokenizer_path, until_text_is_exact};
use espalier_tests::{HttpClient, agent, alert, fast, metrics, until, until_ready, worker};
use proptest::prelude::*;
use router_core::key::{KeySpace, Salt, Unit};
use router_grpc::{RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::{Sim, SimConfig};
use worker_agent::events::{Event, Removed, Stored, TokenIds};
use worker_agent::mirror::Mirror;
use worker_agent::translate::{BlockView, Tell, runs};

/// An engine with pages of 16 tokens and room for so many, which reads text with the tokenizer.
async fn engine(max_total_tokens: usize) -> Sim {
    let tokenizer_path = Some(tokenizer_path());
    Sim::start(SimConfig { tokenizer_path, max_total_tokens, ..fast() }).await.unwrap()
}

fn router_config(sim: &Sim) -> RouterConfig {
    RouterConfig { block_size: 16, text_block_size: 32, ..alert(vec![sim.url()]) }
}

/// A text of about `words` words that differs from others from its beginning on.
fn text(first: usize, words: usize) -> String {
    let word = |i: usize| format!("word {} über\n", (i * 7919 + first) % 1000);
    format!("Prompt {first}: ") + &(0..words).map(word).collect::<String>()
}

fn generate(text: &str) -> Value {
    json!({"text": text, "sampling_params": {"max_new_tokens": 1}})
}

/// The divergence of both units that the router shows.
async fn until_divergence_is_zero(router: &RunningRouter) {
    until("the divergence that is shown is zero", async || {
        let text = metrics(router).await;
        let mut lines = text.lines().filter(|line| line.starts_with("espalier_divergence_tokens{"));
        lines.next().is_some_and(|line| line.ends_with(" 0") || line.ends_with(" 0.0"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_the_engine_evicts_is_no_longer_claimed() {
    let sim = engine(4_096).await;
    let router = router_grpc::start(router_config(&sim)).await.unwrap();
    until_ready(&router, 1).await;
    let agent = agent(&sim, &[&router]);
    until("the agent speaks", async || {
        worker(&router, &sim.url()).is_some_and(|worker| worker.agent.is_some())
    })
    .await;
    let client = HttpClient::of(&router);
    // Eight prompts of about 800 tokens do not fit into 4,096. Some end with a block of which the last page lacks a part.
    for first in 0..8 {
        let answer = client.post("/generate", &generate(&text(first, 80 + first))).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        until_text_is_exact(&router, &sim).await;
    }
    assert!(sim.stats(0).unwrap().totals.evicted_tokens > 0, "the engine had to evict");
    assert!(until_text_is_exact(&router, &sim).await > 0);
    until_divergence_is_zero(&router).await;
    // The last one is cached as far as the engine's pages go, and found.
    let again = client.post("/generate", &generate(&text(7, 87))).await;
    assert!(again.cached_tokens() > 500, "{}", again.text);
    // And the first one is gone, which the router knew too.
    let gone = client.post("/generate", &generate(&text(0, 80))).await;
    assert!(gone.cached_tokens() < 100, "{}", gone.text);
    // Every response said what was predicted, but for the rounding to blocks and pages.
    let metrics = metrics(&router).await;
    let wrong: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("espalier_mispredicted_tokens_total{")).collect();
    assert!(wrong.iter().all(|line| line.ends_with(" 0")), "{wrong:#?}");
    agent.shutdown().await;
    router.shutdown().await;
}

/// One cached prefix is found by both kinds of requests, whichever of them put it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_ids_and_text_share_what_is_cached() {
    let sims = [engine(65_536).await, engine(65_536).await];
    let urls = sims.iter().map(Sim::url).collect();
    let config = RouterConfig { block_size: 16, text_block_size: 32, ..alert(urls) };
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 2).await;
    let agents = [agent(&sims[0], &[&router]), agent(&sims[1], &[&router])];
    until("the agents speak", async || {
        sims.iter().all(|sim| worker(&router, &sim.url()).is_some_and(|worker| worker.agent.is_some()))
    })
    .await;
    let client = HttpClient::of(&router);
    let (tokenizer, _) = both();
    for first in 0..6 {
        let text = text(first, 60);
        let ids = json!({"input_ids": tokenizer.encode(&text), "sampling_params": {"max_new_tokens": 1}});
        let (one, other) = if first % 2 == 0 { (generate(&text), ids) } else { (ids, generate(&text)) };
        assert_eq!(client.post("/generate", &one).await.cached_tokens() / 100, 0);
        for sim in &sims {
            until_text_is_exact(&router, sim).await;
            espalier_tests::until_exact(&router, sim).await;
        }
        let answer = client.post("/generate", &other).await;
        let (cached, prompt) = (answer.cached_tokens(), tokenizer.encode(&text).len() as u64);
        assert!(cached + 32 > prompt, "{cached} of {prompt} tokens: it went where the prefix is");
    }
    for agent in agents {
        agent.shutdown().await;
    }
    router.shutdown().await;
}

/// The pages of a prompt as the engine would publish them, each in an event of its own, named by the path to it.
fn store(mirror: &mut Mirror, view: &mut BlockView, tokens: &[u32], page: usize) {
    for end in (page..=tokens.len()).step_by(page) {
        let stored = Stored {
            hashes: vec![name(&tokens[..end])],
            parent: (end > page).then(|| name(&tokens[..end - page])),
            tokens: TokenIds::Narrow(tokens[end - page..end].to_vec()),
            page_size: page as u32,
            lora_id: None,
            lora_name: None,
            cache_salt: None,
            medium: None,
        };
        let changes = mirror.apply(&[Event::Stored(stored)]);
        view.follow(mirror, &changes);
    }
}

fn name(tokens: &[u32]) -> i64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    tokens.hash(&mut hasher);
    hasher.finish() as i64
}

/// The blocks that the router derives of a text from its own key, as far as whole pages cover them.
fn derived(space: &KeySpace, text: &str, tokens: &[u32], page: usize) -> HashSet<u64> {
    let (_, vocabulary) = both();
    let paged = tokens.len() / page * page;
    let bytes =
        |tokens: &[u32]| tokens.iter().map(|token| vocabulary.bytes(*token).unwrap().len()).sum::<usize>();
    let uncovered = bytes(&tokens[paged.max(vocabulary.leading().len())..]);
    let blocks = (text.len() - uncovered) / space.block_size() as usize;
    let key = space.key_of_text(Salt::default(), text.as_bytes());
    key.hashes()[..blocks].iter().map(|hash| hash.get()).collect()
}

fn told(view: &mut BlockView) -> HashSet<u64> {
    runs(view.take_baseline()).into_iter().flat_map(|run| run.hashes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Cutting tokens into pages and spelling them page by page gives the blocks that the text gives, while pages come and go.
    #[test]
    fn spelling_pages_gives_the_blocks_of_the_text(
        shared in "(\\PC|[ \n\t]|the | of|a){0,120}",
        ends in prop::collection::vec("(\\PC|[ \n\t]|and |<\\|end\\|>){0,80}", 1..4),
        page in prop_oneof![Just(1_usize), Just(4), Just(16)],
        block in prop_oneof![Just(1_u32), Just(7), Just(16), Just(64)],
        gone in 0_usize..6,
    ) {
        let (tokenizer, vocabulary) = both();
        let space = KeySpace::new(Unit::Text, block, 3).unwrap();
        let mut mirror = Mirror::new(page as u32, 100_000);
        let mut view = BlockView::of_text(space.clone(), Arc::clone(vocabulary), Tell::All, &mirror);
        let texts: Vec<String> = ends.iter().map(|end| shared.clone() + end).collect();
        let mut expected = HashSet::new();
        for text in &texts {
            let tokens = tokenizer.encode(text);
            store(&mut mirror, &mut view, &tokens, page);
            expected.extend(derived(&space, text, &tokens, page));
        }
        prop_assert_eq!(told(&mut view), expected);
        prop_assert_eq!(view.untranslatable_pages(), 0);
        // The last pages of one text go, and come back.
        let tokens = tokenizer.encode(&texts[0]);
        let pages: Vec<_> = (page..=tokens.len()).step_by(page).map(|end| name(&tokens[..end])).collect();
        let hashes = pages[pages.len().saturating_sub(gone)..].to_vec();
        let changes = mirror.apply(&[Event::Removed(Removed { hashes, medium: None })]);
        view.follow(&mirror, &changes);
        let anew = BlockView::of_text(space.clone(), Arc::clone(vocabulary), Tell::All, &mirror);
        prop_assert_eq!((view.len(), view.buckets()), (anew.len(), anew.buckets()));
        store(&mut mirror, &mut view, &tokens, page);
        let anew = BlockView::of_text(space.clone(), Arc::clone(vocabulary), Tell::All, &mirror);
        prop_assert_eq!((view.len(), view.buckets()), (anew.len(), anew.buckets()));
        if ends.len() == 1 {
            prop_assert_eq!(told(&mut view), derived(&space, &texts[0], &tokens, page));
        }
    }
}
