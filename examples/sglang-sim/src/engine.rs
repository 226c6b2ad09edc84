//! One dp rank at work: drives the scheduler in (scaled) real time, delivers tokens, publishes events and load.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::config::SimConfig;
use crate::events::{LoadStat, encode_batch, encode_load};
use crate::publisher::Publisher;
use crate::radix::Namespace;
use crate::scheduler::{Job, Pause, Produced, RequestId, Scheduler, Totals};

/// What a rank is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Job, mpsc::UnboundedSender<Produced>),
    Abort(RequestId),
    /// `None` ends a pause.
    Pause(Option<Pause>, oneshot::Sender<()>),
    /// Every step takes so many times as long as it should.
    Slow(f64),
    Flush(oneshot::Sender<bool>),
    Paths(oneshot::Sender<Vec<(Namespace, Vec<u32>)>>),
}

/// A rank's numbers, as of its last step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Status {
    pub(crate) load: LoadStat,
    pub(crate) totals: Totals,
    pub(crate) cached_tokens: usize,
    pub(crate) evictable_tokens: usize,
    pub(crate) host_tokens: usize,
}

/// The way to a rank. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct EngineHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

/// Commands that may wait.
const QUEUE: usize = 4096;

/// While nothing changes the load is published this often.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Decode steps between two publications of the load, SGLang's default.
const LOAD_STEPS: u64 = 15;

struct Engine {
    config: Arc<SimConfig>,
    rank: u32,
    scheduler: Scheduler,
    publisher: Publisher,
    clients: HashMap<RequestId, mpsc::UnboundedSender<Produced>>,
    status: watch::Sender<Status>,
    /// When the step under way ends. Never reset while there is work, so that late timers do not add up.
    deadline: Instant,
    steps: u64,
    slowdown: f64,
}

impl EngineHandle {
    /// A rank, and its work to be spawned.
    pub(crate) fn new(
        config: Arc<SimConfig>,
        rank: u32,
        publisher: Publisher,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let scheduler = Scheduler::new(config.limits(), config.timing());
        let (status, seen) = watch::channel(Status { load: scheduler.load(rank), ..Status::default() });
        let clients = HashMap::new();
        let deadline = Instant::now();
        let engine =
            Engine { config, rank, scheduler, publisher, clients, status, deadline, steps: 0, slowdown: 1.0 };
        (Self { commands, status: seen }, engine.run(queue))
    }

    /// Queues a request; its tokens arrive in order. `None` if the rank is gone.
    pub(crate) async fn submit(&self, job: Job) -> Option<Running> {
        let (sender, tokens) = mpsc::unbounded_channel();
        let id = job.id;
        self.commands.send(Command::Submit(job, sender)).await.ok()?;
        Some(Running { id, tokens, commands: self.commands.clone() })
    }

    pub(crate) async fn send(&self, command: Command) {
        // A rank that is gone has nothing to be told.
        let _ = self.commands.send(command).await;
    }

    /// Pauses or resumes, and waits until that is in force.
    pub(crate) async fn pause(&self, pause: Option<Pause>) {
        let (done, in_force) = oneshot::channel();
        self.send(Command::Pause(pause, done)).await;
        let _ = in_force.await;
    }

    pub(crate) async fn flush(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Flush(answer)).await;
        answered.await.unwrap_or(false)
    }

    pub(crate) async fn paths(&self) -> Vec<(Namespace, Vec<u32>)> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Paths(answer)).await;
        answered.await.unwrap_or_default()
    }

    pub(crate) fn status(&self) -> Status {
        *self.status.borrow()
    }
}

/// A request at a rank. Dropping it aborts the request.
#[derive(Debug)]
pub(crate) struct Running {
    id: RequestId,
    tokens: mpsc::UnboundedReceiver<Produced>,
    commands: mpsc::Sender<Command>,
}

impl Running {
    /// The next token; `None` once there are no more, because the last one came or because it was aborted.
    pub(crate) async fn next(&mut self) -> Option<Produced> {
        self.tokens.recv().await
    }

    /// A token that is there already.
    pub(crate) fn ready(&mut self) -> Option<Produced> {
        self.tokens.try_recv().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // With a full queue the rank finds out when it delivers the next token.
        let _ = self.commands.try_send(Command::Abort(self.id));
    }
}

impl Engine {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.publish_events();
        loop {
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            if self.scheduler.has_work() {
                self.work().await;
                continue;
            }
            self.publish_events();
            match tokio::time::timeout(self.config.real(LOAD_INTERVAL), commands.recv()).await {
                Ok(Some(command)) => {
                    self.deadline = Instant::now();
                    self.obey(command);
                }
                Ok(None) => break,
                Err(_) => self.publish_load(),
            }
        }
    }

    async fn work(&mut self) {
        let step = self.scheduler.step();
        self.deadline += self.config.real(step.duration.mul_f64(self.slowdown));
        if self.deadline > Instant::now() {
            tokio::time::sleep_until(self.deadline).await;
        } else {
            tokio::task::yield_now().await;
        }
        for produced in step.produced {
            self.deliver(produced);
        }
        if step.publish {
            self.publish_events();
        }
        self.steps += 1;
        if step.prefill || self.steps.is_multiple_of(LOAD_STEPS) || self.scheduler.is_idle() {
            self.publish_load();
        }
    }

    fn deliver(&mut self, produced: Produced) {
        let Some(client) = self.clients.get(&produced.id) else { return };
        let gone = client.send(produced).is_err();
        if gone {
            self.scheduler.abort(produced.id);
        }
        if gone || produced.last {
            self.clients.remove(&produced.id);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(job, client) => {
                self.clients.insert(job.id, client);
                self.scheduler.submit(job);
            }
            Command::Abort(id) => {
                self.scheduler.abort(id);
                self.clients.remove(&id);
            }
            Command::Pause(pause, done) => {
                self.pause(pause);
                let _ = done.send(());
            }
            Command::Slow(slowdown) => {
                self.slowdown = slowdown;
                self.deadline = Instant::now();
            }
            Command::Flush(answer) => {
                let flushed = self.scheduler.flush();
                self.publish_events();
                let _ = answer.send(flushed);
            }
            Command::Paths(answer) => drop(answer.send(self.scheduler.cached_paths())),
        }
        self.update_status();
    }

    fn pause(&mut self, pause: Option<Pause>) {
        match pause {
            Some(pause) => {
                for id in self.scheduler.pause(pause) {
                    self.clients.remove(&id);
                }
                if pause == Pause::Retract {
                    self.publish_now();
                }
            }
            None => self.scheduler.resume(),
        }
        self.deadline = Instant::now();
    }

    /// What happens in a pause is published after it.
    fn publish_events(&mut self) {
        if !self.scheduler.is_paused() {
            self.publish_now();
        }
    }

    fn publish_now(&mut self) {
        let events = self.scheduler.take_events();
        if !events.is_empty() {
            let ts = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
            let (page, encoding) = (self.config.page_size, self.config.event_encoding);
            self.publisher.publish_events(encode_batch(ts, &events, page, self.rank, encoding));
        }
        self.update_status();
    }

    fn publish_load(&mut self) {
        self.update_status();
        self.publisher.publish_load(encode_load(&self.scheduler.load(self.rank)));
        if self.publisher.dropped() > 0 {
            tracing::trace!(dropped = self.publisher.dropped(), "batches only replay has");
        }
    }

    fn update_status(&self) {
        let (load, totals) = (self.scheduler.load(self.rank), self.scheduler.totals());
        let (cached_tokens, evictable_tokens) =
            (self.scheduler.cached_tokens(), self.scheduler.evictable_tokens());
        let host_tokens = self.scheduler.host_tokens();
        self.status.send_replace(Status { load, totals, cached_tokens, evictable_tokens, host_tokens });
    }
}
