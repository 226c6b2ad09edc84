//! The process's monotonic clock, as the core wants it.

use std::time::Instant;

use router_core::Time;

/// Reads the time since it was made. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// The time on it.
    pub fn now(self) -> Time {
        self.at(Instant::now())
    }

    /// What it showed then.
    pub fn at(self, then: Instant) -> Time {
        let since = then.saturating_duration_since(self.origin);
        Time::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
