//! Which targets may be chosen for a request, and what a policy sees of them.

use std::fmt;

use crate::fleet::{Role, Target, Worker, WorkerState};
use crate::health::HealthState;
use crate::index::Matches;
use crate::key::PrefixKey;
use crate::policy::{Candidate, View};
use crate::router::{RouteError, RouteRequest};
use crate::settings::Settings;
use crate::snapshot::Snapshot;
use crate::time::Time;

/// Buffers of one decision. Used again, they do not allocate.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    matches: Matches,
    seen: Vec<Candidate>,
    /// Index into the fleet's targets, and matched blocks, for each candidate.
    targets: Vec<(u32, u32)>,
    /// Of what was looked at, targets that only their failures exclude.
    ejected: usize,
    /// And targets that only have no room.
    at_bound: usize,
    /// Too many are ejected to believe it.
    ignores_ejections: bool,
}

/// How many targets are looked at.
#[derive(Debug)]
pub(crate) enum Reach<'r> {
    /// All of them.
    Every,
    /// All of a small fleet; of a large one those that matter and some drawn by chance, if the policy bears that.
    Sampled(&'r mut fastrand::Rng),
}

/// Why a target may not be chosen; in words only for those who ask.
#[derive(Debug)]
pub(crate) enum Exclusion<'a> {
    NotReady(&'a Worker),
    OtherModel,
    OtherRole(Role),
    OtherRank,
    OtherWorker,
    Tried,
    Unhealthy(HealthState),
    AtBound(u64),
    SlowStart,
}

/// Targets up to which every one is a candidate.
const FEW_TARGETS: usize = 128;

/// Of more, so many holders of the longest matches are candidates,
const HOLDERS: usize = 64;

/// and so many targets drawn from all: the least loaded of 32 is among the least loaded 7 % nine times out of ten.
const DRAWN: usize = 32;

/// Fewer that may be chosen than this say too little about the rest (a rare model, a fleet that drains): then all are looked at.
const LEAST_DRAWN: usize = 16;

/// Blocks that tell prompts apart for rendezvous hashing. More would separate prompts that should meet; fewer would bring
/// together all that merely begin with the same system prompt.
const RENDEZVOUS_BLOCKS: usize = 16;

impl Candidates {
    /// Finds the targets that may be chosen, or says why there are none.
    pub(crate) fn gather(
        &mut self,
        snapshot: &Snapshot,
        settings: &Settings,
        request: &RouteRequest<'_>,
        now: Time,
        reach: Reach<'_>,
    ) -> Result<(), RouteError> {
        self.ignores_ejections = false;
        (self.ejected, self.at_bound) = (0, 0);
        self.seen.clear();
        self.targets.clear();
        // What a decode worker needs of a prompt is handed over to it, whatever it holds.
        let key = request.key.filter(|_| request.role != Some(Role::Decode));
        snapshot.tree.match_prefix(key.map_or(&[][..], PrefixKey::hashes), &mut self.matches);
        let targets = snapshot.fleet.targets.len();
        if let Reach::Sampled(rng) = reach
            && request.only.is_none()
            && targets > FEW_TARGETS
            && snapshot.policy.may_sample()
        {
            self.add_holders(snapshot, settings, request, now);
            let holders = self.seen.len();
            self.add_drawn(snapshot, settings, request, now, rng);
            if self.seen.len() < holders + LEAST_DRAWN {
                self.seen.clear();
                self.targets.clear();
            }
        }
        if self.seen.is_empty() {
            (self.ejected, self.at_bound) = (0, 0);
            (0..targets).for_each(|index| self.consider(snapshot, settings, request, now, index));
            self.ignore_if_too_many(snapshot, settings, request, now);
        }
        if request.only.is_none() {
            self.hold_back(snapshot, settings, now);
        }
        if self.seen.is_empty() {
            return Err(if self.at_bound > 0 {
                RouteError::AtBound
            } else {
                no_candidates(snapshot, request, settings)
            });
        }
        Ok(())
    }

    /// What the policy sees.
    pub(crate) fn view(&self, snapshot: &Snapshot, request: &RouteRequest<'_>, ordinal: u64) -> View<'_> {
        let hashes = request.key.map_or(&[][..], PrefixKey::hashes);
        let first = hashes.get(..RENDEZVOUS_BLOCKS.min(hashes.len())).and_then(<[_]>::last);
        View {
            candidates: &self.seen,
            prompt_tokens: request.key.map_or(0, |key| snapshot.prompt_tokens(key)),
            ordinal,
            first_blocks: first.map(|hash| hash.get()),
        }
    }

    /// A candidate's target, and the blocks that it holds of the prompt.
    pub(crate) fn target<'s>(&self, snapshot: &'s Snapshot, candidate: usize) -> (&'s Target, u32) {
        let (index, blocks) = self.targets[candidate];
        (&snapshot.fleet.targets[index as usize], blocks)
    }

    /// More targets are ejected than may be, and those are candidates too.
    pub(crate) fn ignores_ejections(&self) -> bool {
        self.ignores_ejections
    }

    /// Never everybody is ejected: beyond the bound ejections say nothing.
    fn ignore_if_too_many(
        &mut self,
        snapshot: &Snapshot,
        settings: &Settings,
        request: &RouteRequest<'_>,
        now: Time,
    ) {
        let healthy = self.seen.len() + self.at_bound;
        let most = (self.ejected + healthy) as f64 * settings.ejection.most_share;
        if self.ejected == 0 || (healthy > 0 && self.ejected as f64 <= most) {
            return;
        }
        self.ignores_ejections = true;
        self.at_bound = 0;
        self.seen.clear();
        self.targets.clear();
        (0..snapshot.fleet.targets.len())
            .for_each(|index| self.consider(snapshot, settings, request, now, index));
    }

    /// Takes out targets that start slowly and carry their share of what the others carry on average.
    fn hold_back(&mut self, snapshot: &Snapshot, settings: &Settings, now: Time) {
        let ramp = |index: u32| {
            let target = &snapshot.fleet.targets[index as usize];
            target.load.health().ramp(now, &settings.ejection)
        };
        let (mut others, mut carried) = (0_u64, 0_u64);
        for (candidate, (index, _)) in self.seen.iter().zip(&self.targets) {
            if ramp(*index).is_none() {
                others += 1;
                carried += candidate.load.in_flight;
            }
        }
        if others == 0 || others == self.seen.len() as u64 {
            return;
        }
        let mean = carried as f64 / others as f64;
        for at in (0..self.seen.len()).rev() {
            let in_flight = self.seen[at].load.in_flight;
            // One at a time it always gets, or it would never warm up.
            let full =
                ramp(self.targets[at].0).is_some_and(|share| in_flight as f64 >= (share * mean).max(1.0));
            if full {
                self.seen.remove(at);
                self.targets.remove(at);
            }
        }
    }

    fn add_holders(
        &mut self,
        snapshot: &Snapshot,
        settings: &Settings,
        request: &RouteRequest<'_>,
        now: Time,
    ) {
        for at in 0..self.matches.holders().len() {
            let index = snapshot.fleet.index_of(self.matches.holders()[at]);
            if let Some(index) = index.filter(|index| !snapshot.fleet.targets[*index].doubtful) {
                self.consider(snapshot, settings, request, now, index);
            }
            if self.seen.len() == HOLDERS {
                break;
            }
        }
    }

    fn add_drawn(
        &mut self,
        snapshot: &Snapshot,
        settings: &Settings,
        request: &RouteRequest<'_>,
        now: Time,
        rng: &mut fastrand::Rng,
    ) {
        let targets = &snapshot.fleet.targets;
        // Steps of a length that has no divisor in common with the fleet's size meet no target twice.
        let mut step = rng.usize(1..targets.len());
        while greatest_common_divisor(step, targets.len()) > 1 {
            step = rng.usize(1..targets.len());
        }
        let mut index = rng.usize(..targets.len());
        let holders = self.seen.len();
        for _ in 0..DRAWN {
            if !self.targets[..holders].iter().any(|(seen, _)| *seen as usize == index) {
                self.consider(snapshot, settings, request, now, index);
            }
            index = (index + step) % targets.len();
        }
    }

    fn consider(
        &mut self,
        snapshot: &Snapshot,
        settings: &Settings,
        request: &RouteRequest<'_>,
        now: Time,
        index: usize,
    ) {
        let target = &snapshot.fleet.targets[index];
        let excluded = exclusion(target, request, settings, now);
        // Whoever asked to be left alone is, however many do.
        let ejected = matches!(
            excluded,
            Some(Exclusion::Unhealthy(HealthState::Ejected { .. } | HealthState::HalfOpen { .. }))
        );
        self.ejected += usize::from(ejected && !self.ignores_ejections);
        self.at_bound += usize::from(matches!(excluded, Some(Exclusion::AtBound(_))));
        let full = || !request.unbounded && target.load.in_flight() >= settings.limits.per_target;
        if excluded.is_none() || (ejected && self.ignores_ejections && !full()) {
            let unknown = target.doubtful || request.is_blind_to(target);
            let blocks = if unknown { 0 } else { self.matches.blocks(target.slot) };
            self.seen.push(candidate(snapshot, settings, request.key, target, blocks));
            self.targets.push((index as u32, blocks));
        }
    }
}

/// Why a target may not be chosen, or `None` if it may.
pub(crate) fn exclusion<'a>(
    target: &'a Target,
    request: &RouteRequest<'_>,
    settings: &Settings,
    now: Time,
) -> Option<Exclusion<'a>> {
    let worker = &target.worker;
    match request.only {
        Some(only) if only != worker.id => return Some(Exclusion::OtherWorker),
        Some(_) => {}
        None if !target.ready => return Some(Exclusion::NotReady(worker)),
        None if !settings.accept_any_model && request.model.is_some_and(|model| !worker.serves(model)) => {
            return Some(Exclusion::OtherModel);
        }
        None => {}
    }
    if request.role.is_some_and(|role| role != worker.role) {
        return Some(Exclusion::OtherRole(worker.role));
    }
    if request.rank.is_some_and(|rank| rank != target.id.rank) {
        return Some(Exclusion::OtherRank);
    }
    if request.tried.contains(&target.id.worker) {
        return Some(Exclusion::Tried);
    }
    let state = target.load.health().state(now);
    // Who names a worker means that one, whatever others met there.
    if request.only.is_none() && !state.takes_requests() {
        return Some(Exclusion::Unhealthy(state));
    }
    let most = settings.limits.per_target;
    (!request.unbounded && target.load.in_flight() >= most).then_some(Exclusion::AtBound(most))
}

impl fmt::Display for Exclusion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady(worker) => write!(f, "{}: {}", worker.state, worker.reason),
            Self::OtherModel => f.write_str("serves another model"),
            Self::OtherRole(role) => write!(f, "is a {role} worker"),
            Self::OtherRank => f.write_str("another dp rank was asked for"),
            Self::OtherWorker => f.write_str("another worker was asked for"),
            Self::Tried => f.write_str("has been tried"),
            Self::Unhealthy(state) => state.fmt(f),
            Self::AtBound(most) => write!(f, "has {most} requests in flight, and takes no more at once"),
            Self::SlowStart => f.write_str("starts slowly, and carries its share for now"),
        }
    }
}

fn no_candidates(snapshot: &Snapshot, request: &RouteRequest<'_>, settings: &Settings) -> RouteError {
    let workers = &snapshot.fleet.workers;
    if workers.is_empty() {
        return RouteError::NoWorkers;
    }
    if let Some(only) = request.only {
        return match request.rank {
            _ if !workers.iter().any(|worker| worker.id == only) => RouteError::UnknownWorker(only),
            Some(rank) if !request.tried.contains(&only) => RouteError::UnknownRank { rank },
            _ => RouteError::AllTried,
        };
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
    let in_pool = |worker: &Worker| request.role.is_none_or(|role| role == worker.role);
    let ready = || snapshot.fleet.targets.iter().filter(|target| target.ready && in_pool(&target.worker));
    if let Some(rank) = request.rank
        && ready().next().is_some()
        && !ready().any(|target| target.id.rank == rank)
    {
        return RouteError::UnknownRank { rank };
    }
    let has_model =
        |worker: &Worker| settings.accept_any_model || request.model.is_none_or(|m| worker.serves(m));
    let is_tried = |target: &Target| request.tried.contains(&target.id.worker) && has_model(&target.worker);
    if ready().any(is_tried) {
        return RouteError::AllTried;
    }
    if let Some(role) = request.role {
        let registered = workers.iter().filter(|worker| in_pool(worker)).count();
        return RouteError::PoolEmpty { role, registered };
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
    // The last token is always computed, so that even a prompt that is cached whole has something to prefill.
    let matched_tokens = key.filter(|_| blocks > 0).map_or(0, |key| {
        let matched = snapshot.tokens_of_blocks(settings.space(key.unit()), u64::from(blocks));
        matched.min(snapshot.prompt_tokens(key).saturating_sub(1))
    });
    Candidate {
        id: target.id,
        matched_tokens,
        load: target.load.read(),
        foreign_waiting_tokens: target.foreign_waiting_tokens,
        foreign_used_tokens: target.foreign_used_tokens,
        capacity_tokens: capacity_tokens(settings, target),
        prefill: target.prefill,
        eviction_pressure: target.eviction_pressure,
        tail_reuse: target.tail_reuse,
        arrivals: target.arrivals,
        retention: target.retention,
        claimed_tokens: target.claimed_tokens,
        identity: target.identity(),
    }
}

fn capacity_tokens(settings: &Settings, target: &Target) -> u64 {
    let reported = target.reported.map_or(0, |reported| reported.capacity_tokens);
    let known = [reported, target.worker.profile.capacity_tokens];
    known.into_iter().find(|known| *known > 0).unwrap_or(settings.default_capacity_tokens)
}

fn greatest_common_divisor(mut a: usize, mut b: usize) -> usize {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}
