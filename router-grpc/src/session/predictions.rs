//! What the router predicts of a worker's ranks, on its way to an agent that tells of the rest: collected for a batch interval.

use std::time::Duration;

use router_core::key::{BlockHash, Unit};
use tokio::time::Instant;

use super::{OUTBOX, Outbox, convert};

/// The last block of a prompt that is claimed by prediction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Predicted {
    pub(super) rank: u32,
    pub(super) unit: Unit,
    pub(super) last: BlockHash,
}

/// Predictions that may wait to be collected. What finds no room is not named, and told by the agent.
pub(super) const WAITING: usize = 1024;

/// Predictions in one message at most.
const MOST_NAMED: usize = 4096;

/// The predictions of one session that have not been sent.
#[derive(Debug)]
pub(super) struct Predictions {
    interval: Duration,
    /// Of each rank and unit the last blocks.
    named: Vec<((u32, Unit), Vec<u64>)>,
    due: Option<Instant>,
}

impl Predictions {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, named: Vec::new(), due: None }
    }

    pub(super) fn add(&mut self, Predicted { rank, unit, last }: Predicted) {
        self.due.get_or_insert_with(|| Instant::now() + self.interval);
        let place = (rank, unit);
        let at = self.named.iter().position(|(other, _)| *other == place).unwrap_or_else(|| {
            self.named.push((place, Vec::new()));
            self.named.len() - 1
        });
        let (_, named) = &mut self.named[at];
        if named.len() < MOST_NAMED {
            named.push(last.get());
        }
    }

    /// When [`send`](Self::send) has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sends what has been collected. An agent that does not read goes without: it tells of what is not named, and what must be said
    /// finds room.
    pub(super) fn send(&mut self, outbox: &Outbox) {
        self.due = None;
        for ((rank, unit), last) in self.named.drain(..) {
            if outbox.capacity() > OUTBOX / 2 {
                let _ = outbox.try_send(Ok(convert::predicted(rank, unit, last)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn names_leave_room_for_what_must_be_said() {
        let mut predictions = Predictions::new(Duration::ZERO);
        let (outbox, mut messages) = mpsc::channel(OUTBOX);
        let last = BlockHash::new(7).unwrap();
        let mut name = |ranks: u32| {
            (0..ranks).for_each(|rank| predictions.add(Predicted { rank, unit: Unit::Token, last }));
            predictions.send(&outbox);
            assert_eq!(predictions.due(), None);
        };
        name(3);
        assert_eq!(messages.len(), 3, "one for each rank");
        while messages.try_recv().is_ok() {}
        // As many ranks as an engine may have, and an agent that does not read.
        name(1_024);
        assert_eq!(messages.len(), OUTBOX / 2);
        name(1);
        assert_eq!(messages.len(), OUTBOX / 2, "what found no room is not sent late");
    }
}
