//! The routers' side: one session with each, opened again whenever it ends.
//!
//! What a router has been told outlives the connection: deltas that it has not acknowledged are kept, within bounds, so
//! that a mere reconnect goes on where it stopped. A router that was restarted, or that is too slow for the bounds, gets
//! a baseline instead.

mod convert;
mod level;
mod outbox;
mod predictions;
mod reconcile;
mod stream;
mod terms;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::lock;
use crate::config::{Level, Settings};
use crate::engine::{Health, Life, Request};
use convert::{PredictedPrompts, SymbolBatch};
use outbox::{Limits, Outbox};
use stream::{End, SessionError};

/// A session shorter than this counts as a failed attempt.
const STEADY: Duration = Duration::from_secs(1);
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// Predictions that wait for the writer, which looks at them with every report.
const MOST_PREDICTED: usize = 65_536;

/// The connection to one router, through all its sessions.
pub(crate) struct Link {
    /// Place of this router's views in every rank's cache.
    index: usize,
    url: String,
    settings: Arc<Settings>,
    engine: Watched,
    counters: Arc<RouterCounters>,
    shutdown: CancellationToken,
    memory: Option<Memory>,
    /// One for all sessions and all lives, so that whoever reads the stream always has the present one.
    desk: Arc<Mutex<Desk>>,
}

/// The engine as its supervisor shows it, and the way to ask the supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) lives: watch::Receiver<Option<Arc<Life>>>,
    pub(crate) health: watch::Receiver<Health>,
    pub(crate) requests: mpsc::Sender<Request>,
}

/// What one router was told in one life of the engine; the numbers of it stand on the desk.
struct Memory {
    incarnation: u64,
    /// The key space of the views, and what of it is told.
    view: Option<(u64, Level)>,
}

/// What the two directions of a session share.
struct Desk {
    outboxes: Vec<Outbox>,
    /// The level the router asked for.
    wanted: Level,
    /// Symbols that came and were not looked at yet: of a rank and unit the latest.
    symbols: Vec<SymbolBatch>,
    /// What the router said that it predicts, until it is looked at: one for each rank and unit.
    predicted: Vec<PredictedPrompts>,
    /// Symbols have come.
    came: Arc<Notify>,
}

/// What happened on the way to one router.
#[derive(Debug, Default)]
pub(crate) struct RouterCounters {
    pub(crate) connected: AtomicBool,
    pub(crate) sessions: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) deltas: AtomicU64,
    pub(crate) baselines: AtomicU64,
    pub(crate) baselines_in_force: AtomicU64,
    pub(crate) resyncs: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) overflows: AtomicU64,
    pub(crate) reconciliations: AtomicU64,
    /// The level that is really served; `None` while no session is open.
    pub(crate) level: Mutex<Option<Level>>,
}

impl RouterCounters {
    fn count(&self, message: &convert::Outgoing) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
    }
}

impl Link {
    pub(crate) fn new(
        index: usize,
        settings: Arc<Settings>,
        engine: Watched,
        counters: Arc<RouterCounters>,
        shutdown: CancellationToken,
    ) -> Self {
        let url = settings.routers[index].clone();
        let wanted = settings.config.report_level;
        let desk = Desk {
            outboxes: Vec::new(),
            wanted,
            symbols: Vec::new(),
            predicted: Vec::new(),
            came: Arc::default(),
        };
        let desk = Arc::new(Mutex::new(desk));
        Self { index, url, settings, engine, counters, shutdown, memory: None, desk }
    }

    /// Opens sessions until shutdown.
    pub(crate) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        let mut failures = 0_u32;
        loop {
            let Some(life) = self.present_life().await else { return };
            let (began, incarnation) = (Instant::now(), life.incarnation);
            let end = tokio::select! {
                () = shutdown.cancelled() => Ok(End::Shutdown),
                end = self.session(life) => end,
            };
            let was_connected = self.counters.connected.swap(false, Ordering::Relaxed);
            *lock(&self.counters.level) = None;
            let steady = was_connected && began.elapsed() >= STEADY;
            match end {
                Ok(End::Shutdown) => return,
                Ok(End::EngineChanged) => {
                    failures = 0;
                    continue;
                }
                Err(error) => {
                    self.log(&error, if steady { 0 } else { failures });
                    if let Some(registered) = error.outdated() {
                        // Without a supervisor there will be no further session either.
                        let _ =
                            self.engine.requests.send(Request::Outdated { incarnation, registered }).await;
                    }
                }
            }
            failures = if steady { 0 } else { failures.saturating_add(1) };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.delay(failures)) => {}
            }
        }
    }

    /// The engine's present life, once there is one.
    async fn present_life(&mut self) -> Option<Arc<Life>> {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => None,
            life = self.engine.lives.wait_for(Option::is_some) => life.ok().and_then(|life| life.clone()),
        }
    }

    /// Exponential, capped, and spread so that agents do not come back in step.
    fn delay(&self, failures: u32) -> Duration {
        let delay = FIRST_DELAY.saturating_mul(1 << failures.min(16));
        delay.min(self.settings.config.max_reconnect_delay).mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    fn log(&self, error: &SessionError, failures: u32) {
        if failures == 0 {
            tracing::warn!(router = self.url, %error, "the session with a router ended; trying again");
        } else {
            tracing::debug!(router = self.url, %error, failures, "a router cannot be reached");
        }
    }

    /// What was told in this life; nothing, if nothing was.
    fn remember(&mut self, life: &Life) -> &mut Memory {
        if self.memory.as_ref().is_none_or(|memory| memory.incarnation != life.incarnation) {
            let config = &self.settings.config;
            let limits = Limits { deltas: config.max_unacked_deltas, bytes: config.max_unacked_bytes };
            lock(&self.desk).begin_life(life.ranks.len(), limits);
            self.memory = None;
        }
        self.memory.get_or_insert(Memory { incarnation: life.incarnation, view: None })
    }
}

impl Desk {
    /// Symbols have come; those of an unknown rank are of no use.
    fn put(&mut self, batch: SymbolBatch) {
        self.symbols.retain(|other| (other.rank, other.unit) != (batch.rank, batch.unit));
        if (batch.rank as usize) < self.outboxes.len() {
            self.symbols.push(batch);
            self.came.notify_one();
        }
    }

    /// The router has named what it predicts. What finds no room is told of when it is stored.
    fn put_predicted(&mut self, prompts: PredictedPrompts) {
        let PredictedPrompts { rank, unit, last } = prompts;
        let waiting: usize = self.predicted.iter().map(|prompts| prompts.last.len()).sum();
        let has_room = waiting + last.len() <= MOST_PREDICTED;
        if last.is_empty() || !has_room || rank as usize >= self.outboxes.len() {
            return;
        }
        match self.predicted.iter_mut().find(|other| (other.rank, other.unit) == (rank, unit)) {
            Some(prompts) => prompts.last.extend(last),
            None => self.predicted.push(PredictedPrompts { rank, unit, last }),
        }
    }

    /// Clears the desk of what an earlier life was told; what the router wants stays.
    fn begin_life(&mut self, ranks: usize, limits: Limits) {
        self.symbols.clear();
        self.predicted.clear();
        self.outboxes.truncate(ranks);
        self.outboxes.iter_mut().for_each(Outbox::begin_life);
        self.outboxes.resize_with(ranks, || Outbox::new(limits));
    }
}

#[cfg(test)]
mod tests {
    use router_core::key::Unit;

    use super::*;

    #[test]
    fn what_is_named_and_not_looked_at_is_bounded() {
        let limits = Limits { deltas: 1, bytes: 1 };
        let mut desk = Desk {
            outboxes: vec![Outbox::new(limits)],
            wanted: Level::Removals,
            symbols: Vec::new(),
            predicted: Vec::new(),
            came: Arc::default(),
        };
        let named = |rank, last| PredictedPrompts { rank, unit: Unit::Token, last };
        for _ in 0..3 {
            desk.put_predicted(named(0, Vec::new()));
            desk.put_predicted(named(7, vec![1]));
        }
        assert_eq!(desk.predicted, [], "nothing is named, or of no rank");
        for hash in 1..=MOST_PREDICTED as u64 + 5 {
            desk.put_predicted(named(0, vec![hash]));
        }
        assert_eq!(desk.predicted, [named(0, (1..=MOST_PREDICTED as u64).collect())]);
    }
}
