//! The level at which a session reports, and the views that it takes.

use std::sync::Arc;

use router_core::key::{KeySpace, Unit};

use super::writer::Writer;
use crate::cache::lock;
use crate::config::Level;
use crate::mirror::Mirror;
use crate::translate::{BlockView, Tell, TranslateError};

impl Writer<'_> {
    /// Serves the level that is wanted now. Views are opened and closed as it needs.
    pub(super) fn apply_level(&mut self) {
        let mut desk = lock(&self.desk);
        let level = desk.wanted.min(self.max_level);
        if Some(level) == self.level {
            return;
        }
        let raised = self.level.is_none_or(|before| level > before);
        let tell = match level {
            Level::Full => Tell::All,
            _ if self.predictions.wanted() => Tell::Unpredicted,
            _ => Tell::Removals,
        };
        for (rank, outbox) in self.life.ranks.iter().zip(&mut desk.outboxes) {
            let mut cache = lock(&rank.cache);
            if level == Level::Counts {
                cache.close_views(self.index);
                outbox.owe_baseline();
            } else if raised {
                // Its sizes were checked when the key space was accepted.
                let opened = cache.open_views(self.index, |mirror| self.views(tell, mirror));
                debug_assert!(opened.is_ok(), "an accepted key space fits the engine's pages");
                outbox.owe_baseline();
            } else {
                cache.views(self.index).iter_mut().for_each(|view| view.set_tell(tell));
            }
        }
        drop(desk);
        self.set_level(level);
    }

    /// A view of a rank in every key space of the session.
    fn views(&self, tell: Tell, mirror: &Mirror) -> Result<Vec<BlockView>, TranslateError> {
        let view = |space: &KeySpace| match (space.unit(), &self.life.vocabulary) {
            (Unit::Text, Ok(vocabulary)) => {
                Ok(BlockView::of_text(space.clone(), Arc::clone(vocabulary), tell, mirror))
            }
            _ => BlockView::new(space.clone(), tell, mirror),
        };
        self.terms.spaces.iter().map(view).collect()
    }

    pub(super) fn set_level(&mut self, level: Level) {
        self.level = Some(level);
        let fingerprint = self.terms.fingerprint();
        let view = fingerprint.filter(|_| level > Level::Counts).map(|fingerprint| (fingerprint, level));
        self.link.remember(&self.life).view = view;
        *lock(&self.counters.level) = Some(level);
    }
}
