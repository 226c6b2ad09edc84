//! The result of a lookup: leading blocks held, for every slot.

use super::holders::Holders;
use super::slot_set::bits;
use crate::fleet::Slot;

/// How many leading blocks of a prompt each slot holds. Reused between lookups, it does not allocate.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    blocks: Vec<u32>,
    /// Bitmap of the slots that hold everything walked so far.
    whole: Vec<u64>,
    /// Blocks walked so far.
    depth: u32,
}

impl Matches {
    /// Leading blocks held by a slot.
    pub fn blocks(&self, slot: Slot) -> u32 {
        self.blocks.get(usize::from(slot.0)).copied().unwrap_or(0)
    }

    /// Begins a lookup.
    pub(super) fn clear(&mut self) {
        self.blocks.fill(0);
        self.whole.clear();
        self.depth = 0;
    }

    /// Goes through the first `blocks` blocks of a run. `false` if nobody holds all of them: nobody holds more.
    pub(super) fn walk(&mut self, holders: &Holders, blocks: u32) -> bool {
        if self.depth == 0 {
            holders.whole().for_each_word(|index, word| {
                self.whole.resize(self.whole.len().max(index + 1), 0);
                self.whole[index] = word;
            });
        } else {
            self.drop_all_but(holders);
        }
        for &(slot, held) in holders.part() {
            self.record(slot, self.depth + held.min(blocks));
        }
        self.depth += blocks;
        self.whole.iter().any(|&word| word != 0)
    }

    /// Ends a lookup.
    pub(super) fn finish(&mut self) {
        let words = std::mem::take(&mut self.whole);
        for (index, &word) in words.iter().enumerate() {
            bits(index, word).for_each(|slot| self.record(slot, self.depth));
        }
        self.whole = words;
    }

    /// Records the match of those that do not hold the whole of the next run.
    fn drop_all_but(&mut self, holders: &Holders) {
        let mut words = std::mem::take(&mut self.whole);
        let mut next = 0;
        holders.whole().for_each_word(|index, word| {
            for skipped in next..index.min(words.len()) {
                self.end(skipped, std::mem::take(&mut words[skipped]));
            }
            if let Some(own) = words.get_mut(index) {
                let dropped = *own & !word;
                *own &= word;
                self.end(index, dropped);
            }
            next = index + 1;
        });
        for (index, word) in words.iter_mut().enumerate().skip(next) {
            self.end(index, std::mem::take(word));
        }
        self.whole = words;
    }

    fn end(&mut self, index: usize, word: u64) {
        bits(index, word).for_each(|slot| self.record(slot, self.depth));
    }

    fn record(&mut self, slot: Slot, blocks: u32) {
        let index = usize::from(slot.0);
        if index >= self.blocks.len() {
            self.blocks.resize(index + 1, 0);
        }
        self.blocks[index] = blocks;
    }
}
