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
    /// The coordinator uses this key space.
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

    /// A block is stored now. Takes its name, and says whether it had one.
    pub(super) fn take_name(&mut self, hash: u64) -> bool {
        let named = self.named.remove(&hash);
        if named {
            // It stands near the end: prompts are stored soon after they are named.
            if let Some(at) = self.in_order.iter().rposition(|other| *other == hash) {
                self.in_order.remove(at);
            }
        }
        named
    }

    /// A block is stored that the coordinator has neither named nor been told of. It may name it yet.
    fn wait_for_name(&mut self, hash: u64) {
        self.young.push(hash);
    }

    /// Time has passed. Takes what was stored before the call before this one, if the key space is used.
    pub(super) fn ripen(&mut self) -> Vec<u64> {
        if !self.in_use {
            self.older.append(&mut self.young);
            return Vec::new();
        }
        std::mem::replace(&mut self.older, std::mem::take(&mut self.young))
    }

    /// Blocks that wait to be named.
    fn waiting(&self) -> usize {
        self.young.len() + self.older.len()
    }

    /// Forgets blocks that need not be told any more. One that came again and again waits once.
    fn retain(&mut self, mut is_untold: impl FnMut(u64) -> bool) {
        let mut kept = FxHashSet::default();
        let mut keeps = |hash: &u64| is_untold(*hash) && kept.insert(*hash);
        self.young.retain(&mut keeps);
        self.older.retain(&mut keeps);
    }

    /// All that is held counts as told, and what was claimed before is void.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.older.clear();
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
        self.set_used(true);
        if self.parent_of_held(last).is_some() {
            self.know(last);
        } else {
            self.unpredicted.name(last);
        }
    }

    /// Whether the coordinator uses this key space: else it is told of no stores here.
    pub fn set_used(&mut self, used: bool) {
        self.unpredicted.in_use = used;
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

    /// The coordinator may name a block soon that is stored now.
    pub(super) fn await_name(&mut self, hash: u64) {
        self.unpredicted.wait_for_name(hash);
        if self.unpredicted.waiting() > 2 * self.held + 1024 {
            let blocks = &self.blocks;
            self.unpredicted.retain(|hash| blocks.get(&hash).is_some_and(|block| block.is_untold()));
        }
    }

    /// The coordinator knows a block and all before it from now on. Those that it did not know, parents before their children, each
    /// after its parent's hash.
    pub(super) fn know(&mut self, last: u64) -> Vec<(u64, u64)> {
        let mut news = Vec::new();
        let mut at = last;
        while let Some(block) = self.blocks.get_mut(&at).filter(|block| block.pages > 0 && !block.told) {
            block.told = true;
            self.told += 1;
            news.push((block.parent, at));
            at = block.parent;
        }
        news.reverse();
        news
    }
}

#[cfg(test)]
mod tests {
    use router_core::key::{KeySpace, Unit};

    use super::*;
    use crate::events::{Event, Removed, Stored, TokenIds};
    use crate::mirror::Mirror;

    #[test]
    fn what_comes_and_goes_in_a_unit_that_is_not_used_does_not_pile_up() {
        let mut mirror = Mirror::new(2, 100);
        let space = KeySpace::new(Unit::Token, 2, 7).unwrap();
        let mut view = BlockView::new(space, Tell::Unpredicted, &mirror).unwrap();
        let stored = Event::Stored(Stored {
            hashes: vec![1],
            parent: None,
            tokens: TokenIds::Narrow(vec![1, 2]),
            page_size: 2,
            lora_id: None,
            lora_name: None,
            cache_salt: None,
            medium: None,
        });
        let removed = Event::Removed(Removed { hashes: vec![1], medium: None });
        for _ in 0..4_000 {
            for event in [&stored, &removed] {
                let changes = mirror.apply(std::slice::from_ref(event));
                view.follow(&mirror, &changes);
                view.take_delta();
                view.ripen();
            }
        }
        let waiting = view.unpredicted.waiting();
        assert!(waiting <= 2 + 1_024, "{waiting} of one block");
    }
}
