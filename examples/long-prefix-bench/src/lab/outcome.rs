//! What a run is of, and what became of it.

use std::time::Duration;

use sglang_sim::Timing;

use super::fault::Fault;
use crate::engine::Limits;

/// The fleet and its clients.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Engines.
    pub workers: usize,
    /// KV tokens of each.
    pub capacity_tokens: usize,
    /// Blocks in a router's index at most.
    pub most_blocks: u64,
    /// What an engine does at once.
    pub limits: Limits,
    /// How long it takes.
    pub timing: Timing,
    /// A client leaves if no token has come after this.
    pub timeout: Duration,
    /// Seeds the routers' own randomness, and what is lost by chance.
    pub seed: u64,
    /// Routers in front of all engines; each session stays with one.
    pub routers: usize,
    /// What goes wrong.
    pub fault: Option<Fault>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Request {
    /// When it was sent.
    pub sent: Duration,
    /// The engine that it went to.
    pub engine: usize,
    /// When its first token came; never if the client had left, or nobody would take it.
    pub first: Option<Duration>,
    /// When its last token came.
    pub done: Option<Duration>,
    /// It found nobody to take it, or its answer broke off.
    pub failed: bool,
    /// Prompt tokens that were cached, as the engine says.
    pub cached_tokens: usize,
    /// Prompt tokens that the router expected to be.
    pub predicted_tokens: u64,
}

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// Uncached tokens that wait at each engine.
    pub queued_tokens: Vec<usize>,
}

/// What became of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the order of [`Traffic::requests`](crate::workload::Traffic::requests).
    pub requests: Vec<Request>,
    /// Every prefill pass: the engine, its end, and how long it took.
    pub prefills: Vec<(usize, Duration, Duration)>,
    /// Every few seconds.
    pub samples: Vec<Sample>,
    /// When the last answer was complete.
    pub end: Duration,
    /// When each session's last answer was.
    pub session_ends: Vec<Duration>,
    /// Copies of each block that is cached anywhere, in the mean, when the last request has been sent.
    pub replication: f64,
    /// Requests put back by engines for lack of memory.
    pub retracted: u64,
    /// Tokens that were evicted.
    pub evicted_tokens: u64,
}
