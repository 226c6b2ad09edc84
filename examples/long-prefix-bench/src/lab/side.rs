//! A router of a run: `router-core` itself, its writer driven in virtual time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use router_core::key::{PrefixKey, Unit};
use router_core::policy::{CacheAware, CacheAwareSettings, PolicyConfig};
use router_core::{
    AgentReport, BlockRun, Delta, Done, FleetUpdate, InFlight, Incarnation, Introduction, ReportLevel,
    ReportedLoad, RouteError, RouteRequest, Router, SessionId, Settings, TargetId, Time, Units, Update,
    WorkerId, WorkerProfile, Writer,
};

use super::contestant::{Contestant, Rule};
use super::exact::{Exact, PrefixHash, Truth};
use super::ring::{Owner, Ring};
use crate::engine::Change;
use crate::sequence::{BLOCK_TOKENS, HASH_SEED, Hasher};

/// Blocks in the index at most, unless a cell says otherwise: more than any fleet here holds, so that the router's memory does not
/// decide.
pub(crate) const MOST_BLOCKS: u64 = 32 << 20;

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

/// What an engine's agent sees of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) load: ReportedLoad,
    pub(super) is_down: bool,
    pub(super) is_paused: bool,
}

/// An engine as a router meets it.
#[derive(Clone, Debug, Default)]
pub(super) struct Met {
    /// Its lives before this one.
    pub(super) lives: u64,
    /// What its cache holds, for its agent to tell.
    pub(super) stored: Vec<BlockRun>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Side {
    router: Router,
    writer: Writer,
    workers: Vec<WorkerId>,
    /// What has been said of each engine.
    told: Vec<Told>,
    profile: WorkerProfile,
    rng: fastrand::Rng,
    agents: bool,
    /// That agents report to.
    routers: u32,
    truth: Arc<Mutex<Vec<Truth>>>,
    owner: Arc<Owner>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// The last delta of its agent.
    seq: u64,
    /// Its agent has lost events.
    incomplete: bool,
    is_down: bool,
    is_paused: bool,
}

impl Side {
    /// One of so many routers in front of ready engines with empty caches, whose agents have joined if it has agents.
    pub(crate) fn new(
        contestant: &Contestant,
        (engines, routers): (usize, usize),
        capacity_tokens: u64,
        max_blocks: u64,
        seed: u64,
    ) -> Result<Self, LabError> {
        let policy = match &contestant.rule {
            Rule::Policy(config) => config.clone(),
            Rule::Sticky | Rule::PrefixHash | Rule::Ring | Rule::Exact => PolicyConfig::LeastLoad,
        };
        let settings = Settings {
            token_space: Hasher::new().space().clone(),
            policy,
            max_blocks,
            ..Settings::new(HASH_SEED)
        };
        let (router, writer) = Router::new(settings);
        let mut side = Self {
            router,
            writer,
            workers: Vec::new(),
            told: Vec::new(),
            profile: WorkerProfile {
                page_size: BLOCK_TOKENS as u32,
                capacity_tokens,
                ..WorkerProfile::default()
            },
            rng: fastrand::Rng::with_seed(seed),
            agents: contestant.agents,
            routers: routers as u32,
            truth: Arc::default(),
            owner: Arc::default(),
        };
        side.put_in_force(&contestant.rule)?;
        for _ in 0..engines {
            side.join(Met::default(), Duration::ZERO)?;
        }
        Ok(side)
    }

    /// The next engine joins the fleet; the first one has number 0.
    pub(super) fn join(&mut self, met: Met, now: Duration) -> Result<(), LabError> {
        let engine = self.workers.len();
        self.send(Update::Fleet(FleetUpdate::Add { url: url(engine), done: Done::ignore() }))?;
        self.turn(now);
        let snapshot = self.router.snapshot();
        let worker = snapshot.fleet.worker_by_url(&url(engine)).ok_or(LabError::UnknownWorker)?;
        self.workers.push(worker.id);
        self.told.push(Told::default());
        self.begin(engine, met, now)?;
        self.turn(now);
        Ok(())
    }

    /// An engine gets nothing new from now on.
    pub(super) fn drain(&mut self, engine: usize, now: Duration) -> Result<(), LabError> {
        let worker = self.workers[engine];
        self.send(Update::Fleet(FleetUpdate::Drain { worker, on: true, done: Done::ignore() }))?;
        self.turn(now);
        Ok(())
    }

    /// An engine leaves the fleet for good.
    pub(super) fn remove(&mut self, engine: usize, now: Duration) -> Result<(), LabError> {
        let worker = self.workers[engine];
        self.send(Update::Fleet(FleetUpdate::Remove { worker, done: Done::ignore() }))?;
        self.turn(now);
        Ok(())
    }

    /// Policies that only the lab has.
    fn put_in_force(&mut self, rule: &Rule) -> Result<(), LabError> {
        match rule {
            Rule::Policy(_) | Rule::Sticky => Ok(()),
            Rule::PrefixHash => self.send(Update::Fleet(FleetUpdate::Policy(Arc::new(PrefixHash)))),
            Rule::Ring => {
                let ring = Ring::new(self.owner.clone());
                self.send(Update::Fleet(FleetUpdate::Policy(Arc::new(ring))))
            }
            Rule::Exact => {
                let rule = CacheAware::new(CacheAwareSettings::default());
                let exact = Exact::new(rule, self.truth.clone());
                self.send(Update::Fleet(FleetUpdate::Policy(Arc::new(exact))))
            }
        }
    }

    fn begin(&mut self, engine: usize, met: Met, now: Duration) -> Result<(), LabError> {
        let worker = self.workers[engine];
        let told =
            FleetUpdate::Profile { worker, profile: Box::new(self.profile.clone()), done: Done::ignore() };
        self.send(Update::Fleet(told))?;
        self.health(engine, true)?;
        if !self.agents {
            return Ok(());
        }
        let agent = Box::new(Introduction {
            url: url(engine),
            incarnation: Incarnation(met.lives + 1),
            profile: self.profile.clone(),
            resume: Vec::new(),
            units: Units::TOKENS,
            reconcile: Vec::new(),
            reconciles: false,
            routers: self.routers,
            chat_template: None,
        });
        let (session, level, at) = (SessionId(engine as u64), ReportLevel::Full, as_time(now));
        self.send(Update::Fleet(FleetUpdate::Join { agent, session, level, at, done: Done::ignore() }))?;
        self.turn(now);
        self.baseline(engine, met.stored, now)
    }

    /// All that an engine's cache holds.
    fn baseline(&mut self, engine: usize, stored: Vec<BlockRun>, now: Duration) -> Result<(), LabError> {
        let seq = self.told[engine].seq;
        let baseline = AgentReport::Baseline { rank: 0, unit: Unit::Token, seq, stored, incomplete: false };
        self.report(engine, baseline, now)
    }

    fn health(&mut self, engine: usize, reachable: bool) -> Result<(), LabError> {
        let (worker, reason) = (self.workers[engine], "as its health check says".into());
        self.send(Update::Fleet(FleetUpdate::Health { worker, reachable, reason }))
    }

    /// What will be true of the engines, in their order, for the next decision: tokens of the prompt, and time until it would begin.
    pub(super) fn tell_truth(&self, truth: impl Iterator<Item = (u64, Duration)>) {
        let mut told = self.truth.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        told.clear();
        // Of those that it has met.
        told.extend(truth.zip(&self.workers).map(|((matched_tokens, backlog), worker)| Truth {
            worker: *worker,
            matched_tokens,
            backlog_us: backlog.as_micros() as u64,
        }));
    }

    /// Whose the next request is, for a rule that asks: a session of several turns has a name.
    pub(super) fn tell_owner(&self, session: Option<u64>) {
        self.owner.tell(session);
    }

    /// Decides where a prompt goes that has been tried at some engines, or sends it where it has to go; says which engine that is.
    /// Nothing if nobody can take it now.
    pub(crate) fn route(
        &mut self,
        key: &PrefixKey,
        only: Option<usize>,
        tried: &[usize],
        now: Duration,
    ) -> Result<Option<(usize, InFlight)>, LabError> {
        self.turn(now);
        let only = only.map(|engine| self.workers[engine]);
        let tried: Vec<WorkerId> = tried.iter().map(|engine| self.workers[*engine]).collect();
        let request = RouteRequest { key: Some(key), only, tried: &tried, ..RouteRequest::default() };
        match self.router.route(&request, as_time(now), &mut self.rng) {
            Ok(in_flight) => {
                let engine = self.engine_of(in_flight.target()).ok_or(LabError::UnknownWorker)?;
                Ok(Some((engine, in_flight)))
            }
            Err(RouteError::AtBound | RouteError::AllTried | RouteError::NoneReady { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where it would send a prompt now, or to whom it has to. Nothing is counted, and its next decision is what it would have been.
    pub(super) fn would_choose(
        &mut self,
        key: &PrefixKey,
        only: Option<usize>,
        now: Duration,
    ) -> Option<usize> {
        self.turn(now);
        let only = only.map(|engine| self.workers[engine]);
        let request = RouteRequest { key: Some(key), only, ..RouteRequest::default() };
        let explained = self.router.explain(&request, as_time(now), &mut self.rng.clone()).ok()?;
        self.engine_of(explained.candidates.get(explained.chosen)?.target)
    }

    /// Sends a prompt to an engine that is given, and says whether it would have chosen the same, or had to. Chance goes on as if it
    /// had decided itself.
    pub(super) fn route_to(
        &mut self,
        key: &PrefixKey,
        only: Option<usize>,
        engine: usize,
        now: Duration,
    ) -> Result<(InFlight, bool), LabError> {
        self.turn(now);
        let worker = *self.workers.get(engine).ok_or(LabError::UnknownWorker)?;
        let only = only.map(|engine| self.workers[engine]);
        let own = RouteRequest { key: Some(key), only, ..RouteRequest::default() };
        let explained = self.router.explain(&own, as_time(now), &mut self.rng)?;
        let chosen = explained.candidates.get(explained.chosen).map(|candidate| candidate.target.worker);
        let given = RouteRequest { only: Some(worker), ..own };
        let in_flight = self.router.route(&given, as_time(now), &mut self.rng.clone())?;
        Ok((in_flight, chosen == Some(worker)))
    }

    fn engine_of(&self, target: TargetId) -> Option<usize> {
        self.workers.iter().position(|worker| *worker == target.worker)
    }

    /// An engine's agent tells what changed in its cache.
    pub(super) fn changed(
        &mut self,
        engine: usize,
        changes: &[Change],
        now: Duration,
    ) -> Result<(), LabError> {
        for Change { cleared, removed, stored } in changes.iter().cloned() {
            let told = &mut self.told[engine];
            told.seq += 1;
            told.incomplete &= !cleared;
            let (seq, incomplete) = (told.seq, told.incomplete);
            let delta = Delta { unit: Unit::Token, seq, cleared, removed, stored, incomplete };
            self.report(engine, AgentReport::Delta { rank: 0, delta }, now)?;
        }
        self.turn(now);
        Ok(())
    }

    /// An engine's agent has lost what changed: until the cache is cleared it does not know all of it.
    pub(super) fn lost(&mut self, engine: usize) {
        self.told[engine].incomplete = true;
    }

    /// An engine's agent says how it is.
    pub(super) fn seen(&mut self, engine: usize, seen: Seen, now: Duration) -> Result<(), LabError> {
        let told = self.told[engine];
        if (seen.is_down, seen.is_paused) != (told.is_down, told.is_paused) {
            let (updating, reachable) = (seen.is_paused, !seen.is_down);
            let reason = "as its agent says".into();
            self.report(engine, AgentReport::State { updating, reachable, reason }, now)?;
            (self.told[engine].is_down, self.told[engine].is_paused) = (seen.is_down, seen.is_paused);
        }
        let report = match seen.is_down {
            true => AgentReport::Alive,
            false => AgentReport::Load { rank: 0, load: seen.load },
        };
        self.report(engine, report, now)
    }

    /// A health check says whether an engine answers.
    pub(super) fn checked(&mut self, engine: usize, reachable: bool, now: Duration) -> Result<(), LabError> {
        self.health(engine, reachable)?;
        self.turn(now);
        Ok(())
    }

    /// An engine is another process than before, as its agent or a health check finds out.
    pub(super) fn reborn(&mut self, engine: usize, life: u64, now: Duration) -> Result<(), LabError> {
        if self.agents {
            self.report(engine, AgentReport::NewIncarnation(Incarnation(life)), now)?;
            self.told[engine].incomplete = false;
            self.baseline(engine, Vec::new(), now)?;
        } else {
            let (worker, reason) = (self.workers[engine], "another process".into());
            self.send(Update::Fleet(FleetUpdate::Void { worker, reason }))?;
        }
        self.turn(now);
        Ok(())
    }

    /// Lets time pass.
    pub(super) fn turn(&mut self, now: Duration) {
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
