//! The registered workers, their ranks, and the slots that the ranks' claims stand in.

use std::sync::Arc;
use std::time::Duration;

use super::member::{Member, Rank};
use super::retention::Retention;
use super::slots::SlotPool;
use crate::accuracy::Accuracy;
use crate::fleet::{
    Declaration, Fleet, Incarnation, Role, Slot, Target, TargetId, WorkerId, WorkerProfile, WorkerState,
};
use crate::key::Unit;
use crate::report::{SessionId, Units};
use crate::time::Time;
use crate::update::FleetError;

/// Everything the writer knows about workers, except their claims.
#[derive(Debug)]
pub(crate) struct Roster {
    max_targets: u16,
    next_worker: u32,
    /// By id, which only grows.
    workers: Vec<Member>,
    slots: SlotPool,
    published: Published,
}

/// The fleet that snapshots share, until something has changed that they must show.
#[derive(Debug, Default)]
struct Published {
    fleet: Arc<Fleet>,
    at: Time,
    /// Something beyond mere figures has changed since.
    outdated: bool,
    /// It has been published again since, and figures may have changed.
    lags: bool,
    /// When it was told how far off it is.
    accuracies_at: Time,
    /// It has been renewed since without that.
    accuracies_lag: bool,
}

/// Figures of a target may be so old in a snapshot, for every target: what renewing them costs stays a small share of the
/// writer's time in the largest fleet, and a fleet of a few hundred is renewed with every publication.
const FIGURES_AGE_PER_TARGET: Duration = Duration::from_micros(2);

/// The same of how far off a target's figures are: there is much of it, and only people and their programs read it.
const ACCURACY_AGE_PER_TARGET: Duration = Duration::from_micros(50);

impl Roster {
    pub(crate) fn new(max_targets: u16) -> Self {
        Self {
            max_targets,
            next_worker: 0,
            workers: Vec::new(),
            slots: SlotPool::default(),
            published: Published::default(),
        }
    }

    /// Registers a worker with one rank, not yet reachable.
    pub(crate) fn add(&mut self, url: Arc<str>) -> Result<WorkerId, FleetError> {
        if let Some(member) = self.by_url(&url) {
            return Err(FleetError::AlreadyRegistered { url, worker: member.id });
        }
        self.room_for(1)?;
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let identity = xxhash_rust::xxh3::xxh3_64(url.as_bytes());
        let rank = Rank::new(self.slots.begin());
        self.workers.push(Member {
            id,
            url,
            profile: WorkerProfile::default(),
            declared: Declaration::default(),
            incarnation: Incarnation::default(),
            reachable: false,
            draining: false,
            updating: false,
            paused: false,
            reason: Arc::from("not probed yet"),
            session: None,
            chat_template: None,
            ranks: vec![rank],
            identity,
            published: None,
        });
        self.published.outdated = true;
        Ok(id)
    }

    /// Forgets a worker; its slots are to be swept.
    pub(crate) fn remove(&mut self, id: WorkerId) -> Result<Member, FleetError> {
        let at = self.place(id).ok_or(FleetError::UnknownWorker(id))?;
        self.published.outdated = true;
        let member = self.workers.remove(at);
        member.ranks.iter().for_each(|rank| self.slots.retired.push_back(rank.slot));
        Ok(member)
    }

    /// Puts a profile in force, with as many ranks as it says.
    pub(crate) fn set_profile(&mut self, id: WorkerId, profile: WorkerProfile) -> Result<bool, FleetError> {
        let have = self.get(id).ok_or(FleetError::UnknownWorker(id))?.ranks.len();
        let want = profile.dp_size.max(1);
        self.room_for(want.saturating_sub(have as u32))?;
        let fresh: Vec<_> = (have..want as usize).map(|_| Rank::new(self.slots.begin())).collect();
        let member = self.get_mut(id).ok_or(FleetError::UnknownWorker(id))?;
        member.ranks.extend(fresh);
        let gone: Vec<_> = member.ranks.drain(want as usize..).map(|rank| rank.slot).collect();
        let changed = member.profile != profile;
        member.profile = profile;
        self.slots.retired.extend(gone);
        Ok(changed)
    }

    /// Gives a rank a fresh slot, so that nothing of what it claimed can be seen any more.
    pub(crate) fn void(&mut self, target: TargetId) {
        if self.rank(target).is_none() {
            return;
        }
        let (fresh, tenure) = self.slots.begin();
        if let Some(rank) = self.rank_mut(target) {
            let old = std::mem::replace(&mut rank.slot, fresh);
            rank.tenure = tenure;
            rank.gate.close();
            rank.unreconciled = Units::default();
            rank.evidence.void();
            rank.pressure.empty();
            rank.retention = Retention::default();
            self.slots.retired.push_back(old);
        }
    }

    /// The same for a rank whose cache is empty now: its agent's deltas go on from there.
    pub(crate) fn flush(&mut self, target: TargetId) {
        let applied = self.rank(target).and_then(|rank| rank.gate.applied());
        self.void(target);
        if let (Some(rank), Some(applied)) = (self.rank_mut(target), applied) {
            rank.gate.open(applied);
        }
    }

    /// Slots that are to be swept.
    pub(crate) fn retired(&self) -> usize {
        self.slots.retired.len()
    }

    /// The slot that is to be swept next.
    pub(crate) fn next_retired(&self) -> Option<Slot> {
        self.slots.retired.front().copied()
    }

    /// The next retired slot has been swept and may be used again.
    pub(crate) fn recycle(&mut self) {
        let swept = self.slots.retired.pop_front();
        self.slots.free.extend(swept);
    }

    pub(crate) fn by_url(&self, url: &str) -> Option<&Member> {
        self.workers.iter().find(|member| &*member.url == url)
    }

    pub(crate) fn get(&self, id: WorkerId) -> Option<&Member> {
        self.place(id).map(|at| &self.workers[at])
    }

    /// A worker, to change what the next snapshot must show.
    pub(crate) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Member> {
        let place = self.place(id)?;
        let member = &mut self.workers[place];
        self.published.outdated = true;
        member.published = None;
        Some(member)
    }

    fn place(&self, id: WorkerId) -> Option<usize> {
        // Until one has left, every worker stands where its number says.
        let first = id.0 as usize;
        if self.workers.get(first).is_some_and(|member| member.id == id) {
            return Some(first);
        }
        self.workers.binary_search_by_key(&id, |member| member.id).ok()
    }

    pub(crate) fn rank(&self, target: TargetId) -> Option<&Rank> {
        self.get(target.worker)?.ranks.get(target.rank as usize)
    }

    /// An agent tells all that becomes of a rank's blocks, so that nothing has to be inferred.
    pub(crate) fn reports_exactly(&self, target: TargetId, unit: Unit) -> bool {
        let names = |member: &Member| member.session.is_some_and(|session| session.units.contains(unit));
        let agent = self.get(target.worker).is_some_and(|member| member.reports_exactly() && names(member));
        agent && self.rank(target).is_some_and(|rank| !rank.incomplete)
    }

    /// A rank, to change what the next snapshot must show.
    pub(crate) fn rank_mut(&mut self, target: TargetId) -> Option<&mut Rank> {
        self.get_mut(target.worker)?.ranks.get_mut(target.rank as usize)
    }

    /// A rank, to change figures by which candidates are compared, or what snapshots do not show at all.
    pub(crate) fn figures_mut(&mut self, target: TargetId) -> Option<&mut Rank> {
        let at = self.place(target.worker)?;
        self.workers[at].ranks.get_mut(target.rank as usize)
    }

    /// A report of a session has arrived. `false` if it does not speak for the worker, or no longer.
    pub(crate) fn heard(&mut self, worker: WorkerId, id: SessionId, at: Time) -> bool {
        let session = self.place(worker).and_then(|place| self.workers[place].session.as_mut());
        let current = session.filter(|session| session.id == id && session.open);
        current.map(|session| session.last_report = at).is_some()
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.workers
    }

    /// For every open session: the number of the last delta applied to each rank, if it has not been told yet.
    pub(crate) fn newly_applied(&mut self, mut tell: impl FnMut(SessionId, u32, u64)) {
        for member in &mut self.workers {
            let Some(session) = member.session.filter(|session| session.open) else { continue };
            for (index, rank) in member.ranks.iter_mut().enumerate() {
                if let Some(seq) = rank.gate.applied().filter(|seq| rank.acked != Some(*seq)) {
                    rank.acked = Some(seq);
                    tell(session.id, index as u32, seq);
                }
            }
        }
    }

    /// All ranks of all workers.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (TargetId, &Member, &Rank)> {
        self.workers.iter().flat_map(|member| {
            let ranks = member.ranks.iter().enumerate();
            ranks.map(move |(rank, state)| (TargetId { worker: member.id, rank: rank as u32 }, member, state))
        })
    }

    /// The fleet as a snapshot shows it: the one before, if only figures have changed since, and not for long.
    pub(crate) fn publish(&mut self, now: Time, claimed_tokens: impl Fn(Slot) -> u64) -> Arc<Fleet> {
        // A clock that was set back does not keep figures from being renewed.
        let at = self.published.at;
        if self.published.outdated || now >= self.renewed_at() || now < at {
            let due = self.published.outdated || now >= self.accuracies_due() || now < at;
            let accuracies = match due {
                true => self.ranks().map(|rank| rank.evidence.accuracy()).collect(),
                false => self.published.fleet.accuracies.clone(),
            };
            let accuracies_at = if due { now } else { self.published.accuracies_at };
            let fleet = Arc::new(self.fleet(now, claimed_tokens, accuracies));
            self.published = Published {
                fleet,
                at: now,
                outdated: false,
                lags: false,
                accuracies_at,
                accuracies_lag: !due,
            };
        } else {
            self.published.lags = true;
        }
        self.published.fleet.clone()
    }

    /// When the figures of the fleet are to be published anew, if those that were published last may be outdated.
    pub(crate) fn renewal(&self) -> Option<Time> {
        let figures = self.published.lags.then(|| self.renewed_at());
        // They are renewed with the figures.
        let accuracies = self.published.accuracies_lag.then(|| self.accuracies_due().max(self.renewed_at()));
        figures.into_iter().chain(accuracies).min()
    }

    fn accuracies_due(&self) -> Time {
        let targets = self.published.fleet.targets.len() as u32;
        self.published.accuracies_at + targets * ACCURACY_AGE_PER_TARGET
    }

    fn ranks(&self) -> impl Iterator<Item = &Rank> {
        self.workers.iter().flat_map(|member| &member.ranks)
    }

    fn renewed_at(&self) -> Time {
        let targets = self.published.fleet.targets.len() as u32;
        self.published.at + targets * FIGURES_AGE_PER_TARGET
    }

    fn fleet(
        &mut self,
        now: Time,
        claimed_tokens: impl Fn(Slot) -> u64,
        accuracies: Arc<[Accuracy]>,
    ) -> Fleet {
        let targets = self.ranks().count();
        let mut fleet = Fleet {
            workers: Vec::with_capacity(self.workers.len()),
            targets: Vec::with_capacity(targets),
            accuracies,
            ..Fleet::default()
        };
        for member in &mut self.workers {
            let (worker, routers) = (member.publish(), member.routers());
            fleet.has_pools |= worker.role != Role::Unified;
            for (rank, state) in member.ranks.iter_mut().enumerate() {
                state.arrivals.watch(now);
                let slot = usize::from(state.slot.0);
                if slot >= fleet.by_slot.len() {
                    fleet.by_slot.resize(slot + 1, u32::MAX);
                }
                fleet.by_slot[slot] = fleet.targets.len() as u32;
                fleet.targets.push(Target {
                    ready: worker.state == WorkerState::Ready,
                    id: TargetId { worker: member.id, rank: rank as u32 },
                    worker: worker.clone(),
                    slot: state.slot,
                    tenure: state.tenure,
                    doubtful: state.doubtful,
                    claimed_tokens: claimed_tokens(state.slot),
                    eviction_pressure: state.pressure.share(),
                    // Each router finds only what it has asked for, of what all of them push out.
                    tail_reuse: state.pressure.tail_reuse() * routers as f32,
                    arrivals: state.arrivals.rate(now).times(routers),
                    retention: state.retention.share(),
                    prefill: state.prefill,
                    reported: state.reported,
                    foreign_waiting_tokens: state.foreign_waiting_tokens,
                    foreign_used_tokens: state.foreign_used_tokens,
                    load: state.load.clone(),
                });
            }
            fleet.workers.push(worker);
        }
        fleet
    }

    /// Whether so many more targets fit.
    pub(crate) fn room_for(&self, wanted: u32) -> Result<(), FleetError> {
        let in_use = self.workers.iter().map(|member| member.ranks.len()).sum::<usize>();
        if in_use + wanted as usize > usize::from(self.max_targets) {
            return Err(FleetError::Full { in_use, max: self.max_targets, wanted });
        }
        Ok(())
    }
}
