//! The result of a lookup: leading blocks held, for every slot.

use super::record::{Record, slots_of};
use super::words::{Address, Words};
use crate::fleet::Slot;

/// Slots that one word of a bitmap stands for.
const SLOTS_OF_A_WORD: usize = u64::BITS as usize;

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
        for (seen, blocks) in self.seen.iter_mut().zip(self.blocks.chunks_exact_mut(SLOTS_OF_A_WORD)) {
            if std::mem::take(seen) != 0 {
                blocks.fill(0);
            }
        }
        self.holders.clear();
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
                    blocks.resize((number + 1) * SLOTS_OF_A_WORD, 0);
                }
                let fresh = bits & !seen[number];
                if fresh == 0 {
                    return;
                }
                seen[number] |= fresh;
                let blocks = &mut blocks[number * SLOTS_OF_A_WORD..][..SLOTS_OF_A_WORD];
                if fresh.is_power_of_two() {
                    let slot = Slot((number * SLOTS_OF_A_WORD) as u16 + fresh.trailing_zeros() as u16);
                    blocks[usize::from(slot.0) % SLOTS_OF_A_WORD] = depth;
                    holders.push(slot);
                    return;
                }
                // Collected first: a vector that is pushed to asks for its room every time.
                let mut found = [Slot(0); SLOTS_OF_A_WORD];
                let mut count = 0;
                for slot in slots_of(number, fresh) {
                    blocks[usize::from(slot.0) % SLOTS_OF_A_WORD] = depth;
                    found[count % SLOTS_OF_A_WORD] = slot;
                    count += 1;
                }
                holders.extend_from_slice(&found[..count]);
            });
        }
    }
}
