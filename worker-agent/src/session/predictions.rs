//! What a router says that it predicts, so that it is told of the rest.

use std::time::Duration;

use tokio::time::Instant;

use super::reconcile::view_of;
use super::writer::Writer;
use crate::cache::lock;
use crate::translate::BlockView;

/// Time that a router has to name what it predicts; twice as long at most.
const NAMING_TIME: Duration = Duration::from_millis(250);

/// Of one session.
#[derive(Debug)]
pub(super) struct Predictions {
    wanted: bool,
    ripen_due: Instant,
}

impl Predictions {
    /// `wanted`: the router is not alone.
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, ripen_due: Instant::now() + NAMING_TIME }
    }

    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }
}

impl Writer<'_> {
    /// Takes in what the router has named; what it has not named in time is told with the next changes.
    pub(super) fn learn_predictions(&mut self, now: Instant) {
        if !self.predictions.wanted {
            return;
        }
        let predicted = std::mem::take(&mut lock(&self.desk).predicted);
        for prompts in predicted {
            let Some(rank) = self.life.ranks.get(prompts.rank as usize) else { continue };
            let mut cache = lock(&rank.cache);
            if let Some(view) = view_of(cache.views(self.index), prompts.unit) {
                prompts.last.into_iter().for_each(|last| view.predicted(last));
            }
        }
        if now >= self.predictions.ripen_due {
            self.predictions.ripen_due = now + NAMING_TIME;
            for rank in self.life.ranks.iter() {
                lock(&rank.cache).views(self.index).iter_mut().for_each(BlockView::ripen);
            }
        }
    }
}
