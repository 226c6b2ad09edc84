//! `cache_aware`: where the first token is expected soonest, each miss charged more than once.
//!
//! ```text
//! cost(t) = backlog(t) + (1 + λ(t)) · prefill_time(prompt, retention(t) · matched(t)) + decode_delay(t)
//! λ(t)    = miss_penalty · (1 + stiffness · eviction_pressure(t))
//! ```
//! A miss costs its prefill now and again later, because what it writes pushes something out and duplicates a prefix that
//! another worker holds; `λ` is that second price. Near the capacity limit every spill makes the next one more likely, so
//! the price grows with the target's eviction pressure. A match is worth the share of such that responses found there lately: where
//! running contexts fill the memory, what is matched is gone before its turn. Evidence: `docs/policy.md`.

use super::{Candidate, Choice, Policy, Reason, View};

/// Settings of [`CacheAware`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct CacheAwareSettings {
    /// `λ` at no eviction pressure: how many further times a miss is charged.
    pub miss_penalty: f64,
    /// How much faster `λ` grows under pressure; 0 turns the growth off.
    pub stiffness: f64,
    /// Price of one running request, in microseconds: what it costs those beside it over a hundred decode steps or so, not what it adds to
    /// one (`docs/benchmark.md`).
    pub decode_delay_us: f64,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct CacheAware {
    settings: CacheAwareSettings,
}

/// Costs closer than this share of a full prefill count as equal: below it the estimates say nothing.
const TIE_SHARE: f64 = 0.01;

/// Costs that are not calculated twice: those of all candidates that a decision usually has.
const COSTS_KEPT: usize = 128;

impl Default for CacheAwareSettings {
    fn default() -> Self {
        Self { miss_penalty: 1.0, stiffness: 3.0, decode_delay_us: 20_000.0 }
    }
}

impl CacheAware {
    /// The policy with these settings.
    pub fn new(settings: CacheAwareSettings) -> Self {
        Self { settings }
    }

    /// The cost of one candidate, in microseconds.
    fn cost_us(&self, view: &View<'_>, candidate: &Candidate) -> f64 {
        let settings = &self.settings;
        let lambda =
            settings.miss_penalty * (1.0 + settings.stiffness * f64::from(candidate.eviction_pressure));
        let prefill_us = candidate.prefill.compared_us(view.prompt_tokens, candidate.retained_tokens());
        let running = candidate.load.in_flight.saturating_sub(candidate.load.in_prefill);
        candidate.backlog_us() + (1.0 + lambda) * prefill_us + running as f64 * settings.decode_delay_us
    }
}

impl Policy for CacheAware {
    fn name(&self) -> &'static str {
        "cache_aware"
    }

    fn follows_cache(&self) -> bool {
        true
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        if view.candidates.len() == 1 {
            return Choice { index: 0, reason: Reason::Only };
        }
        let mut kept = [0.0; COSTS_KEPT];
        let mut least = f64::INFINITY;
        for (at, candidate) in view.candidates.iter().enumerate() {
            let cost = self.cost_us(view, candidate);
            least = least.min(cost);
            if let Some(kept) = kept.get_mut(at) {
                *kept = cost;
            }
        }
        let equal = least + TIE_SHARE * view.candidates[0].prefill.prefill_us(view.prompt_tokens, 0);
        // Among equals the one with the longer match leaves more room elsewhere.
        let (mut index, mut best, mut tied, mut longest) = (0, (0, 0), 0, 0);
        for (at, candidate) in view.candidates.iter().enumerate() {
            let cost = kept.get(at).copied().unwrap_or_else(|| self.cost_us(view, candidate));
            longest = longest.max(candidate.matched_tokens);
            if cost > equal || (tied > 0 && candidate.matched_tokens < best.0) {
                continue;
            }
            tied = if candidate.matched_tokens > best.0 { 1 } else { tied + 1 };
            let score = (candidate.matched_tokens, view.tie_score(candidate, rng));
            if score >= best {
                (index, best) = (at, score);
            }
        }
        let held = view.candidates[index].matched_tokens;
        let reason = match () {
            () if held < longest => Reason::Spill,
            () if tied > 1 => Reason::Rendezvous,
            () if held == 0 => Reason::LeastCost,
            () => Reason::LongestMatch,
        };
        Choice { index, reason }
    }

    fn may_sample(&self) -> bool {
        true
    }

    fn cost(&self, view: &View<'_>, candidate: &Candidate) -> Option<f64> {
        Some(self.cost_us(view, candidate) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, view};
    use super::*;

    fn choose(candidates: &[Candidate], prompt_tokens: u64) -> Choice {
        let mut rng = fastrand::Rng::with_seed(1);
        CacheAware::new(CacheAwareSettings::default()).choose(&view(candidates, prompt_tokens), &mut rng)
    }

    #[test]
    fn the_longest_match_wins_without_load() {
        let mut all = [candidate(0), candidate(1), candidate(2)];
        all[1].matched_tokens = 4_000;
        all[2].matched_tokens = 2_000;
        assert_eq!(choose(&all, 5_000), Choice { index: 1, reason: Reason::LongestMatch });
    }

    #[test]
    fn a_long_queue_spills_and_pressure_holds_back() {
        let mut all = [candidate(0), candidate(1)];
        all[0].matched_tokens = 8_000;
        // A miss costs (1 + λ) · 0.86 s more than the match does.
        all[0].load.backlog_us = 2_500_000;
        assert_eq!(choose(&all, 8_000), Choice { index: 1, reason: Reason::Spill });
        all[1].eviction_pressure = 1.0;
        assert_eq!(choose(&all, 8_000), Choice { index: 0, reason: Reason::LongestMatch });
    }

    #[test]
    fn a_match_counts_for_what_is_likely_to_be_there() {
        let mut all = [candidate(0), candidate(1)];
        all[0].matched_tokens = 8_000;
        all[0].load.backlog_us = 1_000_000;
        assert_eq!(choose(&all, 8_000), Choice { index: 0, reason: Reason::LongestMatch });
        // A quarter of it saves less than the queue costs.
        all[0].retention = 0.25;
        assert_eq!(choose(&all, 8_000), Choice { index: 1, reason: Reason::Spill });
    }

    #[test]
    fn equals_are_told_apart_by_the_prefix_alone() {
        let all: Vec<_> = (0..8).map(candidate).collect();
        let chosen = choose(&all, 5_000);
        assert_eq!(chosen.reason, Reason::Rendezvous);
        // Without the winner everybody else keeps its place; with it gone, order does not matter.
        let mut reversed = all.clone();
        reversed.reverse();
        let again = choose(&reversed, 5_000);
        assert_eq!(reversed[again.index].id, all[chosen.index].id);
    }

    #[test]
    fn a_single_candidate_is_taken_as_it_is() {
        assert_eq!(choose(&[candidate(3)], 0), Choice { index: 0, reason: Reason::Only });
    }
}
