//! What happens to the fleet, for whoever watches.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use router_core::EventKind;
use tokio::sync::broadcast;

/// Events that a slow watcher may be behind; beyond it the oldest are lost to it, and it is told how many.
const BACKLOG: usize = 1024;

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct FleetEvent {
    /// Milliseconds since the Unix epoch.
    pub(crate) time_ms: u64,
    pub(crate) kind: EventKind,
    pub(crate) url: Arc<str>,
    pub(crate) rank: Option<u32>,
    pub(crate) detail: Arc<str>,
}

/// Tells everybody who watches. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct EventHub {
    sender: broadcast::Sender<FleetEvent>,
}

impl EventHub {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }

    pub(crate) fn tell(&self, kind: EventKind, url: Arc<str>, rank: Option<u32>, detail: Arc<str>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        // Without a watcher there is nobody to tell.
        let _ = self.sender.send(FleetEvent { time_ms, kind, url, rank, detail });
    }

    pub(crate) fn watch(&self) -> broadcast::Receiver<FleetEvent> {
        self.sender.subscribe()
    }
}
