//! Follows the events of one rank.
//!
//! The subscription is opened first and the past replayed after, so that nothing falls between; what arrives twice is
//! told by its sequence number. A jump of the numbers is closed by a replay; what the engine can no longer replay empties
//! the mirror. Silence proves nothing: after some of it, and after every loss of the connection, the last batch is asked
//! for again. Its presence with the same time stamp proves that this is still the same publisher and shows whatever was
//! missed; its absence means that the engine was restarted.
//!
//! The ZeroMQ crate reconnects by itself, with pauses of up to 30 s and without a word to the reader, so a lost
//! connection is noticed on the socket's monitor and the socket is rebuilt here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use zeromq::{Socket, SocketEvent, SocketOptions, SocketRecv, SubSocket, ZmqError};

use super::life::{Life, RankState};
use super::probe::EventSource;
use super::replay::{Replay, ReplayError, numbered};
use super::supervisor::Request;
use crate::cache::lock;
use crate::events::{Event, EventBatch};
use crate::mirror::Doubt;

/// Time after a (re)connection after which events are verified: a batch may be published before the engine knows of the
/// subscription and after it answered the replay.
const FIRST_VERIFY: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Follows one rank until its life is over.
pub(crate) struct Subscriber {
    life: Arc<Life>,
    rank: usize,
    source: EventSource,
    supervisor: mpsc::Sender<Request>,
    verify_interval: Duration,
    /// Sequence number of the batch wanted next.
    next: u64,
    /// Time stamp of the batch before it.
    last_timestamp: Option<f64>,
    /// The engine has answered a replay with batches, so that an empty answer says something.
    replays: bool,
}

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the event socket: {0}")]
    Socket(#[from] ZmqError),
    #[error("the event socket was closed by the engine")]
    Disconnected,
    #[error("the engine publishes from its beginning again")]
    Restarted,
    #[error("this life of the engine is over")]
    LifeOver,
}

impl Subscriber {
    pub(crate) fn new(
        life: Arc<Life>,
        rank: usize,
        source: EventSource,
        supervisor: mpsc::Sender<Request>,
        verify_interval: Duration,
    ) -> Self {
        Self {
            life,
            rank,
            source,
            supervisor,
            verify_interval,
            next: 0,
            last_timestamp: None,
            replays: false,
        }
    }

    /// Runs until the life is over.
    pub(crate) async fn run(mut self) {
        let life = Arc::clone(&self.life);
        let mut backoff = Backoff::default();
        loop {
            let ended = tokio::select! {
                () = life.over.cancelled() => return,
                Err(ended) = self.connection(&mut backoff) => ended,
            };
            match ended {
                Ended::LifeOver => return,
                Ended::Restarted => {
                    tracing::info!(rank = self.rank, "the engine was restarted");
                    let restarted = Request::Restarted { birth: life.birth };
                    let _ = self.supervisor.send(restarted).await;
                    // The supervisor ends this life; nothing more is read in it.
                    life.over.cancelled().await;
                    return;
                }
                Ended::Socket(_) | Ended::Disconnected => {
                    tracing::debug!(rank = self.rank, error = %ended, "connecting to the events again");
                }
            }
            tokio::select! {
                () = life.over.cancelled() => return,
                () = backoff.wait() => {}
            }
        }
    }

    async fn connection(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Ended> {
        let mut socket = SubSocket::with_options(options());
        let mut monitor = socket.monitor();
        socket.subscribe(&self.source.topic).await?;
        socket.connect(&self.source.endpoint).await?;
        let again = self.next > 0 || self.rank().is_synced();
        if again {
            self.confirm_life().await?;
        }
        let replayed = self.catch_up().await?;
        // Nothing else would tell this publisher from the one before the connection was lost.
        if again && !replayed && self.life.info.life_fingerprint.is_none() {
            return Err(Ended::Restarted);
        }
        self.rank().set_synced();
        backoff.reset();
        let mut last_live = None;
        let mut verify_at = Instant::now() + FIRST_VERIFY.min(self.verify_interval);
        loop {
            tokio::select! {
                message = socket.recv() => {
                    let Some((seq, payload)) = numbered(&message?) else {
                        tracing::warn!(rank = self.rank, "an event message without a sequence number was ignored");
                        continue;
                    };
                    if last_live.replace(seq).is_some_and(|last| seq <= last) {
                        return Err(Ended::Restarted);
                    }
                    if self.live(seq, &payload).await? {
                        verify_at = Instant::now() + self.verify_interval;
                    }
                }
                Some(event) = monitor.next() => {
                    if matches!(event, SocketEvent::Disconnected(_)) {
                        return Err(Ended::Disconnected);
                    }
                }
                () = tokio::time::sleep_until(verify_at) => {
                    self.catch_up().await?;
                    verify_at = Instant::now() + self.verify_interval;
                }
            }
        }
    }

    /// Waits until the supervisor has seen that the engine behind the connection lives the same life.
    async fn confirm_life(&self) -> Result<(), Ended> {
        let (answer, confirmed) = tokio::sync::oneshot::channel();
        let request = Request::Verify { birth: self.life.birth, answer };
        self.supervisor.send(request).await.map_err(|_| Ended::LifeOver)?;
        confirmed.await.map_err(|_| Ended::LifeOver)
    }

    /// Takes a batch from the subscription; answers whether it was new.
    async fn live(&mut self, seq: u64, payload: &[u8]) -> Result<bool, Ended> {
        if seq > self.next {
            self.rank().counters.gaps.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                rank = self.rank,
                missed = seq - self.next,
                "events were missed; asking for a replay"
            );
            self.catch_up().await?;
        }
        if seq < self.next {
            return Ok(false);
        }
        self.take(seq, payload);
        Ok(true)
    }

    /// Replays what is missing and answers whether the engine could. If not, things stay as they are, except at the
    /// beginning.
    async fn catch_up(&mut self) -> Result<bool, Ended> {
        match self.replay().await {
            Ok(None) => Ok(true),
            Ok(Some(ended)) => Err(ended),
            Err(error) => {
                tracing::debug!(rank = self.rank, %error, "no replay");
                if self.next == 0 && !self.rank().is_synced() {
                    // What was published before the subscription is not known.
                    self.lose("the engine's past cannot be replayed");
                }
                Ok(false)
            }
        }
    }

    async fn replay(&mut self) -> Result<Option<Ended>, ReplayError> {
        let from = self.next.saturating_sub(1);
        self.rank().counters.replays.fetch_add(1, Ordering::Relaxed);
        let mut replay = Replay::request(self.source.replay.as_deref(), from).await?;
        let mut empty = true;
        while let Some((seq, payload)) = replay.next().await? {
            let known = empty && seq + 1 == self.next;
            if known && self.last_timestamp.is_some() && timestamp(&payload) != self.last_timestamp {
                return Ok(Some(Ended::Restarted));
            }
            empty = false;
            self.replays = true;
            if seq >= self.next {
                self.take(seq, &payload);
            }
        }
        let vanished = empty && self.next > 0 && self.replays;
        Ok(vanished.then_some(Ended::Restarted))
    }

    /// Applies a batch that is not older than the one wanted.
    fn take(&mut self, seq: u64, payload: &[u8]) {
        let rank = &self.life.ranks[self.rank];
        if seq > self.next {
            rank.counters.holes.fetch_add(1, Ordering::Relaxed);
            self.lose("the engine can no longer replay what was missed");
        }
        self.next = seq + 1;
        rank.counters.batches.fetch_add(1, Ordering::Relaxed);
        match EventBatch::decode(payload) {
            Ok(batch) => {
                self.last_timestamp = Some(batch.timestamp_s);
                let unknown = batch.events.iter().filter(|event| **event == Event::Unknown).count();
                if unknown > 0 {
                    tracing::warn!(rank = self.rank, unknown, "events of an unknown kind were ignored");
                }
                lock(&rank.cache).apply(&batch.events);
            }
            Err(error) => {
                self.last_timestamp = None;
                rank.counters.undecodable.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(rank = self.rank, seq, %error, "a batch cannot be decoded; the mirror begins anew");
                lock(&rank.cache).lose(Doubt::Malformed);
            }
        }
    }

    fn lose(&self, why: &str) {
        tracing::warn!(rank = self.rank, why, "the mirror is incomplete until the engine's cache is flushed");
        lock(&self.rank().cache).lose(Doubt::Hole);
    }

    fn rank(&self) -> &RankState {
        &self.life.ranks[self.rank]
    }
}

fn timestamp(payload: &[u8]) -> Option<f64> {
    EventBatch::decode(payload).ok().map(|batch| batch.timestamp_s)
}

/// Options of every socket to the engine.
pub(super) fn options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
    options
}

/// Growing pauses between attempts to connect to the engine.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(2);

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    pub(super) async fn wait(&mut self) {
        let delay = Self::FIRST.saturating_mul(1 << self.attempts.min(8)).min(Self::MAX);
        self.attempts = self.attempts.saturating_add(1);
        tokio::time::sleep(delay.mul_f64(0.75 + 0.5 * fastrand::f64())).await;
    }
}
