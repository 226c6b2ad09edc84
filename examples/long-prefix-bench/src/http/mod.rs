//! End to end: the cells of the lab over real HTTP, in real time, against any router.
//!
//! ```text
//! driver (this process) ──HTTP──▶ router (its own process) ──HTTP──▶ simulated workers (one process) ── agents ──▶ router
//!    │ direct: round robin and sticky sessions, as calibration lines              │ /v1/loads, /metrics: their own word
//! ```
//! [`HttpJob`] runs the cells of a suite; [`Contestant`] says who is measured and how each is started. [`Scale`] makes prompts
//! shorter where a machine is too small for them. What came of a run is put into the same figures as a run of the lab, with [`Checks`] beside
//! them that tell whether it can be believed.

mod checks;
mod client;
mod contestant;
mod drive;
mod events;
mod job;
mod limits;
mod process;
mod prompts;
mod run;
mod scale;
#[path = "../../../../tests/benches/proxy/process.rs"]
mod system;
mod truth;
mod way;
mod workers;

pub use checks::{CachedTokens, Checks, RouterCost};
pub use client::Failure;
pub use contestant::{Contestant, Programs, RouterError};
pub use events::Api;
pub use job::{Against, HttpError, HttpJob, Progress};
pub use process::ProcessError;
pub use scale::{Scale, ScaleError};
pub use workers::{WorkersError, WorkersRole};
