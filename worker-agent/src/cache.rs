//! One rank's mirror with the view of every coordinator, changed together.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::events::Event;
use crate::mirror::{Doubt, Mirror};
use crate::translate::{BlockView, TranslateError};

/// A mirror and the views of it. Views always agree with the mirror; nobody sees a batch half applied.
#[derive(Debug)]
pub(crate) struct RankCache {
    mirror: Mirror,
    /// One place for each configured router.
    views: Vec<Option<BlockView>>,
}

impl RankCache {
    pub(crate) fn new(mirror: Mirror, routers: usize) -> Self {
        Self { mirror, views: (0..routers).map(|_| None).collect() }
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

    /// Builds a router's view with `new`, from the mirror as it is.
    pub(crate) fn open_view(
        &mut self,
        router: usize,
        new: impl FnOnce(&Mirror) -> Result<BlockView, TranslateError>,
    ) -> Result<(), TranslateError> {
        self.views[router] = Some(new(&self.mirror)?);
        Ok(())
    }

    pub(crate) fn close_view(&mut self, router: usize) {
        self.views[router] = None;
    }

    pub(crate) fn view(&mut self, router: usize) -> Option<&mut BlockView> {
        self.views[router].as_mut()
    }
}

/// Locks. A panic elsewhere cannot leave a half-made change behind that matters more than going on: every report is
/// checked by the coordinator's own measurements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
