//! How long a target takes to prefill, and how the router learns it.

use std::time::Duration;

/// Prefill speed of one target.
///
/// Prefilling `new` tokens so that the context ends at `total` takes `new / rate · (1 + (total − new/2) / half)`: linear
/// in the new tokens, with attention over the context before them on top; at an average context of `half` tokens attention
/// costs as much as all the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PrefillModel {
    /// Tokens a second at an empty context.
    pub tokens_per_s: f64,
    /// Average context, in tokens, at which prefill takes twice as long.
    pub half_context_tokens: f64,
}

/// Samples below this are dominated by fixed costs and the network and teach nothing about the rate.
const LEAST_LEARNED_TOKENS: u64 = 512;

/// Weight of one sample.
const LEARNING_RATE: f64 = 0.05;

/// A sample moves the rate at most by this factor, so that one stalled request cannot.
const LARGEST_STEP: f64 = 2.0;

/// Longest time that is told apart. Reported token counts are not checked for sense; whatever they say, this is "never".
const LONGEST: Duration = Duration::from_secs(1 << 20);

impl Default for PrefillModel {
    /// 10,000 tokens/s and 53,000 tokens: a 32B model on two H100, see `docs/routing.md`.
    fn default() -> Self {
        Self { tokens_per_s: 10_000.0, half_context_tokens: 53_000.0 }
    }
}

impl PrefillModel {
    /// Time to prefill a prompt of `total` tokens of which `cached` are in the cache.
    pub fn prefill_time(&self, total: u64, cached: u64) -> Duration {
        let micros = self.prefill_us(total, cached);
        Duration::try_from_secs_f64(micros / 1e6).map_or(LONGEST, |time| time.min(LONGEST))
    }

    /// The same in microseconds, for those who compare many.
    #[inline]
    pub(crate) fn prefill_us(&self, total: u64, cached: u64) -> f64 {
        self.unit_work(total, cached) / self.tokens_per_s * 1e6
    }

    /// [`prefill_us`](Self::prefill_us) with one division, for decisions: equal candidates come out equal, and that is all they need.
    #[inline]
    pub(crate) fn compared_us(&self, total: u64, cached: u64) -> f64 {
        let new = total.saturating_sub(cached) as f64;
        let weighted = new * (self.half_context_tokens + total as f64 - new * 0.5);
        weighted * 1e6 / (self.half_context_tokens * self.tokens_per_s)
    }

    /// Learns from one request that was alone: `total` and `cached` tokens as the engine counted them, and the time to
    /// its first token.
    pub fn learn(&mut self, total: u64, cached: u64, took: Duration) {
        let new = total.saturating_sub(cached);
        if new < LEAST_LEARNED_TOKENS || took.is_zero() {
            return;
        }
        let measured = self.unit_work(total, cached) / took.as_secs_f64();
        let sample = measured.clamp(self.tokens_per_s / LARGEST_STEP, self.tokens_per_s * LARGEST_STEP);
        self.tokens_per_s += LEARNING_RATE * (sample - self.tokens_per_s);
    }

    /// New tokens, weighted by their context.
    fn unit_work(&self, total: u64, cached: u64) -> f64 {
        let new = total.saturating_sub(cached) as f64;
        new * (1.0 + (total as f64 - new / 2.0) / self.half_context_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_cost_more_than_their_length() {
        let model = PrefillModel::default();
        let (short, long) = (model.prefill_time(1_000, 0), model.prefill_time(100_000, 0));
        assert!(long > 150 * short && long < 250 * short, "{short:?} {long:?}");
        assert_eq!(model.prefill_time(5_000, 5_000), Duration::ZERO);
        assert_eq!(model.prefill_time(u64::MAX, 0), LONGEST);
    }

    #[test]
    fn learning_converges_and_ignores_what_teaches_nothing() {
        let truth = PrefillModel { tokens_per_s: 25_000.0, ..PrefillModel::default() };
        let mut model = PrefillModel::default();
        for _ in 0..300 {
            model.learn(8_000, 1_000, truth.prefill_time(8_000, 1_000));
        }
        assert!((model.tokens_per_s / truth.tokens_per_s - 1.0).abs() < 0.01, "{}", model.tokens_per_s);
        let before = model;
        model.learn(8_000, 7_900, Duration::from_secs(9));
        model.learn(8_000, 0, Duration::ZERO);
        assert_eq!(model, before);
    }
}
