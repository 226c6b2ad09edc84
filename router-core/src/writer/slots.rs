//! The slots that claims stand in.

use std::collections::VecDeque;

use crate::fleet::{Slot, Tenure};

/// Slots in use, free, and waiting to be swept.
#[derive(Debug, Default)]
pub(super) struct SlotPool {
    pub(super) free: Vec<Slot>,
    pub(super) retired: VecDeque<Slot>,
    next: u16,
    /// Tenures that have begun.
    tenures: u64,
}

impl SlotPool {
    /// A slot that nobody has claims in, and its tenure.
    pub(super) fn begin(&mut self) -> (Slot, Tenure) {
        self.tenures += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = Slot(self.next);
            // At most `MAX_TARGETS` are in use, and the writer lets no more than a bounded number wait to be swept.
            self.next =
                self.next.checked_add(1).expect("fewer than 2^16 slots are in use or wait to be swept");
            slot
        });
        (slot, Tenure(self.tenures))
    }
}
