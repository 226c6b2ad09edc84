//! Which worker has a request that its caller gave a name, for as long as it is in flight: where an abort has to go.
//!
//! SGLang aborts every request whose name begins with the given one, and so does this look-up. Only requests that bring a name
//! come here, so that the lock is on nobody else's way.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use router_core::WorkerId;

/// Longest name that is noted, in bytes. An abort of another goes to all workers.
const MOST_RID_BYTES: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct Rids {
    most: usize,
    noted: Mutex<BTreeSet<(Arc<str>, WorkerId, u64)>>,
    next: std::sync::atomic::AtomicU64,
}

/// A name that is noted until this is dropped.
#[derive(Debug)]
pub(crate) struct Noted {
    rids: Arc<Rids>,
    entry: (Arc<str>, WorkerId, u64),
}

impl Rids {
    /// Notes `most` names at once at most.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, noted: Mutex::default(), next: Default::default() }
    }

    /// Notes that a worker has a request of this name; `None` if there is no room, or the name is too long.
    pub(crate) fn note(self: &Arc<Self>, rid: &Arc<str>, worker: WorkerId) -> Option<Noted> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let entry = (rid.clone(), worker, number);
        let mut noted = self.noted();
        if noted.len() >= self.most || rid.len() > MOST_RID_BYTES {
            return None;
        }
        noted.insert(entry.clone());
        drop(noted);
        Some(Noted { rids: self.clone(), entry })
    }

    /// Workers that have requests whose names begin like this, each once.
    pub(crate) fn holders(&self, prefix: &str) -> Vec<WorkerId> {
        let noted = self.noted();
        let lowest = (Arc::from(prefix), WorkerId::LOWEST, 0);
        let of_prefix = noted.range(lowest..).take_while(|(rid, ..)| rid.starts_with(prefix));
        let mut holders: Vec<_> = of_prefix.map(|(_, worker, _)| *worker).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    fn noted(&self) -> MutexGuard<'_, BTreeSet<(Arc<str>, WorkerId, u64)>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.rids.noted().remove(&self.entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::tests::workers;

    #[test]
    fn names_are_found_by_their_beginning_while_in_flight_and_bounded() {
        let workers = workers(3);
        let rids = Arc::new(Rids::new(3));
        let note = |rid: &str, worker: usize| rids.note(&rid.into(), workers[worker]);
        let first = note("job", 2).unwrap();
        let second = note("job-1", 0).unwrap();
        let same = note("job-1", 0).unwrap();
        assert!(note("other", 1).is_none(), "there is no room");
        assert_eq!(rids.holders("job"), [workers[0], workers[2]]);
        assert_eq!(rids.holders("job-"), [workers[0]]);
        assert!(rids.holders("jox").is_empty() && rids.holders("a").is_empty());
        drop(second);
        assert_eq!(rids.holders("job-1"), [workers[0]], "another of the same name is still there");
        drop((first, same));
        assert!(rids.holders("").is_empty());
        assert!(note(&"x".repeat(MOST_RID_BYTES + 1), 0).is_none());
    }
}
