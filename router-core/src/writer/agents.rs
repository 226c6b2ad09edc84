//! What the agents report.

use std::sync::Arc;

use super::State;
use super::horizon::Evictions;
use super::member::Session;
use super::reconciled::Compared;
use crate::accuracy::{Counted, Counts, Witness};
use crate::fleet::{Incarnation, ReportLevel, TargetId, WorkerId};
use crate::notice::{EventKind, Notice, SessionEnd};
use crate::report::{AgentReport, Considered, Introduction, JoinError, Joined, SessionId};
use crate::time::Time;
use crate::update::FleetError;

impl State {
    pub(super) fn apply_report(
        &mut self,
        worker: WorkerId,
        session: SessionId,
        at: Time,
        report: AgentReport,
    ) {
        // Else another session speaks for the worker by now, or this one has been told that it ended.
        if self.roster.heard(worker, session, at) {
            self.apply_open(worker, session, at, report);
        }
    }

    fn apply_open(&mut self, worker: WorkerId, session: SessionId, at: Time, report: AgentReport) {
        let target = |rank| TargetId { worker, rank };
        match report {
            AgentReport::Alive => {}
            AgentReport::Left => self.leave(worker, at),
            AgentReport::Level(level) => self.set_level(worker, level),
            AgentReport::Delta { rank, delta } => self.apply_delta(target(rank), session, at, &delta),
            AgentReport::Reconciled { rank, as_of, bytes, delta } => {
                self.apply_reconciled(target(rank), session, Compared { at, as_of, bytes }, &delta);
            }
            AgentReport::Baseline { rank, unit, seq, stored, incomplete } => {
                self.apply_baseline(target(rank), at, unit, seq, &stored);
                if let Some(rank) = self.roster.rank_mut(target(rank)) {
                    rank.incomplete = incomplete;
                }
            }
            AgentReport::Load { rank, load } => {
                if let Some(rank) = self.roster.figures_mut(target(rank)) {
                    // Only now can what this router sent be told from the rest: later both will have changed.
                    let own = rank.load.read();
                    let waiting = load.waiting_uncached_tokens;
                    rank.foreign_waiting_tokens = waiting.saturating_sub(own.prefill_prompt_tokens);
                    rank.foreign_used_tokens = load.used_tokens.saturating_sub(own.context_tokens);
                    rank.reported = Some(load);
                    self.dirty = true;
                }
            }
            AgentReport::Counts { rank, evicted_tokens_total, cached_tokens } => {
                let counts =
                    Counts { held_tokens: cached_tokens, evicted_tokens_total: Some(evicted_tokens_total) };
                self.apply_counts(target(rank), Counted { counts, by: Witness::Agent, at });
            }
            AgentReport::Fingerprint { rank, unit, seq, digest } => {
                self.compare(target(rank), at, (unit, seq), &digest);
            }
            AgentReport::State { updating, reachable, reason } => self.change_state(worker, at, |member| {
                member.updating = updating;
                // An agent can see an engine fail at once; that it answers, the router's own health check has to find.
                member.reachable &= reachable;
                member.reason = reason;
            }),
            AgentReport::NewIncarnation(incarnation) => self.reincarnate(worker, incarnation, at),
        }
    }

    /// Whether an agent may speak for its worker, and the ranks that could begin with less than a baseline.
    pub(super) fn consider(&self, agent: &Introduction) -> Result<Considered, JoinError> {
        let known = self.roster.by_url(&agent.url);
        let have = known.map_or(0, |member| member.ranks.len() as u32);
        self.roster.room_for(agent.profile.dp_size.max(1).saturating_sub(have))?;
        let Some(member) = known else { return Ok(Considered::default()) };
        let (offered, registered) = (agent.incarnation, member.incarnation);
        if offered < registered {
            return Err(JoinError::StaleIncarnation { offered, registered });
        }
        if offered > registered {
            return Ok(Considered::default());
        }
        let could = agent.resume.iter().filter_map(|&(index, acked)| {
            let rank = member.ranks.get(index as usize).filter(|rank| rank.unreconciled.is_empty())?;
            let applied = rank.gate.applied()?;
            (acked <= applied).then_some((index, applied))
        });
        let resume: Vec<_> = could.collect();
        let ranks = (0_u32..).zip(&member.ranks).filter(|_| agent.reconciles);
        let others = ranks.filter(|(index, _)| resume.iter().all(|(resumed, _)| resumed != index));
        let reconcile = others.filter(|(_, rank)| self.is_worth_comparing(rank.slot)).map(|(index, _)| index);
        Ok(Considered { reconcile: reconcile.collect(), resume })
    }

    /// From now on a session speaks for a worker.
    pub(super) fn join(
        &mut self,
        agent: &Introduction,
        session: SessionId,
        level: ReportLevel,
        at: Time,
    ) -> Result<Joined, JoinError> {
        self.consider(agent)?;
        let worker = self.enlist(agent, at)?;
        let fresh = Session {
            id: session,
            level,
            units: agent.units,
            reconciles: agent.reconciles,
            routers: agent.routers,
            since: at,
            last_report: at,
            open: true,
        };
        let Some(member) = self.roster.get_mut(worker) else {
            return Err(FleetError::UnknownWorker(worker).into());
        };
        let earlier = member.session.replace(fresh).filter(|earlier| earlier.open && earlier.id != session);
        let registered = std::mem::replace(&mut member.incarnation, agent.incarnation);
        member.chat_template = agent.chat_template.clone();
        if let Some(earlier) = earlier {
            let why = SessionEnd::Replaced;
            self.notices.push(Notice::SessionEnded { session: earlier.id, why });
        }
        // The first agent to join says nothing against what was learned so far; a later life does.
        if agent.incarnation > registered && registered != Incarnation::default() {
            self.void_worker(worker, at, "the engine restarted");
        }
        if level > ReportLevel::Counts {
            self.claims.locate_blocks();
        }
        let (resumed, unreconciled) = self.resume(worker, session, level, agent);
        self.happened(worker, None, at, EventKind::AgentConnected, format!("reports {level:?}").into());
        Ok(Joined { worker, resumed, unreconciled })
    }

    /// The worker that an agent speaks for, with the profile that the agent says; registered if nobody had.
    fn enlist(&mut self, agent: &Introduction, at: Time) -> Result<WorkerId, FleetError> {
        let known = self.roster.by_url(&agent.url).map(|member| (member.id, member.profile.models.clone()));
        let mut profile = agent.profile.clone();
        if let Some(known) = self.roster.by_url(&agent.url).map(|member| &member.profile) {
            // An agent that does not speak of something says nothing against what a probe has found out.
            profile.usage_on_request = profile.usage_on_request.or(known.usage_on_request);
            profile.role = profile.role.or(known.role);
            profile.bootstrap_port = profile.bootstrap_port.or(known.bootstrap_port);
        }
        let worker = match known {
            None => {
                let worker = self.roster.add(agent.url.clone())?;
                self.happened(worker, None, at, EventKind::WorkerAdded, Arc::from("its agent announced it"));
                worker
            }
            // What a probe found out, the names above all, is more than an agent says.
            Some((worker, models)) if !models.is_empty() => {
                profile.models = models;
                worker
            }
            Some((worker, _)) => worker,
        };
        self.roster.set_profile(worker, profile)?;
        Ok(worker)
    }

    /// Lets ranks go on with deltas where nothing has been lost, or where what was will be found by comparing; all others wait for
    /// a baseline.
    fn resume(
        &mut self,
        worker: WorkerId,
        session: SessionId,
        level: ReportLevel,
        agent: &Introduction,
    ) -> (Vec<(u32, u64)>, Vec<u32>) {
        let Some(member) = self.roster.get_mut(worker) else { return Default::default() };
        let (mut resumed, mut unreconciled) = (Vec::new(), Vec::new());
        for (index, rank) in (0_u32..).zip(&mut member.ranks) {
            // An agent counts from its own beginning.
            rank.evidence.evictions = Evictions::default();
            let offered = agent.resume.iter().find(|(rank, _)| *rank == index).map(|(_, acked)| *acked);
            let is_whole = rank.unreconciled.is_empty();
            match (rank.gate.applied(), offered) {
                (Some(applied), Some(acked)) if acked <= applied && is_whole => {
                    rank.doubtful = false;
                    if acked < applied {
                        // An earlier session was told; this one was not.
                        rank.acked = None;
                    }
                    resumed.push((index, applied));
                }
                _ if agent.reconciles && level > ReportLevel::Counts && agent.reconcile.contains(&index) => {
                    rank.gate.begin_anywhere();
                    rank.acked = None;
                    rank.unreconciled = agent.units;
                    unreconciled.push(index);
                }
                (_, offered) => {
                    rank.gate.close();
                    if offered.is_some() {
                        // It was told that it could, and something has come between: its deltas would be for nothing.
                        let reason = Arc::from("what this session was to go on from is void by now");
                        self.notices.push(Notice::ResyncNeeded { session, rank: index, reason });
                    }
                }
            }
            // A session of counts will send no baseline that could end a doubt.
            rank.doubtful &= level > ReportLevel::Counts;
        }
        (resumed, unreconciled)
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
        self.roster.newly_applied(|session, rank, seq| notices.push(Notice::Acked { session, rank, seq }));
        self.notices = notices;
    }
}
