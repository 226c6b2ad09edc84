//! Which snapshots live, and what must not be written again while they do.

use std::collections::{BTreeMap, VecDeque};

use crate::sync::Arc;

/// Counts snapshots and keeps what they can see.
///
/// Something that was made while snapshot `made` was being prepared, and given up while snapshot `given_up` was, is seen by
/// the snapshots `made .. given_up`. It may be used again once none of these lives; a snapshot that is held for long keeps
/// what it sees itself and nothing that came and went since.
#[derive(Debug)]
pub(super) struct Epochs<T> {
    /// Number of the snapshot that is being prepared.
    now: u64,
    /// Snapshots that somebody may still hold, oldest first.
    live: VecDeque<(u64, Arc<Guard>)>,
    /// Given up since the last publication.
    fresh: Vec<GivenUp<T>>,
    /// By the oldest snapshot that sees it.
    held: BTreeMap<u64, Vec<GivenUp<T>>>,
}

/// Held by every copy of one snapshot.
#[derive(Debug)]
pub(super) struct Guard;

#[derive(Debug)]
struct GivenUp<T> {
    made: u64,
    given_up: u64,
    what: T,
}

impl<T> Default for Epochs<T> {
    fn default() -> Self {
        Self { now: 1, live: VecDeque::new(), fresh: Vec::new(), held: BTreeMap::new() }
    }
}

impl<T> Epochs<T> {
    /// Number of the snapshot that is being prepared.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Gives up something made while snapshot `made` was prepared. `Some`: no snapshot has seen it, use it again at once.
    pub(super) fn give_up(&mut self, made: u64, what: T) -> Option<T> {
        if made == self.now {
            return Some(what);
        }
        self.fresh.push(GivenUp { made, given_up: self.now, what });
        None
    }

    /// Publishes: returns the new snapshot's guard, and calls `free` with what nobody sees any more.
    pub(super) fn publish(&mut self, mut free: impl FnMut(T)) -> Arc<Guard> {
        let guard = Arc::new(Guard);
        self.live.push_back((self.now, guard.clone()));
        self.now += 1;
        // `get_mut` synchronises with the end of the last holder: all it has read, it read before what is written next.
        self.live.retain_mut(|(_, guard)| Arc::get_mut(guard).is_none());
        let mut unsettled = std::mem::take(&mut self.fresh);
        let live: Vec<u64> = self.live.iter().map(|(number, _)| *number).collect();
        self.held.retain(|number, held| {
            let lives = live.binary_search(number).is_ok();
            if !lives {
                unsettled.append(held);
            }
            lives
        });
        for given_up in unsettled {
            let first = live.partition_point(|number| *number < given_up.made);
            match live.get(first).filter(|number| **number < given_up.given_up) {
                Some(number) => self.held.entry(*number).or_default().push(given_up),
                None => free(given_up.what),
            }
        }
        guard
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn publish(epochs: &mut Epochs<&'static str>) -> (Arc<Guard>, Vec<&'static str>) {
        let mut freed = Vec::new();
        let guard = epochs.publish(|what| freed.push(what));
        (guard, freed)
    }

    #[test]
    fn a_snapshot_keeps_what_it_sees_and_nothing_else() {
        let mut epochs = Epochs::default();
        let made = epochs.now();
        assert_eq!(epochs.give_up(made, "never published"), Some("never published"));
        let (first, _) = publish(&mut epochs);
        assert_eq!(epochs.give_up(made, "seen by the first"), None);
        let later = epochs.now();
        let (second, freed) = publish(&mut epochs);
        assert_eq!(freed, [""; 0]);
        assert_eq!(epochs.give_up(later, "seen by the second"), None);
        drop(second);
        let (_third, freed) = publish(&mut epochs);
        assert_eq!(freed, ["seen by the second"], "the first came before it");
        drop(first);
        assert_eq!(publish(&mut epochs).1, ["seen by the first"]);
    }
}
