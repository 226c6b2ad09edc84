//! What is kept for a coordinator that takes no deltas: no more than a few times what a baseline would tell it.

use super::{BlockView, Tell};

/// Changes that are kept in any case.
const MOST_QUEUED: usize = 1024;

impl BlockView {
    /// More was to be told than a baseline says, so that it was given up: tell what [`take_baseline`](Self::take_baseline) takes.
    pub fn needs_baseline(&self) -> bool {
        self.needs_baseline
    }

    /// Blocks that came and went must not pile up while nobody takes deltas.
    pub(super) fn bound_queue(&mut self) {
        match self.tell {
            // Who is told of all stores does not claim what came and went.
            Tell::All if self.queue.len() > 2 * (self.held + self.told) + MOST_QUEUED => self.compact(),
            Tell::All => {}
            // Who predicts them does.
            _ if self.queue.len() > 2 * self.held + MOST_QUEUED => self.give_up_deltas(),
            _ => {}
        }
    }

    fn compact(&mut self) {
        let blocks = &mut self.blocks;
        self.queue.retain(|hash| {
            let Some(block) = blocks.get_mut(hash) else { return false };
            let pending = (block.pages > 0) != block.told;
            block.queued = pending;
            if block.pages == 0 && !block.told {
                blocks.remove(hash);
            }
            pending
        });
    }

    fn give_up_deltas(&mut self) {
        self.count_as_told();
        self.needs_baseline = true;
    }
}
