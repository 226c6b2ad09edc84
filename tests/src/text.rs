//! Engines that read text with a real tokenizer, and what is claimed of text.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use router_core::key::{BlockHash, KeySpace, Salt, Unit};
use router_grpc::RunningRouter;
use sglang_sim::Sim;
use sglang_sim::tokenizer::Tokenizer;
use worker_agent::tokenizer::Vocabulary;

use crate::{until, worker};

/// A small byte-level BPE tokenizer; `data/README.md` beside it says how it was made.
pub fn tokenizer_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sglang-sim/data/tokenizer.json")
}

pub fn both() -> &'static (Tokenizer, Arc<Vocabulary>) {
    static BOTH: OnceLock<(Tokenizer, Arc<Vocabulary>)> = OnceLock::new();
    BOTH.get_or_init(|| {
        let path = tokenizer_path();
        (Tokenizer::read(&path).unwrap(), Arc::new(Vocabulary::read(&path).unwrap()))
    })
}

/// The blocks of text that an engine holds: what its cached tokens stand for, cut as the router cuts a prompt.
pub async fn held(space: &KeySpace, sim: &Sim) -> HashSet<BlockHash> {
    let mut held = HashSet::new();
    for (_, tokens) in sim.cached_paths(0).await {
        let (_, vocabulary) = both();
        let spoken = tokens.strip_prefix(vocabulary.leading()).unwrap_or(&tokens);
        // What the simulated model generates is no token of the vocabulary.
        let bytes: Vec<u8> =
            spoken.iter().map_while(|token| vocabulary.bytes(*token)).flatten().copied().collect();
        held.extend(space.key_of_text(Salt::default(), &bytes).hashes());
    }
    held
}

pub async fn claimed(router: &RunningRouter, sim: &Sim) -> HashSet<BlockHash> {
    let worker = worker(router, &sim.url()).unwrap();
    let target = router.router().snapshot().fleet.targets_of(worker.id).next().unwrap().id;
    router.claims(target, Unit::Text).await.into_iter().collect()
}

pub async fn until_text_is_exact(router: &RunningRouter, sim: &Sim) -> usize {
    let space = router.router().key_space(Unit::Text);
    let mut blocks = 0;
    until("the claims on text are what the engine holds", async || {
        let held = held(space, sim).await;
        blocks = held.len();
        claimed(router, sim).await == held
    })
    .await;
    blocks
}
