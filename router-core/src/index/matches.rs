//! The result of a lookup: leading blocks held, for every slot.

use super::record::{Record, slots_of};
use super::words::{Address, Words};
use crate::fleet::Slot;

/// How many leading blocks of a prompt each slot holds. Reused between lookups, it does not allocate.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    blocks: Vec<u32>,
    /// Slots that hold any, those that hold most first.
    holders: Vec<Slot>,
    /// The same as a bitmap.
    seen: Vec<u64>,
    /// Runs on the path: where their records stand, and the blocks up to where they match.
    path: Vec<(Address, u32)>,
}

impl Matches {
    /// Leading blocks held by a slot.
    pub fn blocks(&self, slot: Slot) -> u32 {
        self.blocks.get(usize::from(slot.0)).copied().unwrap_or(0)
    }

    /// The slots that hold any, those that hold most first.
    pub fn holders(&self) -> &[Slot] {
        &self.holders
    }

    /// Begins a lookup.
    pub(super) fn begin(&mut self) {
        self.holders.drain(..).for_each(|slot| self.blocks[usize::from(slot.0)] = 0);
        self.seen.fill(0);
        self.path.clear();
    }

    /// The next run on the path matches up to `depth` blocks.
    #[inline]
    pub(super) fn walk(&mut self, record: Address, depth: u32) {
        self.path.push((record, depth));
    }

    /// Ends a lookup. Holders only become fewer along a path: from its end back, each slot is met where it holds most.
    pub(super) fn finish(&mut self, words: &Words) {
        let Self { blocks, holders, seen, path } = self;
        for &(record, depth) in path.iter().rev() {
            Record::of(words.line(record)).holders.for_each_word(words, |number, bits| {
                if number >= seen.len() {
                    seen.resize(number + 1, 0);
                    blocks.resize((number + 1) * u64::BITS as usize, 0);
                }
                let fresh = bits & !seen[number];
                seen[number] |= bits;
                for slot in slots_of(number, fresh) {
                    blocks[usize::from(slot.0)] = depth;
                    holders.push(slot);
                }
            });
        }
    }
}
