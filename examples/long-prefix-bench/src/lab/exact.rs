//! Policies that only the lab has: on the truth instead of claims, and by the prefix alone.

use std::sync::{Arc, Mutex};

use router_core::WorkerId;
use router_core::policy::{CacheAware, Candidate, Choice, Policy, Reason, View};

/// What is true of one engine for the request that is decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truth {
    pub(super) worker: WorkerId,
    /// Tokens of the prompt that it holds or will hold when what waits there has been prefilled.
    pub(super) matched_tokens: u64,
    /// Time to prefill all that waits there.
    pub(super) backlog_us: u64,
}

/// `cache_aware` on the truth. Whoever decides tells it the truth before.
#[derive(Debug)]
pub(super) struct Exact {
    rule: CacheAware,
    truth: Arc<Mutex<Vec<Truth>>>,
}

/// Rendezvous hashing of the first blocks, whatever the load.
#[derive(Debug)]
pub(super) struct PrefixHash;

impl Exact {
    pub(super) fn new(rule: CacheAware, truth: Arc<Mutex<Vec<Truth>>>) -> Self {
        Self { rule, truth }
    }
}

impl Policy for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        let truth = self.truth.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let corrected = view.candidates.iter().map(|candidate| {
            let mut candidate = *candidate;
            if let Some(true_of) = truth.iter().find(|truth| truth.worker == candidate.id.worker) {
                candidate.matched_tokens = true_of.matched_tokens;
                candidate.load.backlog_us = true_of.backlog_us;
            }
            candidate
        });
        let candidates: Vec<Candidate> = corrected.collect();
        self.rule.choose(&View { candidates: &candidates, ..*view }, rng)
    }
}

impl Policy for PrefixHash {
    fn name(&self) -> &'static str {
        "prefix_hash"
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        let Some(first) = view.first_blocks else {
            return Choice { index: rng.usize(..view.candidates.len()), reason: Reason::Random };
        };
        let best =
            view.candidates.iter().enumerate().max_by_key(|(_, candidate)| candidate.rendezvous(first));
        Choice { index: best.map_or(0, |(index, _)| index), reason: Reason::Rendezvous }
    }
}
