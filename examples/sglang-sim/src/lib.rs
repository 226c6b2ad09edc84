//! A simulated SGLang server, faithful enough to develop against.
//!
//! One scheduler, prefix cache and publisher for each dp rank, behind SGLang's HTTP routes: requests are admitted first come,
//! first served, prefilled in chunks and decoded in batches; the cache is a radix tree in pages under a token capacity;
//! changes of it are published as real KV events over ZeroMQ. Times follow [`Timing`], divided by `time_scale`.
//!
//! Where it departs from SGLang 0.5.23:
//! * Scheduling: memory for outputs is reserved with one fixed ratio instead of one that decays and is estimated anew; a full
//!   batch is tried again at every pass; no budget of `max_prefill_tokens` beside the chunk's; no mixed chunks, priorities,
//!   cache-aware policies or deduplication within a batch; no queue limits and no timeouts; waiting tokens all count as uncached.
//!   A request that is aborted leaves the pass under way at once, and all that it was to compute counts as computed.
//! * Cache: copies to the host are over when the next pass begins, and take no time; loads from it are over with the pass that needs
//!   them; no storage tier, sliding windows, state-space layers, bigrams, LoRA or log probabilities; prompt and output of a
//!   request that was put back may be one node, except under the policy `priority`. A request's `priority` is for that policy alone.
//! * Events: the `default` format only.
//! * Disaggregation: a protocol of its own between the two sides, in no time; the prompt is computed before the decode side
//!   is known, and not kept from being computed by its lack of space; a decode server keeps a prefix cache of its own.
//! * HTTP: `/health` generates nothing and answers at once; pausing with `abort` does not wait a second; the routes for
//!   weights, sessions, embeddings and profiling answer 404; every answer is pseudo-random text and ends at its length.

mod cache_kind;
mod config;
mod engine;
mod events;
mod eviction_args;
mod hash;
mod hicache_args;
mod http;
mod publisher;
mod radix;
mod scheduler;
mod sim;
mod timing;
pub mod tokenizer;
mod transfer;

pub use cache_kind::CacheKind;
pub use config::{DisaggregationMode, SimConfig, SimError};
pub use events::{CacheEvent, EventEncoding, LoadStat, Tier, encode_batch, encode_load};
pub use eviction_args::{EvictionPolicy, EvictionTuning};
pub use hicache_args::HicacheArgs;
pub use radix::{Eviction, HostTier, Namespace, WritePolicy};
pub use scheduler::{Job, Limits, Pause, Produced, RequestId, Scheduler, Step, Totals};
pub use sim::{RankStats, Sim};
pub use timing::Timing;
