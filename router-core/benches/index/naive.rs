//! router-core's own specification of the index: obvious, and slow.
//!
//! It keeps every prefix of every prompt as a list, and walks one target after the other. It is loaded with a few prompts
//! only, which flatters it: the figure per operation is that of a nearly empty index.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use router_core::Slot;
use router_core::index::NaiveIndex;
use router_core::key::{BlockHash, KeySpace, Salt};

use crate::contest::{Contestant, Matched, Operation, Reader};
use crate::work::Prompt;

/// See the module.
#[derive(Debug)]
pub(crate) struct Naive {
    index: NaiveIndex,
    staged: VecDeque<Operation>,
    space: KeySpace,
    targets: u16,
}

#[derive(Debug)]
struct NaiveReader<'a> {
    index: &'a NaiveIndex,
    space: &'a KeySpace,
    matched: Vec<u32>,
}

impl Naive {
    /// An empty index of targets `0..targets`, for prompts that this space hashes.
    pub(crate) fn new(space: KeySpace, targets: u16) -> Self {
        Self { index: NaiveIndex::default(), staged: VecDeque::new(), space, targets }
    }
}

impl Contestant for Naive {
    fn name(&self) -> &'static str {
        "naive index"
    }

    fn stage(&mut self, operations: &[Operation]) {
        self.staged.extend(operations.iter().cloned());
    }

    fn apply(&mut self, count: usize) -> Duration {
        let began = Instant::now();
        for operation in self.staged.drain(..count) {
            match operation {
                Operation::Store { held, to, .. } => {
                    self.index.claim(&held.prompt.key[..to], Slot::new(held.target));
                }
                Operation::Remove { held, from, .. } => {
                    // Whoever loses a block loses all below it.
                    self.index.remove(held.prompt.key[from], Slot::new(held.target));
                }
                Operation::Clear { target } => self.index.clear(Slot::new(target)),
            }
        }
        began.elapsed()
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        let matched = vec![0; self.targets.into()];
        Box::new(NaiveReader { index: &self.index, space: &self.space, matched })
    }

    fn patience(&self) -> usize {
        32
    }
}

impl NaiveReader<'_> {
    fn find(&mut self, key: &[BlockHash]) {
        for (target, matched) in self.matched.iter_mut().enumerate() {
            *matched = self.index.match_prefix(key, Slot::new(target as u16));
        }
    }
}

impl Reader for NaiveReader<'_> {
    fn warm(&mut self, prompt: &Prompt) {
        black_box(prompt.key.iter().fold(0, |all, hash| all ^ hash.get()));
    }

    fn lookup(&mut self, prompt: &Prompt) {
        self.find(&prompt.key);
    }

    fn hash_and_lookup(&mut self, prompt: &Prompt) {
        let mut key = Vec::new();
        self.space.extend_with_tokens(Salt::default(), None, &prompt.tokens, &mut key);
        self.find(&key);
    }

    fn matched(&mut self, _targets: u16) -> Matched {
        Matched::Every(self.matched.clone())
    }
}
