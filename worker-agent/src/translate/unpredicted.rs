//! Stores that a coordinator has not predicted: what it names is known to it, what it has not named in time is to be told.

use std::collections::VecDeque;

use rustc_hash::FxHashSet;

use super::{BlockView, Tell};

/// Prompts that are remembered until they are stored; the oldest are forgotten, and told when they are.
const MOST_NAMED: usize = 65_536;

/// What has been named and not stored, and what has been stored and not named.
#[derive(Debug, Default)]
pub(super) struct Unpredicted {
    named: FxHashSet<u64>,
    in_order: VecDeque<u64>,
    /// Blocks stored since the last call of [`ripen`](Self::ripen), and those stored before it.
    young: Vec<u64>,
    older: Vec<u64>,
    /// Something has been named: the coordinator uses this key space.
    in_use: bool,
}

impl Unpredicted {
    /// The coordinator claims the prompt that ends with this block, which is not held yet.
    pub(super) fn name(&mut self, last: u64) {
        if self.named.insert(last) {
            self.in_order.push_back(last);
        }
        if self.in_order.len() > MOST_NAMED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.named.remove(&oldest);
        }
    }

    /// The coordinator uses this key space.
    pub(super) fn use_it(&mut self) {
        self.in_use = true;
    }

    /// A block is stored that the coordinator has not been told of. Whether it has named it; else it may do so yet.
    pub(super) fn stored(&mut self, hash: u64) -> bool {
        let named = self.named.remove(&hash);
        if named {
            // It stands near the end: prompts are stored soon after they are named.
            if let Some(at) = self.in_order.iter().rposition(|other| *other == hash) {
                self.in_order.remove(at);
            }
        } else {
            self.young.push(hash);
        }
        named
    }

    /// Time has passed. Takes what was stored before the call before this one, unless nothing was ever named.
    pub(super) fn ripen(&mut self) -> Vec<u64> {
        if !self.in_use {
            self.older.append(&mut self.young);
            return Vec::new();
        }
        std::mem::replace(&mut self.older, std::mem::take(&mut self.young))
    }

    /// Blocks that wait to be named.
    pub(super) fn waiting(&self) -> usize {
        self.young.len() + self.older.len()
    }

    /// Forgets blocks that need not be told any more.
    pub(super) fn retain(&mut self, mut is_untold: impl FnMut(u64) -> bool) {
        self.young.retain(|hash| is_untold(*hash));
        self.older.retain(|hash| is_untold(*hash));
    }

    /// All that is held counts as told.
    pub(super) fn forget_stored(&mut self) {
        self.young.clear();
        self.older.clear();
    }

    /// Nothing is held, and what was claimed is void.
    pub(super) fn clear(&mut self) {
        self.forget_stored();
        self.named.clear();
        self.in_order.clear();
    }
}

impl BlockView {
    /// The coordinator claims the prompt that ends with this block by its own routing: it need not be told of it.
    pub fn predicted(&mut self, last: u64) {
        if self.tell != Tell::Unpredicted {
            return;
        }
        self.unpredicted.use_it();
        if self.parent_of_held(last).is_some() {
            self.know(last);
        } else {
            self.unpredicted.name(last);
        }
    }

    /// A quarter of a second or more has passed: what was stored before the last call, and has not been named, is to be told.
    pub fn ripen(&mut self) {
        for hash in self.unpredicted.ripen() {
            if let Some(block) = self.blocks.get_mut(&hash).filter(|block| block.is_untold()) {
                block.queued = true;
                self.queue.push(hash);
            }
        }
    }

    /// These blocks have been told in another way.
    pub fn count_these_as_told(&mut self, hashes: impl IntoIterator<Item = u64>) {
        for hash in hashes {
            if let Some(block) = self.blocks.get_mut(&hash).filter(|block| block.pages > 0 && !block.told) {
                block.told = true;
                self.told += 1;
            }
        }
    }

    /// The coordinator may have named a block that is stored now, or may do so soon.
    pub(super) fn await_name(&mut self, hash: u64) {
        if self.unpredicted.stored(hash) {
            self.know(hash);
        } else if self.unpredicted.waiting() > 2 * self.held + 1024 {
            let blocks = &self.blocks;
            self.unpredicted.retain(|hash| blocks.get(&hash).is_some_and(|block| block.is_untold()));
        }
    }

    /// The coordinator knows a block and all before it.
    fn know(&mut self, last: u64) {
        let mut at = last;
        while let Some(block) = self.blocks.get_mut(&at).filter(|block| block.pages > 0 && !block.told) {
            block.told = true;
            self.told += 1;
            at = block.parent;
        }
    }
}
