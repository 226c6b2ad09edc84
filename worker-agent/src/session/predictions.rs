//! What a router says that it predicts, so that it is told of the rest.

use std::collections::HashSet;
use std::time::Duration;

use router_core::key::Unit;
use tokio::time::Instant;

use super::reconcile::view_of;
use super::writer::Writer;
use crate::cache::lock;

/// Time that a router has to name what it predicts; twice as long at most.
const NAMING_TIME: Duration = Duration::from_millis(250);

/// Of one session.
#[derive(Debug)]
pub(super) struct Predictions {
    wanted: bool,
    /// Units of which something was named, of whichever rank.
    used: HashSet<Unit>,
    ripen_due: Instant,
}

impl Predictions {
    /// `wanted`: the router is not alone.
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, used: HashSet::new(), ripen_due: Instant::now() + NAMING_TIME }
    }

    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    /// A router that has named nothing yet may come to use any unit: it sends nothing here, or does not predict.
    fn uses(&self, unit: Unit) -> bool {
        self.used.is_empty() || self.used.contains(&unit)
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
            self.predictions.used.insert(prompts.unit);
            let Some(rank) = self.life.ranks.get(prompts.rank as usize) else { continue };
            let mut cache = lock(&rank.cache);
            if let Some(view) = view_of(cache.views(self.index), prompts.unit) {
                prompts.last.into_iter().for_each(|last| view.predicted(last));
            }
        }
        if now >= self.predictions.ripen_due {
            self.predictions.ripen_due = now + NAMING_TIME;
            for rank in self.life.ranks.iter() {
                for view in lock(&rank.cache).views(self.index) {
                    view.set_used(self.predictions.uses(view.space().unit()));
                    view.ripen();
                }
            }
        }
    }
}
