//! Sessions ask in real time: starts open loop, later turns after the answers before them and their think time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::client::{Answer, Client, Failure};
use super::events::Api;
use super::prompts::Prompts;
use super::scale::Scale;
use super::way::{Chosen, Way};
use crate::lab::LabError;
use crate::workload::{Traffic, Turn};

/// What was seen of one request. Times count from the run's start.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// When it should have been sent; what delays the driver delays the client.
    pub(super) due: Duration,
    /// When it was; no two at the same time, and in the order in which their ways were chosen.
    pub(super) sent: Duration,
    /// The worker that it went to, by its place; absent where nobody says.
    pub(super) engine: Option<usize>,
    pub(super) first: Option<Duration>,
    pub(super) done: Option<Duration>,
    /// As engines count them, not scaled back.
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) predicted_tokens: Option<u64>,
    pub(super) retractions: u64,
    pub(super) failure: Option<Failure>,
}

/// Traffic on its way to a router.
pub(super) struct Drive {
    pub(super) traffic: Arc<Traffic>,
    pub(super) scale: Scale,
    pub(super) api: Api,
    /// The model's name, for routes that want one.
    pub(super) model: String,
    pub(super) way: Way,
    /// The workers' addresses, as far as they are known.
    pub(super) workers: Vec<String>,
    pub(super) timeout: Duration,
    pub(super) client: Client,
    pub(super) began: Instant,
    /// Called when a request is over.
    pub(super) over: Box<dyn Fn() + Send + Sync>,
    prompts: Prompts,
    choosing: Mutex<()>,
    seen: Mutex<Vec<Option<Seen>>>,
    session_ends: Mutex<Vec<Duration>>,
    refused_in_a_row: AtomicUsize,
    out_of_descriptors: AtomicBool,
}

/// Where, and how.
pub(super) struct Target {
    pub(super) way: Way,
    pub(super) workers: Vec<String>,
    pub(super) api: Api,
    pub(super) model: String,
    pub(super) scale: Scale,
}

/// Bodies are made so long before they are due, so that making them delays nobody.
const AHEAD: Duration = Duration::from_millis(50);

impl Drive {
    pub(super) fn new(
        traffic: Arc<Traffic>,
        target: Target,
        timeout: Duration,
        over: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let Target { way, workers, api, model, scale } = target;
        Self {
            seen: Mutex::new(vec![None; traffic.requests.len()]),
            session_ends: Mutex::new(vec![Duration::ZERO; traffic.sessions.len()]),
            traffic,
            scale,
            api,
            model,
            way,
            workers,
            timeout,
            client: Client::new(),
            began: Instant::now(),
            over,
            prompts: Prompts::new(scale),
            choosing: Mutex::default(),
            refused_in_a_row: AtomicUsize::new(0),
            out_of_descriptors: AtomicBool::new(false),
        }
    }

    /// Every session to its end. Whoever drops it ends all that is under way.
    pub(super) async fn run(self: &Arc<Self>) {
        let mut sessions = JoinSet::new();
        for number in 0..self.traffic.sessions.len() {
            let drive = Arc::clone(self);
            sessions.spawn(async move { drive.session(number).await });
        }
        while sessions.join_next().await.is_some() {}
    }

    /// What has been seen so far of each request that is over, in the traffic's order.
    pub(super) fn seen(&self) -> Vec<Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When each session was over.
    pub(super) fn session_ends(&self) -> Vec<Duration> {
        self.session_ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that were refused since the last one that was not.
    pub(super) fn refused_in_a_row(&self) -> usize {
        self.refused_in_a_row.load(Relaxed)
    }

    /// This process could not open a connection.
    pub(super) fn out_of_descriptors(&self) -> bool {
        self.out_of_descriptors.load(Relaxed)
    }

    async fn session(&self, number: usize) {
        let session = &self.traffic.sessions[number];
        let mut answered = session.start;
        for turn in &session.turns {
            self.turn(number, turn, (answered + turn.think).max(turn.not_before)).await;
            answered = self.began.elapsed();
        }
        self.session_ends.lock().unwrap_or_else(PoisonError::into_inner)[number] = answered;
    }

    async fn turn(&self, session: usize, turn: &Turn, due: Duration) {
        sleep_until(self.began + due.saturating_sub(AHEAD)).await;
        let prompts = turn.requests.iter().map(|request| {
            let sequence = &self.traffic.requests[*request as usize];
            let prompt = self.prompts.prompt(*request, sequence);
            let body = self.api.body(&self.model, &prompt, self.scale.output_tokens(sequence));
            (*request, prompt, body)
        });
        let prompts: Vec<_> = prompts.collect();
        sleep_until(self.began + due).await;
        join_all(prompts.into_iter().map(|(request, prompt, body)| {
            // Chosen in order, before any of them is under way.
            let (sent, chosen) = self.choose(session, request);
            self.ask(request, (due, sent), prompt, body, chosen)
        }))
        .await;
    }

    /// Where a request goes, and when that was decided: for one after the other, so that the times tell the order.
    fn choose(&self, session: usize, request: u32) -> (Duration, Result<Chosen<'_>, LabError>) {
        let _alone = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.began.elapsed();
        (now, self.way.choose(session, &self.traffic.requests[request as usize], now))
    }

    async fn ask(
        &self,
        request: u32,
        (due, sent): (Duration, Duration),
        prompt: Vec<u32>,
        body: String,
        chosen: Result<Chosen<'_>, LabError>,
    ) {
        let leave_at = self.began + due + self.timeout;
        let mut answer = Answer::default();
        let chosen_engine = chosen.as_ref().ok().and_then(Chosen::engine);
        let asked = match chosen {
            Err(_) => Err(Failure::Nowhere),
            Ok(mut chosen) => {
                let url = chosen.url().to_owned();
                let first = || chosen.first_token(self.began.elapsed());
                let asked = self.client.generate(&url, self.api, body, leave_at, &mut answer, first).await;
                if asked.is_ok() {
                    let cached_tokens = answer.usage.cached_tokens * self.scale.get() as u64;
                    let sequence = &self.traffic.requests[request as usize];
                    chosen.complete(sequence, cached_tokens, self.began.elapsed());
                }
                asked
            }
        };
        match asked {
            Err(Failure::Refused) => drop(self.refused_in_a_row.fetch_add(1, Relaxed)),
            Err(Failure::OutOfDescriptors) => self.out_of_descriptors.store(true, Relaxed),
            _ => self.refused_in_a_row.store(0, Relaxed),
        }
        self.prompts.learn(&self.traffic.requests[request as usize], &prompt, &answer.output);
        let since = |at: Option<Instant>| at.map(|at| at - self.began);
        let seen = Seen {
            due,
            sent,
            engine: chosen_engine.or_else(|| self.place_of(answer.worker.as_deref()?)),
            first: since(answer.first),
            done: since(answer.done),
            prompt_tokens: answer.usage.prompt_tokens,
            cached_tokens: answer.usage.cached_tokens,
            predicted_tokens: answer.predicted_tokens,
            retractions: answer.usage.retractions,
            failure: asked.err(),
        };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)[request as usize] = Some(seen);
        (self.over)();
    }

    fn place_of(&self, worker: &str) -> Option<usize> {
        self.workers.iter().position(|url| url == worker)
    }
}
