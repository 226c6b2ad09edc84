//! Reconciliation of a session's ranks: when a round begins, the symbols it sends, and when it is given up.
//!
//! One round is under way at a time. Its claims are taken from one snapshot, so that the writer is not held up, and symbols are made on a
//! thread for such work. The agent finds the difference and reports it in sequence (`router_core::reconcile`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use router_core::key::Unit;
use router_core::reconcile::{Encoder, MOST_SYMBOLS, Pace, SYMBOL_BYTES};
use router_core::{Delta, Query, TargetId, Time, Units, Update, VouchedClaims, WorkerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{AgentService, Outbox, convert};
use crate::requests::ask;

/// Symbols that a round begins with: enough for about 15 differences.
const FIRST_SYMBOLS: u32 = 32;

/// Symbols in one message at most, so that it stays under 1 MiB.
const MESSAGE_SYMBOLS: u32 = 65_536;

/// A round that an agent does not go on with for so long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause before a round that found no room is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes of one block in a baseline.
const BASELINE_BYTES: u64 = 8;

/// With fewer blocks a baseline is as short as the symbols that every round begins with.
const LEAST_BLOCKS: u64 = FIRST_SYMBOLS as u64 * SYMBOL_BYTES as u64 / BASELINE_BYTES;

/// The rounds of one session.
#[derive(Debug)]
pub(super) struct Rounds {
    worker: WorkerId,
    units: Units,
    /// `None`: only when something was lost.
    pace: Option<Pace>,
    turns: Vec<Turn>,
    /// What is to be reconciled next.
    waiting: VecDeque<Wish>,
    active: Option<Round>,
    /// Rounds of all sessions that may be under way.
    room: Arc<Semaphore>,
}

/// When a rank is to be reconciled again in one unit.
#[derive(Debug)]
struct Turn {
    rank: u32,
    unit: Unit,
    due: Instant,
    /// When it was, or the session began.
    last: Instant,
}

/// A rank that is to be reconciled in one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    rank: u32,
    unit: Unit,
    /// Something was lost: if a round cannot find it, a baseline must.
    needed: bool,
}

/// A round under way.
#[derive(Debug)]
struct Round {
    wish: Wish,
    number: u64,
    as_of: Time,
    /// Both ways so far.
    bytes: u64,
    /// Away while symbols are made.
    encoder: Encoder,
    begun: Instant,
    heard: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Rounds {
    /// For a session of an agent that can decode symbols. `longest`: time between two rounds where nothing differs.
    pub(super) fn new(
        (worker, ranks, units): (WorkerId, u32, Units),
        longest: Option<Duration>,
        room: Arc<Semaphore>,
    ) -> Self {
        let (pace, last) = (longest.map(Pace::new), Instant::now());
        let turn = |rank, unit, longest: Duration| {
            // Not all at once, however many sessions were opened together.
            let due = last + longest.mul_f64(0.5 + 0.5 * fastrand::f64());
            Turn { rank, unit, due, last }
        };
        let all = (0..ranks).flat_map(|rank| units.iter().map(move |unit| (rank, unit)));
        let turns = longest
            .map_or_else(Vec::new, |longest| all.map(|(rank, unit)| turn(rank, unit, longest)).collect());
        Self { worker, units, pace, turns, waiting: VecDeque::new(), active: None, room }
    }

    /// Something of a rank was lost.
    pub(super) fn need(&mut self, rank: u32) {
        self.active = self.active.take().filter(|round| round.wish.rank != rank);
        for unit in self.units.iter() {
            self.wish(Wish { rank, unit, needed: true });
        }
    }

    fn wish(&mut self, wish: Wish) {
        let same = |other: &Wish| (other.rank, other.unit) == (wish.rank, wish.unit);
        match self.waiting.iter_mut().find(|other| same(other)) {
            Some(waiting) => waiting.needed |= wish.needed,
            None if wish.needed => self.waiting.push_front(wish),
            None => self.waiting.push_back(wish),
        }
    }

    /// When [`step`](Self::step) has something to do again.
    pub(super) fn next(&self) -> Option<Instant> {
        let now = match (&self.active, self.waiting.is_empty()) {
            (Some(round), _) => Some(round.heard + PATIENCE),
            (None, false) => Some(Instant::now() + PAUSE),
            (None, true) => None,
        };
        self.turns.iter().map(|turn| turn.due).chain(now).min()
    }

    /// Does what is due: gives up a round that is not answered, and begins the next.
    pub(super) async fn step(&mut self, service: &AgentService, outbox: &Outbox) {
        let now = Instant::now();
        let longest = self.pace.map(|pace| pace.longest()).unwrap_or_default();
        for at in 0..self.turns.len() {
            let Turn { rank, unit, due, .. } = &mut self.turns[at];
            if now >= *due {
                // Unless its outcome says otherwise.
                *due = now + longest;
                let wish = Wish { rank: *rank, unit: *unit, needed: false };
                self.wish(wish);
            }
        }
        if let Some(round) = self.active.take_if(|round| now >= round.heard + PATIENCE) {
            self.give_up(round.wish, "the agent did not go on", service, outbox);
        }
        while self.active.is_none() && !self.waiting.is_empty() {
            let Ok(permit) = self.room.clone().try_acquire_owned() else { return };
            let Some(wish) = self.waiting.pop_front() else { return };
            self.begin(wish, permit, service, outbox).await;
        }
    }

    async fn begin(
        &mut self,
        wish: Wish,
        permit: OwnedSemaphorePermit,
        service: &AgentService,
        outbox: &Outbox,
    ) {
        let (target, unit) = (TargetId { worker: self.worker, rank: wish.rank }, wish.unit);
        let asked = ask(&service.router, |done| Update::Query(Query::Vouched { target, unit, done })).await;
        let Some(claims) = asked.ok().flatten() else { return };
        // An agent that misses stores cannot tell what is not held.
        if claims.incomplete || claims.blocks < LEAST_BLOCKS {
            if wish.needed {
                self.give_up(wish, "a baseline is shorter, or its agent is incomplete", service, outbox);
            }
            return;
        }
        let number = fastrand::u64(1..);
        let as_of = claims.as_of;
        let Ok(encoder) = tokio::task::spawn_blocking(move || encoder(number, &claims)).await else { return };
        let begun = Instant::now();
        let round = Round { wish, number, as_of, bytes: 0, encoder, begun, heard: begun, _permit: permit };
        service.metrics.reconciliation_rounds.inc();
        self.send(round, FIRST_SYMBOLS, service, outbox).await;
    }

    /// The agent needs more symbols of a round.
    pub(super) async fn more(
        &mut self,
        (rank, unit, number): (u32, Unit, u64),
        (until, asked_bytes): (u32, usize),
        service: &AgentService,
        outbox: &Outbox,
    ) {
        let is_it =
            |round: &mut Round| (round.wish.rank, round.wish.unit, round.number) == (rank, unit, number);
        let Some(mut round) = self.active.take_if(is_it) else { return };
        round.heard = Instant::now();
        round.bytes += asked_bytes as u64;
        let made = round.encoder.made();
        let until = until.max(made + 1);
        // An agent knows better, and earlier, whether its baseline is shorter; this is the bound of what it may ask for.
        let is_long =
            u64::from(until) * SYMBOL_BYTES as u64 > 4 * BASELINE_BYTES * (round.encoder.len() + (1 << 16));
        if until > MOST_SYMBOLS || is_long {
            self.give_up(round.wish, "the difference is too large to be found", service, outbox);
            return;
        }
        self.send(round, until, service, outbox).await;
    }

    /// Sends the symbols of a round to before `until`, or as many as one message takes.
    async fn send(&mut self, mut round: Round, until: u32, service: &AgentService, outbox: &Outbox) {
        let first = round.encoder.made();
        let until = until.min(first + MESSAGE_SYMBOLS);
        let made = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::with_capacity((until - first) as usize * SYMBOL_BYTES);
            round.encoder.symbols_to(until).into_iter().for_each(|symbol| symbol.write(&mut bytes));
            (round, bytes)
        });
        let Ok((mut round, bytes)) = made.await else { return };
        service.metrics.reconciliation_symbols.inc_by(u64::from(until - first));
        service.metrics.reconciliation_bytes.inc_by(bytes.len() as u64);
        let (wish, blocks) = (round.wish, round.encoder.len());
        let message = convert::symbols((wish.rank, wish.unit, round.number), blocks, first, bytes);
        round.bytes += message.encoded_len() as u64;
        // Waiting for an agent that does not read would keep its session from ending.
        if outbox.try_send(Ok(message)).is_ok() {
            self.active = Some(round);
        } else {
            self.give_up(wish, "its agent does not read", service, outbox);
        }
    }

    /// The moment of the claims of a round that a delta answers, which ends with it, and the bytes that it took so far. `None`: it
    /// answers another, which does not count.
    pub(super) fn answered(
        &mut self,
        rank: u32,
        delta: &Delta,
        number: u64,
        service: &AgentService,
    ) -> Option<(Time, u64)> {
        let unit = delta.unit;
        let is_it =
            |round: &mut Round| (round.wish.rank, round.wish.unit, round.number) == (rank, unit, number);
        let round = self.active.take_if(is_it)?;
        service.metrics.reconciliation_seconds.inc_by(round.begun.elapsed().as_secs_f64());
        service.metrics.reconciliations_completed.inc();
        let turn = self.turns.iter_mut().find(|turn| (turn.rank, turn.unit) == (rank, unit));
        if let (Some(turn), Some(pace)) = (turn, self.pace) {
            let now = Instant::now();
            let found = delta.stored.iter().map(|run| run.hashes.len()).sum::<usize>() + delta.removed.len();
            turn.due = now + pace.compared(now - turn.last, found as u64, round.encoder.len());
            turn.last = now;
        }
        Some((round.as_of, round.bytes))
    }

    /// A baseline says everything.
    pub(super) fn baseline_came(&mut self, rank: u32, service: &AgentService) {
        self.waiting.retain(|wish| wish.rank != rank);
        if self.active.take_if(|round| round.wish.rank == rank).is_some() {
            service.metrics.reconciliations_given_up.inc();
        }
    }

    fn give_up(&mut self, wish: Wish, reason: &str, service: &AgentService, outbox: &Outbox) {
        service.metrics.reconciliations_given_up.inc();
        if wish.needed {
            self.waiting.retain(|waiting| waiting.rank != wish.rank);
            service.metrics.resyncs.inc();
            // An agent that does not read loses its session anyway.
            let _ = outbox.try_send(Ok(convert::resync(wish.rank, reason)));
        }
    }
}

fn encoder(salt: u64, claims: &VouchedClaims) -> Encoder {
    Encoder::new(salt, claims.hashes())
}
