//! The one pointer between writer and readers.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::Snapshot;

/// Holds the snapshot in force. Readers never wait; the writer replaces it whole.
#[derive(Debug)]
pub(crate) struct SnapshotCell(ArcSwap<Snapshot>);

impl SnapshotCell {
    pub(crate) fn new(first: Arc<Snapshot>) -> Self {
        Self(ArcSwap::new(first))
    }

    /// The snapshot in force, borrowed: for one decision, never across an `.await`.
    pub(crate) fn load(&self) -> Guard<Arc<Snapshot>> {
        self.0.load()
    }

    /// The snapshot in force, to keep.
    pub(crate) fn load_full(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Puts a snapshot in force.
    pub(crate) fn store(&self, next: Arc<Snapshot>) {
        self.0.store(next);
    }
}
