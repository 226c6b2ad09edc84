//! What a simulated server is told; one definition for library and command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::cache_kind::CacheKind;
use crate::events::EventEncoding;
use crate::eviction_args::{EvictionPolicy, EvictionTuning};
use crate::hicache_args::HicacheArgs;
use crate::scheduler::Limits;
use crate::timing::Timing;
use crate::tokenizer::{Chats, Tokenizer};

/// Options of a simulated SGLang server. Names that SGLang has mean what they mean there.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "sglang-sim",
    version,
    about = "A simulated SGLang server, faithful enough to develop against"
)]
pub struct SimConfig {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 30000)]
    pub port: u16,
    /// Port of rank 0's KV events; rank r publishes on the r-th after it. 0 takes free ones.
    #[arg(long, default_value_t = 0)]
    pub kv_events_port: u16,
    /// Port of rank 0's replay socket; 0 takes free ones.
    #[arg(long, default_value_t = 0)]
    pub replay_port: u16,
    /// Port of rank 0's load frames; 0 takes free ones.
    #[arg(long, default_value_t = 0)]
    pub load_port: u16,
    /// Name the model is served under.
    #[arg(long, default_value = "sim")]
    pub served_model_name: String,
    /// The model's tokenizer.json (byte-level BPE, cut as GPT-2's), or its directory; without it, words stand for tokens. What the
    /// simulated model generates is not in its vocabulary.
    #[arg(long)]
    pub tokenizer_path: Option<PathBuf>,
    /// A Jinja template for chats [default: chat_template.jinja in the tokenizer's directory; without it, a form of the simulator's
    /// own].
    #[arg(long)]
    pub chat_template: Option<PathBuf>,
    /// Version of the weights.
    #[arg(long, default_value = "default")]
    pub weight_version: String,
    /// Data-parallel ranks, each with its own scheduler, cache and publisher.
    #[arg(long, default_value_t = 1)]
    pub dp_size: u32,
    /// Tokens in a page of the cache.
    #[arg(long, default_value_t = 16)]
    pub page_size: usize,
    /// KV tokens of each rank.
    #[arg(long, default_value_t = 262_144)]
    pub max_total_tokens: usize,
    /// What of its cache goes first where memory is short.
    #[arg(long, value_enum, default_value_t)]
    pub radix_eviction_policy: EvictionPolicy,
    /// What that is tuned with, as a JSON object: protected_threshold for slru, threshold and next_prompt_estimate for tlru.
    #[arg(long, value_name = "JSON")]
    pub radix_eviction_policy_config: Option<EvictionTuning>,
    /// What keeps that.
    #[command(flatten)]
    pub hicache: HicacheArgs,
    /// New tokens in one prefill pass.
    #[arg(long, default_value_t = 8192)]
    pub chunked_prefill_size: usize,
    /// Plans a pass when the one before it is over, not while it is computed.
    #[arg(long)]
    pub disable_overlap_schedule: bool,
    /// Requests in the running batch of each rank.
    #[arg(long, default_value_t = 256)]
    pub max_running_requests: usize,
    /// Decode steps between two publications of KV events.
    #[arg(long, default_value_t = 40)]
    pub decode_log_interval: usize,
    /// Tokens in one event of a stream.
    #[arg(long, default_value_t = 1)]
    pub stream_interval: usize,
    /// Batches that can be replayed.
    #[arg(long, default_value_t = 10_000)]
    pub buffer_steps: usize,
    /// Kind of cache that /server_info tells of; the simulated cache is of full attention, whichever it is.
    #[arg(long, value_enum, default_value_t)]
    pub cache_kind: CacheKind,
    /// How KV events are written.
    #[arg(long, value_enum, default_value_t)]
    pub event_encoding: EventEncoding,
    /// Prefill speed at an empty context, in tokens a second.
    #[arg(long, default_value_t = 10_000.0)]
    pub prefill_rate: f64,
    /// Tokens of the model that each token stands for: it takes their time to prefill, and as many decode steps. The sizes given
    /// here count our tokens, --prefill-rate the model's.
    #[arg(long, default_value_t = 1)]
    pub token_weight: usize,
    /// Run this many times faster than real time.
    #[arg(long, default_value_t = 1.0)]
    pub time_scale: f64,
    /// What it does of a generation.
    #[arg(long, value_enum, default_value_t)]
    pub disaggregation_mode: DisaggregationMode,
    /// Port of a prefill server's bootstrap server; 0 takes a free one.
    #[arg(long, default_value_t = 8998)]
    pub disaggregation_bootstrap_port: u16,
    /// How long one side waits for the other, in seconds of real time.
    #[arg(long, env = "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", default_value_t = 300.0)]
    pub disaggregation_timeout: f64,
    /// Key that all but the health routes ask for.
    #[arg(long, env = "SGLANG_SIM_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Key that the routes which control the engine ask for, and then no other.
    #[arg(long, env = "SGLANG_SIM_ADMIN_API_KEY", hide_env_values = true)]
    pub admin_api_key: Option<String>,
}

/// Bytes of KV of one token of the model that [`Timing`] stands for: two times 64 layers of 8 heads of 128 values of 2 bytes.
const KV_BYTES_PER_TOKEN: u64 = 2 * 64 * 8 * 128 * 2;

/// What a server does of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DisaggregationMode {
    /// All of it.
    #[default]
    Null,
    /// The prompt.
    Prefill,
    /// The output.
    Decode,
}

/// A simulated server that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// An option is out of range.
    #[error("--{option} {value}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The tokenizer cannot be used.
    #[error("--tokenizer-path {}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The chat template cannot be used.
    #[error("--chat-template {}: {source}", path.display())]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {source}; is something else running there?")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A publisher cannot be started.
    #[error("cannot publish on {address}: {source}")]
    Publish {
        /// The address.
        address: String,
        /// Why.
        source: zeromq::ZmqError,
    },
}

impl Default for SimConfig {
    /// The command line's defaults, on free ports.
    fn default() -> Self {
        let parsed = <Self as clap::Parser>::parse_from(["sglang-sim"]);
        Self { port: 0, disaggregation_bootstrap_port: 0, ..parsed }
    }
}

impl DisaggregationMode {
    /// As SGLang names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl SimConfig {
    /// Checks what the types do not.
    pub(crate) fn check(&self) -> Result<(), SimError> {
        let at_least_one = [
            ("dp-size", self.dp_size as usize),
            ("page-size", self.page_size),
            ("max-running-requests", self.max_running_requests),
            ("decode-log-interval", self.decode_log_interval),
            ("stream-interval", self.stream_interval),
            ("token-weight", self.token_weight),
        ];
        for (option, value) in at_least_one {
            if value == 0 {
                return Err(SimError::Option {
                    option,
                    value: "0".to_owned(),
                    problem: "must be at least 1",
                });
            }
        }
        if self.chunked_prefill_size < self.page_size {
            let value = self.chunked_prefill_size.to_string();
            let problem = "must hold at least one page";
            return Err(SimError::Option { option: "chunked-prefill-size", value, problem });
        }
        if self.max_total_tokens < 4 * self.page_size {
            let value = self.max_total_tokens.to_string();
            return Err(SimError::Option {
                option: "max-total-tokens",
                value,
                problem: "must hold at least four pages",
            });
        }
        let tuning = self.radix_eviction_policy_config.unwrap_or_default();
        if let Some(problem) = self.radix_eviction_policy.refuses(tuning) {
            let value = serde_json::to_string(&tuning).unwrap_or_default();
            return Err(SimError::Option { option: "radix-eviction-policy-config", value, problem });
        }
        for (option, value) in [
            ("time-scale", self.time_scale),
            ("prefill-rate", self.prefill_rate),
            ("hicache-ratio", self.hicache.hicache_ratio),
            ("disaggregation-timeout", self.disaggregation_timeout),
        ] {
            if !value.is_finite() || value <= 0.0 {
                let problem = "must be a number greater than zero";
                return Err(SimError::Option { option, value: value.to_string(), problem });
            }
        }
        Ok(())
    }

    /// Reads the tokenizer, and the chat template, if there is one.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, SimError> {
        let tokenizer = match &self.tokenizer_path {
            None => Tokenizer::default(),
            Some(path) => {
                Tokenizer::read(path).map_err(|source| SimError::Tokenizer { path: path.clone(), source })?
            }
        };
        let directory = self.tokenizer_path.as_deref().filter(|path| path.is_dir());
        let beside = directory.map(|directory| directory.join("chat_template.jinja"));
        let beside = beside.filter(|path| path.is_file());
        let Some(path) = self.chat_template.clone().or(beside) else { return Ok(tokenizer) };
        let chats = Chats::read(&path, self.chat_template.is_some(), directory);
        let chats = chats.map_err(|source| SimError::ChatTemplate { path, source })?;
        Ok(tokenizer.with_chats(chats))
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            page_size: self.page_size,
            max_total_tokens: self.pool_tokens(),
            chunked_prefill_size: self.chunked_prefill_size,
            max_running_requests: self.max_running_requests,
            decode_log_interval: self.decode_log_interval,
            steps_per_token: self.token_weight,
            eviction: self.radix_eviction_policy.tuned(self.radix_eviction_policy_config.unwrap_or_default()),
            overlap_schedule: !self.disable_overlap_schedule,
            host: self.hicache.host_tier(self.pool_tokens(), self.page_size, self.kv_bytes_per_token()),
        }
    }

    pub(crate) fn timing(&self) -> Timing {
        Timing { prefill_tokens_per_s: self.prefill_rate, ..Timing::default() }.scaled(self.token_weight)
    }

    /// KV tokens of each rank, in whole pages.
    pub(crate) fn pool_tokens(&self) -> usize {
        self.max_total_tokens / self.page_size * self.page_size
    }

    /// Bytes of KV of one token.
    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        KV_BYTES_PER_TOKEN * self.token_weight as u64
    }

    /// Longest prompt that is accepted, in tokens; SGLang leaves a few of the pool.
    pub(crate) fn max_req_input_len(&self) -> usize {
        self.pool_tokens().saturating_sub(6)
    }

    /// Real time for a time of the engine.
    pub(crate) fn real(&self, engine: Duration) -> Duration {
        engine.div_f64(self.time_scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_named() {
        let refused = |config: SimConfig| config.check().unwrap_err().to_string();
        let base = SimConfig::default;
        assert!(base().check().is_ok());
        assert!(refused(SimConfig { page_size: 0, ..base() }).contains("--page-size 0"));
        assert!(
            refused(SimConfig { chunked_prefill_size: 8, ..base() }).contains("--chunked-prefill-size 8")
        );
        assert!(refused(SimConfig { max_total_tokens: 8, ..base() }).contains("--max-total-tokens 8"));
        assert!(refused(SimConfig { token_weight: 0, ..base() }).contains("--token-weight 0"));
        let untuned = SimConfig { radix_eviction_policy: EvictionPolicy::Tlru, ..base() };
        assert!(refused(untuned).contains("--radix-eviction-policy-config {}: tlru needs a threshold"));
        assert!(refused(SimConfig { time_scale: f64::NAN, ..base() }).contains("--time-scale NaN"));
        let hicache = HicacheArgs { hicache_ratio: 0.0, ..base().hicache };
        assert!(refused(SimConfig { hicache, ..base() }).contains("--hicache-ratio 0"));
    }
}
