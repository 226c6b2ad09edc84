//! Finds blocks by their hash alone, for those who name them so.

use hashbrown::HashTable;
use std::collections::BTreeMap;

use super::words::{Address, Words};
use crate::key::BlockHash;

/// Where the hash of every block stands in the log, and which run it belongs to.
#[derive(Debug, Default)]
pub(super) struct Locator {
    /// The hash itself stands at the address.
    blocks: HashTable<Address>,
    /// Runs by where their hashes begin.
    runs: BTreeMap<Address, u32>,
}

impl Locator {
    /// The run of a block and the block's place in it.
    pub(super) fn find(&self, words: &Words, hash: BlockHash) -> Option<(u32, u32)> {
        let address = *self.blocks.find(hash.get(), |address| words.get(*address) == hash.get())?;
        let (start, run) = self.runs.range(..=address).next_back()?;
        Some((*run, address - start))
    }

    /// A run stands at `start`, with so many blocks of which the first `known` stood there before.
    pub(super) fn insert(&mut self, words: &Words, run: u32, start: Address, known: u32, len: u32) {
        self.runs.insert(start, run);
        for address in start + known..start + len {
            self.blocks.insert_unique(words.get(address), address, |address| words.get(*address));
        }
    }

    /// A run that stood at `start` is now another one, and so many of its blocks have gone to `below`.
    pub(super) fn split(&mut self, start: Address, upper: u32, at: u32, lower: u32) {
        self.runs.insert(start, upper);
        self.runs.insert(start + at, lower);
    }

    /// A run that begins at `start` goes on where this one ended; it is one with the one before.
    pub(super) fn rename(&mut self, start: Address, run: u32) {
        self.runs.insert(start, run);
    }

    /// No run begins there any more; its blocks belong to the one before.
    pub(super) fn forget_start(&mut self, start: Address) {
        self.runs.remove(&start);
    }

    /// A run and its blocks are no longer there.
    pub(super) fn remove(&mut self, words: &Words, start: Address, len: u32) {
        self.runs.remove(&start);
        self.remove_blocks(words, start, len);
    }

    /// Blocks of a run are no longer there.
    pub(super) fn remove_blocks(&mut self, words: &Words, start: Address, len: u32) {
        for address in start..start + len {
            if let Ok(entry) = self.blocks.find_entry(words.get(address), |other| *other == address) {
                entry.remove();
            }
        }
    }
}
