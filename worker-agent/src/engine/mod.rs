//! The engine's side: what it is, whether it lives, what it publishes.
//!
//! One supervisor watches the engine over HTTP and decides which of its lives is the present one. Each life has its own
//! mirrors and its own tasks, so that nothing of an earlier life can leak into a later one.

mod client;
mod life;
mod load;
mod model;
mod probe;
mod replay;
mod subscriber;
mod supervisor;

pub use client::EngineError;
pub(crate) use client::{EngineClient, bearer};
pub(crate) use life::Life;
pub(crate) use load::LoadReading;
pub use probe::{EngineInfo, EngineRole, EventSource, Eviction};
pub(crate) use supervisor::{Health, Request, State, Supervisor};
