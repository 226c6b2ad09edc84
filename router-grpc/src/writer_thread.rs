//! The thread of the single writer: drives it and hands out what it has to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use router_core::{Notice, Writer};
use router_http::Clock;

use crate::events::EventHub;
use crate::session::Sessions;
use crate::telemetry::ControlMetrics;

/// Where notices go.
#[derive(Clone, Debug)]
pub(crate) struct Listeners {
    pub(crate) sessions: Sessions,
    pub(crate) events: EventHub,
    pub(crate) metrics: ControlMetrics,
}

/// The running thread. Dropping it stops the writer.
#[derive(Debug)]
pub(crate) struct WriterThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The writer wakes this often even if nothing happens, so that leases end.
const IDLE: Duration = Duration::from_millis(100);

impl WriterThread {
    /// Starts it. `interval`: the least time from a turn that began with an update to the next. `died` is called if it ends without
    /// having been told to.
    pub(crate) fn start(
        mut writer: Writer,
        clock: Clock,
        interval: Duration,
        listeners: Listeners,
        died: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let work = move || {
            let watch = Watch { told: told.clone(), died: Some(died) };
            while !told.load(Relaxed) && writer.wait(IDLE) {
                let is_told_something = writer.has_update();
                for notice in writer.turn(clock.now()) {
                    listeners.hand_out(notice);
                }
                // Under load a turn takes in what many requests have said. Waiting for each, this thread would take the core from the
                // next one, and waking it would cost the one before.
                if is_told_something {
                    std::thread::park_timeout(interval);
                }
            }
            drop(watch);
        };
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(work)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has been reported by the watch.
            let _ = thread.join();
        }
    }
}

/// Reports an end that nobody asked for, a panic included.
struct Watch<F: FnOnce()> {
    told: Arc<AtomicBool>,
    died: Option<F>,
}

impl<F: FnOnce()> Drop for Watch<F> {
    fn drop(&mut self) {
        if let Some(died) = self.died.take().filter(|_| !self.told.load(Relaxed)) {
            died();
        }
    }
}

impl Listeners {
    fn hand_out(&self, notice: Notice) {
        match notice {
            Notice::Acked { session, rank, seq } => self.sessions.acknowledge(session, rank, seq),
            Notice::ResyncNeeded { session, rank, reason } => {
                self.metrics.resyncs.inc();
                self.sessions.ask_for_baseline(session, rank, &reason);
            }
            Notice::ReconcileNeeded { session, rank, reason } => {
                tracing::info!(rank, reason = &*reason, "a rank's claims are to be reconciled");
                self.sessions.reconcile(session, rank);
            }
            Notice::Reconciled { target: _, false_claims, missing } => {
                self.metrics.reconciled(false_claims, missing);
            }
            Notice::Predicted { session, rank, unit, last } => {
                self.sessions.predicted(session, rank, unit, last);
            }
            Notice::SessionEnded { session, why } => self.sessions.end(session, why),
            Notice::UnknownParents { target: _, runs } => {
                self.metrics.unknown_parents.inc_by(runs);
            }
            Notice::Happened { at: _, kind, url, rank, detail } => {
                match kind {
                    router_core::EventKind::Unvouched => {
                        tracing::warn!(worker = &*url, rank, ?kind, detail = &*detail, "fleet");
                    }
                    _ => tracing::info!(worker = &*url, rank, ?kind, detail = &*detail, "fleet"),
                }
                if kind == router_core::EventKind::WorkerRemoved {
                    self.metrics.forget_worker(&url);
                }
                self.events.tell(kind, url, rank, detail);
            }
            Notice::Mispredicted { target: _, error_tokens, cause } => {
                self.metrics.mispredicted(error_tokens, cause);
            }
        }
    }
}
