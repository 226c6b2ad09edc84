//! `RadixTree`: one thread's tree of runs. What reads it must be on the writer's thread.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use dynamo_kv_router::RadixTree;
use dynamo_kv_router::protocols::{LocalBlockHash, OverlapScores, RouterEvent};

use super::{event, hash, matched, sequence};
use crate::contest::{Contestant, Matched, Operation, Reader};
use crate::work::Prompt;

/// See the module.
pub(crate) struct Radix {
    tree: RadixTree,
    staged: VecDeque<RouterEvent>,
}

struct RadixReader<'a> {
    tree: &'a RadixTree,
    /// It takes the prompt by value; the copy is not timed.
    owned: Vec<LocalBlockHash>,
    found: OverlapScores,
}

impl Radix {
    /// An empty tree.
    pub(crate) fn new() -> Self {
        Self { tree: RadixTree::new(), staged: VecDeque::new() }
    }
}

impl Contestant for Radix {
    fn name(&self) -> &'static str {
        "dynamo RadixTree"
    }

    fn stage(&mut self, operations: &[Operation]) {
        self.staged.extend(operations.iter().map(event));
    }

    fn apply(&mut self, count: usize) -> Duration {
        let events: Vec<_> = self.staged.drain(..count).collect();
        let began = Instant::now();
        for event in events {
            self.tree.apply_event(event).expect("events are in order");
        }
        began.elapsed()
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(RadixReader { tree: &self.tree, owned: Vec::new(), found: OverlapScores::new() })
    }
}

impl Reader for RadixReader<'_> {
    fn warm(&mut self, prompt: &Prompt) {
        self.owned = sequence(prompt).collect();
    }

    fn lookup(&mut self, _prompt: &Prompt) {
        self.found = self.tree.find_matches(std::mem::take(&mut self.owned), false);
    }

    fn hash_and_lookup(&mut self, prompt: &Prompt) {
        self.found = self.tree.find_matches(hash(&prompt.tokens), false);
    }

    fn matched(&mut self, targets: u16) -> Matched {
        matched(&self.found, targets)
    }
}
