//! What the router predicts of a worker's ranks, on its way to an agent that tells of the rest: collected for a batch interval.

use std::time::Duration;

use router_core::key::{BlockHash, Unit};
use tokio::time::Instant;

use super::{Outbox, convert};

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

    /// Sends what has been collected. An agent that does not read goes without: it tells of what is not named.
    pub(super) fn send(&mut self, outbox: &Outbox) {
        self.due = None;
        for ((rank, unit), last) in self.named.drain(..) {
            let _ = outbox.try_send(Ok(convert::predicted(rank, unit, last)));
        }
    }
}
