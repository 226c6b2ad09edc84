//! `kv_space`: the decode worker that generates fastest for as long as the request's KV fits.
//!
//! ```text
//! cost(t) = step(t) / max(1 − fill(t), 1 %)
//! step(t) = 12 ms + 0.2 ms · (in_flight(t) + 1) + 20 ns · held(t)
//! fill(t) = held(t) / capacity(t)
//! held(t) = foreign_used(t) + context(t) + prompt
//! ```
//! `step` is what one decode step takes with this request in the batch, by the figures of a 32B model on two H100s: what counts
//! is their proportion. `held` is what the worker's KV would hold then: what its agent reported beyond the prompts that this
//! router had in flight, the prompts that are in flight now, and this one. A pool that fills up makes its engine put requests back
//! and begin them again, so the price of a step grows as the free share shrinks. What a worker has cached plays no part.

use super::{Candidate, Choice, Policy, Reason, View};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct KvSpace;

/// Fixed part of a decode step, in microseconds.
const STEP_US: f64 = 12_000.0;

/// For each request in it.
const STEP_PER_REQUEST_US: f64 = 200.0;

/// For each token of context.
const STEP_PER_TOKEN_US: f64 = 0.02;

/// A free share below this counts as this: all that are full are told apart by their steps.
const LEAST_FREE: f64 = 0.01;

impl KvSpace {
    /// The cost of one candidate, in microseconds.
    fn cost_us(view: &View<'_>, candidate: &Candidate) -> f64 {
        let held = candidate.foreign_used_tokens + candidate.load.context_tokens + view.prompt_tokens;
        let requests = candidate.load.in_flight + 1;
        let step = STEP_US + STEP_PER_REQUEST_US * requests as f64 + STEP_PER_TOKEN_US * held as f64;
        let fill = held as f64 / candidate.capacity_tokens.max(1) as f64;
        step / (1.0 - fill).max(LEAST_FREE)
    }
}

impl Policy for KvSpace {
    fn name(&self) -> &'static str {
        "kv_space"
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        if view.candidates.len() == 1 {
            return Choice { index: 0, reason: Reason::Only };
        }
        let cost = |candidate: &Candidate| Self::cost_us(view, candidate);
        let least = view.candidates.iter().map(cost).fold(f64::INFINITY, f64::min);
        // By chance: equal prompts have no reason to meet.
        let by_chance = View { first_blocks: None, ..*view };
        Choice { index: by_chance.break_tie(rng, |c| cost(c) <= least), reason: Reason::KvSpace }
    }

    fn may_sample(&self) -> bool {
        true
    }

    fn cost(&self, view: &View<'_>, candidate: &Candidate) -> Option<f64> {
        Some(Self::cost_us(view, candidate) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, view};
    use super::*;

    fn choose(candidates: &[Candidate], prompt_tokens: u64) -> usize {
        KvSpace.choose(&view(candidates, prompt_tokens), &mut fastrand::Rng::with_seed(1)).index
    }

    #[test]
    fn the_emptier_pool_wins_whatever_is_cached() {
        let mut all = [candidate(0), candidate(1)];
        all[0].matched_tokens = 4_000;
        all[0].foreign_used_tokens = 500_000;
        assert_eq!(choose(&all, 5_000), 1);
        all[1].load.context_tokens = 900_000;
        assert_eq!(choose(&all, 5_000), 0, "what is in flight counts before it is reported");
    }

    #[test]
    fn a_prompt_that_would_not_fit_goes_where_it_does() {
        let mut all = [candidate(0), candidate(1)];
        all[0].capacity_tokens = 8_000;
        all[1].load.in_flight = 20;
        assert_eq!(choose(&all, 100), 0, "a short one goes by load");
        assert_eq!(choose(&all, 7_000), 1);
    }

    #[test]
    fn among_equal_pools_the_smaller_batch_wins_and_ties_are_spread() {
        let mut all = [candidate(0), candidate(1)];
        all[0].load.in_flight = 2;
        assert_eq!(choose(&all, 1_000), 1);
        all[0].load.in_flight = 0;
        let mut rng = fastrand::Rng::with_seed(1);
        let chosen: std::collections::HashSet<_> =
            (0..64).map(|_| KvSpace.choose(&view(&all, 10), &mut rng).index).collect();
        assert_eq!(chosen.len(), 2);
    }
}
