//! The specification of the index: for each slot, the set of prefixes it holds.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::Slot;
use crate::key::BlockHash;

/// A slow and obvious index. Tests and benchmarks hold the real one against it.
#[derive(Clone, Debug, Default)]
pub struct NaiveIndex {
    /// Held blocks; the last hash of a prefix names the whole prefix.
    held: BTreeMap<Slot, BTreeSet<Vec<BlockHash>>>,
}

impl NaiveIndex {
    /// Claims every prefix of `key` for a slot.
    pub fn claim(&mut self, key: &[BlockHash], slot: Slot) {
        let held = self.held.entry(slot).or_default();
        held.extend((1..=key.len()).map(|len| key[..len].to_vec()));
    }

    /// Removes a block, and all that a slot holds below it.
    pub fn remove(&mut self, hash: BlockHash, slot: Slot) {
        if let Some(held) = self.held.get_mut(&slot) {
            held.retain(|prefix| !prefix.contains(&hash));
        }
    }

    /// Removes everything of a slot.
    pub fn clear(&mut self, slot: Slot) {
        self.held.remove(&slot);
    }

    /// Leading blocks of `key` that a slot holds.
    pub fn match_prefix(&self, key: &[BlockHash], slot: Slot) -> u32 {
        let Some(held) = self.held.get(&slot) else { return 0 };
        (1..=key.len()).take_while(|len| held.contains(&key[..*len])).count() as u32
    }

    /// Distinct blocks that anyone holds.
    pub fn blocks(&self) -> u64 {
        let all: BTreeSet<_> = self.held.values().flatten().collect();
        all.len() as u64
    }

    /// Every block that a slot holds.
    pub fn claims(&self, slot: Slot) -> BTreeSet<BlockHash> {
        self.held.get(&slot).into_iter().flatten().filter_map(|prefix| prefix.last().copied()).collect()
    }
}
