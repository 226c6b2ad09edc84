//! Whether anything vouches for the claims that decisions follow.

use std::sync::Arc;

use super::State;
use crate::fleet::TargetId;
use crate::notice::EventKind;
use crate::time::Time;

/// Complete responses in a row that did not say how much was cached, after which responses no longer vouch for claims.
const MOST_UNCHECKED: u64 = 16;

impl State {
    /// Says so once when nothing vouches for a target's claims any more, and when that is over.
    pub(super) fn watch_vouching(&mut self, now: Time) {
        let follows = self.policy.follows_cache() && self.settings.predict;
        let changed: Vec<_> = self
            .roster
            .targets()
            .filter_map(|(id, member, rank)| {
                let has_agent = member.session.is_some_and(|session| session.open);
                let predictions = &rank.evidence.predictions;
                let unvouched = follows && !has_agent && predictions.unchecked >= MOST_UNCHECKED;
                (unvouched != rank.evidence.unvouched).then_some((id, unvouched))
            })
            .collect();
        for (target, unvouched) in changed {
            self.set_unvouched(target, unvouched, now);
        }
    }

    fn set_unvouched(&mut self, target: TargetId, unvouched: bool, now: Time) {
        let Some(rank) = self.roster.rank_mut(target) else { return };
        rank.evidence.unvouched = unvouched;
        self.dirty = true;
        let (kind, detail) = match unvouched {
            true => (
                EventKind::Unvouched,
                "requests follow what is believed to be cached here, and nothing vouches for it: no agent is connected, and \
                 responses do not say what was cached; run a worker-agent, or start the engine with --enable-cache-report",
            ),
            false => (
                EventKind::Vouched,
                "something vouches for what is believed to be cached here, or nobody follows it",
            ),
        };
        self.happened(target.worker, Some(target.rank), now, kind, Arc::from(detail));
    }
}
