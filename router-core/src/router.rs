//! The front door: decides requests on the snapshot in force.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::explain::{CandidateView, Excluded, Explanation};
use crate::fleet::{Target, TargetId, WorkerState};
use crate::in_flight::InFlight;
use crate::index::Matches;
use crate::key::{KeySpace, PrefixKey, Unit};
use crate::policy::{Candidate, View};
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
    /// Targets that have been tried.
    pub tried: &'a [TargetId],
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
    /// No ready worker has that dp rank.
    #[error("dp rank {rank} does not exist")]
    UnknownRank {
        /// The rank asked for.
        rank: u32,
    },
    /// Every target that may be chosen has been tried.
    #[error("every target has been tried")]
    AllTried,
}

#[derive(Debug)]
pub(crate) struct Inner {
    settings: Settings,
    cell: Arc<SnapshotCell>,
    updates: UpdateSender,
    ordinal: AtomicU64,
}

/// Buffers of one decision, kept per thread.
#[derive(Default)]
struct Scratch {
    matches: Matches,
    candidates: Vec<Candidate>,
    /// Index into the fleet's targets, for each candidate.
    targets: Vec<usize>,
}

/// Blocks that tell prompts apart for rendezvous hashing. More would separate prompts that should meet; fewer would bring
/// together all that merely begin with the same system prompt.
const RENDEZVOUS_BLOCKS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Router {
    /// A router without workers, and the writer that must be driven for it to learn anything.
    pub fn new(settings: Settings) -> (Self, Writer) {
        let (queue, updates) = crossbeam_channel::bounded(settings.queue_capacity);
        let writer = Writer::new(settings.clone(), updates);
        let inner = Inner {
            settings,
            cell: writer.cell(),
            updates: UpdateSender::new(queue),
            ordinal: AtomicU64::new(0),
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

    /// The snapshot in force, to keep for as long as needed: for administration and metrics.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.cell.load_full()
    }

    /// Decides a request and counts it as in flight at its target until the returned value is completed or dropped.
    pub fn route(
        &self,
        request: &RouteRequest<'_>,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<InFlight, RouteError> {
        let ordinal = self.inner.ordinal.fetch_add(1, Relaxed);
        let snapshot = self.inner.cell.load();
        SCRATCH.with_borrow_mut(|scratch| {
            self.collect(&snapshot, request, scratch)?;
            let view = view(&snapshot, request, &scratch.candidates, ordinal);
            let choice = snapshot.policy.choose(&view, rng);
            let candidate = &scratch.candidates[choice.index];
            let target = &snapshot.fleet.targets[scratch.targets[choice.index]];
            let matched_blocks = if target.doubtful { 0 } else { scratch.matches.blocks(target.slot) };
            let routed = crate::in_flight::Routed {
                ordinal,
                epoch: snapshot.epoch,
                reason: choice.reason,
                matched_blocks,
                predicted_tokens: predicted_tokens(target, candidate.matched_tokens, view.prompt_tokens),
                prompt_tokens: view.prompt_tokens,
                decided_at: now,
                key: request.key.cloned(),
            };
            Ok(InFlight::start(target, routed, self.predictions(request)))
        })
    }

    /// Decides a request without sending it anywhere, and shows every candidate.
    pub fn explain(
        &self,
        request: &RouteRequest<'_>,
        rng: &mut fastrand::Rng,
    ) -> Result<Explanation, RouteError> {
        let snapshot = self.inner.cell.load_full();
        let mut scratch = Scratch::default();
        self.collect(&snapshot, request, &mut scratch)?;
        let view = view(&snapshot, request, &scratch.candidates, self.inner.ordinal.load(Relaxed));
        let choice = snapshot.policy.choose(&view, rng);
        let candidates = scratch.candidates.iter().map(|candidate| CandidateView {
            target: candidate.id,
            matched_tokens: candidate.matched_tokens,
            load: candidate.load,
            backlog: candidate.backlog(),
            prefill: candidate.prefill.prefill_time(view.prompt_tokens, candidate.matched_tokens),
            cost: snapshot.policy.cost(&view, candidate),
        });
        let excluded = snapshot.fleet.targets.iter().filter_map(|target| {
            let why = exclusion(target, request, &self.inner.settings)?;
            Some(Excluded { target: target.id, why })
        });
        Ok(Explanation {
            policy: snapshot.policy.name(),
            chosen: choice.index,
            reason: choice.reason,
            prompt_tokens: view.prompt_tokens,
            candidates: candidates.collect(),
            excluded: excluded.collect(),
            snapshot,
        })
    }

    /// Where in-flight requests report their blocks; `None` for requests that teach nothing about any cache.
    fn predictions(&self, request: &RouteRequest<'_>) -> Option<UpdateSender> {
        request.key.map(|_| self.inner.updates.clone())
    }

    /// Fills the scratch with the targets that may be chosen, or says why there are none.
    fn collect(
        &self,
        snapshot: &Snapshot,
        request: &RouteRequest<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), RouteError> {
        let settings = &self.inner.settings;
        scratch.candidates.clear();
        scratch.targets.clear();
        let hashes = request.key.map_or(&[][..], PrefixKey::hashes);
        snapshot.tree.match_prefix(hashes, &mut scratch.matches);
        for (index, target) in snapshot.fleet.targets.iter().enumerate() {
            if exclusion(target, request, settings).is_none() {
                let blocks = if target.doubtful { 0 } else { scratch.matches.blocks(target.slot) };
                scratch.candidates.push(candidate(snapshot, settings, request.key, target, blocks));
                scratch.targets.push(index);
            }
        }
        if scratch.candidates.is_empty() {
            return Err(no_candidates(snapshot, request, settings));
        }
        Ok(())
    }
}

/// Why a target may not be chosen, or `None` if it may.
fn exclusion(target: &Target, request: &RouteRequest<'_>, settings: &Settings) -> Option<Arc<str>> {
    let worker = &target.worker;
    if worker.state != WorkerState::Ready {
        return Some(format!("{}: {}", worker.state, worker.reason).into());
    }
    if !settings.accept_any_model && request.model.is_some_and(|model| !worker.serves(model)) {
        return Some("serves another model".into());
    }
    if request.rank.is_some_and(|rank| rank != target.id.rank) {
        return Some("another dp rank was asked for".into());
    }
    request.tried.contains(&target.id).then(|| "has been tried".into())
}

fn no_candidates(snapshot: &Snapshot, request: &RouteRequest<'_>, settings: &Settings) -> RouteError {
    let workers = &snapshot.fleet.workers;
    if workers.is_empty() {
        return RouteError::NoWorkers;
    }
    if !settings.accept_any_model
        && request.model.is_some_and(|model| !workers.iter().any(|w| w.serves(model)))
    {
        let names =
            workers.iter().flat_map(|worker| worker.profile.models.iter().map(|model| model.to_string()));
        let mut served: Vec<String> = names.collect();
        served.sort_unstable();
        served.dedup();
        return RouteError::UnknownModel { served };
    }
    let ready = || snapshot.fleet.targets.iter().filter(|target| target.worker.state == WorkerState::Ready);
    if let Some(rank) = request.rank
        && ready().next().is_some()
        && !ready().any(|target| target.id.rank == rank)
    {
        return RouteError::UnknownRank { rank };
    }
    if ready().any(|target| request.tried.contains(&target.id)) {
        return RouteError::AllTried;
    }
    let count = |state| workers.iter().filter(|worker| worker.state == state).count();
    RouteError::NoneReady {
        registered: workers.len(),
        unreachable: count(WorkerState::Unreachable),
        draining: count(WorkerState::Draining),
        updating: count(WorkerState::Updating),
    }
}

fn candidate(
    snapshot: &Snapshot,
    settings: &Settings,
    key: Option<&PrefixKey>,
    target: &Target,
    blocks: u32,
) -> Candidate {
    let load = target.load.read();
    // The last token is always computed, so that even a prompt that is cached whole has something to prefill.
    let matched_tokens = key.map_or(0, |key| {
        let matched = snapshot.tokens_of_blocks(settings.space(key.unit()), u64::from(blocks));
        matched.min(snapshot.prompt_tokens(key).saturating_sub(1))
    });
    Candidate {
        id: target.id,
        matched_tokens,
        load,
        foreign_waiting_tokens: target.foreign_waiting_tokens,
        prefill: target.prefill,
        eviction_pressure: target.eviction_pressure,
        claimed_tokens: target.claimed_tokens,
        identity: target.identity(),
    }
}

fn view<'a>(
    snapshot: &Snapshot,
    request: &RouteRequest<'_>,
    candidates: &'a [Candidate],
    ordinal: u64,
) -> View<'a> {
    let hashes = request.key.map_or(&[][..], PrefixKey::hashes);
    let first = hashes.get(..RENDEZVOUS_BLOCKS.min(hashes.len())).and_then(<[_]>::last);
    View {
        candidates,
        prompt_tokens: request.key.map_or(0, |key| snapshot.prompt_tokens(key)),
        ordinal,
        first_blocks: first.map(|hash| hash.get()),
    }
}

/// What the engine is expected to report as cached: whole pages, and never the last token.
fn predicted_tokens(target: &Target, matched_tokens: u64, prompt_tokens: u64) -> u64 {
    let page = u64::from(target.worker.profile.page_size.max(1));
    matched_tokens.min(prompt_tokens.saturating_sub(1)) / page * page
}
