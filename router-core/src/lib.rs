//! Espalier's core: prefix index, snapshots, policies and in-flight accounting, without I/O or clock.
//!
//! It decides, for every prompt, which of many LLM engines will begin to answer soonest: the one that holds the longest part of
//! the prompt in its KV cache and is not overloaded. It is a library: you derive the key, ask, forward the request yourself,
//! and tell what came of it.
//!
//! ```
//! use router_core::key::{Salt, Unit};
//! use router_core::{Done, FleetUpdate, RouteRequest, Router, Settings, Time, Update, Usage};
//!
//! // A router, and the one writer that changes what it knows. The seed keys all hashes: it is a secret.
//! let (router, mut writer) = Router::new(Settings::new(0x5EED));
//! let send = |update| router.updates().try_send(Update::Fleet(update)).expect("the queue has room");
//!
//! // Two engines, which answer their health checks. Time is yours to tell: microseconds since an origin of your choice.
//! for url in ["http://10.0.0.1:30000", "http://10.0.0.2:30000"] {
//!     send(FleetUpdate::Add { url: url.into(), done: Done::ignore() });
//! }
//! writer.turn(Time::from_micros(1));
//! for worker in &router.snapshot().fleet.workers {
//!     send(FleetUpdate::Health { worker: worker.id, reachable: true, reason: "it answers".into() });
//! }
//! writer.turn(Time::from_micros(2));
//!
//! // A request: its key, a decision, the answer.
//! let tokens: Vec<u32> = (0..1_000).collect();
//! let key = router.key_space(Unit::Token).key_of_tokens(Salt::default(), &tokens);
//! let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
//! let mut rng = fastrand::Rng::with_seed(1);
//! let mut first = router.route(&request, Time::from_micros(3), &mut rng)?;
//! first.first_token(Time::from_micros(90_000));
//! first.usage(Usage { prompt_tokens: 1_000, cached_tokens: 0 }, true);
//! let went_to = first.target();
//! first.complete(Time::from_micros(500_000));
//! writer.turn(Time::from_micros(500_001));
//!
//! // The same prompt again goes where its cache is: 15 whole blocks of 64 tokens.
//! let second = router.route(&request, Time::from_micros(500_002), &mut rng)?;
//! assert_eq!(second.target(), went_to);
//! assert_eq!(second.predicted_tokens(), 960);
//! # Ok::<(), router_core::RouteError>(())
//! ```
//!
//! # Where to go from here
//!
//! * [`Router`] decides, [`InFlight`] is a decision until its end, [`RouteRequest`] what is decided on.
//! * [`Writer`] applies [`Update`]s and publishes [`Snapshot`]s. Drive it from a thread of yours.
//! * [`key`] turns prompts into keys, [`policy`] keys and loads into choices, [`index`] is what they are looked up in.
//! * [`docs`] has the [patterns](docs::patterns) to follow, what it [costs](docs::performance), what it does
//!   [not](docs::limitations) do, and how it [works](docs::internals).
//! * `examples/embed.rs` is the whole of it in thirty lines; `examples/custom_policy.rs` brings a policy of its own.
//!
//! # Units
//!
//! Tokens are the engine's. A block is [`KeySpace::block_size`](key::KeySpace::block_size) units, tokens or bytes of text. Times are
//! [`Time`]s, in microseconds, and durations [`Duration`](std::time::Duration)s; other units stand in the name
//! (`decode_delay_us`). Ratios are 0 to 1.
//!
//! # Errors, and what does not fail
//!
//! What can be refused says why in a type of its own: [`RouteError`], [`FleetError`], [`JoinError`], [`Refused`],
//! [`KeySpaceError`](key::KeySpaceError). Reports that cannot be applied are counted or become [`Notice`]s: blocks below an unknown
//! parent, removals of what is not there, keys without a block. Nothing panics on what a client, an engine or an agent says;
//! what panics on a mistake of the embedding program has a *Panics* section.
//!
//! # Features
//!
//! * `serde`: `Serialize` and `Deserialize` for settings of policies, identifiers, loads and profiles. Never for
//!   [`Settings`] and [`KeySpace`](key::KeySpace), which hold a secret. Durations are as serde writes them, [`Time`] is a number of
//!   microseconds, enums are in `snake_case`. Off by default.
//!
//! # Stability
//!
//! Semantic versioning, once there is a version 1: until then, a minor version may change the API and says how in the
//! changelog. Part of the promise: names and meaning of public items, `Send` and `Sync` where `tests/thread_safety.rs` asserts
//! them, the errors' variants, the serialised names under `serde`, and that equal [`key::SCHEME`]s and key spaces give equal hashes, in
//! every process and version. Not part of it: which of equal targets is chosen, costs, the texts of errors and reasons, `Debug`
//! output, and how much memory or time anything takes. Raising the minimum Rust version is a minor change.

#![warn(clippy::unwrap_used)]

pub mod admission;
pub mod docs;
pub mod index;
pub mod key;
pub mod policy;
pub mod reconcile;

mod accuracy;
mod cache_kind;
mod candidates;
mod chat;
mod digest;
mod explain;
mod fleet;
mod health;
mod in_flight;
mod load;
mod lower_tier;
mod notice;
mod report;
mod router;
mod settings;
mod snapshot;
mod split;
mod sync;
mod time;
mod timing;
mod update;
mod vouched;
mod writer;

pub use accuracy::{
    Accuracy, Counted, Counts, Divergence, DivergenceSource, Mispredicted, PredictionError, Reconciliation,
    Witness,
};
pub use cache_kind::CacheKind;
pub use chat::{ChatTemplate, NoTemplate, NotRendered};
pub use digest::SetDigest;
pub use explain::{CandidateView, Excluded, Explanation};
pub use fleet::{
    AgentLink, DEFAULT_BOOTSTRAP_PORT, Declaration, Fleet, Incarnation, ReportLevel, Role, Slot, Target,
    TargetId, Worker, WorkerId, WorkerProfile, WorkerState,
};
pub use health::{EjectionSettings, FaultKind, Health, HealthState};
pub use in_flight::{InFlight, Usage};
pub use load::{Load, LoadCounters, ReportedLoad};
pub use lower_tier::{HostPool, LowerTier};
pub use notice::{EventKind, MispredictionCause, Notice, SessionEnd};
pub use report::{
    AgentReport, BlockRun, Considered, Delta, Introduction, JoinError, Joined, SessionId, Units,
};
pub use router::{RouteError, RouteRequest, Router};
pub use settings::{MAX_BLOCKS, MAX_TARGETS, Settings};
pub use snapshot::{IndexSize, Snapshot};
pub use split::Pair;
pub use time::Time;
pub use timing::PrefillModel;
pub use update::{Done, FleetError, FleetUpdate, Query, Refused, Traffic, Update, UpdateSender};
pub use vouched::VouchedClaims;
pub use writer::Writer;
