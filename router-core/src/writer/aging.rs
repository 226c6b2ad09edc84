//! What time alone changes: leases of predictions end, and agents fall silent.

use std::sync::Arc;
use std::time::Duration;

use super::State;
use crate::fleet::WorkerId;
use crate::notice::{EventKind, Notice, SessionEnd};
use crate::time::Time;

/// How often silence is looked for. A lease that ends twice as much late harms nobody.
const AGING_INTERVAL: Duration = Duration::from_millis(100);

impl State {
    pub(super) fn age(&mut self, now: Time) {
        if now.since(self.aged) < AGING_INTERVAL {
            return;
        }
        self.aged = now;
        while let Some((_, target, ordinal)) = self.leases.pop_front_if(|(until, ..)| *until <= now) {
            self.take_back(target, ordinal);
        }
        while let Some((_, target, ordinal)) = self.witnesses.pop_front_if(|(until, ..)| *until <= now) {
            self.take_back(target, ordinal);
        }
        self.watch_vouching(now);
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

    /// The agent has been silent for longer than its lease: what it reported is kept and not followed. Its session ends, so
    /// that an agent that was merely late connects again, and resumes if nothing was lost.
    fn doubt(&mut self, worker: WorkerId, now: Time) {
        let Some(member) = self.roster.get_mut(worker) else { return };
        let open = member.session.as_mut().filter(|session| session.open);
        let ended = open.map(|session| {
            session.open = false;
            session.id
        });
        for rank in &mut member.ranks {
            self.dirty |= !std::mem::replace(&mut rank.doubtful, true);
        }
        if let Some(session) = ended {
            self.dirty = true;
            self.notices.push(Notice::SessionEnded { session, why: SessionEnd::LeaseEnded });
            self.happened(worker, None, now, EventKind::AgentLost, Arc::from("its lease ended"));
        }
    }

    /// The agent has been silent for too long: the worker is served on as one without an agent.
    fn forget_reports(&mut self, worker: WorkerId, now: Time) {
        let Some(member) = self.roster.get_mut(worker) else { return };
        member.session = None;
        member.chat_template = None;
        member.updating = false;
        for rank in &mut member.ranks {
            rank.doubtful = false;
            rank.reported = None;
            rank.foreign_waiting_tokens = 0;
            rank.foreign_used_tokens = 0;
        }
        self.void_worker(worker, now, "its agent is gone");
    }
}
