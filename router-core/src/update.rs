//! Everything that changes what the router knows, as messages to the one writer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};

use crate::fleet::{Incarnation, ReportLevel, Slot, TargetId, WorkerId, WorkerProfile};
use crate::key::{BlockHash, PrefixKey, Unit};
use crate::load::ReportedLoad;
use crate::policy::Policy;
use crate::time::Time;

/// One agent session. A later session of the same worker replaces the earlier, whose messages are ignored from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

/// Called once with the result of an update. Must not block: it runs on the writer's thread.
pub struct Done<T>(Box<dyn FnOnce(T) + Send>);

/// A change.
#[derive(Debug)]
pub enum Update {
    /// From the data plane.
    Traffic(Traffic),
    /// From administration, health checks and discovery.
    Fleet(FleetUpdate),
    /// From an agent's session.
    Agent {
        /// The worker the session speaks for.
        worker: WorkerId,
        /// The session.
        session: SessionId,
        /// When its message arrived.
        at: Time,
        /// What it said.
        report: AgentReport,
    },
    /// A question that only the writer can answer.
    Query(Query),
}

/// What happened to one routed request.
#[derive(Debug)]
pub struct Traffic {
    pub(crate) target: TargetId,
    /// The slot at the time of the decision: if the target has moved since, its claims of then are void.
    pub(crate) slot: Slot,
    /// Number of the decision.
    pub(crate) ordinal: u64,
    pub(crate) key: PrefixKey,
    /// When the request was decided.
    pub(crate) decided_at: Time,
    pub(crate) event: TrafficEvent,
}

/// See [`Traffic`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum TrafficEvent {
    /// It was routed: the target will hold its blocks.
    Routed,
    /// Its first token arrived: the target holds its blocks.
    Prefilled { at: Time },
    /// It failed or was cancelled before its first token.
    Undone,
    /// The response said how much was cached.
    Observed(Observation),
}

/// What a response said, beside what had been expected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) at: Time,
    pub(crate) matched_blocks: u32,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    /// Time to first token, if the request had its target to itself and streamed.
    pub(crate) alone_for: Option<Duration>,
}

/// A change of the fleet or of what is known about a worker.
#[derive(Debug)]
pub enum FleetUpdate {
    /// Registers a worker, not yet reachable.
    Add {
        /// Base URL without a slash at the end.
        url: Arc<str>,
        /// The new worker's id.
        done: Done<Result<WorkerId, FleetError>>,
    },
    /// Forgets a worker and every claim on it. Requests in flight to it keep counting until they end.
    Remove {
        /// The worker.
        worker: WorkerId,
        /// Requests that were in flight to it.
        done: Done<Result<u64, FleetError>>,
    },
    /// What a probe or an agent found out about the engine.
    Profile {
        /// The worker.
        worker: WorkerId,
        /// Replaces what was known.
        profile: WorkerProfile,
        /// Fails if the ranks do not fit into the fleet.
        done: Done<Result<(), FleetError>>,
    },
    /// The outcome of a health check.
    Health {
        /// The worker.
        worker: WorkerId,
        /// Whether it answered well.
        reachable: bool,
        /// For people.
        reason: Arc<str>,
    },
    /// Starts or ends a drain.
    Drain {
        /// The worker.
        worker: WorkerId,
        /// On or off.
        on: bool,
        /// Fails if the worker is unknown.
        done: Done<Result<(), FleetError>>,
    },
    /// The worker is a new process, or flushed its cache, as a health check or a passing request showed: all claims on it
    /// are void.
    Void {
        /// The worker.
        worker: WorkerId,
        /// For people.
        reason: Arc<str>,
    },
    /// Puts another policy in force.
    Policy(Arc<dyn Policy>),
}

/// A fleet update that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// The URL is registered.
    #[error("{url} is already registered")]
    AlreadyRegistered {
        /// The URL.
        url: Arc<str>,
        /// Its worker.
        worker: WorkerId,
    },
    /// The id is not, or no longer, registered.
    #[error("{0} is not registered")]
    UnknownWorker(WorkerId),
    /// No room for more targets.
    #[error("the fleet is full: {in_use} of {max} targets are in use, {wanted} more are wanted; raise max_targets")]
    Full {
        /// Targets in use.
        in_use: usize,
        /// The bound.
        max: u16,
        /// Targets wanted.
        wanted: u32,
    },
}

/// What an agent said.
#[derive(Debug)]
pub enum AgentReport {
    /// Opened a session.
    Joined {
        /// The engine's life.
        incarnation: Incarnation,
        /// The level of the session.
        level: ReportLevel,
        /// Ranks whose deltas the agent can go on with, and the last sequence number it knows to be applied.
        resume: Vec<(u32, u64)>,
        /// The ranks that may resume after these numbers; all others must begin with a baseline.
        done: Done<Result<Vec<(u32, u64)>, JoinError>>,
    },
    /// The stream ended. Claims stay until the lease does.
    Left,
    /// Is alive and has nothing else to say.
    Alive,
    /// The level of the session changed, for example because the sides hash differently.
    Level(ReportLevel),
    /// A change of one rank's blocks.
    Delta {
        /// The rank.
        rank: u32,
        /// See [`Delta`].
        delta: Delta,
    },
    /// Everything one rank holds.
    Baseline {
        /// The rank.
        rank: u32,
        /// What the hashes are of.
        unit: Unit,
        /// The state is the one after this sequence number.
        seq: u64,
        /// Parents before children.
        stored: Vec<BlockRun>,
    },
    /// The rank's own load numbers.
    Load {
        /// The rank.
        rank: u32,
        /// The numbers.
        load: ReportedLoad,
    },
    /// Tokens evicted since the engine started, and tokens cached now.
    Counts {
        /// The rank.
        rank: u32,
        /// Total.
        evicted_tokens_total: u64,
        /// Now.
        cached_tokens: u64,
    },
    /// A digest of a rank's blocks.
    Fingerprint {
        /// The rank.
        rank: u32,
        /// The state is the one after this sequence number.
        seq: u64,
        /// The digest.
        digest: SetDigest,
    },
    /// The engine's state as its agent sees it.
    State {
        /// Paused or changing its weights.
        updating: bool,
        /// Answers at all; `false` stops traffic before the next health check would.
        reachable: bool,
        /// For people.
        reason: Arc<str>,
    },
    /// The engine restarted: all claims of its earlier life are void.
    NewIncarnation(Incarnation),
}

/// A session that cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The worker is not registered.
    #[error("{0} is not registered")]
    UnknownWorker(WorkerId),
    /// The incarnation is older than the registered one.
    #[error(
        "incarnation {offered:?} is older than the registered {registered:?}: the engine has restarted since; mint a new one"
    )]
    StaleIncarnation {
        /// What the agent said.
        offered: Incarnation,
        /// What is registered.
        registered: Incarnation,
    },
}

/// A change of one rank's blocks; `cleared` comes first, then `removed`, then `stored`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// What the hashes are of.
    pub unit: Unit,
    /// Consecutive within one rank and incarnation.
    pub seq: u64,
    /// Everything is gone.
    pub cleared: bool,
    /// No longer held, with all below.
    pub removed: Vec<BlockHash>,
    /// Now held.
    pub stored: Vec<BlockRun>,
}

/// A run of consecutive blocks of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The block before the first one; `None` where a prompt begins.
    pub parent: Option<BlockHash>,
    /// In prompt order; not empty.
    pub hashes: Vec<BlockHash>,
}

/// Digest of a set of block hashes: 256 buckets by the top 8 bits, each the wrapping sum of the low 16 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct SetDigest {
    /// Blocks in the set.
    pub blocks: u64,
    /// The sums.
    pub buckets: Box<[u16; 256]>,
}

/// A question to the writer.
#[derive(Debug)]
pub enum Query {
    /// For every target that holds part of the prompt: blocks that something other than our own routing vouches for.
    Confirmed {
        /// The prompt.
        key: PrefixKey,
        /// The answer.
        done: Done<Vec<(TargetId, u32)>>,
    },
    /// Every block claimed for a target.
    Claims {
        /// The target.
        target: TargetId,
        /// What the hashes are of.
        unit: Unit,
        /// The answer, in no order; empty for an unknown target.
        done: Done<Vec<BlockHash>>,
    },
}

/// What the writer has to say after a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// All deltas of a rank up to this number have been applied.
    Acked {
        /// The session to tell.
        session: SessionId,
        /// The rank.
        rank: u32,
        /// The number.
        seq: u64,
    },
    /// A rank must send a baseline.
    ResyncNeeded {
        /// The session to tell.
        session: SessionId,
        /// The rank.
        rank: u32,
        /// For people.
        reason: Arc<str>,
    },
    /// Something worth knowing happened.
    Happened {
        /// When.
        at: Time,
        /// What.
        kind: EventKind,
        /// To which worker.
        url: Arc<str>,
        /// To which of its ranks, if to one.
        rank: Option<u32>,
        /// In words.
        detail: Arc<str>,
    },
    /// A response showed how well its decision had predicted.
    Mispredicted {
        /// The target.
        target: TargetId,
        /// Predicted minus actual cached tokens.
        error_tokens: i64,
        /// Why they differ; `None` if they do not.
        cause: Option<MispredictionCause>,
    },
}

/// Kinds of [`Notice::Happened`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum EventKind {
    WorkerAdded,
    WorkerRemoved,
    WorkerState,
    AgentConnected,
    AgentLost,
    Gap,
    Resynced,
    ClaimsVoided,
    DrainStarted,
    DrainDone,
    KeySpaceMismatch,
}

/// Why a prediction was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MispredictionCause {
    /// The blocks had been confirmed and were evicted since.
    Evicted,
    /// Nothing had confirmed the blocks: the request that was to store them had not got there, or never did.
    NotYetStored,
    /// More was cached than we knew: output tokens, or another router's traffic.
    OtherTraffic,
}

/// Sends updates to the writer. Cheap to clone; never waits.
#[derive(Clone)]
pub struct UpdateSender {
    queue: Sender<Update>,
    refused: Arc<AtomicU64>,
}

/// The writer's queue is full, or the writer is gone; the update comes back.
#[derive(Debug)]
pub struct Refused(pub Box<Update>);

impl<T> Done<T> {
    /// Calls `then` with the result.
    pub fn new(then: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(then))
    }

    /// Does nothing with the result.
    pub fn ignore() -> Self {
        Self(Box::new(|_| ()))
    }

    pub(crate) fn call(self, result: T) {
        (self.0)(result);
    }
}

impl UpdateSender {
    pub(crate) fn new(queue: Sender<Update>) -> Self {
        Self { queue, refused: Arc::default() }
    }

    /// Queues an update, or gives it back at once.
    pub fn try_send(&self, update: Update) -> Result<(), Refused> {
        self.queue.try_send(update).map_err(|error| {
            self.refused.fetch_add(1, Relaxed);
            match error {
                TrySendError::Full(update) | TrySendError::Disconnected(update) => Refused(Box::new(update)),
            }
        })
    }

    /// Updates that found the queue full.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Updates that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

impl SetDigest {
    /// The digest of the empty set.
    pub fn empty() -> Self {
        Self { blocks: 0, buckets: Box::new([0; 256]) }
    }

    /// Adds a hash.
    pub fn add(&mut self, hash: BlockHash) {
        self.blocks = self.blocks.wrapping_add(1);
        let bucket = &mut self.buckets[(hash.get() >> 56) as usize];
        *bucket = bucket.wrapping_add(hash.get() as u16);
    }

    /// Takes a hash out that had been added.
    pub fn remove(&mut self, hash: BlockHash) {
        self.blocks = self.blocks.wrapping_sub(1);
        let bucket = &mut self.buckets[(hash.get() >> 56) as usize];
        *bucket = bucket.wrapping_sub(hash.get() as u16);
    }

    /// Estimated number of hashes that are in one set and not in the other.
    ///
    /// By linear counting (Whang et al. 1990) over the buckets that differ, `−256 · ln(1 − differing/256)`, and never less
    /// than the difference of the sizes. With nearly all buckets differing it is a lower bound.
    pub fn difference(&self, other: &Self) -> u64 {
        let differing = self.buckets.iter().zip(other.buckets.iter()).filter(|(a, b)| a != b).count();
        let share = (differing as f64 / 256.0).min(255.5 / 256.0);
        let counted = (-256.0 * (1.0 - share).ln()).round() as u64;
        counted.max(self.blocks.abs_diff(other.blocks))
    }
}

impl<T> fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done(…)")
    }
}

impl fmt::Debug for UpdateSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateSender").field("queued", &self.queued()).field("refused", &self.refused()).finish()
    }
}

impl fmt::Debug for SetDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetDigest").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

impl MispredictionCause {
    /// The cause as metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::NotYetStored => "not_yet_stored",
            Self::OtherTraffic => "other_traffic",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(values: impl Iterator<Item = u64>) -> SetDigest {
        let mut digest = SetDigest::empty();
        let hash = |v: u64| v.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (v << 7);
        values.for_each(|v| digest.add(BlockHash::new(hash(v).max(1)).unwrap()));
        digest
    }

    #[test]
    fn equal_sets_do_not_differ_in_any_order() {
        assert_eq!(digest(0..1000).difference(&digest((0..1000).rev())), 0);
    }

    #[test]
    fn differences_are_estimated_on_both_sides() {
        for changed in [1_u64, 10, 100, 300] {
            let estimate = digest(0..10_000).difference(&digest(changed..10_000 + changed)) as f64;
            let truth = 2.0 * changed as f64;
            assert!((estimate / truth - 1.0).abs() < 0.25 + 1.0 / truth, "{changed}: {estimate}");
        }
    }

    #[test]
    fn what_is_taken_out_leaves_no_trace() {
        let mut some = digest(0..100);
        let hash = BlockHash::new(42).unwrap();
        some.add(hash);
        some.remove(hash);
        assert_eq!(some, digest(0..100));
    }
}
