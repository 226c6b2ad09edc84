//! Live load of a target: what this router has sent to it and not seen the end of.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

use crate::admission::count_below;
use crate::health::Health;

/// Counters of one target that every request touches. They are the one thing a decision reads outside the snapshot.
///
/// Each is changed by [`InFlight`](crate::InFlight) alone, so that counting cannot be forgotten. Relaxed ordering is
/// enough: nothing is derived from one counter's order relative to another's.
#[derive(Debug, Default)]
pub struct LoadCounters(CachePadded<Counters>, CachePadded<Health>);

/// All of a target's are read and written together, and no other target's with them.
#[derive(Debug, Default)]
struct Counters {
    in_flight: AtomicU64,
    in_prefill: AtomicU64,
    prefill_tokens: AtomicU64,
    prefill_prompt_tokens: AtomicU64,
    backlog_us: AtomicU64,
    context_tokens: AtomicU64,
}

/// One reading of [`LoadCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Load {
    /// Requests routed and not completed.
    pub in_flight: u64,
    /// Of these, requests without a first token.
    pub in_prefill: u64,
    /// Prompt tokens of the latter that were not expected to be cached.
    pub prefill_tokens: u64,
    /// Prompt tokens of the same requests, cached or not.
    pub prefill_prompt_tokens: u64,
    /// Microseconds that their prefill was expected to take.
    pub backlog_us: u64,
    /// Prompt tokens of all requests in flight.
    pub context_tokens: u64,
}

/// What one request adds to its target's counters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    pub(crate) prefill_tokens: u64,
    pub(crate) prefill_us: u64,
    pub(crate) context_tokens: u64,
}

/// The engine's own numbers for one dp rank, from its agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ReportedLoad {
    /// Requests in the running batch.
    pub running_requests: u32,
    /// Requests not yet scheduled.
    pub waiting_requests: u32,
    /// Their tokens that will have to be computed, as the engine estimates them.
    pub waiting_uncached_tokens: u64,
    /// KV tokens held by running requests.
    pub used_tokens: u64,
    /// KV tokens the rank can hold; zero when unknown.
    pub capacity_tokens: u64,
}

impl LoadCounters {
    /// Reads all counters.
    pub fn read(&self) -> Load {
        Load {
            in_flight: self.0.in_flight.load(Relaxed),
            in_prefill: self.0.in_prefill.load(Relaxed),
            prefill_tokens: self.0.prefill_tokens.load(Relaxed),
            prefill_prompt_tokens: self.0.prefill_prompt_tokens.load(Relaxed),
            backlog_us: self.0.backlog_us.load(Relaxed),
            context_tokens: self.0.context_tokens.load(Relaxed),
        }
    }

    /// Requests routed and not completed.
    pub(crate) fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Relaxed)
    }

    /// What the target's failures say about it.
    pub fn health(&self) -> &Health {
        &self.1
    }

    /// Counts a request, unless more than `most` would then be in flight.
    pub(crate) fn start(&self, share: Share, most: u64) -> bool {
        if !count_below(&self.0.in_flight, most) {
            return false;
        }
        self.0.in_prefill.fetch_add(1, Relaxed);
        self.0.prefill_tokens.fetch_add(share.prefill_tokens, Relaxed);
        self.0.prefill_prompt_tokens.fetch_add(share.context_tokens, Relaxed);
        self.0.backlog_us.fetch_add(share.prefill_us, Relaxed);
        self.0.context_tokens.fetch_add(share.context_tokens, Relaxed);
        true
    }

    pub(crate) fn end_prefill(&self, share: Share) {
        self.0.in_prefill.fetch_sub(1, Relaxed);
        self.0.prefill_tokens.fetch_sub(share.prefill_tokens, Relaxed);
        self.0.prefill_prompt_tokens.fetch_sub(share.context_tokens, Relaxed);
        self.0.backlog_us.fetch_sub(share.prefill_us, Relaxed);
    }

    pub(crate) fn end(&self, share: Share) {
        self.0.in_flight.fetch_sub(1, Relaxed);
        self.0.context_tokens.fetch_sub(share.context_tokens, Relaxed);
    }
}
