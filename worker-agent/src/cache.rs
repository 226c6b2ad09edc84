//! One rank's mirror with the view of every coordinator, changed together.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::events::Event;
use crate::mirror::{Doubt, Mirror};
use crate::translate::{BlockView, TranslateError};

/// A mirror and the views of it. Views always agree with the mirror; nobody sees a batch half applied.
#[derive(Debug)]
pub(crate) struct RankCache {
    mirror: Mirror,
    /// One place for each configured router, with a view in every key space that it is reported to in.
    views: Vec<Vec<BlockView>>,
}

impl RankCache {
    pub(crate) fn new(mirror: Mirror, routers: usize) -> Self {
        Self { mirror, views: (0..routers).map(|_| Vec::new()).collect() }
    }

    pub(crate) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    pub(crate) fn apply(&mut self, events: &[Event]) {
        let changes = self.mirror.apply(events);
        for view in self.views.iter_mut().flatten() {
            view.follow(&self.mirror, &changes);
        }
    }

    /// Forgets everything; see [`Mirror::lose`].
    pub(crate) fn lose(&mut self, doubt: Doubt) {
        let changes = self.mirror.lose(doubt);
        for view in self.views.iter_mut().flatten() {
            view.follow(&self.mirror, &changes);
        }
    }

    /// Builds a router's views with `new`, from the mirror as it is.
    pub(crate) fn open_views(
        &mut self,
        router: usize,
        new: impl FnOnce(&Mirror) -> Result<Vec<BlockView>, TranslateError>,
    ) -> Result<(), TranslateError> {
        self.views[router] = new(&self.mirror)?;
        Ok(())
    }

    pub(crate) fn close_views(&mut self, router: usize) {
        self.views[router] = Vec::new();
    }

    /// A router's views; none while it is told of no blocks.
    pub(crate) fn views(&mut self, router: usize) -> &mut [BlockView] {
        &mut self.views[router]
    }
}

/// Locks. A panic elsewhere cannot leave a half-made change behind that matters more than going on: every report is
/// checked by the coordinator's own measurements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
