//! Everything that changes what the router knows, as messages to the one writer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};

use crate::accuracy::Counts;
use crate::fleet::{Declaration, ReportLevel, Slot, TargetId, Tenure, WorkerId, WorkerProfile};
use crate::key::{BlockHash, PrefixKey, Unit};
use crate::policy::Policy;
use crate::report::{AgentReport, Considered, Introduction, JoinError, Joined, SessionId};
use crate::time::Time;
use crate::vouched::VouchedClaims;

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
    /// The slot at the time of the decision.
    pub(crate) slot: Slot,
    /// The target's tenure of it: if that is over, what was claimed then is void.
    pub(crate) tenure: Tenure,
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
    Routed {
        /// What its prefill is expected to take.
        prefill: Duration,
    },
    /// Its first token arrived: the target holds its blocks.
    Prefilled {
        at: Time,
        /// What the response said with it.
        observed: Option<Observation>,
    },
    /// It failed or was cancelled before its first token.
    Undone,
    /// The response said how much was cached.
    Observed(Observation),
    /// The response is complete and has not said it.
    Unchecked,
    /// The answer is complete: the target holds the blocks of the key, which are the prompt's and those of the answer.
    Answered { at: Time },
}

/// What a response said, beside what had been expected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
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
        /// Requests that are still in flight to it; none will be added, as far as `Drain` promises that. Called when its `done` would be.
        done: Done<Result<u64, FleetError>>,
    },
    /// What a probe or an agent found out about the engine.
    Profile {
        /// The worker.
        worker: WorkerId,
        /// Replaces what was known.
        profile: Box<WorkerProfile>,
        /// Fails if the ranks do not fit into the fleet.
        done: Done<Result<(), FleetError>>,
    },
    /// Says what a worker does of a generation; replaces what was declared before.
    Declare {
        /// The worker.
        worker: WorkerId,
        /// What is said.
        declaration: Declaration,
        /// Fails if the worker is unknown.
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
    /// What an engine counts of a rank's cache, as its own metrics say. Ignored while an agent's session is open, and where
    /// [`Settings::count_from_engines`](crate::Settings::count_from_engines) is off.
    Counted {
        /// The rank.
        target: TargetId,
        /// The counts.
        counts: Counts,
        /// When they were asked for.
        at: Time,
    },
    /// Starts or ends a drain.
    Drain {
        /// The worker.
        worker: WorkerId,
        /// On or off.
        on: bool,
        /// Fails if the worker is unknown. When a drain starts it is called once nothing is decided any more on a snapshot from before
        /// it: whatever the worker still gets is counted in its [`LoadCounters`](crate::LoadCounters) by then, but for requests that
        /// [name it](crate::RouteRequest::only). It is not waited for longer than 1 s: a snapshot that somebody
        /// [keeps](crate::Router::snapshot) cannot be told from one that is decided on.
        done: Done<Result<(), FleetError>>,
    },
    /// The worker is a new process, or flushed its cache, as a health check or a passing request showed: all claims on it
    /// are void. Ignored while an agent reports exactly, which then has said so itself.
    Void {
        /// The worker.
        worker: WorkerId,
        /// For people.
        reason: Arc<str>,
    },
    /// The worker's engine has just emptied its cache or changed its weights, as its answer to a call that passed here says: all
    /// claims on it are void at once, also where an agent reports exactly, whose own word for it comes later.
    Flushed {
        /// The worker.
        worker: WorkerId,
        /// For people.
        reason: Arc<str>,
        /// Called when no decision that begins from then on sees them.
        done: Done<()>,
    },
    /// The worker's engine takes requests and lets them wait, or goes on: it is alive, keeps its claims, and gets nothing
    /// new meanwhile.
    Pause {
        /// The worker.
        worker: WorkerId,
        /// Paused or not.
        on: bool,
        /// For people.
        reason: Arc<str>,
        /// Called when it is in force.
        done: Done<()>,
    },
    /// Asks whether an agent may speak for its worker, and which ranks could resume. Changes nothing.
    Consider {
        /// The agent.
        agent: Box<Introduction>,
        /// How its ranks could begin; those that are not named must begin with a baseline.
        done: Done<Result<Considered, JoinError>>,
    },
    /// From now on a session speaks for a worker, which is registered if it was not. All of it happens or nothing: an agent
    /// that is refused leaves no trace.
    Join {
        /// The agent; `resume` names the ranks that it was told could.
        agent: Box<Introduction>,
        /// The session.
        session: SessionId,
        /// The level of the session.
        level: ReportLevel,
        /// When its last message arrived.
        at: Time,
        /// Its worker, and the ranks that do resume. A rank that was to and cannot any more is asked for a baseline.
        done: Done<Result<Joined, JoinError>>,
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
    #[error(
        "the fleet is full: {in_use} of the {max} targets (workers times dp ranks) that one router decides for are in use, \
         {wanted} more are wanted; remove workers that are gone, or put them behind another router"
    )]
    Full {
        /// Targets in use.
        in_use: usize,
        /// The bound.
        max: u16,
        /// Targets wanted.
        wanted: u32,
    },
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
    /// The blocks claimed for a target that its agent can name and something vouches for, to be reconciled with what it holds.
    Vouched {
        /// The target.
        target: TargetId,
        /// What the hashes are of.
        unit: Unit,
        /// The answer; `None` for an unknown target.
        done: Done<Option<VouchedClaims>>,
    },
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

    /// Queues an update, or drops it: for what a decision says in passing, which must not allocate to be told of a full queue.
    pub(crate) fn offer(&self, update: Update) {
        if self.queue.try_send(update).is_err() {
            self.refused.fetch_add(1, Relaxed);
        }
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

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the writer's queue is full, or the writer is gone; the update was not taken")
    }
}

impl std::error::Error for Refused {}

impl<T> fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done(…)")
    }
}

impl fmt::Debug for UpdateSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateSender")
            .field("queued", &self.queued())
            .field("refused", &self.refused())
            .finish()
    }
}
