//! Who holds a run, and how much of it.

use super::slot_set::SlotSet;
use crate::fleet::Slot;

/// The slots that hold the leading blocks of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holders {
    /// Hold all of it.
    whole: SlotSet,
    /// Hold this many leading blocks, more than none and fewer than all. Few, in no order.
    part: Vec<(Slot, u32)>,
}

impl Holders {
    /// How many leading blocks of a run of `len` a slot holds.
    pub(crate) fn held(&self, slot: Slot, len: u32) -> u32 {
        if self.whole.contains(slot) {
            return len;
        }
        self.part.iter().find(|(other, _)| *other == slot).map_or(0, |(_, blocks)| *blocks)
    }

    /// Sets how many leading blocks of a run of `len` a slot holds.
    pub(crate) fn set(&mut self, slot: Slot, blocks: u32, len: u32) {
        debug_assert!(blocks <= len, "a slot cannot hold more than there is");
        if blocks < len {
            self.whole.remove(slot);
        }
        self.part.retain(|(other, _)| *other != slot);
        if blocks == len {
            self.whole.insert(slot);
        } else if blocks > 0 {
            self.part.push((slot, blocks));
        }
    }

    /// Blocks held by the slot that holds most.
    pub(crate) fn longest(&self, len: u32) -> u32 {
        match self.whole.is_empty() {
            true => self.part.iter().map(|(_, blocks)| *blocks).max().unwrap_or(0),
            false => len,
        }
    }

    pub(super) fn whole(&self) -> &SlotSet {
        &self.whole
    }

    pub(super) fn part(&self) -> &[(Slot, u32)] {
        &self.part
    }

    /// Every holder with the blocks it holds of a run of `len`.
    pub(crate) fn iter(&self, len: u32) -> impl Iterator<Item = (Slot, u32)> + '_ {
        self.whole.iter().map(move |slot| (slot, len)).chain(self.part.iter().copied())
    }

    /// The holders of the first `at` blocks and of the rest, for a run that is cut there.
    pub(super) fn split(&self, at: u32) -> (Self, Self) {
        let mut upper = Self { whole: self.whole.clone(), part: Vec::new() };
        let mut lower = Self { whole: self.whole.clone(), part: Vec::new() };
        for &(slot, blocks) in &self.part {
            if blocks >= at {
                upper.whole.insert(slot);
            } else {
                upper.part.push((slot, blocks));
            }
            if blocks > at {
                lower.part.push((slot, blocks - at));
            }
        }
        (upper, lower)
    }

    /// The same holders after the run has been cut to its first `len` blocks, which is the longest that anyone holds.
    pub(super) fn shorten(&mut self, len: u32) {
        let (whole, part): (Vec<_>, Vec<_>) = self.part.drain(..).partition(|&(_, blocks)| blocks == len);
        whole.into_iter().for_each(|(slot, _)| self.whole.insert(slot));
        self.part = part;
    }
}
