//! The single writer.
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::settings::Settings;
use crate::snapshot::{IndexSize, Snapshot, SnapshotCell};
use crate::time::Time;
use crate::update::{Notice, Update};

/// Applies updates and publishes snapshots.
#[derive(Debug)]
pub struct Writer { settings: Settings, updates: Receiver<Update>, cell: Arc<SnapshotCell> }

impl Writer {
    pub(crate) fn new(settings: Settings, updates: Receiver<Update>) -> Self {
        let first = Snapshot { epoch: 0, published: Time::default(), fleet: Default::default(), policy: settings.policy.build(), text_bytes_per_token: 4.0, size: IndexSize::default(), tree: Default::default() };
        Self { settings, updates, cell: Arc::new(SnapshotCell::new(Arc::new(first))) }
    }
    pub(crate) fn cell(&self) -> Arc<SnapshotCell> { self.cell.clone() }

    /// Waits until an update is queued, at most `timeout`; then call [`turn`](Self::turn). `false` once every router and
    /// sender is gone and nothing is queued: the writer may end.
    pub fn wait(&mut self, timeout: Duration) -> bool { let _ = (timeout, &self.settings, &self.updates); true }

    /// Applies what is queued (a bounded number of updates), ages claims and leases, publishes if that is due, and says
    /// what happened.
    pub fn turn(&mut self, now: Time) -> Vec<Notice> { let _ = now; Vec::new() }
}
