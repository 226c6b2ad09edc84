//! Which worker has which session or stored response: known from the answers that passed, bounded, and forgotten when unused.
//!
//! Only requests that name one, or make one, come here: the lock is on nobody else's way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use router_core::{Time, WorkerId};
use rustc_hash::FxHashMap;

/// See the module.
#[derive(Debug)]
pub(crate) struct Kept {
    most: usize,
    ttl: Duration,
    places: Mutex<Places>,
}

/// Where something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) worker: WorkerId,
    /// The dp rank, once a request has shown it.
    pub(crate) rank: Option<u32>,
}

#[derive(Debug, Default)]
struct Places {
    by_id: FxHashMap<Arc<str>, (Place, Use)>,
    /// The least recently used first.
    by_use: BTreeMap<Use, Arc<str>>,
    uses: u64,
}

/// When something was used last; the number tells uses of one time apart.
type Use = (Time, u64);

impl Kept {
    /// Keeps `most` ids at most, each for `ttl` after its last use.
    pub(crate) fn new(most: usize, ttl: Duration) -> Self {
        Self { most, ttl, places: Mutex::default() }
    }

    /// Remembers where an id is. Returns whether another one, still in use, had to be forgotten for it.
    pub(crate) fn keep(&self, id: &str, place: Place, now: Time) -> bool {
        let mut places = self.places();
        places.expire(now, self.ttl);
        places.forget(id);
        let full = places.by_id.len() >= self.most.max(1);
        if full {
            places.forget_oldest();
        }
        places.insert(id.into(), place, now);
        full
    }

    /// Where an id is, if that is known.
    pub(crate) fn find(&self, id: &str, now: Time) -> Option<Place> {
        let mut places = self.places();
        places.expire(now, self.ttl);
        let (id, place) = places.forget(id)?;
        places.insert(id, place, now);
        Some(place)
    }

    /// It is closed.
    pub(crate) fn forget(&self, id: &str) {
        self.places().forget(id);
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn insert(&mut self, id: Arc<str>, place: Place, now: Time) {
        self.uses += 1;
        let last = (now, self.uses);
        self.by_use.insert(last, id.clone());
        self.by_id.insert(id, (place, last));
    }

    fn forget(&mut self, id: &str) -> Option<(Arc<str>, Place)> {
        let (id, (place, last)) = self.by_id.remove_entry(id)?;
        self.by_use.remove(&last);
        Some((id, place))
    }

    fn forget_oldest(&mut self) {
        if let Some((_, id)) = self.by_use.pop_first() {
            self.by_id.remove(&id);
        }
    }

    fn expire(&mut self, now: Time, ttl: Duration) {
        while self.by_use.first_key_value().is_some_and(|((last, _), _)| now.since(*last) > ttl) {
            self.forget_oldest();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Workers of a fleet, whose ids nobody else can make.
    pub(crate) fn workers(count: usize) -> Vec<WorkerId> {
        use router_core::{Done, FleetUpdate, Router, Settings, Update};
        let (router, mut writer) = Router::new(Settings::new(1));
        for number in 0..count {
            let url = format!("http://{number}").into();
            let add = FleetUpdate::Add { url, done: Done::ignore() };
            router.updates().try_send(Update::Fleet(add)).unwrap();
        }
        writer.turn(Time::from_micros(1));
        router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect()
    }

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn ids_are_kept_while_they_are_used_and_no_more_than_fit() {
        let workers = workers(2);
        let place = |worker: usize| Place { worker: workers[worker], rank: None };
        let kept = Kept::new(2, Duration::from_secs(10));
        assert!(!kept.keep("a", place(0), at(0)));
        assert!(!kept.keep("b", place(1), at(1)));
        assert_eq!(kept.find("a", at(2)), Some(place(0)));
        assert!(kept.keep("c", place(1), at(3)), "the least recently used one goes");
        assert_eq!((kept.find("b", at(3)), kept.find("a", at(4))), (None, Some(place(0))));
        assert_eq!(kept.find("c", at(14)), None, "unused for longer than it is kept");
        assert_eq!(kept.find("a", at(14)), Some(place(0)), "its last use counts");
        assert!(!kept.keep("a", place(1), at(15)), "one that moves takes no second place");
        assert_eq!(kept.find("a", at(15)), Some(place(1)));
        kept.forget("a");
        assert_eq!(kept.find("a", at(15)), None);
        assert!(kept.places().by_use.is_empty() && kept.places().by_id.is_empty());
    }
}
