//! Espalier's coordinator: agent sessions, the writer's thread, administration, health checks and telemetry, with the data plane
//! in the same process.
//!
//! [`start()`] puts it all together from a [`RouterConfig`]; the command `router-grpc` is its first user ([`cli`]).
//!
//! ```no_run
//! # async fn run() -> Result<(), router_grpc::StartError> {
//! use router_grpc::{RouterConfig, start};
//!
//! let worker_urls = vec!["http://127.0.0.1:30000".to_owned()];
//! let router = start(RouterConfig { worker_urls, ..RouterConfig::default() }).await?;
//! println!("clients: http://{}", router.http_addr());
//! router.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod cli;

mod admin;
mod config;
mod events;
mod probe;
mod requests;
mod session;
mod settings;
mod start;
mod telemetry;
mod worker_url;
mod writer_thread;

pub use config::{
    AdmissionArgs, ApiArgs, ClaimArgs, ConfigError, ConfigErrors, FaultConfig, LevelName, PolicyName,
    PoolConfig, RouterConfig,
};
pub use start::{RunningRouter, StartError, start};
pub use telemetry::{Telemetry, TelemetryError, init as init_telemetry};
pub use worker_url::UrlProblem;
