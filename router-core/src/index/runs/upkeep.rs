//! Work that goes through many runs: cleaning the log, and taking a slot out of everything.

use super::super::record::{Changed, Holders};
use super::super::words::{Address, Words};
use super::Runs;
use crate::fleet::Slot;

impl Runs {
    /// Moves what still lives out of the log's segment that is most dead, if too much of the log is.
    pub(super) fn clean(&mut self) {
        let Some((segment, owners)) = self.arena.segment_to_clean() else { return };
        let here = |address: Address| Words::segment_of(address) == segment;
        for run in owners {
            if self.links[run as usize].capacity == 0 {
                continue;
            }
            let mut record = self.record(run);
            if here(record.hashes) {
                let capacity = self.capacity(run);
                self.set_capacity(run, record.len);
                let at = self.arena.new_extent(record.len, run);
                if let Some(locator) = &mut self.locator {
                    locator.remove(self.arena.words(), record.hashes, record.len);
                }
                self.arena.words().copy(record.hashes, at, record.len);
                self.arena.drop_extent(record.hashes, capacity);
                record.hashes = at;
                self.write(run, record);
                if let Some(locator) = &mut self.locator {
                    locator.insert(self.arena.words(), run, at, 0, record.len);
                }
            }
            if let Holders::Far { words, bitmap } = record.holders
                && here(bitmap)
            {
                let bits = (0..u32::from(words)).map(|word| self.words().get(bitmap + word)).collect();
                self.set_holders(run, record, Changed::Elsewhere(bits));
            }
        }
    }

    /// Takes a slot out of all runs, last ones first.
    pub(in super::super) fn clear(&mut self, slot: Slot) {
        let runs = (0..self.links.len() as u32).filter(|run| self.links[*run as usize].capacity > 0);
        let holds = |run: &u32| self.record(*run).holders.contains(self.words(), slot);
        let mut emptied = Vec::new();
        for run in runs.filter(holds).collect::<Vec<_>>() {
            let record = self.record(run);
            if record.holders == Holders::one(slot) {
                emptied.push(run);
            } else {
                let changed = record.holders.without(self.words(), slot);
                self.set_holders(run, record, changed);
            }
        }
        // What only this slot held has children that only it held: a run goes when its last child has.
        while let Some(run) = emptied.pop() {
            if self.links[run as usize].capacity == 0 {
                continue;
            }
            let child = self.children(run).next();
            match child {
                Some(child) => emptied.extend([run, child]),
                None => self.remove(run),
            }
        }
    }
}
