//! How long a step of the engine takes.
//!
//! A prefill chunk of `new` tokens after a context of `context` takes `new / rate · (1 + (context + new/2) / half)`; a decode
//! step of `b` requests with `s` tokens of context takes `base + per_request · b + per_token · s`. The defaults stand for a
//! 32B model on two H100s: 10,000 tokens/s and `half` = 53,000 from published chunk-by-chunk logs (about 3 % slower per 8k of
//! context, and quadratic attention beyond); 20 ms a step at 32 requests with 11k tokens (SGLang's own benchmark logs).
//!
//! What is loaded from the host comes layer by layer while the layers before compute, so that a prefill pass takes no less than
//! `loaded / load_rate`. Two times 50 GB/s of PCIe 5.0 move 400,000 tokens/s of the 256 KiB that such a model has (64 layers of 8 heads
//! of 128 values of 2 bytes, twice). Copies to the host take no time of the engine's.

use std::time::Duration;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Tokens a second at an empty context.
    pub prefill_tokens_per_s: f64,
    /// Context, in tokens, at which prefill takes twice as long.
    pub half_context_tokens: f64,
    /// Tokens a second from the host to the device.
    pub load_back_tokens_per_s: f64,
    /// Fixed part of a decode step.
    pub decode_base: Duration,
    /// For each request in it.
    pub decode_per_request: Duration,
    /// For each token of context, in nanoseconds.
    pub decode_per_token_ns: f64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            prefill_tokens_per_s: 10_000.0,
            half_context_tokens: 53_000.0,
            load_back_tokens_per_s: 400_000.0,
            decode_base: Duration::from_millis(12),
            decode_per_request: Duration::from_micros(200),
            decode_per_token_ns: 20.0,
        }
    }
}

impl Timing {
    /// The same engine where each token stands for `weight` of the model's: prefill takes as long as theirs would, and a decode step,
    /// of which a token then takes `weight`, is one of the model's.
    pub fn scaled(self, weight: usize) -> Self {
        let weight = weight as f64;
        Self {
            prefill_tokens_per_s: self.prefill_tokens_per_s / weight,
            half_context_tokens: self.half_context_tokens / weight,
            load_back_tokens_per_s: self.load_back_tokens_per_s / weight,
            decode_per_token_ns: self.decode_per_token_ns * weight,
            ..self
        }
    }

    /// Time to prefill `new` tokens after `context`.
    pub fn prefill(&self, new: usize, context: usize) -> Duration {
        let new = new as f64;
        let weighted = new * (1.0 + (context as f64 + new / 2.0) / self.half_context_tokens);
        Duration::from_secs_f64(weighted / self.prefill_tokens_per_s)
    }

    /// Time to bring tokens from the host to the device.
    pub fn load_back(&self, tokens: usize) -> Duration {
        Duration::from_secs_f64(tokens as f64 / self.load_back_tokens_per_s)
    }

    /// Time of one decode step.
    pub fn decode(&self, requests: usize, context: usize) -> Duration {
        let tokens = Duration::from_nanos((context as f64 * self.decode_per_token_ns) as u64);
        self.decode_base + self.decode_per_request * requests as u32 + tokens
    }
}
