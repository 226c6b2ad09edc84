//! Watches the engine over HTTP and decides which life it lives.

use std::sync::Arc;

use http::StatusCode;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::client::EngineClient;
use super::life::{Life, mint, mint_after_refusal};
use super::load;
use super::model::Model;
use super::probe::EngineInfo;
use super::subscriber::Subscriber;
use crate::config::AgentConfig;

/// The engine as the router should see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) state: State,
    /// For people.
    pub(crate) reason: &'static str,
}

/// What stands between the engine and traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Unreachable,
    Ready,
    Updating,
}

/// What a subscriber or a router's link asks or tells.
#[derive(Debug)]
pub(crate) enum Request {
    /// Is the engine, now, still in the life that was born so? Answered once that is known to be so; dropped if it is not.
    Verify { birth: u64, answer: oneshot::Sender<()> },
    /// The engine's events show that this life is over.
    Restarted { birth: u64 },
    /// A router refused this incarnation because it knows a later one, and perhaps named it.
    Outdated { incarnation: u64, registered: Option<u64> },
}

/// Requests that may wait at once. Each rank and each router has at most one under way; with more than this the others wait
/// for room, as they would for the answer.
const REQUESTS: usize = 64;

/// The task that watches one engine.
pub(crate) struct Supervisor {
    config: AgentConfig,
    client: EngineClient,
    routers: usize,
    lives: watch::Sender<Option<Arc<Life>>>,
    health: watch::Sender<Health>,
    requests: (mpsc::Sender<Request>, mpsc::Receiver<Request>),
    /// Verifications that wait for an answer of the engine.
    waiting: Vec<oneshot::Sender<()>>,
    /// Times that routers refused the present life's incarnation.
    refusals: u32,
    /// The present life is over although the engine may look the same.
    condemned: bool,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Health {
    fn new(state: State, reason: &'static str) -> Self {
        Self { state, reason }
    }
}

impl Supervisor {
    /// A supervisor, and where it tells the present life and the engine's health.
    pub(crate) fn new(
        config: AgentConfig,
        client: EngineClient,
        routers: usize,
        shutdown: CancellationToken,
    ) -> (Self, watch::Receiver<Option<Arc<Life>>>, watch::Receiver<Health>) {
        let (lives, life) = watch::channel(None);
        let (health, healthy) =
            watch::channel(Health::new(State::Unreachable, "the engine has not answered yet"));
        let supervisor = Self {
            config,
            client,
            routers,
            lives,
            health,
            requests: mpsc::channel(REQUESTS),
            waiting: Vec::new(),
            refusals: 0,
            condemned: false,
            tasks: JoinSet::new(),
            shutdown,
        };
        (supervisor, life, healthy)
    }

    /// Where to send requests.
    pub(crate) fn requests(&self) -> mpsc::Sender<Request> {
        self.requests.0.clone()
    }

    /// Runs until shutdown; then ends the life's tasks.
    pub(crate) async fn run(mut self) {
        let mut timer = timer(self.config.state_interval);
        let mut info_due = Instant::now();
        let shutdown = self.shutdown.clone();
        loop {
            let request = tokio::select! {
                () = shutdown.cancelled() => break,
                request = self.requests.1.recv() => request,
                _ = timer.tick() => None,
            };
            let asked = request.is_some();
            if let Some(request) = request {
                self.accept(request);
            } else {
                let look = self.check_health();
                let back = tokio::select! { () = shutdown.cancelled() => break, back = look => back };
                if back {
                    info_due = Instant::now();
                }
            }
            let unknown = self.lives.borrow().is_none();
            let look = unknown || self.condemned || !self.waiting.is_empty() || info_due <= Instant::now();
            if !look || (asked && self.waiting.is_empty() && !self.condemned) {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                info = self.client.info() => match info {
                    Ok(info) => {
                        info_due = Instant::now() + self.config.info_interval;
                        if !self.is_present(&info) {
                            let model = Model::of(&self.config, &info).await;
                            self.begin_life(info, model);
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the engine does not describe itself"),
                }
            }
        }
        self.end_life();
        while self.tasks.join_next().await.is_some() {}
    }

    fn accept(&mut self, request: Request) {
        let Some(present) = self.lives.borrow().clone() else { return };
        match request {
            Request::Verify { birth, answer } if present.birth == birth => self.waiting.push(answer),
            Request::Restarted { birth } if present.birth == birth => self.condemned = true,
            Request::Outdated { incarnation, registered } if present.incarnation == incarnation => {
                self.renumber(&present, registered);
            }
            // From a life that is over already, or about a number that has been given up.
            Request::Verify { .. } | Request::Restarted { .. } | Request::Outdated { .. } => {}
        }
    }

    /// Gives the present life a greater incarnation: the clock was behind when it got the one it has.
    fn renumber(&mut self, present: &Life, registered: Option<u64>) {
        let Some(incarnation) = mint_after_refusal(present.incarnation, registered, self.refusals) else {
            tracing::warn!(
                incarnation = present.incarnation,
                registered,
                "a router knows an incarnation far in the future; check its clock and ours, then remove the worker there"
            );
            return;
        };
        self.refusals = self.refusals.saturating_add(1);
        tracing::warn!(
            refused = present.incarnation,
            incarnation,
            "a router knows a later life of this engine; the clock was stepped back"
        );
        self.lives.send_replace(Some(Arc::new(present.renumbered(incarnation))));
    }

    /// Whether the engine is still in its present life; who asked for that is answered.
    fn is_present(&mut self, info: &EngineInfo) -> bool {
        let present = self.lives.borrow().clone();
        let same = present.as_ref().is_some_and(|life| {
            !self.condemned
                && life.info.life_fingerprint == info.life_fingerprint
                && (life.info.dp_size, life.info.page_size) == (info.dp_size, info.page_size)
                && life.info.events == info.events
        });
        // An engine that shows nothing by which to tell its lives apart is believed only as far as its events prove.
        for answer in self.waiting.drain(..).filter(|_| same) {
            let _ = answer.send(());
        }
        same
    }

    fn begin_life(&mut self, info: EngineInfo, model: Model) {
        self.end_life();
        let before = self.lives.borrow().as_ref().map_or(0, |life| life.incarnation);
        let incarnation = mint(before, info.started_us);
        let life = Life::new(info, model, incarnation, self.config.max_pages, self.routers);
        tracing::info!(
            incarnation,
            version = life.info.version,
            model = life.info.model,
            ranks = life.info.dp_size,
            page_size = life.info.page_size,
            events = !life.info.events.is_empty(),
            text = life.vocabulary.is_ok(),
            chats = life.chat_template.is_ok(),
            "a life of the engine begins"
        );
        if life.info.events.is_empty() {
            tracing::warn!(
                "the engine publishes no KV events: only its load and state are reported (see `check`)"
            );
        }
        if let Err(reason) = &life.vocabulary {
            tracing::warn!(reason = &**reason, "prompts given as text cannot be reported, only token ids");
        } else if let Err(reason) = &life.chat_template {
            tracing::warn!(
                reason = &**reason,
                "no chat template is offered: routers key chats in their own way"
            );
        }
        let life = Arc::new(life);
        (self.condemned, self.refusals) = (false, 0);
        self.spawn_tasks(&life);
        self.lives.send_replace(Some(life));
    }

    fn spawn_tasks(&mut self, life: &Arc<Life>) {
        for (rank, source) in life.info.events.iter().enumerate() {
            let requests = self.requests.0.clone();
            let interval = self.config.verify_interval;
            let subscriber = Subscriber::new(Arc::clone(life), rank, source.clone(), requests, interval);
            self.tasks.spawn(subscriber.run());
        }
        for (rank, source) in life.info.loads.iter().enumerate() {
            self.tasks.spawn(load::follow(Arc::clone(life), rank, source.clone()));
        }
        let poll = load::poll(Arc::clone(life), self.client.clone(), self.config.load_interval);
        self.tasks.spawn(poll);
        // Finished tasks of earlier lives.
        while self.tasks.try_join_next().is_some() {}
    }

    fn end_life(&mut self) {
        self.waiting.clear();
        if let Some(life) = self.lives.borrow().as_ref() {
            life.over.cancel();
        }
    }

    /// Looks whether the engine serves; answers whether it has come back.
    async fn check_health(&mut self) -> bool {
        let now = self.look().await;
        let before = self.health.borrow().clone();
        if now == before {
            return false;
        }
        tracing::info!(state = ?now.state, reason = now.reason, "the engine's state changed");
        let back = before.state == State::Unreachable;
        self.health.send_replace(now);
        back
    }

    async fn look(&self) -> Health {
        let ready = match self.client.get("/ready").await {
            Ok((status, _)) => status,
            Err(error) => {
                tracing::debug!(%error, "the engine does not answer");
                return Health::new(State::Unreachable, "the engine does not answer");
            }
        };
        match ready {
            status if status.is_success() => Health::new(State::Ready, "the engine is ready"),
            StatusCode::NOT_FOUND => match self.client.get("/v1/models").await {
                Ok((status, _)) if status.is_success() => {
                    Health::new(State::Ready, "the engine lists its models")
                }
                _ => Health::new(State::Unreachable, "the engine does not list its models"),
            },
            _ => match self.client.get("/ping").await {
                Ok((status, _)) if status.is_success() => {
                    Health::new(State::Updating, "the engine is alive but not ready: paused or draining")
                }
                _ => Health::new(State::Unreachable, "the engine is starting or shutting down"),
            },
        }
    }
}

fn timer(period: std::time::Duration) -> Interval {
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}
