//! What a server says of the pools that it has beside the KV of full attention. The simulated cache has none, whatever is said.

use serde_json::{Value, json};

/// SGLang's `--swa-full-tokens-ratio`, in tenths.
const WINDOW_TENTHS: usize = 8;

/// A kind of cache, as models need it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheKind {
    /// Of full attention alone.
    #[default]
    Full,
    /// With a pool for sliding windows.
    SlidingWindow,
    /// With a pool for recurrent state.
    RecurrentState,
}

impl CacheKind {
    /// `uses_mamba_radix_cache` of `/server_info`.
    pub(crate) fn has_states(self) -> bool {
        self == Self::RecurrentState
    }

    /// `max_mamba_cache_size` of a scheduler.
    pub(crate) fn states(self, max_running_requests: usize) -> Value {
        if self.has_states() { json!(max_running_requests) } else { Value::Null }
    }

    /// `memory_usage` of a scheduler; `kvcache` is in gibibytes, with three digits.
    pub(crate) fn memory_usage(self, pool_tokens: usize, bytes_per_token: u64) -> Value {
        let windows = (self == Self::SlidingWindow).then_some(pool_tokens * WINDOW_TENTHS / 10);
        let gibibytes = pool_tokens as f64 * bytes_per_token as f64 / (1_u64 << 30) as f64;
        let kvcache = (gibibytes * 1_000.0).round() / 1_000.0;
        json!({"kvcache": kvcache, "token_capacity": pool_tokens, "token_capacity_swa": windows})
    }
}
