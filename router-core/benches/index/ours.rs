//! Our index: edited in place, published as a snapshot through arc-swap, read from the published snapshot.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use router_core::Slot;
use router_core::index::{Index, Matches, Tree};
use router_core::key::{BlockHash, KeySpace, Salt};

use crate::contest::{Contestant, Matched, Operation, Pace, Reader};
use crate::work::Prompt;

/// Block operations between two publications: what the paced storm does in the default publication interval.
const BLOCKS_PER_PUBLICATION: usize = 500;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ours {
    index: Index,
    published: Arc<ArcSwap<Tree>>,
    /// Trees that were published and may still be read. The writer frees them, so that no reader ever does.
    retired: VecDeque<Arc<Tree>>,
    staged: VecDeque<Operation>,
    space: KeySpace,
    /// What is stored is from now on what agents report; what was loaded is what a router has routed.
    reported: bool,
}

#[derive(Debug)]
struct OurReader {
    published: Arc<ArcSwap<Tree>>,
    matches: Matches,
    space: KeySpace,
    key: Vec<BlockHash>,
}

impl Ours {
    /// An empty index for prompts that this space hashes.
    pub(crate) fn new(space: KeySpace) -> Self {
        let mut index = Index::default();
        let published = Arc::new(ArcSwap::from_pointee(index.snapshot()));
        Self { index, published, retired: VecDeque::new(), staged: VecDeque::new(), space, reported: false }
    }

    /// Publishes the tree as it is, and says how long that took.
    pub(crate) fn publish(&mut self) -> Duration {
        let began = Instant::now();
        self.retired.push_back(self.published.swap(Arc::new(self.index.snapshot())));
        // Free those that nobody reads: first in, first out, so that a long reader keeps only what came after it.
        while self.retired.front().is_some_and(|tree| Arc::strong_count(tree) == 1) {
            self.retired.pop_front();
        }
        began.elapsed()
    }

    /// Applies the next staged operations without publishing.
    pub(crate) fn edit_staged(&mut self, count: usize) {
        for operation in self.take(count) {
            edit(&mut self.index, &operation, self.reported);
        }
    }

    fn take(&mut self, count: usize) -> Vec<Operation> {
        self.staged.drain(..count).collect()
    }

    fn new_reader(&self) -> OurReader {
        OurReader {
            published: self.published.clone(),
            matches: Matches::default(),
            space: self.space.clone(),
            key: Vec::new(),
        }
    }
}

/// Carries out an operation. `reported`: as an agent reports it, and not as the router itself has routed it.
fn edit(index: &mut Index, operation: &Operation, reported: bool) {
    match operation {
        Operation::Store { held, from: 0, to } => {
            let (key, slot) = (&held.prompt.key[..*to], Slot::new(held.target));
            if reported { index.insert_reported(key, slot) } else { index.insert(key, slot) }
        }
        Operation::Store { held, from, to } => {
            let key = &held.prompt.key;
            let known = index.extend(key[from - 1], &key[*from..*to], Slot::new(held.target));
            assert!(known, "the target holds the block before");
        }
        Operation::Remove { held, from, to } => {
            index.remove(&held.prompt.key[*from..*to], Slot::new(held.target));
        }
        Operation::Clear { target } => index.clear(Slot::new(*target)),
    }
}

impl Contestant for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn stage(&mut self, operations: &[Operation]) {
        for operation in operations {
            if let Operation::Store { held, .. } | Operation::Remove { held, .. } = operation {
                warm(&held.prompt.key);
            }
        }
        self.staged.extend(operations.iter().cloned());
    }

    fn apply(&mut self, count: usize) -> Duration {
        let operations = self.take(count);
        let began = Instant::now();
        let mut blocks = 0;
        for operation in &operations {
            edit(&mut self.index, operation, self.reported);
            blocks += operation.blocks();
            if blocks >= BLOCKS_PER_PUBLICATION {
                self.publish();
                blocks = 0;
            }
        }
        // Also where the last one was a clearing, which counts no blocks.
        self.publish();
        began.elapsed()
    }

    fn storm(&mut self, ticks: &[usize], pace: Pace) {
        for (tick, &count) in ticks.iter().enumerate() {
            pace.wait(tick);
            if count > 0 {
                self.edit_staged(count);
                self.publish();
            }
        }
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(self.new_reader())
    }

    fn shared_reader(&self) -> Option<Box<dyn Reader + Send>> {
        Some(Box::new(self.new_reader()))
    }

    fn prepare_for_events(&mut self) {
        self.index.locate_blocks();
        self.reported = true;
    }
}

impl Reader for OurReader {
    fn warm(&mut self, prompt: &Prompt) {
        warm(&prompt.key);
    }

    fn lookup(&mut self, prompt: &Prompt) {
        self.published.load().match_prefix(&prompt.key, &mut self.matches);
    }

    fn hash_and_lookup(&mut self, prompt: &Prompt) {
        self.key.clear();
        self.space.extend_with_tokens(Salt::default(), None, &prompt.tokens, &mut self.key);
        self.published.load().match_prefix(&self.key, &mut self.matches);
    }

    fn matched(&mut self, targets: u16) -> Matched {
        Matched::Every((0..targets).map(|target| self.matches.blocks(Slot::new(target))).collect())
    }
}

fn warm(key: &[BlockHash]) {
    black_box(key.iter().fold(0, |all, hash| all ^ hash.get()));
}
