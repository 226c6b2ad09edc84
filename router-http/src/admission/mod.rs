//! Requests that wait for room, because as many are in flight as may be.
//!
//! ```text
//! request ─ route ─▶ Ok ─────────────────────────────────────▶ worker
//!             └▶ AtBound ─▶ queue ─▶ dispatcher decides anew ──┘   the queue: router_core::admission::FairQueue
//!                             ▲          ▲ a request ended, or 100 ms have passed
//!                             └ 429 full, 503 too long, or the client leaves: at once
//! ```
//! One queue for all threads, behind a lock that nobody takes while there is room. While somebody waits, newcomers queue up as well,
//! so that nobody takes what another has waited for. Room is given together with its decision: the dispatcher routes for whoever
//! is next. `docs/admission.md` has the rules.

mod standing;
mod wish;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderName;
use router_core::admission::{DrainRate, FairQueue, Offer, QueueSettings, Ticket};
use router_core::{RouteError, Router};
use tokio::sync::{Notify, oneshot};
use tokio::time::MissedTickBehavior;

pub(crate) use self::standing::Standing;
pub(crate) use self::wish::{Granted, Wish};
use crate::clock::Clock;
use crate::error::Failure;
use crate::metrics::{HttpMetrics, QueueLabels};

/// How requests wait for room. What is room is for [`Settings::limits`](router_core::Settings::limits) to say.
#[derive(Clone, Debug)]
pub struct AdmissionConfig {
    /// Bounds of the queue, and the tenants' weights.
    pub queue: QueueSettings,
    /// Longest wait; after it the answer is 503.
    pub timeout: Duration,
    /// The header that names the tenant; requests without it share one queue.
    pub tenant_header: HeaderName,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    router: Router,
    clock: Clock,
    metrics: HttpMetrics,
    timeout: Duration,
    state: Mutex<State>,
    /// As many as in the queue, to be read without the lock.
    waiting: AtomicUsize,
    /// There may be room.
    room: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    queue: FairQueue<Waiting>,
    drain: DrainRate,
}

#[derive(Debug)]
struct Waiting {
    wish: Wish,
    class: u64,
    told: oneshot::Sender<Told>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "sent once")]
enum Told {
    Decided(Result<Granted, RouteError>),
    /// Others have more right to its place.
    Displaced,
}

/// A place in the queue, which is given up with this.
#[derive(Debug)]
struct Place<'a> {
    admission: &'a Admission,
    ticket: Ticket,
}

/// Longest time after which whoever is refused is told to come back.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Time after which the queue is looked at though nobody said that there is room: workers come, and come back.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

impl Default for AdmissionConfig {
    /// 1,024 requests for at most a minute; tenants are named by `x-espalier-tenant`.
    fn default() -> Self {
        Self {
            queue: QueueSettings::default(),
            timeout: Duration::from_secs(60),
            tenant_header: HeaderName::from_static("x-espalier-tenant"),
        }
    }
}

impl Admission {
    /// `None` where the router has no limits: nobody ever waits.
    pub(crate) fn new(
        config: &AdmissionConfig,
        router: &Router,
        clock: Clock,
        metrics: HttpMetrics,
    ) -> Option<Arc<Self>> {
        if !router.has_limits() {
            return None;
        }
        let room = Arc::new(Notify::new());
        let told = room.clone();
        router.on_room(move || told.notify_one());
        let state = State { queue: FairQueue::new(config.queue.clone()), drain: DrainRate::default() };
        Some(Arc::new(Self {
            router: router.clone(),
            clock,
            metrics,
            timeout: config.timeout,
            state: Mutex::new(state),
            waiting: AtomicUsize::new(0),
            room,
        }))
    }

    /// Nobody waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.load(Relaxed) == 0
    }

    /// Waits until there is room, and is given it.
    pub(crate) async fn wait(&self, wish: Wish, standing: &Standing) -> Result<Granted, Failure> {
        let began = Instant::now();
        let (told, answer) = oneshot::channel();
        let place = self.queue_up(Waiting { class: wish.class(), wish, told }, standing)?;
        self.room.notify_one();
        let told = tokio::time::timeout(self.timeout, answer).await;
        self.metrics.queue_wait_s.observe(began.elapsed().as_secs_f64());
        drop(place);
        match told {
            Ok(Ok(Told::Decided(decided))) => decided.map_err(Failure::Route),
            Ok(Ok(Told::Displaced)) => Err(self.full("displaced")),
            // The dispatcher has ended, and with it the time of whoever waits.
            Ok(Err(_)) | Err(_) => {
                self.count("timeout");
                let waiting = self.waiting.load(Relaxed);
                let seconds = self.timeout.as_secs_f64();
                Err(Failure::QueueTimeout { seconds, retry_after_s: self.retry_after(waiting) })
            }
        }
    }

    /// Gives out room, for ever.
    pub(crate) async fn run(&self) {
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.room.notified() => {}
                _ = tick.tick() => {}
            }
            if !self.is_idle() {
                self.dispatch();
            }
        }
    }

    fn queue_up(&self, waiting: Waiting, standing: &Standing) -> Result<Place<'_>, Failure> {
        let cost = waiting.wish.cost(&self.router);
        let mut state = self.lock();
        let (tenant, priority) = (standing.tenant(), standing.priority());
        let ticket = match state.queue.offer(tenant, priority, cost, self.clock.now(), waiting) {
            Offer::Queued(ticket) => ticket,
            Offer::Displaced { ticket, other } => {
                // Where nobody listens any more nobody need be told.
                let _ = other.told.send(Told::Displaced);
                ticket
            }
            Offer::Refused(_) => {
                drop(state);
                return Err(self.full("full"));
            }
        };
        self.note(&state);
        Ok(Place { admission: self, ticket })
    }

    /// Decides for whoever is next, for as long as there is room for anybody.
    fn dispatch(&self) {
        let mut rng = fastrand::Rng::new();
        let mut blocked: Vec<u64> = Vec::new();
        let mut state = self.lock();
        let now = self.clock.now();
        loop {
            let taken = state.queue.take(now, |waiting| {
                if blocked.contains(&waiting.class) {
                    return None;
                }
                match waiting.wish.matched(&self.router, now, &mut rng) {
                    Ok(tokens) => Some(tokens),
                    Err(RouteError::AtBound) => {
                        blocked.push(waiting.class);
                        None
                    }
                    // It is told so.
                    Err(_) => Some(0),
                }
            });
            let Some(taken) = taken else { break };
            let decided = taken.item().wish.route(&self.router, now, &mut rng);
            if matches!(decided, Err(RouteError::AtBound)) {
                // Somebody was faster. Room is looked for again when there is some.
                state.queue.put_back(taken);
                break;
            }
            state.drain.departed(now);
            // Whoever has just left gives the room back by not taking it.
            let _ = taken.into_item().told.send(Told::Decided(decided));
        }
        self.note(&state);
    }

    fn full(&self, reason: &'static str) -> Failure {
        self.count(reason);
        let waiting = self.waiting.load(Relaxed);
        Failure::QueueFull { waiting, retry_after_s: self.retry_after(waiting) }
    }

    fn retry_after(&self, waiting: usize) -> u32 {
        let time = self.lock().drain.time_for(waiting, LONGEST_RETRY_AFTER, self.clock.now());
        time.as_secs_f64().ceil() as u32
    }

    fn count(&self, reason: &'static str) {
        self.metrics.queue_refused.get_or_create(&QueueLabels { reason }).inc();
    }

    fn note(&self, state: &State) {
        let waiting = state.queue.len();
        self.waiting.store(waiting, Relaxed);
        self.metrics.queue_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        let left = state.queue.remove(self.ticket);
        self.admission.note(&state);
        drop(state);
        drop(left);
    }
}
