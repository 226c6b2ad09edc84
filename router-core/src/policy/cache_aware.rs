//! `cache_aware`: where the first token is expected soonest, each miss charged with what it costs others too.
//!
//! ```text
//! cost(t)    = backlog(t) + (1 + λ(t)) · prefill(t) + decode_delay(t)
//! prefill(t) = prefill_time(prompt, retention(t) · matched(t))
//! λ(t)       = miss_penalty · min(others(t), 1 + stiffness · eviction_pressure(t))
//! others(t)  = (arrivals(t) · prefill(t) + tail_reuse(t)) / (1 − busy(t))
//! ```
//! A miss costs its prefill now. Those pay too who come to the target while it runs, and wait; and whoever would have found what it
//! pushes out. `λ` is that second price. How many come is the target's own rate of late, and the fleet's mean where that says little; what
//! is pushed out is worth the share of such that is asked for again, and nothing where the room is full of what nobody wants. Whoever
//! waits or computes again keeps others waiting in turn: in a queue that is busy for a share `busy` of the time, work that is added
//! comes to 1 / (1 − busy) times itself before the queue has caught up. That has a most, which grows with the target's eviction
//! pressure: near the capacity limit every spill makes the next one more likely. A match is worth the share of such that responses
//! found there lately: where running contexts fill the memory, what is matched is gone before its turn. Evidence: `docs/policy.md`.

use super::{ArrivalRate, Candidate, Choice, Policy, Reason, View};

/// Settings of [`CacheAware`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct CacheAwareSettings {
    /// Most of `λ` at no eviction pressure: how many further times a miss is charged at most.
    pub miss_penalty: f64,
    /// How much more that is under pressure; 0 turns the growth off.
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

/// Requests that the fleet's mean counts for, beside those that a target got: of fewer, a target's own rate is chance.
const PRIOR_REQUESTS: f64 = 3.0;

/// A queue that is busier counts as this busy: what is added to it, as twenty times itself.
const MOST_BUSY: f64 = 0.95;

/// What a target is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Traffic {
    requests_per_s: f64,
    /// Share of the time that their prefills take.
    busy: f64,
}

/// What targets are sent on average.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mean {
    traffic: Traffic,
    /// Time in which that is as many requests as it counts for; none if there are none.
    prior_seconds: Option<f64>,
}

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

    /// The cost of one candidate, in microseconds, where a target gets so many requests a second on average.
    #[inline(always)]
    fn cost_us(&self, view: &View<'_>, candidate: &Candidate, mean: Mean) -> f64 {
        let settings = &self.settings;
        let prefill_us = candidate.prefill.compared_us(view.prompt_tokens, candidate.retained_tokens());
        let expected = mean.expected_of(candidate);
        let meanwhile = expected.requests_per_s * prefill_us * 1e-6;
        let others = (meanwhile + f64::from(candidate.tail_reuse)) / (1.0 - expected.busy.min(MOST_BUSY));
        let most = 1.0 + settings.stiffness * f64::from(candidate.eviction_pressure);
        let lambda = settings.miss_penalty * others.min(most);
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
        let mean = Mean::of(view);
        let mut kept = [0.0; COSTS_KEPT];
        let mut least = f64::INFINITY;
        for (at, candidate) in view.candidates.iter().enumerate() {
            let cost = self.cost_us(view, candidate, mean);
            least = least.min(cost);
            if let Some(kept) = kept.get_mut(at) {
                *kept = cost;
            }
        }
        let equal = least + TIE_SHARE * view.candidates[0].prefill.prefill_us(view.prompt_tokens, 0);
        // Among equals the one with the longer match leaves more room elsewhere.
        let (mut index, mut best, mut tied, mut longest) = (0, (0, 0), 0, 0);
        for (at, candidate) in view.candidates.iter().enumerate() {
            let cost = kept.get(at).copied().unwrap_or_else(|| self.cost_us(view, candidate, mean));
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
        Some(self.cost_us(view, candidate, Mean::of(view)) / 1e3)
    }
}

impl Mean {
    /// Of all candidates.
    fn of(view: &View<'_>) -> Self {
        let mut all = ArrivalRate::default();
        for candidate in view.candidates {
            all.requests += candidate.arrivals.requests;
            all.prefill_seconds += candidate.arrivals.prefill_seconds;
            all.seconds += candidate.arrivals.seconds;
        }
        Self::new(Traffic { requests_per_s: all.per_s(), busy: all.busy() })
    }

    fn new(traffic: Traffic) -> Self {
        let requests_per_s = traffic.requests_per_s;
        Self { traffic, prior_seconds: (requests_per_s > 0.0).then(|| PRIOR_REQUESTS / requests_per_s) }
    }

    /// What a candidate is expected to get: its own, as far as there is enough of it, and the mean beyond that.
    fn expected_of(self, candidate: &Candidate) -> Traffic {
        let Some(prior_seconds) = self.prior_seconds else { return self.traffic };
        let ArrivalRate { requests, prefill_seconds, seconds } = candidate.arrivals;
        let seconds = f64::from(seconds) + prior_seconds;
        Traffic {
            requests_per_s: (f64::from(requests) + PRIOR_REQUESTS) / seconds,
            busy: (f64::from(prefill_seconds) + prior_seconds * self.traffic.busy) / seconds,
        }
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
    fn a_copy_costs_what_others_wait_and_lose_for_it() {
        let mut all = [candidate(0), candidate(1)];
        all[0].matched_tokens = 8_000;
        all[0].load.backlog_us = 1_400_000;
        // The prefill of 0.86 s is charged twice where all that it pushes out would be asked for again.
        assert_eq!(choose(&all, 8_000).index, 0);
        all[1].tail_reuse = 0.05;
        assert_eq!(choose(&all, 8_000), Choice { index: 1, reason: Reason::Spill });
        // While it runs, one more request comes.
        let often = ArrivalRate { requests: 36.0, prefill_seconds: 1.0, seconds: 30.0 };
        (all[0].arrivals, all[1].arrivals) = (often, often);
        assert_eq!(choose(&all, 8_000).index, 0);
        // But to the other one.
        all[1].arrivals.requests = 0.0;
        assert_eq!(choose(&all, 8_000).index, 1);
    }

    #[test]
    fn who_waits_keeps_others_waiting_where_the_queue_is_long() {
        let mut all = [candidate(0), candidate(1)];
        all[0].matched_tokens = 8_000;
        all[0].load.backlog_us = 1_400_000;
        all[1].tail_reuse = 0.3;
        let with = |all: &mut [Candidate], prefill_seconds: f32| {
            let arrivals = ArrivalRate { requests: 3.0, prefill_seconds, seconds: 30.0 };
            all.iter_mut().for_each(|candidate| candidate.arrivals = arrivals);
        };
        with(&mut all, 6.0);
        assert_eq!(choose(&all, 8_000).index, 1, "a fifth of the time it is busy");
        with(&mut all, 18.0);
        assert_eq!(choose(&all, 8_000).index, 0, "three fifths");
        with(&mut all, 300.0);
        assert_eq!(choose(&all, 8_000).index, 0, "it never catches up");
    }

    #[test]
    fn a_few_requests_say_little_about_what_comes() {
        let mut one = candidate(0);
        one.arrivals = ArrivalRate { requests: 0.0, prefill_seconds: 0.0, seconds: 30.0 };
        let mean = |requests_per_s| Mean::new(Traffic { requests_per_s, busy: 0.5 });
        let few = mean(0.05).expected_of(&one);
        assert!(few.requests_per_s > 0.03 && few.busy > 0.3, "{few:?}");
        let many = mean(10.0).expected_of(&one);
        assert!(many.requests_per_s < 0.2 && many.busy < 0.01, "{many:?}");
        one.arrivals = ArrivalRate { requests: 300.0, prefill_seconds: 15.0, seconds: 30.0 };
        let usual = mean(10.0).expected_of(&one);
        assert!((usual.requests_per_s - 10.0).abs() < 1e-9 && (usual.busy - 0.5).abs() < 1e-9);
        assert_eq!(mean(0.0).expected_of(&one), mean(0.0).traffic);
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
