//! Snapshots that have been replaced, and what waits until nobody decides on them any more.

use std::collections::VecDeque;
use std::time::Duration;

use crate::sync::Arc;
use crate::time::Time;

/// Replaced snapshots that somebody may still hold: freed here, so that no reader has to free a tree.
///
/// A decision lets go of its snapshot after it has counted its request. So once nobody holds a snapshot from before a change,
/// every request that was decided without knowing of the change can be seen in the load counters.
#[derive(Debug)]
pub(super) struct Replaced<S, C> {
    /// With their epochs, oldest first.
    snapshots: VecDeque<(u64, Arc<S>)>,
    /// Oldest first.
    waiting: VecDeque<Waiting<C>>,
}

/// Waits until nobody holds a snapshot from before a change.
#[derive(Debug)]
struct Waiting<C> {
    /// The first snapshot that shows the change.
    epoch: u64,
    since: Time,
    call: C,
}

/// Snapshots kept at most; beyond it the oldest is left to whoever still holds it, and is not waited for.
const KEPT: usize = 64;

/// While something waits, the writer looks again so often. A decision takes microseconds, unless its thread has lost its core.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Nothing waits longer: a snapshot that is kept for administration cannot be told from one that is decided on. A thread that has
/// lost its core is given it back much sooner.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl<S, C> Default for Replaced<S, C> {
    fn default() -> Self {
        Self { snapshots: VecDeque::new(), waiting: VecDeque::new() }
    }
}

impl<S, C> Replaced<S, C> {
    /// Takes in the snapshot of this epoch once another one is in force: from then on nobody gets hold of it who has not.
    pub(super) fn push(&mut self, epoch: u64, snapshot: Arc<S>) {
        self.snapshots.push_back((epoch, snapshot));
        self.free();
        if self.snapshots.len() > KEPT {
            self.snapshots.pop_front();
        }
    }

    /// Has a call wait until nobody holds a snapshot from before `epoch`, which is the one in force.
    pub(super) fn wait(&mut self, epoch: u64, now: Time, call: C) {
        self.waiting.push_back(Waiting { epoch, since: now, call });
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The calls that have waited long enough.
    pub(super) fn due(&mut self, now: Time) -> Vec<C> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        self.free();
        let oldest = self.snapshots.front().map_or(u64::MAX, |(epoch, _)| *epoch);
        let is_due =
            |waiting: &&Waiting<C>| waiting.epoch <= oldest || now.since(waiting.since) >= LONGEST_WAIT;
        let due = self.waiting.iter().take_while(is_due).count();
        self.waiting.drain(..due).map(|waiting| waiting.call).collect()
    }

    fn free(&mut self) {
        // `get_mut`, not `strong_count`: it synchronises with the end of every holder, so that whoever is told sees what a decision
        // has counted before it let go. Since it lends for writing, that must hold also of guards that arc-swap never counted: their end
        // is seen by the `store` that replaced the snapshot.
        self.snapshots.retain_mut(|(_, snapshot)| Arc::get_mut(snapshot).is_none());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_keep_is_not_waited_for() {
        let mut replaced = Replaced::default();
        let held: Vec<_> = (0..=KEPT as u64).map(Arc::new).collect();
        held[..KEPT].iter().for_each(|snapshot| replaced.push(**snapshot, snapshot.clone()));
        let now = Time::default();
        replaced.wait(1, now, "waits for the first");
        replaced.wait(2, now, "waits for the second too");
        assert_eq!(replaced.due(now), [""; 0]);
        replaced.push(*held[KEPT], held[KEPT].clone());
        assert_eq!(replaced.due(now), ["waits for the first"]);
        assert!(replaced.is_waited_for());
    }
}
