//! One session: opening the stream, and reading what the coordinator says on it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use super::convert::{Inbound, Incoming, Outgoing, ResumePoint};
use super::terms::{Terms, Without};
use super::writer::Writer;
use super::{Desk, Link, RouterCounters, convert};
use crate::cache::lock;
use crate::config::Level;
use crate::engine::{EngineError, Life, bearer};

/// Messages that may wait for the transport; a baseline part has up to 1 MiB.
const OUTBOUND: usize = 8;
/// Longest wait for a connection, and for the answer to Hello.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How a session ends without an error.
#[derive(Debug)]
pub(super) enum End {
    /// The agent is told to stop.
    Shutdown,
    /// What Hello said about the engine no longer holds; a new session says it anew.
    EngineChanged,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot connect: {}", chain(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    #[error("no answer within {OPEN_TIMEOUT:?}")]
    Timeout,
    #[error("the coordinator's first message is not Welcome")]
    NoWelcome,
    #[error("the coordinator closed the stream")]
    Closed,
    #[error("the token: {0}")]
    Token(#[from] EngineError),
}

impl SessionError {
    /// Whether the router refused the session because it knows a later life of the engine, and which.
    pub(super) fn outdated(&self) -> Option<Option<u64>> {
        match self {
            Self::Status(status) => convert::outdated(status),
            _ => None,
        }
    }
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl Link {
    /// Opens a session and serves it to its end.
    pub(super) async fn session(&mut self, life: Arc<Life>) -> Result<End, SessionError> {
        let (out, outbound) = mpsc::channel(OUTBOUND);
        let max_level =
            if life.info.events.is_empty() { Level::Counts } else { self.settings.config.report_level };
        let resume = self.resume_points(&life);
        let coordinators = self.settings.routers.len() as u32;
        let hello = convert::hello(&life, &self.settings.advertised, max_level, (resume, coordinators));
        self.counters.count(&hello);
        out.send(hello).await.map_err(|_| SessionError::Closed)?;

        let channel = self.connect().await?;
        let mut inbound = self.open(channel, outbound).await?;
        let first = tokio::time::timeout(OPEN_TIMEOUT, inbound.next()).await;
        let first = first.map_err(|_| SessionError::Timeout)??.ok_or(SessionError::Closed)?;
        let Incoming::Welcome(welcome) = first else { return Err(SessionError::NoWelcome) };
        let without = Without {
            text: life.vocabulary.as_ref().err().map(AsRef::as_ref),
            chats: life.chat_template.as_ref().err().map(AsRef::as_ref),
        };
        let terms = Terms::new(welcome, life.info.page_size, without);
        self.counters.connected.store(true, Ordering::Relaxed);
        self.counters.sessions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(router = self.url, level = ?terms.level, refused = terms.refused, "a session is open");

        let desk = Arc::clone(&self.desk);
        {
            let mut desk = lock(&desk);
            desk.wanted = terms.level.min(max_level);
            desk.symbols.clear();
            desk.predicted.clear();
        }
        let counters = Arc::clone(&self.counters);
        let writer = Writer::new(self, life, terms, max_level, out);
        tokio::select! {
            // What the coordinator says last explains why the stream ends.
            biased;
            error = read(&mut inbound, &desk, &counters) => Err(error),
            end = writer.run() => end,
        }
    }

    async fn connect(&self) -> Result<Channel, SessionError> {
        let endpoint = Endpoint::from_shared(self.url.clone())?
            .connect_timeout(OPEN_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        Ok(endpoint.connect().await?)
    }

    async fn open(
        &self,
        channel: Channel,
        outbound: mpsc::Receiver<Outgoing>,
    ) -> Result<Inbound, SessionError> {
        let mut authorization = None;
        if let Some(path) = &self.settings.config.token_file {
            let value = bearer(path)?;
            let value = tonic::metadata::AsciiMetadataValue::try_from(value.as_bytes())
                .map_err(|_| EngineError::KeyCharacters { path: path.clone() })?;
            authorization = Some(value);
        }
        let answer =
            tokio::time::timeout(OPEN_TIMEOUT, convert::open(channel, outbound, authorization)).await;
        Ok(answer.map_err(|_| SessionError::Timeout)??)
    }

    /// Where each rank could go on, for a router that still knows what it was told.
    fn resume_points(&mut self, life: &Life) -> Vec<ResumePoint> {
        let memory = self.remember(life);
        let Some((fingerprint, _)) = memory.view else { return Vec::new() };
        let desk = lock(&self.desk);
        let point = |(rank, acked_seq): (usize, Option<u64>)| {
            Some(ResumePoint { rank: rank as u32, acked_seq: acked_seq?, fingerprint })
        };
        desk.outboxes.iter().map(super::Outbox::resume_point).enumerate().filter_map(point).collect()
    }
}

/// Takes in what the coordinator says, until the stream ends. Everything it says is a state, not a queue, so that nothing
/// can pile up here.
async fn read(inbound: &mut Inbound, desk: &Mutex<Desk>, counters: &RouterCounters) -> SessionError {
    loop {
        let message = match inbound.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return SessionError::Closed,
            Err(status) => return status.into(),
        };
        let mut desk = lock(desk);
        match message {
            Incoming::Ack { rank, seq } => {
                if desk.outboxes.get_mut(rank as usize).is_some_and(|outbox| outbox.ack(seq)) {
                    counters.baselines_in_force.fetch_add(1, Ordering::Relaxed);
                }
            }
            Incoming::Resync { rank, reason } => {
                counters.resyncs.fetch_add(1, Ordering::Relaxed);
                tracing::info!(rank, reason, "a router asks for a baseline");
                if let Some(outbox) = desk.outboxes.get_mut(rank as usize) {
                    outbox.owe_baseline();
                }
            }
            Incoming::Level(level) => desk.wanted = level,
            Incoming::Symbols(batch) => desk.put(batch),
            Incoming::Predicted(prompts) => desk.put_predicted(prompts),
            Incoming::Welcome(_) => tracing::warn!("a second Welcome was ignored"),
            Incoming::Unknown => {}
        }
    }
}

/// An error with its causes: tonic's own text says little more than "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
