//! How long a pass of the engine takes.
//!
//! A prefill chunk of `new` tokens after a context of `context` takes `new / rate · (1 + (context + new/2) / half)`, and a
//! prefill pass the sum over its chunks, but no less than `base`: the weights are read once whatever the pass computes. A
//! decode step of `b` requests with `s` tokens of context in all takes `base + per_request · b + per_token · s`.
//!
//! The defaults stand for a 32B model on two H100s. 10,000 tokens/s and 53,000 tokens are fitted to a published log of one
//! 54k prompt in 8k chunks (8,073 down to 7,116 tokens/s) scaled to that model; 12 ms + 0.2 ms · 32 + 20 ns · 11k ≈ 19 ms is
//! SGLang's own benchmark log of 32 running requests with 11k tokens (19.6 ms a step).

use std::time::Duration;

/// The parameters of the model; see the module.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct Timing {
    /// Prefill speed at an empty context, in tokens a second.
    #[arg(long, default_value_t = 10_000.0)]
    pub prefill_rate: f64,
    /// Context, in tokens, at which a token takes twice as long to prefill.
    #[arg(long, default_value_t = 53_000.0)]
    pub half_context_tokens: f64,
    /// Fixed part of a decode step and shortest prefill pass, in milliseconds.
    #[arg(long, default_value_t = 12.0)]
    pub decode_base_ms: f64,
    /// Time in a decode step for each request, in microseconds.
    #[arg(long, default_value_t = 200.0)]
    pub decode_per_request_us: f64,
    /// Time in a decode step for each token of context, in nanoseconds.
    #[arg(long, default_value_t = 20.0)]
    pub decode_per_token_ns: f64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            prefill_rate: 10_000.0,
            half_context_tokens: 53_000.0,
            decode_base_ms: 12.0,
            decode_per_request_us: 200.0,
            decode_per_token_ns: 20.0,
        }
    }
}

impl Timing {
    /// Time of a prefill pass; its chunks as (new tokens, tokens of context before them).
    pub fn prefill(&self, chunks: impl IntoIterator<Item = (usize, usize)>) -> Duration {
        let weighted = chunks.into_iter().map(|(new, context)| {
            let (new, context) = (new as f64, context as f64);
            new * (1.0 + (context + new / 2.0) / self.half_context_tokens)
        });
        let seconds = weighted.sum::<f64>() / self.prefill_rate;
        Duration::from_secs_f64(seconds.max(self.decode_base_ms / 1e3))
    }

    /// Time of one decode step.
    pub fn decode(&self, requests: usize, context_tokens: usize) -> Duration {
        let batch = requests as f64 * self.decode_per_request_us / 1e6;
        let context = context_tokens as f64 * self.decode_per_token_ns / 1e9;
        Duration::from_secs_f64(self.decode_base_ms / 1e3 + batch + context)
    }

    /// The parameters that are out of range: their option and value.
    pub(crate) fn out_of_range(&self) -> Option<(&'static str, f64)> {
        let positive =
            [("prefill-rate", self.prefill_rate), ("half-context-tokens", self.half_context_tokens)];
        let not_negative = [
            ("decode-base-ms", self.decode_base_ms),
            ("decode-per-request-us", self.decode_per_request_us),
            ("decode-per-token-ns", self.decode_per_token_ns),
        ];
        let bad_positive = positive.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0));
        bad_positive.or_else(|| {
            // A minute a step is no engine, and longer ones would overflow a duration.
            not_negative.into_iter().find(|(_, value)| !(0.0..=60_000.0).contains(value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_chunk_of_a_prompt_takes_longer() {
        let timing = Timing::default();
        let chunk = |context| timing.prefill([(8_192, context)]).as_secs_f64();
        assert!((chunk(0) - 0.8192 * (1.0 + 4_096.0 / 53_000.0)).abs() < 1e-9);
        assert!(chunk(53_000) > 1.9 * chunk(0));
        // Cut or whole, a prompt takes the same.
        let whole = timing.prefill([(16_384, 0)]);
        let cut = timing.prefill([(8_192, 0)]) + timing.prefill([(8_192, 8_192)]);
        assert!((whole.as_secs_f64() - cut.as_secs_f64()).abs() < 1e-9);
    }

    #[test]
    fn a_pass_over_nothing_much_takes_a_decode_step() {
        let timing = Timing::default();
        assert_eq!(timing.prefill([(1, 0)]), Duration::from_millis(12));
        assert_eq!(timing.decode(32, 11_000).as_micros(), 18_620);
    }
}
