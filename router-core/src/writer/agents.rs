//! What the agents report.

use std::sync::Arc;

use super::State;
use super::claim::Source;
use super::gate::Verdict;
use super::roster::Session;
use crate::digest::SetDigest;
use crate::fleet::{Incarnation, ReportLevel, TargetId, WorkerId};
use crate::key::Unit;
use crate::notice::{EventKind, Notice};
use crate::report::{AgentReport, BlockRun, Delta, JoinError, SessionId};
use crate::time::Time;

impl State {
    pub(super) fn apply_report(
        &mut self,
        worker: WorkerId,
        session: SessionId,
        at: Time,
        report: AgentReport,
    ) {
        if let AgentReport::Joined { incarnation, level, resume, done } = report {
            let joined = self.join(worker, session, at, (incarnation, level), &resume);
            self.when_published(move || done.call(joined));
            return;
        }
        let Some(current) = self.roster.get_mut(worker).and_then(|member| member.session.as_mut()) else {
            return;
        };
        // Another session speaks for the worker by now.
        if current.id != session {
            return;
        }
        current.last_report = at;
        if !matches!(report, AgentReport::Left) && std::mem::replace(&mut current.open, true) {
            self.dirty |= matches!(report, AgentReport::Alive);
        }
        self.apply_open(worker, session, at, report);
    }

    fn apply_open(&mut self, worker: WorkerId, session: SessionId, at: Time, report: AgentReport) {
        let target = |rank| TargetId { worker, rank };
        match report {
            AgentReport::Joined { .. } | AgentReport::Alive => {}
            AgentReport::Left => self.leave(worker, at),
            AgentReport::Level(level) => self.set_level(worker, level),
            AgentReport::Delta { rank, delta } => self.apply_delta(target(rank), session, at, &delta),
            AgentReport::Baseline { rank, unit, seq, stored } => {
                self.apply_baseline(target(rank), at, unit, seq, &stored);
            }
            AgentReport::Load { rank, load } => {
                if let Some(rank) = self.roster.rank_mut(target(rank)) {
                    // Only now can what this router sent be told from the rest: later both will have changed.
                    let own = rank.load.read().prefill_prompt_tokens;
                    rank.foreign_waiting_tokens = load.waiting_uncached_tokens.saturating_sub(own);
                    rank.reported = Some(load);
                    self.dirty = true;
                }
            }
            AgentReport::Counts { rank, evicted_tokens_total, cached_tokens: _ } => {
                self.count_evictions(target(rank), evicted_tokens_total);
            }
            AgentReport::Fingerprint { rank, seq, digest } => self.compare(target(rank), seq, &digest),
            AgentReport::State { updating, reachable, reason } => self.change_state(worker, at, |member| {
                member.updating = updating;
                // An agent can see an engine fail at once; that it answers, the router's own health check has to find.
                member.reachable &= reachable;
                member.reason = reason;
            }),
            AgentReport::NewIncarnation(incarnation) => self.reincarnate(worker, incarnation, at),
        }
    }

    fn join(
        &mut self,
        worker: WorkerId,
        session: SessionId,
        at: Time,
        (incarnation, level): (Incarnation, ReportLevel),
        resume: &[(u32, u64)],
    ) -> Result<Vec<(u32, u64)>, JoinError> {
        let member = self.roster.get_mut(worker).ok_or(JoinError::UnknownWorker(worker))?;
        let registered = member.incarnation;
        if incarnation < registered {
            return Err(JoinError::StaleIncarnation { offered: incarnation, registered });
        }
        member.session = Some(Session { id: session, level, last_report: at, open: true });
        if incarnation > registered {
            member.incarnation = incarnation;
            // The first agent to join says nothing against what was learned so far; a later life does.
            if registered != Incarnation::default() {
                self.void_worker(worker, at, "the engine restarted");
            }
        }
        if level > ReportLevel::Counts {
            self.claims.locate_blocks();
        }
        let Some(member) = self.roster.get_mut(worker) else { return Err(JoinError::UnknownWorker(worker)) };
        let mut resumed = Vec::new();
        for (index, rank) in member.ranks.iter_mut().enumerate() {
            let index = index as u32;
            let offered = resume.iter().find(|(rank, _)| *rank == index).map(|(_, acked)| *acked);
            match (rank.gate.applied(), offered) {
                (Some(applied), Some(acked)) if acked <= applied => {
                    rank.doubtful = false;
                    resumed.push((index, applied));
                }
                _ => rank.gate.close(),
            }
            // A session of counts will send no baseline that could end a doubt.
            rank.doubtful &= level > ReportLevel::Counts;
        }
        self.happened(worker, None, at, EventKind::AgentConnected, format!("reports {level:?}").into());
        Ok(resumed)
    }

    fn leave(&mut self, worker: WorkerId, at: Time) {
        if let Some(session) = self.roster.get_mut(worker).and_then(|member| member.session.as_mut()) {
            session.open = false;
            self.dirty = true;
            self.happened(worker, None, at, EventKind::AgentLost, Arc::from("its stream ended"));
        }
    }

    fn set_level(&mut self, worker: WorkerId, level: ReportLevel) {
        let Some(member) = self.roster.get_mut(worker) else { return };
        if let Some(session) = &mut member.session {
            session.level = level;
        }
        if level == ReportLevel::Counts {
            for rank in &mut member.ranks {
                rank.gate.close();
                rank.doubtful = false;
            }
        }
        self.dirty = true;
        if level > ReportLevel::Counts {
            self.claims.locate_blocks();
        }
    }

    fn apply_delta(&mut self, target: TargetId, session: SessionId, at: Time, delta: &Delta) {
        let Some(rank) = self.roster.rank_mut(target) else { return };
        match rank.gate.pass(delta.seq) {
            Verdict::Repeat | Verdict::Closed => {}
            Verdict::Gap { expected } => {
                rank.doubtful = true;
                self.dirty = true;
                let reason: Arc<str> = format!("delta {} came where {expected} was due", delta.seq).into();
                let resync = Notice::ResyncNeeded { session, rank: target.rank, reason: reason.clone() };
                self.notices.push(resync);
                self.happened(target.worker, Some(target.rank), at, EventKind::Gap, reason);
            }
            Verdict::Apply => self.apply_changes(target, at, delta),
        }
    }

    fn apply_changes(&mut self, target: TargetId, at: Time, delta: &Delta) {
        if delta.cleared {
            let applied = self.roster.rank(target).and_then(|rank| rank.gate.applied());
            self.roster.void(target);
            if let (Some(rank), Some(applied)) = (self.roster.rank_mut(target), applied) {
                rank.gate.open(applied);
            }
            let detail = Arc::from("the engine cleared its cache");
            self.happened(target.worker, Some(target.rank), at, EventKind::ClaimsVoided, detail);
        }
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        let evicted = self.claims.remove(slot, &delta.removed);
        if let Some(rank) = self.roster.rank_mut(target) {
            rank.pressure.evicted(evicted);
        }
        self.store(target, at, delta.unit, &delta.stored, |_, _| at);
        self.bound_target(target);
        self.dirty = true;
    }

    /// Claims runs that an agent vouches for. `accessed`: the access time of each run's last block.
    fn store(
        &mut self,
        target: TargetId,
        at: Time,
        unit: Unit,
        runs: &[BlockRun],
        accessed: impl Fn(&Self, &BlockRun) -> Time,
    ) {
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        let mut stored = 0;
        for run in runs {
            let key = match run.parent {
                None => Some(run.hashes.clone()),
                Some(parent) => self.claims.key_to(parent).map(|mut key| {
                    key.extend_from_slice(&run.hashes);
                    key
                }),
            };
            // A run under an unknown parent says nothing about where it stands.
            if let Some(key) = key {
                let accessed = accessed(self, run);
                stored += self.claims.claim(slot, unit, &key, accessed, Source::Confirmed { at });
            }
        }
        if let Some(rank) = self.roster.rank_mut(target) {
            rank.pressure.stored(stored);
        }
    }

    fn apply_baseline(&mut self, target: TargetId, at: Time, unit: Unit, seq: u64, stored: &[BlockRun]) {
        let Some(old) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        self.claims.locate_blocks();
        let predictions = self.claims.predictions(old, at);
        self.roster.void(target);
        self.store(target, at, unit, stored, |state, run| state.last_access(old, run).unwrap_or(at));
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        // What is on its way there is not in the baseline yet.
        for (unit, key, accessed, source) in predictions {
            self.claims.claim(slot, unit, &key, accessed, source);
        }
        if let Some(rank) = self.roster.rank_mut(target) {
            rank.gate.open(seq);
            rank.doubtful = false;
            rank.acked = None;
        }
        self.bound_target(target);
        self.dirty = true;
        let detail = format!("baseline at {seq}: {} runs", stored.len()).into();
        self.happened(target.worker, Some(target.rank), at, EventKind::Resynced, detail);
    }

    /// When a slot last used the run that a block stands in.
    fn last_access(&self, slot: crate::fleet::Slot, run: &BlockRun) -> Option<Time> {
        let last = run.hashes.last()?;
        let (id, _) = self.claims.locate(*last)?;
        self.claims.claim_of(slot, id).map(|claim| claim.last_access)
    }

    fn count_evictions(&mut self, target: TargetId, total: u64) {
        let exact = self.roster.get(target.worker).is_some_and(|member| member.reports_exactly());
        let Some(rank) = self.roster.rank_mut(target) else { return };
        let before = rank.evicted_tokens_total.replace(total);
        // Exact reports have counted them block by block.
        if let Some(evicted) = before.map(|before| total.saturating_sub(before)).filter(|_| !exact) {
            rank.pressure.evicted(evicted);
        }
    }

    fn compare(&mut self, target: TargetId, seq: u64, digest: &SetDigest) {
        let Some(rank) = self.roster.rank(target).filter(|rank| rank.gate.applied() == Some(seq)) else {
            return;
        };
        let differing = digest.difference(&self.claims.digest(rank.slot));
        let tokens = differing * self.block_size(Unit::Token);
        if let Some(rank) = self.roster.rank_mut(target) {
            rank.divergence_tokens = Some(tokens);
            self.dirty = true;
        }
    }

    fn reincarnate(&mut self, worker: WorkerId, incarnation: Incarnation, at: Time) {
        let Some(member) = self.roster.get_mut(worker).filter(|member| member.incarnation < incarnation)
        else {
            return;
        };
        member.incarnation = incarnation;
        self.void_worker(worker, at, "the engine restarted");
    }

    /// Tells each open session what has been applied since it was last told.
    pub(super) fn acknowledge(&mut self) {
        let mut notices = std::mem::take(&mut self.notices);
        for member in self.roster.members_mut() {
            let Some(session) = member.session.filter(|session| session.open) else { continue };
            for (index, rank) in member.ranks.iter_mut().enumerate() {
                if let Some(seq) = rank.gate.applied().filter(|seq| rank.acked != Some(*seq)) {
                    rank.acked = Some(seq);
                    notices.push(Notice::Acked { session: session.id, rank: index as u32, seq });
                }
            }
        }
        self.notices = notices;
    }
}
