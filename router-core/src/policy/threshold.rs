//! `threshold`: the classic rule of SGLang's router, with the flags' meanings that its users know.
//!
//! If the loads are uneven (`max − min > balance_abs_threshold` and `max > balance_rel_threshold · min`, in requests in
//! flight) the least loaded target is taken. Otherwise the longest match is, if it covers more than `cache_threshold` of
//! the prompt; if not, the target that claims the fewest tokens.

use super::{Candidate, Choice, Policy, Reason, View};

/// Settings of [`Threshold`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ThresholdSettings {
    /// Least share of the prompt, 0 to 1, that a match must cover to be followed.
    pub cache_threshold: f64,
    /// Difference in requests in flight from which loads may count as uneven.
    pub balance_abs_threshold: u64,
    /// Ratio of requests in flight from which loads may count as uneven.
    pub balance_rel_threshold: f64,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Threshold {
    settings: ThresholdSettings,
}

impl Default for ThresholdSettings {
    /// The defaults of SGLang's router in 2025.
    fn default() -> Self {
        Self { cache_threshold: 0.3, balance_abs_threshold: 64, balance_rel_threshold: 1.5 }
    }
}

impl Threshold {
    /// The policy with these settings.
    pub fn new(settings: ThresholdSettings) -> Self {
        Self { settings }
    }

    fn uneven(&self, candidates: &[Candidate]) -> bool {
        let loads = || candidates.iter().map(|c| c.load.in_flight);
        let (least, most) = (loads().min().unwrap_or(0), loads().max().unwrap_or(0));
        most - least > self.settings.balance_abs_threshold
            && most as f64 > self.settings.balance_rel_threshold * least as f64
    }
}

impl Policy for Threshold {
    fn name(&self) -> &'static str {
        "threshold"
    }

    fn follows_cache(&self) -> bool {
        true
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        let candidates = view.candidates;
        if self.uneven(candidates) {
            let least = candidates.iter().map(|c| c.load.in_flight).min().unwrap_or(0);
            return Choice {
                index: view.break_tie(rng, |c| c.load.in_flight == least),
                reason: Reason::Imbalance,
            };
        }
        let longest = candidates.iter().map(|c| c.matched_tokens).max().unwrap_or(0);
        if longest as f64 > self.settings.cache_threshold * view.prompt_tokens as f64 {
            return Choice {
                index: view.break_tie(rng, |c| c.matched_tokens == longest),
                reason: Reason::LongestMatch,
            };
        }
        let fewest = candidates.iter().map(|c| c.claimed_tokens).min().unwrap_or(0);
        Choice { index: view.break_tie(rng, |c| c.claimed_tokens == fewest), reason: Reason::MostRoom }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, view};
    use super::*;

    fn choose(candidates: &[Candidate]) -> Choice {
        let mut rng = fastrand::Rng::with_seed(1);
        Threshold::new(ThresholdSettings::default()).choose(&view(candidates, 1_000), &mut rng)
    }

    #[test]
    fn a_match_must_cover_the_threshold() {
        let mut all = [candidate(0), candidate(1)];
        all[0].matched_tokens = 301;
        all[0].claimed_tokens = 900;
        assert_eq!(choose(&all), Choice { index: 0, reason: Reason::LongestMatch });
        all[0].matched_tokens = 300;
        assert_eq!(choose(&all), Choice { index: 1, reason: Reason::MostRoom });
    }

    #[test]
    fn imbalance_needs_both_thresholds() {
        let mut all = [candidate(0), candidate(1)];
        all[0].matched_tokens = 1_000;
        all[0].load.in_flight = 164;
        all[1].load.in_flight = 100;
        assert_eq!(choose(&all).reason, Reason::LongestMatch, "the difference is not above 64");
        all[0].load.in_flight = 165;
        assert_eq!(choose(&all), Choice { index: 1, reason: Reason::Imbalance });
        all[1].load.in_flight = 110;
        all[0].load.in_flight = 165;
        assert_eq!(choose(&all).reason, Reason::LongestMatch);
    }
}
