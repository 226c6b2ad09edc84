//! The front door: decides requests on the snapshot in force.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::admission::{Entered, Limits, Occupancy};
use crate::candidates::{Candidates, Exclusion, Reach, exclusion};
use crate::chat::{ChatTemplate, NoTemplate};
use crate::explain::{CandidateView, Excluded, Explanation};
use crate::fleet::{Role, Target, TargetId, WorkerId};
use crate::health::FaultKind;
use crate::in_flight::{Admitted, InFlight};
use crate::key::{KeySpace, PrefixKey, Unit};
use crate::policy::{KvSpace, Policy};
use crate::settings::Settings;
use crate::snapshot::{Snapshot, SnapshotCell};
use crate::time::Time;
use crate::update::UpdateSender;
use crate::writer::Writer;

/// Decides where requests go. Cheap to clone; every clone decides on the same snapshots.
#[derive(Clone, Debug)]
pub struct Router {
    inner: Arc<Inner>,
}

/// What a decision needs to know about a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteRequest<'a> {
    /// The prompt's key; `None` for requests that have no prompt, which go by load.
    pub key: Option<&'a PrefixKey>,
    /// The model asked for; `None` for any.
    pub model: Option<&'a str>,
    /// The dp rank asked for; `None` for any.
    pub rank: Option<u32>,
    /// The pool asked for; `None` for any worker. Decode workers are not matched by prefix.
    pub role: Option<Role>,
    /// Workers that have been tried: all ranks of one share its fate.
    pub tried: &'a [WorkerId],
    /// The one worker that will do, in whatever state it is: for what only that worker can answer, and for control calls. Its
    /// models are not looked at; whether it answers is for the caller to find out.
    pub only: Option<WorkerId>,
    /// The request cannot tell the engine which dp rank was decided on: of a worker with several, nothing is matched and
    /// nothing predicted, since the engine chooses by itself.
    pub unpinned: bool,
    /// It is sent whatever [`Settings::limits`] say: for control calls, which are no work.
    pub unbounded: bool,
}

/// A request that can go nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No worker is registered.
    #[error("no worker is registered")]
    NoWorkers,
    /// Workers are registered and none of them may be chosen.
    #[error(
        "none of {registered} workers is ready ({unreachable} unreachable, {draining} draining, {updating} updating)"
    )]
    NoneReady {
        /// Registered workers.
        registered: usize,
        /// Workers that fail their health check.
        unreachable: usize,
        /// Workers that drain.
        draining: usize,
        /// Workers that are paused or change their weights.
        updating: usize,
    },
    /// No worker serves the model.
    #[error("no worker serves this model; served: {}", served.join(", "))]
    UnknownModel {
        /// What is served.
        served: Vec<String>,
    },
    /// Of the workers of a role none is ready that serves the model.
    #[error(
        "no {role} worker is ready that serves this model ({registered} registered), and no unified worker takes its place: \
         every request needs one prefill and one decode worker"
    )]
    PoolEmpty {
        /// The role.
        role: Role,
        /// Registered workers of the role.
        registered: usize,
    },
    /// No ready worker has that dp rank.
    #[error("dp rank {rank} does not exist")]
    UnknownRank {
        /// The rank asked for.
        rank: u32,
    },
    /// The one worker that would do is not registered.
    #[error("{0} is not registered, or not any more")]
    UnknownWorker(WorkerId),
    /// Workers could take it, and have as much as they may have at once: see [`Settings::limits`].
    #[error("every worker that could take it has as many requests as it may have at once")]
    AtBound,
    /// Every worker that may be chosen has been tried.
    #[error("every worker that may be chosen has been tried")]
    AllTried,
}

#[derive(Debug)]
pub(crate) struct Inner {
    settings: Settings,
    cell: Arc<SnapshotCell>,
    updates: UpdateSender,
    ordinal: AtomicU64,
    orphaned: AtomicBool,
    /// There if there are limits.
    occupancy: Option<Arc<Occupancy>>,
}

/// Decisions that are made anew because another thread took a trial first, or the last room; after them the request is sent as no
/// trial, and what is full is full.
const MOST_ROUNDS: usize = 4;

thread_local! {
    static CANDIDATES: RefCell<Candidates> = RefCell::default();
}

impl Router {
    /// A router without workers, and the writer that must be driven for it to learn anything.
    pub fn new(settings: Settings) -> (Self, Writer) {
        let (queue, updates) = crossbeam_channel::bounded(settings.queue_capacity);
        let writer = Writer::new(settings.clone(), updates);
        let inner = Inner {
            occupancy: Occupancy::new(settings.limits),
            settings,
            cell: writer.cell(),
            updates: UpdateSender::new(queue),
            ordinal: AtomicU64::new(0),
            orphaned: AtomicBool::new(false),
        };
        (Self { inner: Arc::new(inner) }, writer)
    }

    /// How prompts of this unit are keyed.
    pub fn key_space(&self, unit: Unit) -> &KeySpace {
        self.inner.settings.space(unit)
    }

    /// The settings it was built with.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Where changes go.
    pub fn updates(&self) -> &UpdateSender {
        &self.inner.updates
    }

    /// The snapshot in force, to keep for as long as needed: for administration and metrics. A drain that starts meanwhile waits
    /// for it, for a second at most: see [`FleetUpdate::Drain`](crate::FleetUpdate::Drain).
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.cell.load_full()
    }

    /// The template that every worker renders a model's chats with: [`Fleet::chat_template`](crate::Fleet::chat_template) of the snapshot
    /// in force.
    ///
    /// # Errors
    /// There is none that all agree on.
    pub fn chat_template(&self, model: Option<&str>) -> Result<Arc<dyn ChatTemplate>, NoTemplate> {
        self.inner.cell.load().fleet.chat_template(model).cloned()
    }

    /// The writer is gone, and nothing is learned any more: from now on requests are decided on the last snapshot, by load
    /// alone, since nobody says any more what has become of its claims. Call it only when the writer has ended: it publishes.
    pub fn orphan(&self) {
        self.inner.orphaned.store(true, Relaxed);
        let mut last = Snapshot::clone(&self.inner.cell.load_full());
        last.epoch += 1;
        Arc::make_mut(&mut last.fleet).targets.iter_mut().for_each(|target| target.doubtful = true);
        self.inner.cell.store(Arc::new(last));
    }

    /// Whether the writer is gone: see [`orphan`](Self::orphan).
    pub fn is_orphaned(&self) -> bool {
        self.inner.orphaned.load(Relaxed)
    }

    /// Decides a request and counts it as in flight at its target until the returned value is completed or dropped.
    ///
    /// With up to 128 targets, and always for policies that want it, every target is considered. Beyond, a decision does not
    /// grow with the fleet: the policy sees up to 64 holders of the longest matches and 32 targets drawn from all.
    pub fn route(
        &self,
        request: &RouteRequest<'_>,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<InFlight, RouteError> {
        self.decide(&self.inner.cell.load(), request, now, rng)
    }

    /// Decides a request on a snapshot.
    pub(crate) fn decide(
        &self,
        snapshot: &Snapshot,
        request: &RouteRequest<'_>,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<InFlight, RouteError> {
        let ordinal = self.inner.ordinal.fetch_add(1, Relaxed);
        let policy = policy(snapshot, request.role);
        CANDIDATES.with_borrow_mut(|candidates| {
            let settings = &self.inner.settings;
            let mut entered = match &self.inner.occupancy {
                Some(occupancy) => Some(occupancy.enter(request.unbounded).ok_or(RouteError::AtBound)?),
                None => None,
            };
            let most = if request.unbounded { u64::MAX } else { settings.limits.per_target };
            for round in 1..=MOST_ROUNDS {
                let gathered = candidates.gather(snapshot, settings, request, now, Reach::Sampled(rng));
                if let Err(error) = gathered {
                    leave_silently(&mut entered);
                    return Err(error);
                }
                let view = candidates.view(snapshot, request, ordinal);
                let choice = policy.choose(&view, rng);
                let chosen = &view.candidates[choice.index];
                let (target, matched_blocks) = candidates.target(snapshot, choice.index);
                let judged = !candidates.ignores_ejections() && request.only.is_none();
                let trial = if judged { target.load.health().admit(now) } else { Some(false) };
                // Another thread has begun the trial that this one would have been: decide without that target.
                if trial.is_none() && round < MOST_ROUNDS {
                    continue;
                }
                let trial = trial.unwrap_or(false);
                let routed = crate::in_flight::Routed {
                    ordinal,
                    epoch: snapshot.epoch,
                    reason: choice.reason,
                    matched_blocks,
                    predicted_tokens: predicted_tokens(target, chosen.matched_tokens, view.prompt_tokens),
                    prompt_tokens: view.prompt_tokens,
                    decided_at: now,
                    key: request.key.filter(|_| request.teaches_of(target)).cloned(),
                };
                let admitted = Admitted { trial, most, entered: entered.take() };
                match InFlight::start(target, routed, self, admitted) {
                    Ok(in_flight) => return Ok(in_flight),
                    // Another thread has taken the last room.
                    Err(full) => entered = full.entered,
                }
            }
            leave_silently(&mut entered);
            Err(RouteError::AtBound)
        })
    }

    /// Most tokens of the prompt that a target has cached that has room for the request: a decision that is not made. Nothing is
    /// counted.
    pub fn match_with_room(
        &self,
        request: &RouteRequest<'_>,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<u64, RouteError> {
        if !request.unbounded && self.inner.occupancy.as_ref().is_some_and(|occupancy| occupancy.is_full()) {
            return Err(RouteError::AtBound);
        }
        let snapshot = self.inner.cell.load();
        CANDIDATES.with_borrow_mut(|candidates| {
            candidates.gather(&snapshot, &self.inner.settings, request, now, Reach::Sampled(rng))?;
            let view = candidates.view(&snapshot, request, 0);
            Ok(view.candidates.iter().map(|candidate| candidate.matched_tokens).max().unwrap_or(0))
        })
    }

    /// Has `told` called whenever a request ends, on the thread where it does; it must be quick, and must not route. Room also comes
    /// without a call: when a worker joins, or is taken back after failures. False, and nothing is called, without
    /// [limits](Settings::limits), or where somebody else has asked for it.
    pub fn on_room(&self, told: impl Fn() + Send + Sync + 'static) -> bool {
        self.inner.occupancy.as_ref().is_some_and(|occupancy| occupancy.on_room(Box::new(told)))
    }

    /// Whether there is a bound on what is in flight.
    pub fn has_limits(&self) -> bool {
        self.inner.settings.limits != Limits::NONE
    }

    /// The snapshot in force, borrowed.
    pub(crate) fn cell(&self) -> &SnapshotCell {
        &self.inner.cell
    }

    /// Decides a request without sending it anywhere, and shows every candidate: in a large fleet also those that
    /// [`route`](Self::route) would have passed over unseen.
    pub fn explain(
        &self,
        request: &RouteRequest<'_>,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<Explanation, RouteError> {
        let snapshot = self.inner.cell.load_full();
        let request = &RouteRequest {
            role: crate::split::shown(&snapshot, request, &self.inner.settings, now),
            ..*request
        };
        let policy = policy(&snapshot, request.role);
        let mut candidates = Candidates::default();
        candidates.gather(&snapshot, &self.inner.settings, request, now, Reach::Every)?;
        let view = candidates.view(&snapshot, request, self.inner.ordinal.load(Relaxed));
        let choice = policy.choose(&view, rng);
        let shown = view.candidates.iter().map(|candidate| CandidateView {
            target: candidate.id,
            matched_tokens: candidate.matched_tokens,
            load: candidate.load,
            backlog: candidate.backlog(),
            prefill: candidate.prefill.prefill_time(view.prompt_tokens, candidate.retained_tokens()),
            cost: policy.cost(&view, candidate),
        });
        let excluded = snapshot.fleet.targets.iter().filter_map(|target| {
            let seen = view.candidates.iter().any(|candidate| candidate.id == target.id);
            let why = exclusion(target, request, &self.inner.settings, now).filter(|_| !seen);
            let why = why.or((!seen).then_some(Exclusion::SlowStart))?;
            Some(Excluded { target: target.id, why: why.to_string().into() })
        });
        Ok(Explanation {
            policy: policy.name(),
            chosen: choice.index,
            reason: choice.reason,
            prompt_tokens: view.prompt_tokens,
            candidates: shown.collect(),
            excluded: excluded.collect(),
            snapshot,
        })
    }

    /// A worker could not be reached: the ranks other than the one that found out, whose own request says so, failed too.
    pub fn worker_failed(&self, found_at: TargetId, now: Time) {
        let snapshot = self.inner.cell.load();
        let others = snapshot.fleet.targets_of(found_at.worker).filter(|target| target.id != found_at);
        others.for_each(|target| {
            target.load.health().failed(FaultKind::Connect, false, now, &self.inner.settings.ejection);
        });
    }
}

/// Nothing had been there: nobody need look for the room that it leaves.
fn leave_silently(entered: &mut Option<Entered>) {
    if let Some(entered) = entered.take() {
        entered.leave_silently();
    }
}

/// What decides: decode workers are chosen by load and KV space, all others by the policy in force.
fn policy(snapshot: &Snapshot, role: Option<Role>) -> &dyn Policy {
    match role {
        Some(Role::Decode) => &KvSpace,
        _ => &*snapshot.policy,
    }
}

impl RouteRequest<'_> {
    /// Whether what becomes of it says something about a target's cache.
    fn teaches_of(&self, target: &Target) -> bool {
        // A decode worker's cache is no business of the index: its prompts come and go with their requests.
        self.role != Some(Role::Decode) && !self.is_blind_to(target)
    }

    /// Whether the rank that will answer is the engine's own choice, so that no claim of a target's can be meant.
    pub(crate) fn is_blind_to(&self, target: &Target) -> bool {
        self.unpinned && target.worker.profile.dp_size > 1
    }
}

/// What the engine is expected to report as cached: whole pages, and never the last token.
fn predicted_tokens(target: &Target, matched_tokens: u64, prompt_tokens: u64) -> u64 {
    let page = u64::from(target.worker.profile.page_size.max(1));
    matched_tokens.min(prompt_tokens.saturating_sub(1)) / page * page
}
