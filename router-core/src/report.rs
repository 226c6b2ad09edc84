//! What agents report, as the writer takes it.

use std::sync::Arc;

use crate::chat::ChatTemplate;
use crate::digest::SetDigest;
use crate::fleet::{Incarnation, ReportLevel, WorkerId, WorkerProfile};
use crate::key::{BlockHash, Unit};
use crate::load::ReportedLoad;
use crate::time::Time;
use crate::update::FleetError;

/// One agent session. A later session of the same worker replaces the earlier, which is told so by
/// [`Notice::SessionEnded`](crate::Notice::SessionEnded) and has nothing to say from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SessionId(pub u64);

/// An agent that wants to speak for a worker, registered or not.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// The worker's base URL without a slash at the end.
    pub url: Arc<str>,
    /// The engine's life.
    pub incarnation: Incarnation,
    /// What the agent knows of the engine. Model names that a probe has found out stay.
    pub profile: WorkerProfile,
    /// Ranks whose deltas the agent can go on with, and the last sequence number it knows to be applied.
    pub resume: Vec<(u32, u64)>,
    /// Ranks that it would begin with a delta of any number, to be reconciled.
    pub reconcile: Vec<u32>,
    /// The units that it names blocks in, at a level that has blocks.
    pub units: Units,
    /// It can find the difference of the claims on its blocks and what is held (channel 4 of `docs/routing.md`).
    pub reconciles: bool,
    /// Routers that it reports to, this one included; 0 where that is unknown. If there are several, it tells of stores that were not predicted at
    /// [`ReportLevel::Removals`], and is to be told what was ([`Notice::Predicted`](crate::Notice::Predicted)); and each is taken to
    /// send as much as this one.
    pub routers: u32,
    /// The template that the engine renders chats with.
    pub chat_template: Option<Arc<dyn ChatTemplate>>,
}

/// Units that an agent names blocks in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Units {
    /// The engine's tokens.
    pub token: bool,
    /// Text: the agent has the model's tokenizer.
    pub text: bool,
}

/// How an agent's ranks could begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Considered {
    /// With the deltas after these numbers.
    pub resume: Vec<(u32, u64)>,
    /// With a delta of any number, to be reconciled: so many blocks are claimed that their difference will be cheaper to find than
    /// a baseline is to send.
    pub reconcile: Vec<u32>,
}

/// A session that speaks for its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The worker.
    pub worker: WorkerId,
    /// The ranks that resume after these numbers; all others but those below must begin with a baseline.
    pub resumed: Vec<(u32, u64)>,
    /// The ranks that begin with a delta of any number, and have to be reconciled.
    pub unreconciled: Vec<u32>,
}

/// What an agent said.
#[derive(Debug)]
pub enum AgentReport {
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
    /// What reconciliation has found: a delta in sequence that removes claims on what is not held, and stores what is held and was not
    /// claimed.
    Reconciled {
        /// The rank.
        rank: u32,
        /// The moment of the claims that were compared.
        as_of: Time,
        /// Bytes that the comparison took both ways, as the messages are encoded.
        bytes: u64,
        /// The difference.
        delta: Delta,
    },
    /// Everything one rank holds, in one unit. An agent of several units reports a baseline of each, with the same number.
    Baseline {
        /// The rank.
        rank: u32,
        /// What the hashes are of.
        unit: Unit,
        /// The state is the one after this sequence number.
        seq: u64,
        /// Parents before children.
        stored: Vec<BlockRun>,
        /// See [`Delta::incomplete`].
        incomplete: bool,
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
        /// What the hashes are of.
        unit: Unit,
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

impl Units {
    /// Tokens alone.
    pub const TOKENS: Self = Self { token: true, text: false };

    /// Neither.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn remove(&mut self, unit: Unit) {
        match unit {
            Unit::Token => self.token = false,
            Unit::Text => self.text = false,
        }
    }

    /// Whether blocks of this unit are named.
    pub fn contains(self, unit: Unit) -> bool {
        match unit {
            Unit::Token => self.token,
            Unit::Text => self.text,
        }
    }

    /// The units, tokens first.
    pub fn iter(self) -> impl Iterator<Item = Unit> {
        [Unit::Token, Unit::Text].into_iter().filter(move |unit| self.contains(*unit))
    }
}

impl FromIterator<Unit> for Units {
    fn from_iter<T: IntoIterator<Item = Unit>>(units: T) -> Self {
        units.into_iter().fold(Self::default(), |mut all, unit| {
            match unit {
                Unit::Token => all.token = true,
                Unit::Text => all.text = true,
            }
            all
        })
    }
}

/// A session that cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// There is no room for the worker or its ranks.
    #[error(transparent)]
    Fleet(#[from] FleetError),
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
    /// Everything is gone, in every unit.
    pub cleared: bool,
    /// No longer held, with all below.
    pub removed: Vec<BlockHash>,
    /// Now held.
    pub stored: Vec<BlockRun>,
    /// From here on the agent may miss stores and removals, so that what it does not remove may be gone all the same.
    pub incomplete: bool,
}

/// A run of consecutive blocks of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The block before the first one; `None` where a prompt begins.
    pub parent: Option<BlockHash>,
    /// In prompt order; not empty.
    pub hashes: Vec<BlockHash>,
}
