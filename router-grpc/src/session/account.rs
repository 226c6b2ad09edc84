//! What is known of an open session beside what it reports: how much came, and what it was to report.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use router_core::ReportLevel;

/// See the module. Shared between the session and whoever asks about it.
#[derive(Debug)]
pub(crate) struct Account {
    messages: AtomicU64,
    bytes: AtomicU64,
    /// What the router would have it report.
    pub(crate) wanted: ReportLevel,
    /// Why it reports less than that, or not in every unit; empty if it does not.
    pub(crate) shortfall: String,
}

impl Account {
    pub(super) fn new(wanted: ReportLevel, shortfall: String) -> Self {
        Self { messages: AtomicU64::new(0), bytes: AtomicU64::new(0), wanted, shortfall }
    }

    /// A message came.
    pub(super) fn received(&self, bytes: usize) {
        self.messages.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Relaxed)
    }

    /// Bytes of the messages as they are encoded.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}
