//! What a rank is asked for and what it answers.

use std::time::Duration;

use crate::radix::{Eviction, HostTier, Namespace};

/// Names a request within its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Bounds of a rank, and what it does at those of its memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens in a page.
    pub page_size: usize,
    /// KV tokens there are, in whole pages.
    pub max_total_tokens: usize,
    /// New tokens in one prefill pass.
    pub chunked_prefill_size: usize,
    /// Requests in the running batch.
    pub max_running_requests: usize,
    /// Decode steps between two publications of events.
    pub decode_log_interval: usize,
    /// Decode steps that an output token takes, at least 1.
    pub steps_per_token: usize,
    /// What goes first where memory is short.
    pub eviction: Eviction,
    /// A pass is planned, and what it needs evicted, while the one before it is computed: SGLang's default.
    pub overlap_schedule: bool,
    /// Where what goes is kept.
    pub host: Option<HostTier>,
}

/// A request for a rank.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub id: RequestId,
    /// What it may share a cache with.
    pub namespace: Namespace,
    /// The prompt; not empty, and shorter than the pool.
    pub prompt: Vec<u32>,
    /// Tokens to produce, at least 1; with the prompt no more than the pool.
    pub output_tokens: usize,
    /// The KV of its prompt comes from elsewhere, and takes no time here.
    pub received: bool,
    /// What it stores goes after what has a lower one, under [`Eviction::Priority`]; scheduling does not heed it.
    pub priority: i64,
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct Step {
    /// How long it takes.
    pub duration: Duration,
    /// Tokens produced, in order.
    pub produced: Vec<Produced>,
    /// The step ends a stretch after which SGLang publishes its events.
    pub publish: bool,
    /// It was a prefill pass.
    pub prefill: bool,
}

/// One token of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// The request.
    pub id: RequestId,
    /// The token.
    pub token: u32,
    /// Prompt tokens that were cached when the request was scheduled first.
    pub cached_tokens: usize,
    /// Of these, tokens that were on the host alone.
    pub cached_on_host: usize,
    /// Times the request was put back.
    pub retractions: u32,
    /// It was the last.
    pub last: bool,
}

/// What a pause does to the requests that are there. New ones wait in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Ends all of them.
    Abort,
    /// Puts those that run back into the queue and frees their memory, so that the cache can be flushed.
    Retract,
    /// Freezes them.
    InPlace,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Prompt tokens of requests that were scheduled.
    pub prompt_tokens: u64,
    /// Of these, tokens found in the cache.
    pub cached_tokens: u64,
    /// Tokens evicted from the device.
    pub evicted_tokens: u64,
    /// Tokens produced.
    pub output_tokens: u64,
    /// Requests finished.
    pub finished: u64,
    /// Requests aborted.
    pub aborted: u64,
    /// Requests put back for lack of memory.
    pub retracted: u64,
    /// Prompt tokens computed.
    pub prefilled_tokens: u64,
    /// Time spent on them, in microseconds.
    pub prefill_busy_us: u64,
}
