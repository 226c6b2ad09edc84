//! One registered worker and its dp ranks, as the writer knows them.

use std::sync::Arc;

use super::arrivals::Arrivals;
use super::evidence::Evidence;
use super::gate::Gate;
use super::pressure::Pressure;
use super::retention::Retention;
use crate::chat::ChatTemplate;
use crate::fleet::{
    AgentLink, DEFAULT_BOOTSTRAP_PORT, Declaration, Incarnation, ReportLevel, Slot, Tenure, Worker, WorkerId,
    WorkerProfile, WorkerState,
};
use crate::load::{LoadCounters, ReportedLoad};
use crate::report::{SessionId, Units};
use crate::time::Time;
use crate::timing::PrefillModel;

/// One registered worker.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: WorkerId,
    pub(crate) url: Arc<str>,
    pub(crate) profile: WorkerProfile,
    /// What somebody said of its role.
    pub(crate) declared: Declaration,
    pub(crate) incarnation: Incarnation,
    pub(crate) reachable: bool,
    pub(crate) draining: bool,
    /// As its agent says.
    pub(crate) updating: bool,
    /// As a health check or a call that passed says.
    pub(crate) paused: bool,
    pub(crate) reason: Arc<str>,
    pub(crate) session: Option<Session>,
    /// As its agent says.
    pub(crate) chat_template: Option<Arc<dyn ChatTemplate>>,
    pub(crate) ranks: Vec<Rank>,
    pub(super) identity: u64,
    /// As snapshots show it, until it changes.
    pub(super) published: Option<Arc<Worker>>,
}

/// The agent session that speaks for a worker, open or lately lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) level: ReportLevel,
    /// The units it names blocks in.
    pub(crate) units: Units,
    pub(crate) reconciles: bool,
    /// Those that send work to the engine, as far as the agent knows.
    pub(crate) routers: u32,
    /// When it began to speak for the worker.
    pub(crate) since: Time,
    pub(crate) last_report: Time,
    pub(crate) open: bool,
}

/// One dp rank of a worker.
#[derive(Debug)]
pub(crate) struct Rank {
    pub(crate) slot: Slot,
    /// Changes with the slot, and is never used again.
    pub(crate) tenure: Tenure,
    pub(crate) load: Arc<LoadCounters>,
    pub(crate) gate: Gate,
    pub(crate) doubtful: bool,
    /// The agent may miss removals, so that their absence proves nothing.
    pub(crate) incomplete: bool,
    /// The units in which something was missed, until reconciliation or a baseline has found what.
    pub(crate) unreconciled: Units,
    pub(crate) prefill: PrefillModel,
    pub(crate) reported: Option<ReportedLoad>,
    /// Of the tokens that were reported to wait, those that this router had not sent.
    pub(crate) foreign_waiting_tokens: u64,
    /// Of the KV tokens that were reported to be in use, those beyond the prompts that this router had in flight.
    pub(crate) foreign_used_tokens: u64,
    pub(crate) evidence: Evidence,
    pub(crate) arrivals: Arrivals,
    pub(crate) pressure: Pressure,
    pub(crate) retention: Retention,
    /// The number of the last delta told to be applied.
    pub(crate) acked: Option<u64>,
}

impl Member {
    pub(crate) fn state(&self) -> WorkerState {
        match () {
            () if !self.reachable => WorkerState::Unreachable,
            () if self.draining => WorkerState::Draining,
            () if self.updating || self.paused => WorkerState::Updating,
            () => WorkerState::Ready,
        }
    }

    /// An agent tells what is removed. Whether that is all is known of each rank: [`Roster::reports_exactly`](super::roster::Roster::reports_exactly).
    pub(crate) fn reports_exactly(&self) -> bool {
        self.session.is_some_and(|session| session.open && session.level >= ReportLevel::Removals)
    }

    /// An agent also tells what is stored.
    pub(crate) fn reports_stores(&self) -> bool {
        self.session.is_some_and(|session| session.open && session.level == ReportLevel::Full)
    }

    /// The session that is to be told what is predicted.
    pub(super) fn told_predictions(&self) -> Option<SessionId> {
        let wants =
            |session: &Session| session.open && session.routers > 1 && session.level == ReportLevel::Removals;
        self.session.filter(wants).map(|session| session.id)
    }

    /// Routers that send work to the engine, at least this one.
    pub(super) fn routers(&self) -> u32 {
        self.session.filter(|session| session.open).map_or(1, |session| session.routers.max(1))
    }

    pub(super) fn publish(&mut self) -> Arc<Worker> {
        let link = |session: Session| AgentLink {
            session: session.id,
            level: session.level,
            units: session.units,
            since: session.since,
            last_report: session.last_report,
        };
        let agent = self.session.filter(|session| session.open).map(link);
        if let Some(worker) = self.published.as_ref().filter(|worker| worker.agent == agent) {
            return worker.clone();
        }
        let port = self.declared.bootstrap_port.or(self.profile.bootstrap_port);
        let worker = Arc::new(Worker {
            id: self.id,
            url: self.url.clone(),
            state: self.state(),
            reason: self.reason.clone(),
            profile: self.profile.clone(),
            role: self.declared.role.or(self.profile.role).unwrap_or_default(),
            bootstrap_port: port.unwrap_or(DEFAULT_BOOTSTRAP_PORT),
            incarnation: self.incarnation,
            agent,
            chat_template: self.chat_template.clone(),
            identity: self.identity,
        });
        self.published = Some(worker.clone());
        worker
    }
}

impl Rank {
    pub(super) fn new((slot, tenure): (Slot, Tenure)) -> Self {
        Self {
            slot,
            tenure,
            load: Arc::default(),
            gate: Gate::default(),
            doubtful: false,
            incomplete: false,
            unreconciled: Units::default(),
            prefill: PrefillModel::default(),
            reported: None,
            foreign_waiting_tokens: 0,
            foreign_used_tokens: 0,
            evidence: Evidence::default(),
            arrivals: Arrivals::default(),
            pressure: Pressure::default(),
            retention: Retention::default(),
            acked: None,
        }
    }
}
