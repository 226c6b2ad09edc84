//! Sends what there is to say in one session.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use router_core::key::{KeySpace, Unit};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::convert::{Completeness, Outgoing};
use super::predictions::Predictions;
use super::reconcile::Rounds;
use super::stream::{End, SessionError};
use super::terms::Terms;
use super::{Desk, Link, RouterCounters, convert};
use crate::cache::lock;
use crate::config::Level;
use crate::engine::{Health, Life};
use crate::mirror::Doubt;
use crate::translate::{BlockView, ViewDelta, runs};

/// Time without changes after which a rank's set is described once more.
const SETTLE: Duration = Duration::from_millis(500);

/// The outgoing half of a session.
pub(super) struct Writer<'a> {
    pub(super) index: usize,
    pub(super) terms: Terms,
    pub(super) max_level: Level,
    counts_interval: Duration,
    pub(super) predictions: Predictions,
    pub(super) counters: Arc<RouterCounters>,
    lives: watch::Receiver<Option<Arc<Life>>>,
    health: watch::Receiver<Health>,
    pub(super) life: Arc<Life>,
    pub(super) link: &'a mut Link,
    pub(super) desk: Arc<Mutex<Desk>>,
    /// The level that is really served; `None` until that is decided.
    pub(super) level: Option<Level>,
    ranks: Vec<Reported>,
    /// Comparisons under way.
    pub(super) rounds: Rounds,
    loads_due: Instant,
    out: mpsc::Sender<Outgoing>,
}

/// What was last said of one rank.
#[derive(Debug, Default)]
struct Reported {
    load: Option<Outgoing>,
    doubt: Option<Doubt>,
    /// When its counts and set are described next.
    counts_due: Option<Instant>,
}

/// What is to be sent of one rank, decided under its locks.
enum Plan {
    Nothing,
    Deltas(Vec<Outgoing>),
    /// In each unit every block with its parent.
    Baseline {
        seq: u64,
        incomplete: bool,
        blocks: Vec<(Unit, Vec<(u64, u64)>)>,
    },
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        link: &'a mut Link,
        life: Arc<Life>,
        terms: Terms,
        max_level: Level,
        out: mpsc::Sender<Outgoing>,
    ) -> Self {
        link.remember(&life);
        let desk = Arc::clone(&link.desk);
        let mut lives = link.engine.lives.clone();
        let mut health = link.engine.health.clone();
        lives.mark_unchanged();
        health.mark_unchanged();
        Self {
            index: link.index,
            max_level: if terms.spaces.is_empty() { Level::Counts } else { max_level },
            terms,
            counts_interval: link.settings.config.counts_interval,
            predictions: Predictions::new(link.settings.wants_predictions()),
            counters: Arc::clone(&link.counters),
            lives,
            health,
            ranks: life.ranks.iter().map(|_| Reported::default()).collect(),
            life,
            link,
            desk,
            level: None,
            rounds: Rounds::default(),
            loads_due: Instant::now(),
            out,
        }
    }

    /// Runs until the session ends.
    pub(super) async fn run(mut self) -> Result<End, SessionError> {
        let fingerprints = self.terms.spaces.iter().map(KeySpace::fingerprint).collect();
        self.send(convert::accept(fingerprints, self.terms.refused.clone())).await?;
        self.report_health(0).await?;
        self.resume().await?;
        let mut timer = tokio::time::interval(self.terms.tick());
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flush_due = Instant::now();
        let came = Arc::clone(&lock(&self.desk).came);
        loop {
            tokio::select! {
                _ = timer.tick() => {}
                () = came.notified() => {}
                changed = self.lives.changed() => if changed.is_err() { return Ok(End::Shutdown) },
                changed = self.health.changed() => {
                    if changed.is_err() {
                        return Ok(End::Shutdown);
                    }
                    self.report_health(0).await?;
                }
            }
            if !self.same_life().await? {
                return Ok(End::EngineChanged);
            }
            self.apply_level();
            self.compare().await?;
            let now = Instant::now();
            if now >= flush_due {
                flush_due = now + self.terms.batch_interval;
                self.learn_predictions(now);
                for rank in 0..self.ranks.len() {
                    self.flush(rank).await?;
                }
            }
            for rank in 0..self.ranks.len() {
                self.report_counts(rank).await?;
                self.report_doubt(rank).await?;
            }
            self.report_loads().await?;
        }
    }

    /// Notices a new life of the engine; answers false if it needs a new session.
    async fn same_life(&mut self) -> Result<bool, SessionError> {
        let present = self.lives.borrow_and_update().clone();
        let Some(present) = present.filter(|present| present.incarnation != self.life.incarnation) else {
            return Ok(true);
        };
        if !present.same_shape(&self.life) {
            return Ok(false);
        }
        self.life = present;
        self.link.remember(&self.life);
        self.level = None;
        self.rounds = Rounds::default();
        self.terms.reconcile.clear();
        self.ranks = self.life.ranks.iter().map(|_| Reported::default()).collect();
        self.report_health(self.life.incarnation).await?;
        Ok(true)
    }

    /// Takes up what the coordinator still knows; everything else begins with a baseline.
    async fn resume(&mut self) -> Result<(), SessionError> {
        let level = lock(&self.desk).wanted.min(self.max_level);
        let fingerprint = self.terms.fingerprint();
        let view = self.link.remember(&self.life).view;
        let kept = view.is_some() && view == fingerprint.map(|fingerprint| (fingerprint, level));
        let mut again = Vec::new();
        for (rank, outbox) in lock(&self.desk).outboxes.iter_mut().enumerate() {
            let point = self.terms.resume.iter().find(|point| point.rank as usize == rank);
            let point = point.filter(|point| kept && Some(point.fingerprint) == fingerprint);
            match point.and_then(|point| outbox.resume_after(point.acked_seq)) {
                Some(deltas) => {
                    self.counters.resumed.fetch_add(1, Ordering::Relaxed);
                    again.extend(deltas);
                }
                None => outbox.owe_baseline(),
            }
        }
        if kept {
            self.set_level(level);
        } else {
            self.apply_level();
        }
        for delta in again {
            self.send(delta).await?;
        }
        Ok(())
    }

    /// Sends what changed of one rank, or all of it.
    pub(super) async fn flush(&mut self, rank: usize) -> Result<(), SessionError> {
        match self.plan(rank) {
            Plan::Nothing => return Ok(()),
            Plan::Deltas(deltas) => {
                for delta in deltas {
                    self.counters.deltas.fetch_add(1, Ordering::Relaxed);
                    self.send(delta).await?;
                }
            }
            Plan::Baseline { seq, incomplete, blocks } => {
                self.counters.baselines.fetch_add(1, Ordering::Relaxed);
                for (unit, blocks) in blocks {
                    for part in convert::baseline((rank as u32, unit), seq, incomplete, runs(blocks)) {
                        self.send(part).await?;
                    }
                }
            }
        }
        let settled = Instant::now() + SETTLE.min(self.counts_interval);
        let due = &mut self.ranks[rank].counts_due;
        *due = Some(due.map_or(settled, |due| due.min(settled)));
        Ok(())
    }

    fn plan(&mut self, rank: usize) -> Plan {
        let state = &self.life.ranks[rank];
        if self.level <= Some(Level::Counts) || !state.is_synced() {
            return Plan::Nothing;
        }
        let mut desk = lock(&self.desk);
        let outbox = &mut desk.outboxes[rank];
        let mut cache = lock(&state.cache);
        let incomplete = cache.mirror().doubt().is_some();
        let views = cache.views(self.index);
        if views.is_empty() {
            return Plan::Nothing;
        }
        if views.iter().any(BlockView::needs_baseline) {
            outbox.owe_baseline();
        }
        if outbox.owes_baseline() && self.rounds.may_begin(rank as u32, &self.terms.reconcile) {
            outbox.tell_incomplete(incomplete);
            views.iter_mut().for_each(BlockView::count_as_told);
            let (seq, unit) = (outbox.begin_baseline(), views[0].space().unit());
            let begin = convert::reconciled((rank as u32, unit), seq, ViewDelta::default(), incomplete, 0);
            return Plan::Deltas(begin.into_iter().collect());
        }
        if outbox.owes_baseline() {
            outbox.tell_incomplete(incomplete);
            let blocks = views.iter_mut().map(|view| (view.space().unit(), view.take_baseline())).collect();
            return Plan::Baseline { seq: outbox.begin_baseline(), incomplete, blocks };
        }
        let news = incomplete != outbox.told_incomplete();
        if !views.iter().any(BlockView::has_changes) && !news {
            return Plan::Nothing;
        }
        let mut changes: Vec<_> =
            views.iter_mut().map(|view| (view.space().unit(), view.take_delta())).collect();
        drop(cache);
        // All views follow one mirror: what is cleared in one unit is cleared in all, and is told once, before anything else.
        changes.iter_mut().skip(1).for_each(|(_, change)| change.cleared = false);
        let mut deltas = Vec::new();
        for (place, (unit, change)) in changes.into_iter().enumerate() {
            let completeness = Completeness { incomplete, news: news && place == 0 };
            deltas.extend(convert::deltas((rank as u32, unit), change, completeness, || outbox.next_seq()));
        }
        outbox.tell_incomplete(incomplete);
        let mut out = Vec::with_capacity(deltas.len());
        for (seq, delta) in deltas {
            if !outbox.owes_baseline() && !outbox.keep(seq, delta.len(), delta.clone()) {
                self.counters.overflows.fetch_add(1, Ordering::Relaxed);
                tracing::info!(rank, "a router is too far behind; it gets a baseline");
            }
            out.push(delta);
        }
        if out.is_empty() { Plan::Nothing } else { Plan::Deltas(out) }
    }

    /// Describes one rank's cache in sums, when that is due.
    async fn report_counts(&mut self, rank: usize) -> Result<(), SessionError> {
        let now = Instant::now();
        let state = &self.life.ranks[rank];
        if !state.is_synced() || self.ranks[rank].counts_due.is_some_and(|due| now < due) {
            return Ok(());
        }
        let (stats, digests) = {
            let desk = lock(&self.desk);
            let outbox = &desk.outboxes[rank];
            let mut cache = lock(&state.cache);
            let stats = cache.mirror().stats();
            let views = cache.views(self.index);
            // Only a set of which everything has been told has a number.
            if views.iter().any(BlockView::has_changes) || (!views.is_empty() && outbox.owes_baseline()) {
                return Ok(());
            }
            let digest = |view: &BlockView| convert::set_fingerprint(rank as u32, outbox.last_seq(), view);
            (stats, views.iter().map(digest).collect::<Vec<_>>())
        };
        self.ranks[rank].counts_due = Some(now + self.counts_interval);
        self.send(convert::counts(rank as u32, stats.evicted_tokens_total, stats.cached_tokens)).await?;
        for digest in digests {
            self.send(digest).await?;
        }
        Ok(())
    }

    /// Sends loads that changed; all of them when the lease needs renewing.
    async fn report_loads(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        let all = now >= self.loads_due;
        if all {
            self.loads_due = now + self.terms.renewal();
        }
        for rank in 0..self.ranks.len() {
            let state = &self.life.ranks[rank];
            let capacity = self.life.info.capacity_tokens;
            let report = state.load().map(|reading| convert::load(rank as u32, &reading, capacity));
            match report {
                Some(report) if all || self.ranks[rank].load.as_ref() != Some(&report) => {
                    self.ranks[rank].load = Some(report.clone());
                    self.send(report).await?;
                }
                Some(_) => {}
                // An unknown load is not an idle one; any message renews the lease.
                None if all => {
                    let stats = lock(&state.cache).mirror().stats();
                    let counts =
                        convert::counts(rank as u32, stats.evicted_tokens_total, stats.cached_tokens);
                    self.send(counts).await?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Says when a rank's mirror becomes incomplete or exact.
    async fn report_doubt(&mut self, rank: usize) -> Result<(), SessionError> {
        let doubt = lock(&self.life.ranks[rank].cache).mirror().doubt();
        if doubt == self.ranks[rank].doubt {
            return Ok(());
        }
        self.ranks[rank].doubt = doubt;
        let reason = match doubt {
            Some(doubt) => format!("rank {rank}: {doubt}; what is reported may be less than what is cached"),
            None => format!("rank {rank}: reports are exact again"),
        };
        let health = self.health.borrow().clone();
        self.send(convert::state(&health, 0, reason)).await
    }

    async fn report_health(&mut self, incarnation: u64) -> Result<(), SessionError> {
        let health = self.health.borrow_and_update().clone();
        let reason = health.reason.to_owned();
        self.send(convert::state(&health, incarnation, reason)).await
    }

    pub(super) async fn send(&self, message: Outgoing) -> Result<(), SessionError> {
        self.counters.count(&message);
        self.out.send(message).await.map_err(|_| SessionError::Closed)
    }
}
