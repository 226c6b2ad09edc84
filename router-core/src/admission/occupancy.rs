//! Requests in flight at all targets, counted where there is a bound to keep.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crossbeam_utils::CachePadded;

/// Most requests in flight at once; [`u64::MAX`] is no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At one target.
    pub per_target: u64,
    /// At all of them together. A generation that a prefill and a decode worker share counts at both.
    pub total: u64,
}

/// See the module. Only where there are limits is it touched by requests: it is one line for all threads.
pub(crate) struct Occupancy {
    limits: Limits,
    total: CachePadded<AtomicU64>,
    on_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A request that was let in. Dropping it makes room, and says so.
#[derive(Debug)]
pub(crate) struct Entered {
    occupancy: Arc<Occupancy>,
    counted: bool,
    silent: bool,
}

impl Entered {
    /// Takes it back where it has come to nothing, and makes no noise: whoever waits for room would look, fail likewise, and be told
    /// again.
    pub(crate) fn leave_silently(mut self) {
        self.silent = true;
    }
}

impl Limits {
    /// No bounds.
    pub const NONE: Self = Self { per_target: u64::MAX, total: u64::MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self::NONE
    }
}

impl Occupancy {
    /// `None` without limits.
    pub(crate) fn new(limits: Limits) -> Option<Arc<Self>> {
        let occupancy = Self { limits, total: CachePadded::default(), on_room: OnceLock::new() };
        (limits != Limits::NONE).then(|| Arc::new(occupancy))
    }

    /// Called whenever a request ends, on its thread. Whether it is the first to ask for that.
    pub(crate) fn on_room(&self, told: Box<dyn Fn() + Send + Sync>) -> bool {
        self.on_room.set(told).is_ok()
    }

    /// Lets a request in, if the total allows it. `unbounded`: in any case, and uncounted.
    pub(crate) fn enter(self: &Arc<Self>, unbounded: bool) -> Option<Entered> {
        let counted = !unbounded && self.limits.total < u64::MAX;
        let room = !counted || count_below(&self.total, self.limits.total);
        room.then(|| Entered { occupancy: self.clone(), counted, silent: false })
    }

    /// The total is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.total.load(Relaxed) >= self.limits.total
    }
}

/// Counts one more, unless that would be more than `most`.
pub(crate) fn count_below(count: &AtomicU64, most: u64) -> bool {
    if most == u64::MAX {
        count.fetch_add(1, Relaxed);
        return true;
    }
    count.fetch_update(Relaxed, Relaxed, |count| (count < most).then_some(count + 1)).is_ok()
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.counted {
            self.occupancy.total.fetch_sub(1, Relaxed);
        }
        if !self.silent
            && let Some(told) = self.occupancy.on_room.get()
        {
            told();
        }
    }
}

impl fmt::Debug for Occupancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Occupancy").field("limits", &self.limits).field("total", &self.total).finish()
    }
}
