//! `PositionalIndexer`: a concurrent map from position and block to holders, searched by bisection, its faster mode.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_kv_router::PositionalIndexer;
use dynamo_kv_router::indexer::SyncIndexer as _;
use dynamo_kv_router::indexer::positional::{LevelIndex, SearchMode};
use dynamo_kv_router::protocols::{LocalBlockHash, OverlapScores, RouterEvent, WorkerWithDpRank};
use rustc_hash::FxHashMap;

use super::{event, hash, matched, sequence, touch};
use crate::contest::{Contestant, Matched, Operation, Reader};
use crate::work::Prompt;

/// Blocks below which a search goes one by one: the example of its documentation.
const JUMP: usize = 32;

/// See the module.
pub(crate) struct Positional {
    indexer: Arc<PositionalIndexer>,
    blocks: FxHashMap<WorkerWithDpRank, LevelIndex>,
    staged: VecDeque<RouterEvent>,
}

struct PositionalReader {
    indexer: Arc<PositionalIndexer>,
    sequence: Vec<LocalBlockHash>,
    found: OverlapScores,
}

impl Positional {
    /// An empty index.
    pub(crate) fn new() -> Self {
        let indexer = Arc::new(PositionalIndexer::new_with_mode(JUMP, SearchMode::Binary));
        Self { indexer, blocks: FxHashMap::default(), staged: VecDeque::new() }
    }

    fn new_reader(&self) -> PositionalReader {
        let indexer = self.indexer.clone();
        PositionalReader { indexer, sequence: Vec::new(), found: OverlapScores::new() }
    }
}

impl Contestant for Positional {
    fn name(&self) -> &'static str {
        "dynamo PositionalIndexer"
    }

    fn stage(&mut self, operations: &[Operation]) {
        self.staged.extend(operations.iter().map(event));
    }

    fn apply(&mut self, count: usize) -> Duration {
        let events: Vec<_> = self.staged.drain(..count).collect();
        let began = Instant::now();
        for event in events {
            self.indexer.apply_event(&mut self.blocks, event, None).expect("events are in order");
        }
        began.elapsed()
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(self.new_reader())
    }

    fn shared_reader(&self) -> Option<Box<dyn Reader + Send>> {
        Some(Box::new(self.new_reader()))
    }
}

impl Reader for PositionalReader {
    fn warm(&mut self, prompt: &Prompt) {
        self.sequence.clear();
        self.sequence.extend(sequence(prompt));
        touch(&self.sequence);
    }

    fn lookup(&mut self, _prompt: &Prompt) {
        self.found = self.indexer.find_matches(&self.sequence, false);
    }

    fn hash_and_lookup(&mut self, prompt: &Prompt) {
        self.found = self.indexer.find_matches(&hash(&prompt.tokens), false);
    }

    fn matched(&mut self, targets: u16) -> Matched {
        matched(&self.found, targets)
    }
}
