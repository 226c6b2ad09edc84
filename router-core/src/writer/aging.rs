//! What time alone changes: leases of predictions end, and agents fall silent.

use std::sync::Arc;
use std::time::Duration;

use super::State;
use crate::fleet::WorkerId;
use crate::notice::EventKind;
use crate::time::Time;

/// How often silence is looked for. A lease that ends this much late harms nobody.
const AGING_INTERVAL: Duration = Duration::from_millis(100);

impl State {
    pub(super) fn age(&mut self, now: Time) {
        if now.since(self.aged) < AGING_INTERVAL {
            return;
        }
        self.aged = now;
        while let Some(lease) = self.leases.front().copied().filter(|lease| lease.until <= now) {
            self.leases.pop_front();
            self.claims.lapse(lease.slot, lease.run, now);
            self.dirty = true;
        }
        let stale_after = self.settings.stale_after;
        let sessions = self.roster.members().iter().filter_map(|member| Some((member.id, member.session?)));
        let silent: Vec<_> = sessions
            .map(|(worker, session)| (worker, now.since(session.last_report)))
            .filter(|(_, silence)| *silence > stale_after)
            .collect();
        for (worker, silence) in silent {
            self.doubt(worker, now);
            if silence > 2 * stale_after {
                self.forget_reports(worker, now);
            }
        }
    }

    /// The agent has been silent for longer than its lease: what it reported is kept and not followed.
    fn doubt(&mut self, worker: WorkerId, now: Time) {
        let Some(member) = self.roster.get_mut(worker) else { return };
        let was_open =
            member.session.as_mut().is_some_and(|session| std::mem::replace(&mut session.open, false));
        for rank in &mut member.ranks {
            self.dirty |= !std::mem::replace(&mut rank.doubtful, true);
        }
        if was_open {
            self.dirty = true;
            self.happened(worker, None, now, EventKind::AgentLost, Arc::from("its lease ended"));
        }
    }

    /// The agent has been silent for too long: the worker is served on as one without an agent.
    fn forget_reports(&mut self, worker: WorkerId, now: Time) {
        let Some(member) = self.roster.get_mut(worker) else { return };
        member.session = None;
        member.updating = false;
        for rank in &mut member.ranks {
            rank.doubtful = false;
            rank.reported = None;
            rank.foreign_waiting_tokens = 0;
            rank.evicted_tokens_total = None;
        }
        self.void_worker(worker, now, "its agent is gone");
    }
}
