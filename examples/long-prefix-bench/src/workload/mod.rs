//! What is asked for, and when: sessions of turns, generated or read from traces.
//!
//! A [`Draft`] has its times relative to a span that is not known yet; [`Draft::at_load`] fits it to a fleet, so that prefill with one
//! infinite cache and decoding in moderate batches would take the share ρ of the fleet's time. Sessions start open loop; a turn is sent after the answer to the
//! one before and its think time. All of it follows from the seed.

mod synthetic;
pub(crate) mod text;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use sglang_sim::Timing;
pub use synthetic::{EQUAL_PROMPT_TOKENS, EQUAL_PROMPTS, Pattern, draft};
pub use trace::{Trace, TraceError, load};
use xxhash_rust::xxh3::Xxh3;

use crate::reference::Accesses;
use crate::sequence::Sequence;

/// Sessions with relative times.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// In no order.
    pub sessions: Vec<DraftSession>,
    /// Requests that warm the caches and are not measured, the first in nominal order; the usual share if nothing is said.
    pub warm_up: Option<usize>,
    /// How long it took where it was recorded.
    pub recorded: Option<Duration>,
}

/// One session.
#[derive(Clone, Debug, Default)]
pub struct DraftSession {
    /// Share of the span after which it starts, 0 to 1.
    pub starts: f64,
    /// Added to that.
    pub offset: Duration,
    /// Its turns, in order.
    pub turns: Vec<DraftTurn>,
    /// It is there to disturb the others, whose figures are reported apart.
    pub intrudes: bool,
}

/// What a session asks at once.
#[derive(Clone, Debug)]
pub struct DraftTurn {
    /// Time between the last answer of the turn before, or the session's start, and this.
    pub think: Duration,
    /// Share of the span before which it is not sent: the trace's own time.
    pub not_before: f64,
    /// Sent together; the next turn waits for all answers.
    pub requests: Vec<Arc<Sequence>>,
}

/// Sessions with times, and their requests in the order in which they would come if every answer took its nominal time.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// In nominal order.
    pub requests: Vec<Arc<Sequence>>,
    /// The session of each.
    pub session_of: Vec<u32>,
    /// The sessions.
    pub sessions: Vec<Session>,
    /// When the last session starts.
    pub span: Duration,
    /// Leading requests that warm the caches and are not measured.
    pub warm_up: usize,
    /// Names all of it: equal hashes are equal traffic.
    pub hash: u64,
}

/// One session.
#[derive(Clone, Debug)]
pub struct Session {
    /// When it starts.
    pub start: Duration,
    /// Its turns.
    pub turns: Vec<Turn>,
    /// It is there to disturb the others.
    pub intrudes: bool,
}

/// See [`DraftTurn`].
#[derive(Clone, Debug)]
pub struct Turn {
    /// Time after the last answer of the turn before.
    pub think: Duration,
    /// It is not sent before this.
    pub not_before: Duration,
    /// Places in [`Traffic::requests`].
    pub requests: Vec<u32>,
}

/// Nominal time of an output token: a decode step of a moderate batch.
const NOMINAL_DECODE: Duration = Duration::from_millis(16);

/// Requests that decode together where ρ is defined.
const NOMINAL_BATCH: usize = 16;

/// Share of the requests that warm the caches, unless the workload says otherwise.
const WARM_UP: f64 = 0.1;

/// The span is at least this share of the time that ρ asks for, however long sessions last.
const LEAST_SPAN_SHARE: f64 = 0.3;

impl Draft {
    /// Times for a fleet of so many workers at load ρ.
    pub fn at_load(&self, rho: f64, workers: usize, timing: &Timing) -> Traffic {
        self.schedule(self.span_at(rho, workers, timing))
    }

    /// The span in which sessions start on a fleet of so many workers at load ρ.
    pub fn span_at(&self, rho: f64, workers: usize, timing: &Timing) -> Duration {
        let order = self.schedule(Duration::from_secs(3_600));
        let accesses = Accesses::new(&order.requests);
        let matched = accesses.infinite();
        let ideal =
            order.requests.iter().zip(&matched).map(|(sequence, matched)| work_s(sequence, *matched, timing));
        let needed = ideal.sum::<f64>() / (workers as f64 * rho);
        let lasting = self.sessions.iter().map(|session| session.lasts().as_secs_f64()).sum::<f64>();
        let lasting = lasting / self.sessions.len().max(1) as f64;
        Duration::from_secs_f64((needed - lasting).max(LEAST_SPAN_SHARE * needed))
    }

    /// Times for a span.
    pub fn schedule(&self, span: Duration) -> Traffic {
        let mut arrivals = Vec::new();
        let mut sessions = Vec::with_capacity(self.sessions.len());
        for (number, draft) in self.sessions.iter().enumerate() {
            let start = span.mul_f64(draft.starts) + draft.offset;
            let mut now = start;
            let mut turns = Vec::with_capacity(draft.turns.len());
            for (place, turn) in draft.turns.iter().enumerate() {
                let not_before = span.mul_f64(turn.not_before);
                now = (now + turn.think).max(not_before);
                for (nth, sequence) in turn.requests.iter().enumerate() {
                    arrivals.push((now, number, place, nth, sequence.clone()));
                }
                now += turn.answered_in();
                turns.push(Turn { think: turn.think, not_before, requests: Vec::new() });
            }
            sessions.push(Session { start, turns, intrudes: draft.intrudes });
        }
        arrivals.sort_by_key(|(at, number, place, nth, _)| (*at, *number, *place, *nth));
        for (index, (_, number, place, _, _)) in arrivals.iter().enumerate() {
            sessions[*number].turns[*place].requests.push(index as u32);
        }
        let session_of = arrivals.iter().map(|(_, number, ..)| *number as u32).collect();
        let requests: Vec<_> = arrivals.into_iter().map(|(.., sequence)| sequence).collect();
        let warm_up = self.warm_up.unwrap_or((requests.len() as f64 * WARM_UP) as usize);
        let mut traffic = Traffic { requests, session_of, sessions, span, warm_up, hash: 0 };
        traffic.hash = traffic.compute_hash();
        traffic
    }

    /// Requests.
    pub fn len(&self) -> usize {
        self.sessions.iter().flat_map(|session| &session.turns).map(|turn| turn.requests.len()).sum()
    }

    /// The same without the sessions that are there to disturb.
    pub fn without_intruders(mut self) -> Self {
        self.sessions.retain(|session| !session.intrudes);
        self
    }

    /// Every request at the trace's own time, whatever became of the one before, and all of them measured.
    pub fn open_loop(self) -> Self {
        let turns = self.sessions.into_iter().flat_map(|session| session.turns);
        let alone = |turn: DraftTurn| DraftSession {
            starts: turn.not_before,
            turns: vec![DraftTurn { not_before: 0.0, think: Duration::ZERO, ..turn }],
            ..DraftSession::default()
        };
        Self { sessions: turns.map(alone).collect(), warm_up: Some(0), recorded: self.recorded }
    }

    /// Requests that are measured.
    pub fn measured(&self) -> usize {
        self.len() - self.warm_up.unwrap_or(0).min(self.len())
    }

    /// There is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Time of an engine that a request takes with so many tokens cached, its share of decode steps included.
fn work_s(sequence: &Sequence, matched: usize, timing: &Timing) -> f64 {
    let prefill = timing.prefill(sequence.prompt_tokens() - matched, matched);
    let context = sequence.prompt_tokens() * NOMINAL_BATCH;
    let step = timing.decode(NOMINAL_BATCH, context).as_secs_f64() / NOMINAL_BATCH as f64;
    prefill.as_secs_f64() + step * sequence.output_tokens() as f64
}

impl DraftSession {
    /// How long it nominally lasts.
    fn lasts(&self) -> Duration {
        self.turns.iter().map(|turn| turn.think + turn.answered_in()).sum()
    }
}

impl DraftTurn {
    /// A turn of one request.
    pub fn new(think: Duration, sequence: Sequence) -> Self {
        Self { think, not_before: 0.0, requests: vec![Arc::new(sequence)] }
    }

    fn answered_in(&self) -> Duration {
        let longest = self.requests.iter().map(|sequence| sequence.output_tokens()).max().unwrap_or(0);
        NOMINAL_DECODE * u32::try_from(longest).unwrap_or(u32::MAX)
    }
}

impl Traffic {
    /// The longest sequence, prompt and answer, in tokens.
    pub fn longest_tokens(&self) -> usize {
        let tokens = self.requests.iter().map(|sequence| sequence.prompt_tokens() + sequence.output_tokens());
        tokens.max().unwrap_or(0)
    }

    /// Prompt tokens of all requests.
    pub fn prompt_tokens(&self) -> u64 {
        self.requests.iter().map(|sequence| sequence.prompt_tokens() as u64).sum()
    }

    /// The turn of each request within its session.
    pub fn turn_of(&self) -> Vec<u32> {
        let mut turn_of = vec![0; self.requests.len()];
        for session in &self.sessions {
            for (turn, requests) in session.turns.iter().map(|turn| &turn.requests).enumerate() {
                requests.iter().for_each(|request| turn_of[*request as usize] = turn as u32);
            }
        }
        turn_of
    }

    /// The same requests at given times, one for each: a turn is sent at that of its first request, and only if the answer before is late
    /// with that. Sessions do not think.
    pub fn sent_at(&self, times: &[Duration]) -> Self {
        let mut traffic = self.clone();
        for session in &mut traffic.sessions {
            for turn in &mut session.turns {
                let first = turn.requests.iter().filter_map(|request| times.get(*request as usize)).min();
                turn.think = Duration::ZERO;
                turn.not_before = first.copied().unwrap_or_default();
            }
            session.start = session.turns.first().map_or(session.start, |turn| turn.not_before);
        }
        traffic.hash = traffic.compute_hash();
        traffic
    }

    fn compute_hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        for session in &self.sessions {
            hash.update(&(session.start.as_nanos() as u64).to_le_bytes());
            for turn in &session.turns {
                hash.update(&(turn.think.as_nanos() as u64).to_le_bytes());
                hash.update(&(turn.not_before.as_nanos() as u64).to_le_bytes());
                for sequence in turn.requests.iter().map(|index| &self.requests[*index as usize]) {
                    // The last hash names all blocks; the lengths tell the rest.
                    let last = sequence.blocks().last().map_or(0, |hash| hash.get());
                    for part in [sequence.prompt_tokens() as u64, sequence.output_tokens() as u64, last] {
                        hash.update(&part.to_le_bytes());
                    }
                }
            }
        }
        hash.digest()
    }
}
