//! Espalier's core: prefix index, snapshots, policies and in-flight accounting, without I/O or clock.

#![warn(clippy::unwrap_used)]

pub mod index;
pub mod key;
pub mod policy;

mod candidates;
mod digest;
mod explain;
mod fleet;
mod in_flight;
mod load;
mod notice;
mod report;
mod router;
mod settings;
mod snapshot;
mod time;
mod timing;
mod update;
mod writer;

pub use digest::SetDigest;
pub use explain::{CandidateView, Excluded, Explanation};
pub use fleet::{
    AgentLink, Fleet, Incarnation, ReportLevel, Slot, Target, TargetId, Worker, WorkerId, WorkerProfile,
    WorkerState,
};
pub use in_flight::{InFlight, Usage};
pub use load::{Load, LoadCounters, ReportedLoad};
pub use notice::{EventKind, MispredictionCause, Notice, SessionEnd};
pub use report::{AgentReport, BlockRun, Delta, Introduction, JoinError, Joined, SessionId};
pub use router::{RouteError, RouteRequest, Router};
pub use settings::{MAX_TARGETS, Settings};
pub use snapshot::{IndexSize, Snapshot};
pub use time::Time;
pub use timing::PrefillModel;
pub use update::{Done, FleetError, FleetUpdate, Query, Refused, Traffic, Update, UpdateSender};
pub use writer::Writer;
