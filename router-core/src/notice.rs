//! What the writer has to say.

use std::sync::Arc;

use crate::fleet::TargetId;
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
