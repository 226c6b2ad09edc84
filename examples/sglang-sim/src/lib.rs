//! A simulated SGLang server, faithful enough to develop against.
//!
//! One scheduler, prefix cache and publisher for each dp rank, behind SGLang's HTTP routes: requests are admitted first come,
//! first served, prefilled in chunks and decoded in batches; the cache is a radix tree in pages under a token capacity;
//! changes of it are published as real KV events over ZeroMQ. Times follow [`Timing`], divided by `time_scale`.
//!
//! What it does not simulate: other eviction policies than LRU, host and storage tiers, LoRA, log probabilities, more than
//! one prefill pass's reservation ratio, and the content of answers.

mod config;
mod engine;
mod events;
mod hash;
mod http;
mod publisher;
mod radix;
mod scheduler;
mod sim;
mod timing;
pub mod tokenizer;

pub use config::{SimConfig, SimError};
pub use events::{CacheEvent, EventEncoding, LoadStat, encode_batch, encode_load};
pub use radix::Namespace;
pub use scheduler::{Job, Limits, Produced, RequestId, Scheduler, Step, Totals};
pub use sim::{RankStats, Sim};
pub use timing::Timing;
