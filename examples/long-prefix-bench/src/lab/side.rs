//! The router of a run: `router-core` itself, its writer driven in virtual time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use router_core::key::{PrefixKey, Unit};
use router_core::policy::{CacheAware, CacheAwareSettings, PolicyConfig};
use router_core::{
    AgentReport, Delta, Done, FleetUpdate, InFlight, Incarnation, Introduction, ReportLevel, RouteError,
    RouteRequest, Router, SessionId, Settings, TargetId, Time, Units, Update, WorkerId, WorkerProfile,
    Writer,
};

use super::contestant::{Contestant, Rule};
use super::exact::{Exact, PrefixHash, Truth};
use crate::engine::Change;
use crate::sequence::{BLOCK_TOKENS, HASH_SEED, Hasher};

/// Blocks in the index at most: more than any fleet here holds, so that the router's memory does not decide.
const MOST_BLOCKS: u64 = 32 << 20;

/// A run that cannot go on: a mistake of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A request can go nowhere.
    #[error("a request can go nowhere")]
    Route(#[from] RouteError),
    /// The writer takes no more.
    #[error("the writer's queue is full")]
    QueueFull,
    /// A decision names nobody.
    #[error("a decision for an unknown worker")]
    UnknownWorker,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Side {
    router: Router,
    writer: Writer,
    workers: Vec<WorkerId>,
    /// The next delta of each engine's agent.
    next_seq: Vec<u64>,
    rng: fastrand::Rng,
    agents: bool,
    truth: Arc<Mutex<Vec<Truth>>>,
}

impl Side {
    /// A router in front of ready engines with empty caches, whose agents have joined if it has agents.
    pub(crate) fn new(
        contestant: &Contestant,
        engines: usize,
        capacity_tokens: u64,
        seed: u64,
    ) -> Result<Self, LabError> {
        let policy = match &contestant.rule {
            Rule::Policy(config) => config.clone(),
            Rule::Sticky | Rule::PrefixHash | Rule::Exact => PolicyConfig::LeastLoad,
        };
        let settings = Settings {
            token_space: Hasher::new().space().clone(),
            policy,
            max_blocks: MOST_BLOCKS,
            ..Settings::new(HASH_SEED)
        };
        let (router, writer) = Router::new(settings);
        let mut side = Self {
            router,
            writer,
            workers: Vec::new(),
            next_seq: vec![1; engines],
            rng: fastrand::Rng::with_seed(seed),
            agents: contestant.agents,
            truth: Arc::default(),
        };
        side.put_in_force(&contestant.rule)?;
        for engine in 0..engines {
            side.send(Update::Fleet(FleetUpdate::Add { url: url(engine), done: Done::ignore() }))?;
        }
        side.turn(Duration::ZERO);
        side.workers = side.router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
        let profile =
            WorkerProfile { page_size: BLOCK_TOKENS as u32, capacity_tokens, ..WorkerProfile::default() };
        for engine in 0..engines {
            side.begin(engine, &profile)?;
        }
        side.turn(Duration::ZERO);
        Ok(side)
    }

    /// Policies that only the lab has.
    fn put_in_force(&mut self, rule: &Rule) -> Result<(), LabError> {
        match rule {
            Rule::Policy(_) | Rule::Sticky => Ok(()),
            Rule::PrefixHash => self.send(Update::Fleet(FleetUpdate::Policy(Arc::new(PrefixHash)))),
            Rule::Exact => {
                let rule = CacheAware::new(CacheAwareSettings::default());
                let exact = Exact::new(rule, self.truth.clone());
                self.send(Update::Fleet(FleetUpdate::Policy(Arc::new(exact))))
            }
        }
    }

    fn begin(&mut self, engine: usize, profile: &WorkerProfile) -> Result<(), LabError> {
        let worker = self.workers[engine];
        let told = FleetUpdate::Profile { worker, profile: profile.clone(), done: Done::ignore() };
        self.send(Update::Fleet(told))?;
        let health = FleetUpdate::Health { worker, reachable: true, reason: "ready".into() };
        self.send(Update::Fleet(health))?;
        if !self.agents {
            return Ok(());
        }
        let agent = Introduction {
            url: url(engine),
            incarnation: Incarnation(1),
            profile: profile.clone(),
            resume: Vec::new(),
            units: Units::TOKENS,
            reconcile: Vec::new(),
            reconciles: false,
            chat_template: None,
        };
        let (session, level, at) = (SessionId(engine as u64), ReportLevel::Full, as_time(Duration::ZERO));
        self.send(Update::Fleet(FleetUpdate::Join { agent, session, level, at, done: Done::ignore() }))?;
        self.turn(Duration::ZERO);
        let stored = Vec::new();
        let baseline =
            AgentReport::Baseline { rank: 0, unit: Unit::Token, seq: 0, stored, incomplete: false };
        self.report(engine, baseline, Duration::ZERO)
    }

    /// What will be true of the engines for the next decision.
    pub(super) fn tell_truth(&self, truth: impl Iterator<Item = (usize, u64, Duration)>) {
        let mut told = self.truth.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        told.clear();
        told.extend(truth.map(|(engine, matched_tokens, backlog)| Truth {
            worker: self.workers[engine],
            matched_tokens,
            backlog_us: backlog.as_micros() as u64,
        }));
    }

    /// Decides where a prompt goes, or sends it where it has to go; says which engine that is.
    pub(crate) fn route(
        &mut self,
        key: &PrefixKey,
        only: Option<usize>,
        now: Duration,
    ) -> Result<(usize, InFlight), LabError> {
        self.turn(now);
        let only = only.map(|engine| self.workers[engine]);
        let request = RouteRequest { key: Some(key), only, ..RouteRequest::default() };
        let in_flight = self.router.route(&request, as_time(now), &mut self.rng)?;
        let engine = self.engine_of(in_flight.target()).ok_or(LabError::UnknownWorker)?;
        Ok((engine, in_flight))
    }

    fn engine_of(&self, target: TargetId) -> Option<usize> {
        self.workers.iter().position(|worker| *worker == target.worker)
    }

    /// An engine's agent tells what changed in its cache.
    pub(super) fn changed(
        &mut self,
        engine: usize,
        changes: Vec<Change>,
        now: Duration,
    ) -> Result<(), LabError> {
        for Change { removed, stored } in changes {
            let seq = self.next_seq[engine];
            self.next_seq[engine] += 1;
            let delta = Delta { unit: Unit::Token, seq, cleared: false, removed, stored, incomplete: false };
            self.report(engine, AgentReport::Delta { rank: 0, delta }, now)?;
        }
        self.turn(now);
        Ok(())
    }

    /// All agents say that they are there.
    pub(super) fn alive(&mut self, now: Duration) -> Result<(), LabError> {
        if self.agents {
            for engine in 0..self.workers.len() {
                self.report(engine, AgentReport::Alive, now)?;
            }
        }
        self.turn(now);
        Ok(())
    }

    fn turn(&mut self, now: Duration) {
        self.writer.turn(as_time(now));
    }

    fn report(&mut self, engine: usize, report: AgentReport, now: Duration) -> Result<(), LabError> {
        let (worker, session) = (self.workers[engine], SessionId(engine as u64));
        self.send(Update::Agent { worker, session, at: as_time(now), report })
    }

    fn send(&mut self, update: Update) -> Result<(), LabError> {
        self.router.updates().try_send(update).map_err(|_| LabError::QueueFull)
    }
}

fn url(engine: usize) -> Arc<str> {
    format!("http://engine-{engine}").into()
}

/// Virtual time as the core counts it. The first microseconds are for what happens before.
pub(crate) fn as_time(since_start: Duration) -> Time {
    Time::from_micros(since_start.as_micros() as u64 + 2)
}
