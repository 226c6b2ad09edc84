//! Espalier's data plane: decode, key, route, forward, feed back.
//!
//! ```text
//! accept ─ decode ─▶ Facts ─ key ─▶ PrefixKey ─ Router::route ─▶ InFlight ─ send ─▶ worker
//!                                                                   ▲                 │ bytes pass untouched
//!                                                       usage, first token, end ◀─────┘
//! ```
//! [`DataPlane::bind`] listens, [`Bound::serve`] serves. Every request is counted in [`HttpMetrics`] and logged in one line of the
//! target `espalier::access`, whichever way it ends; no prompt is in either. Only what concerns the router itself (`/liveness`,
//! `/readiness`, `/health`, `OPTIONS *`) is answered uncounted.

pub mod decode;

mod accept;
mod access;
mod addressee;
mod admission;
mod arrived;
mod attempts;
mod body;
mod budget;
mod clock;
mod config;
mod continuation;
mod deadline;
mod decided;
mod decimal;
mod error;
mod events;
mod exchange;
mod faults;
mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod generated;
mod headers;
mod housekeeping;
mod http2;
mod kept;
mod key;
mod learn;
mod listen;
mod metrics;
mod own;
mod pd;
mod receive;
mod rids;
mod route;
mod server;
mod service;
mod shared;
mod stream_usage;
mod upstream;
mod usage;
mod wire;

pub use admission::AdmissionConfig;
pub use budget::RetryConfig;
pub use clock::Clock;
pub use config::{ApiConfig, DataPlaneConfig, Secret, SecretProblem, available_threads};
pub use headers::bearer;
pub use key::{ChatKeyed, Keyed, key};
pub use metrics::{HttpMetrics, Outcome};
pub use server::{BindError, Bound, DataPlane};
