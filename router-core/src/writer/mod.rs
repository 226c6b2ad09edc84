//! The single writer: applies updates in order and publishes snapshots.
//!
//! Two loops meet here: what this router routed and what the responses said about it ([`traffic`]), and what the agents
//! report ([`agents`], [`blocks`], [`reconciled`]). Both become claims in one table ([`claims`]); [`roster`] knows whose they are, and [`aging`] lets
//! leases and silence, [`bounds`] sizes, and [`counts`] what engines count, take their effect; [`vouching`] watches whether anything corrects. Nothing here reads a clock or blocks, except [`Writer::wait`] on its queue.

mod agents;
mod aging;
mod arrivals;
mod blocks;
mod bounds;
mod claim;
mod claims;
#[cfg(test)]
mod claims_cases;
#[cfg(test)]
mod claims_tests;
mod correct;
mod counts;
mod evidence;
mod gate;
mod horizon;
mod member;
mod members;
mod pressure;
mod reconciled;
mod replaced;
mod retention;
mod reuse;
mod roster;
mod slots;
#[cfg(test)]
mod tests;
mod traffic;
mod vouching;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustc_hash::FxHashMap;

use self::bounds::SWEEP_PER_TURN;
use self::claim::Scope;
use self::claims::{BlockTokens, ClaimTable};
use self::member::Member;
use self::reconciled::Wanted;
use self::replaced::{LOOK_AGAIN, Replaced};
use self::roster::Roster;
use crate::fleet::{TargetId, Tenure, WorkerId};
use crate::key::{BlockKind, PrefixKey, Unit};
use crate::notice::{EventKind, Notice};
use crate::policy::Policy;
use crate::settings::Settings;
use crate::snapshot::{Snapshot, SnapshotCell};
use crate::time::Time;
use crate::update::{Query, Update};

/// Applies updates and publishes snapshots. Drive it from one thread:
///
/// ```
/// # use std::time::Duration;
/// # use router_core::{Router, Settings, Time};
/// let (router, mut writer) = Router::new(Settings::new(7));
/// let driver = std::thread::spawn(move || {
///     let origin = std::time::Instant::now();
///     while writer.wait(Duration::from_millis(50)) {
///         let now = Time::from_micros(origin.elapsed().as_micros() as u64);
///         for notice in writer.turn(now) {
///             let _ = notice; // tell the agents' sessions, count, log
///         }
///     }
/// });
/// drop(router);
/// driver.join().unwrap();
/// ```
#[derive(Debug)]
pub struct Writer {
    updates: Receiver<Update>,
    /// Taken from the queue by `wait`.
    first: Option<Update>,
    state: State,
    cell: Arc<SnapshotCell>,
    replaced: Replaced<Snapshot, Call>,
    epoch: u64,
    published: Time,
    /// When the last turn was.
    turned: Time,
}

/// What updates change.
#[derive(Debug)]
struct State {
    settings: Settings,
    policy: Arc<dyn Policy>,
    roster: Roster,
    claims: ClaimTable,
    /// Decisions whose predictions nothing has confirmed or taken back yet: of each target, by their numbers.
    open: FxHashMap<TargetId, FxHashMap<u64, OpenDecision>>,
    /// When the predictions of each decision lapse, oldest first.
    leases: VecDeque<(Time, TargetId, u64)>,
    /// Decisions whose prompts have been computed, to be confirmed by an agent until then.
    witnesses: VecDeque<(Time, TargetId, u64)>,
    text_bytes_per_token: f64,
    notices: Vec<Notice>,
    /// To be called when what they wait for can be seen.
    after_publication: Vec<Call>,
    /// To be called when, besides, nobody decides on an older snapshot.
    after_older: Vec<Call>,
    /// Claims that somebody wants to reconcile, to be read from the next snapshot.
    wanted: Vec<Wanted>,
    aged: Time,
    dirty: bool,
}

/// A call that tells somebody that an update is in force.
struct Call(Box<dyn FnOnce() + Send>);

/// A decision that predicted what its target will hold.
#[derive(Clone, Debug)]
struct OpenDecision {
    tenure: Tenure,
    key: PrefixKey,
    decided_at: Time,
}

/// Mean length of a token in bytes of text before a response has told. Claims on text are counted with it.
const FIRST_TEXT_BYTES_PER_TOKEN: f64 = 4.0;

/// Updates applied in one turn at most, so that a flood cannot keep a snapshot from being published.
const UPDATES_PER_TURN: usize = 4096;

/// Retired slots that may wait to be swept. Beyond it they are swept at once, so that slots never run out.
const RETIRED_KEPT: usize = 4096;

/// Leases kept at most; beyond it the oldest end early: less is claimed, not more.
const LEASES_KEPT: usize = 1 << 20;

impl Writer {
    pub(crate) fn new(settings: Settings, updates: Receiver<Update>) -> Self {
        let mut state = State::new(settings);
        let first = Arc::new(state.snapshot(0, Time::default()));
        Self {
            updates,
            first: None,
            state,
            cell: Arc::new(SnapshotCell::new(first)),
            replaced: Replaced::default(),
            epoch: 0,
            published: Time::default(),
            turned: Time::default(),
        }
    }

    pub(crate) fn cell(&self) -> Arc<SnapshotCell> {
        self.cell.clone()
    }

    /// Waits until an update is queued, at most `timeout`; then call [`turn`](Self::turn). `false` once every router and
    /// sender is gone and nothing is queued: the writer may end.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        if self.first.is_some() {
            return true;
        }
        // What has been applied must be seen even if nothing follows.
        let seen_by = match self.state.dirty {
            true => Some(self.state.settings.publish_interval),
            false => self.state.roster.renewal().map(|due| due.since(self.turned)),
        };
        let settled_by = self.replaced.is_waited_for().then_some(LOOK_AGAIN);
        let timeout = seen_by.into_iter().chain(settled_by).fold(timeout, Duration::min);
        match self.updates.recv_timeout(timeout) {
            Ok(update) => self.first = Some(update),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                // Without a router nobody decides.
                self.replaced.due(Time::MAX).into_iter().for_each(Call::make);
                return false;
            }
        }
        true
    }

    /// [`wait`](Self::wait) ended with an update, for the next turn. That turn also takes in what has come since.
    pub fn has_update(&self) -> bool {
        self.first.is_some()
    }

    /// Applies what is queued (a bounded number of updates), ages claims and leases, publishes if that is due, and says
    /// what happened.
    pub fn turn(&mut self, now: Time) -> Vec<Notice> {
        let mut left = UPDATES_PER_TURN;
        if let Some(first) = self.first.take() {
            self.state.apply(first, now);
            left -= 1;
        }
        let queued = self.updates.try_iter().take(left);
        let idle = queued.map(|update| self.state.apply(update, now)).count() < left;
        self.state.age(now);
        self.state.sweep(SWEEP_PER_TURN);
        self.state.bound_index();
        self.turned = now;
        // Figures that a large fleet shows later are shown even if nothing follows.
        let renews = self.state.roster.renewal().is_some_and(|due| now >= due);
        let due = idle || now.since(self.published) >= self.state.settings.publish_interval;
        if (self.state.dirty || renews) && (due || self.state.is_waited_for()) {
            self.publish(now);
        }
        if !self.state.wanted.is_empty() {
            self.state.answer_wanted(&self.cell.load_full(), now);
        }
        self.state.after_publication.drain(..).for_each(Call::make);
        for call in self.state.after_older.drain(..) {
            self.replaced.wait(self.epoch, now, call);
        }
        self.replaced.due(now).into_iter().for_each(Call::make);
        self.state.acknowledge();
        std::mem::take(&mut self.state.notices)
    }

    fn publish(&mut self, now: Time) {
        self.epoch += 1;
        self.published = now;
        self.state.dirty = false;
        let replaced = self.cell.load_full();
        self.cell.store(Arc::new(self.state.snapshot(self.epoch, now)));
        self.replaced.push(replaced.epoch, replaced);
    }
}

impl State {
    fn new(settings: Settings) -> Self {
        let text_bytes_per_token = FIRST_TEXT_BYTES_PER_TOKEN;
        let block_tokens = BlockTokens {
            token: u64::from(settings.token_space.block_size()),
            text: (f64::from(settings.text_space.block_size()) / text_bytes_per_token).ceil() as u64,
        };
        Self {
            policy: settings.policy.build(),
            roster: Roster::new(settings.max_targets.min(crate::MAX_TARGETS)),
            claims: ClaimTable::new(block_tokens),
            settings,
            open: FxHashMap::default(),
            leases: VecDeque::new(),
            witnesses: VecDeque::new(),
            text_bytes_per_token,
            notices: Vec::new(),
            after_publication: Vec::new(),
            after_older: Vec::new(),
            wanted: Vec::new(),
            aged: Time::default(),
            dirty: false,
        }
    }

    fn snapshot(&mut self, epoch: u64, now: Time) -> Snapshot {
        Snapshot {
            epoch,
            published: now,
            fleet: self.roster.publish(now, |slot| self.claims.tokens(slot, Scope::ALL)),
            policy: self.policy.clone(),
            text_bytes_per_token: self.text_bytes_per_token,
            size: self.claims.size(),
            tree: self.claims.tree(),
        }
    }

    fn apply(&mut self, update: Update, now: Time) {
        match update {
            Update::Traffic(traffic) => self.apply_traffic(&traffic),
            Update::Fleet(update) => self.apply_fleet(update, now),
            Update::Agent { worker, session, at, report } => self.apply_report(worker, session, at, report),
            Update::Query(query) => self.answer(query),
        }
        if self.roster.retired() > RETIRED_KEPT {
            self.sweep(usize::MAX);
        }
    }

    /// Answers with what is claimed now, once that can be seen in a snapshot too.
    fn answer(&mut self, query: Query) {
        match query {
            Query::Confirmed { key, done } => {
                let confirmed = self.roster.targets().map(|(id, _, rank)| {
                    let blocks = self.claims.confirmed_blocks(rank.slot, &key);
                    (id, blocks)
                });
                let confirmed = confirmed.filter(|(_, blocks)| *blocks > 0).collect();
                self.after_publication.push(Call::new(move || done.call(confirmed)));
            }
            Query::Claims { target, unit, done } => {
                let slot = self.roster.rank(target).map(|rank| rank.slot);
                let claims = slot.map_or_else(Vec::new, |slot| self.claims.all(slot, unit));
                self.after_publication.push(Call::new(move || done.call(claims)));
            }
            Query::Vouched { target, unit, done } => {
                self.wanted.push(Wanted { target, unit, done });
                self.dirty = true;
            }
        }
    }

    /// Makes every claim of a worker invisible at once.
    fn void_worker(&mut self, worker: WorkerId, at: Time, reason: &str) {
        let ranks = self.roster.get(worker).map_or(0, |member| member.ranks.len() as u32);
        for rank in 0..ranks {
            self.roster.void(TargetId { worker, rank });
        }
        self.dirty = true;
        self.happened(worker, None, at, EventKind::ClaimsVoided, reason.into());
    }

    /// The same, for an engine whose agent goes on with its deltas.
    fn flush_worker(&mut self, worker: WorkerId, at: Time, reason: &str) {
        let Some(member) = self.roster.get(worker) else { return };
        for rank in 0..member.ranks.len() as u32 {
            self.roster.flush(TargetId { worker, rank });
        }
        self.dirty = true;
        self.happened(worker, None, at, EventKind::ClaimsVoided, reason.into());
    }

    fn happened(&mut self, worker: WorkerId, rank: Option<u32>, at: Time, kind: EventKind, detail: Arc<str>) {
        let url = self.roster.get(worker).map_or_else(|| Arc::from(""), |member| member.url.clone());
        self.notices.push(Notice::Happened { at, kind, url, rank, detail });
    }

    fn when_published(&mut self, call: impl FnOnce() + Send + 'static) {
        self.dirty = true;
        self.after_publication.push(Call::new(call));
    }

    /// Calls once all that was decided without knowing of what has changed is counted at its targets: see [`Replaced`].
    fn when_none_is_older(&mut self, call: impl FnOnce() + Send + 'static) {
        self.dirty = true;
        self.after_older.push(Call::new(call));
    }

    /// Somebody waits for the next snapshot.
    fn is_waited_for(&self) -> bool {
        !self.after_publication.is_empty() || !self.after_older.is_empty() || !self.wanted.is_empty()
    }

    /// An agent tells all that becomes of the target's blocks of this kind, so that nothing has to be inferred.
    fn is_exact(&self, target: TargetId, kind: BlockKind) -> bool {
        kind.named().is_some_and(|unit| self.roster.reports_exactly(target, unit))
    }

    /// An agent also tells which of the target's blocks of this kind were stored.
    fn hears_stores(&self, target: TargetId, kind: BlockKind) -> bool {
        self.roster.get(target.worker).is_some_and(Member::reports_stores) && self.is_exact(target, kind)
    }

    fn block_size(&self, unit: Unit) -> u64 {
        u64::from(self.settings.space(unit).block_size())
    }
}

impl Call {
    fn new(call: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(call))
    }

    fn make(self) {
        (self.0)();
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Call(…)")
    }
}
