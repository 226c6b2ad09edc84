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
    /// Routers in front of all engines.
    pub routers: usize,
    /// Which of them a request goes to.
    pub clients: Clients,
    /// What goes wrong.
    pub fault: Option<Fault>,
}

/// How clients choose among several routers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Clients {
    /// A session stays with one, as long as that is there.
    #[default]
    BySession,
    /// Each request goes to any.
    AtRandom,
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
    /// What a turn after a session's first met when it was sent.
    pub returned: Option<Returned>,
}

/// Where a later turn of a session could have gone, and where it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Returned {
    /// Tokens of its prompt that were cached at an engine of the turn before, the most at any that still took requests.
    pub held_tokens: usize,
    /// The same of the engine that it went to.
    pub here_tokens: usize,
}

/// One request that every router was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// The request.
    pub request: usize,
    /// All would have sent it to the engine that it went to.
    pub agreed: bool,
}

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// Uncached tokens that wait at each engine that is in the fleet.
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
    /// Requests that had to go to another engine than their router would have chosen.
    pub overruled: usize,
    /// Of several routers: decisions on which the others were asked too.
    pub polls: Vec<Poll>,
    /// When each engine joined, and when it left; empty where all are there all the time.
    pub stays: Vec<(Duration, Duration)>,
}

impl Setting {
    /// One router in front of engines to which nothing happens, as tests have it.
    #[cfg(test)]
    pub(crate) fn undisturbed(workers: usize, capacity_tokens: usize) -> Self {
        Self {
            workers,
            capacity_tokens,
            most_blocks: super::MOST_BLOCKS,
            limits: Limits::default(),
            timing: Timing::default(),
            timeout: Duration::from_secs(120),
            seed: 1,
            routers: 1,
            clients: Clients::default(),
            fault: None,
        }
    }

    /// Engines that are in the fleet at any time.
    pub fn engines(&self) -> usize {
        self.workers + self.fault.map_or(0, Fault::spare_engines)
    }
}

impl Outcome {
    /// An engine was in the fleet at some time between these.
    pub fn is_there(&self, engine: usize, from: Duration, until: Duration) -> bool {
        self.stays.get(engine).is_none_or(|(joined, left)| *joined < until && *left > from)
    }
}
