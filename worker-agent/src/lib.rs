//! The agent that runs beside one SGLang server and reports to every router.
//!
//! It follows the server's KV-cache events over ZeroMQ, keeps a [`mirror`] of each dp rank's prefix cache, translates
//! pages to the block hashes of each router's key spaces ([`translate`]), of text too if it has the model's [`tokenizer`],
//! and reports changes, counts, load and state on the stream that `proto/espalier/v1/agent.proto` describes. Everything it
//! needs to know about the server it discovers from the server's base URL.
//!
//! ```text
//! engine ─ events ─▶ Mirror ─ changes ─▶ BlockViews (of each router) ─ deltas, baselines ─▶ session ═ gRPC ═▶ router
//! ```
//!
//! An agent claims less rather than more: events that were missed and cannot be replayed empty the mirror, a restart of
//! the engine begins a new *incarnation* with empty mirrors, and silence is never read as "nothing happened".
//!
//! Limits of what the engine says: under its default event format two requests with different `extra_key`s publish equal
//! hashes, so blocks that are cached under an `extra_key` only are reported as if they were cached without one (use
//! `"format":"dynamo"` in `--kv-events-config` where `extra_key` is used, so that at least removals are told apart); for
//! models with sliding windows or state-space layers a stored block may not be a usable place to continue from.
//! Connections are plain HTTP and HTTP/2; TLS is not supported yet.
//!
//! ```no_run
//! # async fn run() -> Result<(), worker_agent::ConfigErrors> {
//! use worker_agent::{Agent, AgentConfig};
//!
//! let config = AgentConfig { routers: vec!["http://127.0.0.1:50051".to_owned()], ..AgentConfig::default() };
//! let agent = Agent::start(config)?;
//! assert_eq!(agent.stats().routers.len(), 1);
//! agent.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod chat_template;
pub mod check;
pub mod cli;
pub mod events;
pub mod mirror;
pub mod tokenizer;
pub mod translate;

mod agent;
mod cache;
mod config;
mod engine;
mod session;
mod stats;

pub use agent::{Agent, AgentHandle};
pub use config::{AgentConfig, ConfigError, ConfigErrors, Level, MAX_ROUTERS};
pub use engine::{EngineError, EngineInfo, EngineRole, EventSource, Eviction};
pub use stats::{AgentStats, RankStats, RouterStats};
