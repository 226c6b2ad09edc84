//! Workers and their dp ranks as a snapshot shows them.

use std::fmt;
use std::sync::Arc;

use crate::accuracy::Accuracy;
use crate::cache_kind::CacheKind;
use crate::chat::ChatTemplate;
use crate::load::{LoadCounters, ReportedLoad};
use crate::lower_tier::LowerTier;
use crate::policy::ArrivalRate;
use crate::report::{SessionId, Units};
use crate::time::Time;
use crate::timing::PrefillModel;

/// One dp rank of one worker, for as long as the worker is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TargetId {
    /// The worker.
    pub worker: WorkerId,
    /// The dp rank inside it.
    pub rank: u32,
}

/// A registered worker. Never reused within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WorkerId(pub(crate) u32);

/// Where a target's claims stand in the index. A target whose claims are voided moves to a fresh slot, which makes them
/// invisible at once; the old slot is swept and used again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub(crate) u16);

/// One life of an engine; a greater one is a later life. Zero: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Incarnation(pub u64);

/// What stands between a worker and traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum WorkerState {
    /// Does not answer its health check, or did not yet.
    Unreachable,
    /// Serving.
    Ready,
    /// Finishes what is in flight, gets nothing new.
    Draining,
    /// Paused or changing its weights.
    Updating,
}

/// What a worker does of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Role {
    /// All of it.
    #[default]
    Unified,
    /// Computes the prompt, and hands its KV to a decode worker.
    Prefill,
    /// Generates, from the KV that a prefill worker hands over.
    Decode,
}

/// What somebody who knows says of a worker's role, over what its engine says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Declaration {
    /// The role; `None` leaves it to what the engine says.
    pub role: Option<Role>,
    /// Where a prefill worker's bootstrap server listens; `None` leaves it to what the engine says.
    pub bootstrap_port: Option<u16>,
}

/// How much an agent reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ReportLevel {
    /// Counts and load.
    Counts,
    /// Removed blocks too, and stored ones that were not [predicted](crate::Notice::Predicted) where the agent asks what was.
    Removals,
    /// Removed and stored blocks.
    Full,
}

/// What is known of a worker's engine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct WorkerProfile {
    /// Model names the engine answers to; empty when unknown.
    pub models: Vec<Arc<str>>,
    /// Version of the engine, for people.
    pub engine_version: Arc<str>,
    /// Number of dp ranks, at least 1.
    pub dp_size: u32,
    /// Tokens in one page of the engine's cache, at least 1.
    pub page_size: u32,
    /// KV tokens that the device of one rank can hold; zero when unknown.
    pub capacity_tokens: u64,
    /// The engine evicts the least recently used leaf first, and keeps nothing of it elsewhere, so that one eviction tells about others.
    pub evicts_lru: bool,
    /// What its cache keeps beside the KV of full attention.
    pub cache_kind: CacheKind,
    /// Where it keeps what leaves its device; `None` if it does not keep it. What agents report is held by the device or there.
    pub lower_tier: Option<LowerTier>,
    /// In OpenAI's streams the engine tells how much was cached if the request asks for it, and only then; `None` when it is not
    /// known.
    pub usage_on_request: Option<bool>,
    /// What the engine says it does of a generation; `None` when it does not say.
    pub role: Option<Role>,
    /// Where the engine says that its bootstrap server listens; only prefill workers have one.
    pub bootstrap_port: Option<u16>,
}

/// One engine process with one address.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Base URL, without a slash at the end.
    pub url: Arc<str>,
    /// Whether it may be chosen.
    pub state: WorkerState,
    /// Why it is in that state, for people.
    pub reason: Arc<str>,
    /// What is known of its engine.
    pub profile: WorkerProfile,
    /// What it does of a generation: as declared, else as its engine says.
    pub role: Role,
    /// Where its bootstrap server listens, if it is a prefill worker.
    pub bootstrap_port: u16,
    /// The life its claims belong to.
    pub incarnation: Incarnation,
    /// Its agent's session, if one is open.
    pub agent: Option<AgentLink>,
    /// The template that its engine renders chats with, if an agent offers it.
    pub chat_template: Option<Arc<dyn ChatTemplate>>,
    /// Hash of the URL.
    pub(crate) identity: u64,
}

/// An agent's open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AgentLink {
    /// The session.
    pub session: SessionId,
    /// The units that it names blocks in, at a level that has blocks.
    pub units: Units,
    /// When it began to speak for the worker.
    pub since: Time,
    /// The level it reports at.
    pub level: ReportLevel,
    /// When its last message arrived.
    pub last_report: Time,
}

/// One use of a slot by one target. Slots are used again; a tenure is not, so that what was decided in an earlier one is known
/// to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure(pub(crate) u64);

/// What a snapshot knows of one target.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its id.
    pub id: TargetId,
    /// Its worker.
    pub worker: Arc<Worker>,
    /// Its worker takes requests.
    pub(crate) ready: bool,
    /// Where its claims stand in the index.
    pub slot: Slot,
    pub(crate) tenure: Tenure,
    /// Its claims wait for a resync: they are kept, and not counted as matched.
    pub doubtful: bool,
    /// Tokens claimed to be cached.
    pub claimed_tokens: u64,
    /// Share of stored tokens that something was evicted for lately, 0 to 1. Near 1 every miss pushes out something else.
    pub eviction_pressure: f32,
    /// Tokens that requests found there after they had not been used for half as long as what will go next, per token evicted, lately. Near 0
    /// the room is full of what nobody asks for again, or empty.
    pub tail_reuse: f32,
    /// Requests that are sent there, lately: this router's, as many times as its agent knows of routers.
    pub arrivals: ArrivalRate,
    /// Share of the tokens expected to be cached that responses found lately, 0 to 1, of those that had once been there: what claims on it are
    /// worth.
    pub retention: f32,
    /// Prefill speed.
    pub prefill: PrefillModel,
    /// The engine's own load numbers, if an agent reports them.
    pub reported: Option<ReportedLoad>,
    /// Of the tokens that were reported to wait there, those that this router had not sent.
    pub foreign_waiting_tokens: u64,
    /// Of the KV tokens that were reported to be in use there, those beyond the prompts that this router had in flight.
    pub foreign_used_tokens: u64,
    /// Live counters; the same object for the whole life of the registration.
    pub load: Arc<LoadCounters>,
}

/// Where SGLang's bootstrap server listens unless it is told otherwise (`--disaggregation-bootstrap-port`).
pub const DEFAULT_BOOTSTRAP_PORT: u16 = 8998;

/// All registered workers and targets, in order of registration.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Registered workers.
    pub workers: Vec<Arc<Worker>>,
    /// Their targets: every rank of every worker.
    pub targets: Vec<Target>,
    /// Some workers only prefill or only decode.
    pub has_pools: bool,
    /// Of each target, in the same order: not in it, because decisions do not read it.
    pub(crate) accuracies: Arc<[Accuracy]>,
    /// Index of the target that has each slot.
    pub(crate) by_slot: Vec<u32>,
}

impl Fleet {
    /// The worker with this base URL.
    pub fn worker_by_url(&self, url: &str) -> Option<&Arc<Worker>> {
        self.workers.iter().find(|worker| &*worker.url == url)
    }

    /// Whether a generation can go anywhere: to a unified worker, or to a prefill and a decode worker.
    pub fn can_serve(&self) -> bool {
        let ready = |role| {
            self.workers.iter().any(|worker| worker.role == role && worker.state == WorkerState::Ready)
        };
        ready(Role::Unified) || (ready(Role::Prefill) && ready(Role::Decode))
    }

    /// A target by its id.
    pub fn target(&self, id: TargetId) -> Option<&Target> {
        self.targets.iter().find(|target| target.id == id)
    }

    /// What is known of the error of what is believed of a target.
    pub fn accuracy(&self, id: TargetId) -> Option<&Accuracy> {
        let at = self.targets.iter().position(|target| target.id == id)?;
        self.accuracies.get(at)
    }

    /// All targets, each with what is known of the error of what is believed of it.
    pub fn with_accuracy(&self) -> impl Iterator<Item = (&Target, &Accuracy)> {
        self.targets.iter().zip(&*self.accuracies)
    }

    /// The target that has a slot now.
    pub(crate) fn index_of(&self, slot: Slot) -> Option<usize> {
        let index = self.by_slot.get(usize::from(slot.0)).map(|index| *index as usize)?;
        self.targets.get(index).is_some_and(|target| target.slot == slot).then_some(index)
    }

    /// The ranks of one worker, in order.
    pub fn targets_of(&self, worker: WorkerId) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(move |target| target.id.worker == worker)
    }
}

impl WorkerId {
    /// No worker's is lower: where a search among ordered ids begins.
    pub const LOWEST: Self = Self(0);
}

impl Slot {
    /// The slot at this place. A router hands out its own; this is for those who keep an index by themselves.
    pub const fn new(place: u16) -> Self {
        Self(place)
    }
}

impl Target {
    /// Names the target for rendezvous hashing: the same in every router that knows the worker by the same URL.
    pub(crate) fn identity(&self) -> u64 {
        self.worker.identity ^ u64::from(self.id.rank).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

impl Default for WorkerProfile {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            engine_version: Arc::from(""),
            dp_size: 1,
            page_size: 1,
            capacity_tokens: 0,
            evicts_lru: true,
            cache_kind: CacheKind::Unknown,
            lower_tier: None,
            usage_on_request: None,
            role: None,
            bootstrap_port: None,
        }
    }
}

impl WorkerProfile {
    /// Whether what was found of one block, or counted, tells which others are gone.
    pub fn tells_evictions(&self) -> bool {
        self.evicts_lru && self.lower_tier.is_none() && !self.cache_kind.is_hybrid()
    }
}

impl Worker {
    /// Whether the worker answers to a model name. Unknown names of its own answer to all; `base:adapter` names a LoRA
    /// adapter of `base`.
    pub fn serves(&self, model: &str) -> bool {
        let names = |name: &str| self.profile.models.iter().any(|own| &**own == name);
        self.profile.models.is_empty()
            || names(model)
            || model.split_once(':').is_some_and(|(base, _)| names(base))
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "unreachable",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Updating => "updating",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unified => "unified",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        })
    }
}

impl fmt::Display for ReportLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counts => "counts",
            Self::Removals => "removals",
            Self::Full => "full",
        })
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.0)
    }
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rank {}", self.worker, self.rank)
    }
}
