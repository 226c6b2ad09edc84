//! What the writer has to say.

use std::fmt;
use std::sync::Arc;

use crate::fleet::TargetId;
use crate::key::{BlockHash, Unit};
use crate::report::SessionId;
use crate::time::Time;

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
    /// A rank's claims must be reconciled, or sent anew with a baseline.
    ReconcileNeeded {
        /// The session to tell.
        session: SessionId,
        /// The rank.
        rank: u32,
        /// For people.
        reason: Arc<str>,
    },
    /// The router has come to claim a prompt, or a prompt with its answer, for a rank by itself, whose agent wants to tell of what is not
    /// predicted. Of no use later: it may be dropped.
    Predicted {
        /// The session to tell.
        session: SessionId,
        /// The rank.
        rank: u32,
        /// What the hash is of.
        unit: Unit,
        /// The last block of it; all before it are claimed, too.
        last: BlockHash,
    },
    /// What was found to differ has been put right.
    Reconciled {
        /// The target.
        target: TargetId,
        /// Blocks that were claimed and not held.
        false_claims: u64,
        /// Blocks that were held and not claimed.
        missing: u64,
    },
    /// A session has nothing to say any more: close its stream, so that its agent connects again.
    SessionEnded {
        /// The session to close.
        session: SessionId,
        /// Why.
        why: SessionEnd,
    },
    /// An agent reported blocks below others that nobody has heard of; they were ignored.
    UnknownParents {
        /// The target.
        target: TargetId,
        /// Runs that were ignored.
        runs: u64,
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

/// Why a session has nothing to say any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum SessionEnd {
    /// A later session speaks for its worker.
    Replaced,
    /// It was silent for longer than its lease.
    LeaseEnded,
    /// Its worker was removed.
    WorkerRemoved,
}

/// Kinds of [`Notice::Happened`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum EventKind {
    /// A worker was registered.
    WorkerAdded,
    /// A worker was removed, with every claim on it.
    WorkerRemoved,
    /// A worker's [state](crate::WorkerState) changed.
    WorkerState,
    /// An agent's session speaks for the worker from now on.
    AgentConnected,
    /// The session's stream ended, or its lease did.
    AgentLost,
    /// A delta is missing: the rank's claims are not followed until its next baseline or reconciliation.
    Gap,
    /// A baseline was applied, or a reconciliation that a doubt or a reconnect had called for.
    Resynced,
    /// All claims on the worker, or on one of its ranks, became void.
    ClaimsVoided,
    /// A drain began.
    DrainStarted,
    /// Nothing is in flight any more to a worker that drains.
    DrainDone,
    /// The agent hashes prompts differently; its blocks cannot be used.
    KeySpaceMismatch,
    /// Claims on a target are followed, and neither an agent nor responses vouch for them.
    Unvouched,
    /// Something vouches for them again, or nobody follows them any more.
    Vouched,
}

/// Why a prediction was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum MispredictionCause {
    /// The blocks had been confirmed and were evicted since.
    Evicted,
    /// Nothing had confirmed the blocks: the request that was to store them had not got there, or never did.
    NotYetStored,
    /// More was cached than we knew: output tokens, or another router's traffic.
    OtherTraffic,
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replaced => {
                "another session speaks for this worker by now; run one agent for each worker, with a URL of its own"
            }
            Self::LeaseEnded => "nothing was heard for longer than the lease; connect again to resume",
            Self::WorkerRemoved => "the worker was removed; connecting again registers it anew",
        })
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
