//! One router: `router-core` itself, its writer driven in virtual time.

use std::collections::HashSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use espalier_proto as proto;
use espalier_proto::agent_message::Message;
use espalier_proto::coordinator_message;
use prost::Message as _;
use router_core::key::{BlockHash, PrefixKey, Unit};
use router_core::reconcile::{Decoder, Encoder, Progress, Symbol};
use router_core::{
    AgentReport, BlockRun, Delta, Done, FleetUpdate, InFlight, Incarnation, Introduction, Notice, Query,
    RouteRequest, Router, SessionId, Settings, TargetId, Time, Update, VouchedClaims, WorkerId,
    WorkerProfile, Writer,
};
use worker_agent::translate::{BlockView, Run, ViewDelta, runs};

use crate::Error;
use crate::engine::{CAPACITY_TOKENS, PAGE_TOKENS};
use crate::world::Setting;

/// Bytes of a message's frame: gRPC's five, and the nine of HTTP/2.
const FRAME_BYTES: u64 = 14;

/// Symbols that a comparison begins with, as the coordinator has it.
const FIRST_SYMBOLS: u32 = 32;

/// Whatever ends a run.
pub(crate) type Fault = Box<dyn Error + Send + Sync>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) router: Router,
    writer: Writer,
    workers: Vec<WorkerId>,
    /// The next delta of each engine's agent.
    next_seq: Vec<u64>,
    /// What was claimed by prediction on each engine, and is to be named.
    predicted: Vec<Vec<u64>>,
    rng: fastrand::Rng,
    pub(crate) bytes: u64,
    pub(crate) reports: u64,
    pub(crate) report_us: f64,
}

impl Side {
    /// A router in front of ready engines with empty caches, whose agents have joined where the level has agents.
    pub(crate) fn new(setting: Setting, seed: u64) -> Result<Self, Fault> {
        let Setting { level, engines, routers, .. } = setting;
        let settings = Settings { correct_from_responses: level.hears_responses(), ..Settings::new(0x5EED) };
        let (router, writer) = Router::new(settings);
        let mut side = Self {
            router,
            writer,
            workers: Vec::new(),
            next_seq: vec![1; engines],
            predicted: vec![Vec::new(); engines],
            rng: fastrand::Rng::with_seed(seed),
            bytes: 0,
            reports: 0,
            report_us: 0.0,
        };
        let url = |engine: usize| format!("http://engine-{engine}");
        for engine in 0..engines {
            side.send(Update::Fleet(FleetUpdate::Add { url: url(engine).into(), done: Done::ignore() }))?;
        }
        let start = Time::from_micros(1);
        side.turn(start);
        side.workers = side.router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
        let profile = WorkerProfile {
            page_size: PAGE_TOKENS as u32,
            capacity_tokens: CAPACITY_TOKENS as u64,
            ..WorkerProfile::default()
        };
        for (engine, worker) in side.workers.clone().into_iter().enumerate() {
            let profile = profile.clone();
            side.send(Update::Fleet(FleetUpdate::Profile {
                worker,
                profile: Box::new(profile.clone()),
                done: Done::ignore(),
            }))?;
            let reason = "ready".into();
            side.send(Update::Fleet(FleetUpdate::Health { worker, reachable: true, reason }))?;
            let Some(level) = level.session() else { continue };
            let incarnation = Incarnation(1);
            let agent = Box::new(Introduction {
                url: url(engine).into(),
                incarnation,
                profile,
                resume: Vec::new(),
                units: router_core::Units::TOKENS,
                reconcile: Vec::new(),
                reconciles: true,
                routers: routers as u32,
                chat_template: None,
            });
            let session = SessionId(engine as u64);
            let join = FleetUpdate::Join { agent, session, level, at: start, done: Done::ignore() };
            side.send(Update::Fleet(join))?;
            side.turn(start);
            let stored = Vec::new();
            let baseline =
                AgentReport::Baseline { rank: 0, unit: Unit::Token, seq: 0, stored, incomplete: false };
            side.report(engine, baseline, start)?;
        }
        side.turn(start);
        Ok(side)
    }

    /// Decides where a prompt goes.
    pub(crate) fn route(&mut self, key: &PrefixKey, now: Time) -> Result<InFlight, Fault> {
        self.turn(now);
        let request = RouteRequest { key: Some(key), ..RouteRequest::default() };
        Ok(self.router.route(&request, now, &mut self.rng)?)
    }

    /// The engine of a target.
    pub(crate) fn engine_of(&self, target: TargetId) -> Option<usize> {
        self.workers.iter().position(|worker| *worker == target.worker)
    }

    /// An agent tells which blocks changed.
    pub(crate) fn changed(&mut self, engine: usize, change: ViewDelta, now: Time) -> Result<(), Fault> {
        if !change.cleared && change.removed.is_empty() && change.stored.is_empty() {
            return Ok(());
        }
        let delta = self.delta(engine, &change, 0);
        self.report(engine, AgentReport::Delta { rank: 0, delta }, now)
    }

    /// The next delta of an engine, which has been sent.
    fn delta(&mut self, engine: usize, change: &ViewDelta, round: u64) -> Delta {
        let seq = self.next_seq[engine];
        self.next_seq[engine] += 1;
        self.told(Message::Delta(as_sent(seq, change, round)));
        let hashes = |values: &[u64]| values.iter().filter_map(|value| BlockHash::new(*value)).collect();
        let stored = change.stored.iter().map(|Run { parent, hashes: own }| BlockRun {
            parent: BlockHash::new(*parent),
            hashes: hashes(own),
        });
        Delta {
            unit: Unit::Token,
            seq,
            cleared: change.cleared,
            removed: hashes(&change.removed),
            stored: stored.collect(),
            incomplete: false,
        }
    }

    /// Compares the claims on an engine with what its agent holds, and corrects them; how many of how many blocks differed.
    pub(crate) fn reconcile(
        &mut self,
        engine: usize,
        view: &BlockView,
        now: Time,
    ) -> Result<(u64, u64), Fault> {
        let (answer, answered) = mpsc::channel();
        let done = Done::new(move |claims: Option<VouchedClaims>| drop(answer.send(claims)));
        let target = TargetId { worker: self.workers[engine], rank: 0 };
        self.send(Update::Query(Query::Vouched { target, unit: Unit::Token, done }))?;
        self.turn(now);
        let Some(claims) = answered.try_recv()? else { return Ok((0, 0)) };
        let round = self.rng.u64(1..);
        let began = Instant::now();
        let mut encoder = Encoder::new(round, claims.hashes());
        let mut encoding = began.elapsed();
        let mut decoder = Decoder::new(round, encoder.len(), view.hashes().filter_map(BlockHash::new));
        let mut until = FIRST_SYMBOLS;
        let found = loop {
            let first = encoder.made();
            let began = Instant::now();
            let symbols = encoder.symbols_to(until);
            encoding += began.elapsed();
            self.sketched(round, encoder.len(), first, &symbols);
            match decoder.take(&symbols)? {
                Progress::Complete(found) => break found,
                Progress::More { symbols } => until = symbols,
            }
            let unit = proto::KeyUnit::Token.into();
            self.told(Message::MoreSymbols(proto::MoreSymbols { rank: 0, unit, round, until }));
        };
        self.report_us += encoding.as_secs_f64() * 1e6;
        let differed = ((found.theirs.len() + found.ours.len()) as u64, encoder.len());
        let parent = |hash: &BlockHash| view.parent_of_held(hash.get());
        let removed = found.theirs.iter().map(|hash| hash.get()).collect();
        let held = found.ours.iter().filter_map(|hash| Some((parent(hash)?, hash.get())));
        let change = ViewDelta { cleared: false, removed, stored: runs(held.collect()) };
        let delta = self.delta(engine, &change, round);
        self.report(engine, AgentReport::Reconciled { rank: 0, as_of: claims.as_of, bytes: 0, delta }, now)?;
        Ok(differed)
    }

    /// What a router sends of its sketch is as much traffic as what it is told.
    fn sketched(&mut self, round: u64, blocks: u64, first: u32, symbols: &[Symbol]) {
        let mut bytes = Vec::new();
        symbols.iter().for_each(|symbol| symbol.write(&mut bytes));
        let unit = proto::KeyUnit::Token.into();
        let symbols = proto::Symbols { rank: 0, unit, round, blocks, first, symbols: bytes };
        let message = coordinator_message::Message::Symbols(symbols);
        let message = proto::CoordinatorMessage { message: Some(message) };
        self.bytes += message.encoded_len() as u64 + FRAME_BYTES;
    }

    /// An agent that may have had nothing to say says that it is there. Load is told more often than that, and for its own sake.
    pub(crate) fn alive(&mut self, engine: usize, now: Time) -> Result<(), Fault> {
        self.told(Message::Load(proto::LoadReport { rank: 0, load: Some(proto::Load::default()) }));
        self.report(engine, AgentReport::Alive, now)
    }

    /// An agent tells how much is cached and was evicted.
    pub(crate) fn counted(&mut self, engine: usize, counts: (u64, u64), now: Time) -> Result<(), Fault> {
        let (evicted_tokens_total, cached_tokens) = counts;
        self.told(Message::Counts(proto::Counts { rank: 0, evicted_tokens_total, cached_tokens }));
        self.report(engine, AgentReport::Counts { rank: 0, evicted_tokens_total, cached_tokens }, now)
    }

    /// Lets the writer apply what has come.
    pub(crate) fn turn(&mut self, now: Time) {
        for notice in self.writer.turn(now) {
            if let Notice::Predicted { session: SessionId(engine), last, .. } = notice {
                self.predicted[engine as usize].push(last.get());
            }
        }
    }

    /// Names to an engine's agent what has been predicted since the last time.
    pub(crate) fn predicted(&mut self, engine: usize) -> Vec<u64> {
        let last = std::mem::take(&mut self.predicted[engine]);
        if !last.is_empty() {
            let unit = proto::KeyUnit::Token.into();
            let predicted = proto::Predicted { rank: 0, unit, last: last.clone() };
            let message = coordinator_message::Message::Predicted(predicted);
            let message = proto::CoordinatorMessage { message: Some(message) };
            self.bytes += message.encoded_len() as u64 + FRAME_BYTES;
        }
        last
    }

    /// The blocks claimed for an engine.
    pub(crate) fn claims(&mut self, engine: usize, now: Time) -> Result<HashSet<BlockHash>, Fault> {
        let (answer, answered) = mpsc::channel();
        let done = Done::new(move |claims: Vec<BlockHash>| drop(answer.send(claims)));
        let target = TargetId { worker: self.workers[engine], rank: 0 };
        self.send(Update::Query(Query::Claims { target, unit: Unit::Token, done }))?;
        self.turn(now);
        Ok(answered.try_recv()?.into_iter().collect())
    }

    fn report(&mut self, engine: usize, report: AgentReport, now: Time) -> Result<(), Fault> {
        self.turn(now);
        let (worker, session) = (self.workers[engine], SessionId(engine as u64));
        self.send(Update::Agent { worker, session, at: now, report })?;
        let began = Instant::now();
        self.turn(now);
        self.report_us += began.elapsed().as_secs_f64() * 1e6;
        self.reports += 1;
        Ok(())
    }

    fn told(&mut self, message: Message) {
        let message = proto::AgentMessage { message: Some(message) };
        self.bytes += message.encoded_len() as u64 + FRAME_BYTES;
    }

    fn send(&mut self, update: Update) -> Result<(), Fault> {
        self.router.updates().try_send(update).map_err(|_| "the writer's queue is full".into())
    }
}

fn as_sent(seq: u64, change: &ViewDelta, round: u64) -> proto::Delta {
    let run = |run: &Run| proto::BlockRun { parent: run.parent, hashes: run.hashes.clone() };
    proto::Delta {
        rank: 0,
        seq,
        cleared: change.cleared,
        removed: change.removed.clone(),
        stored: change.stored.iter().map(run).collect(),
        unit: proto::KeyUnit::Token.into(),
        incomplete: false,
        reconciles: round,
    }
}

/// Virtual time as the core counts it.
pub(crate) fn as_time(since_start: Duration) -> Time {
    // The first microsecond is for what happens before.
    Time::from_micros(since_start.as_micros() as u64 + 2)
}
