//! Agents' sessions: the service `espalier.v1.Agent`.
//!
//! [`opening`] answers Hello with Welcome and checks Accept; [`reports`] turns every later message into an update for the
//! writer. What the writer has to say to an agent goes through [`Sessions`].

mod convert;
mod opening;
mod reports;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use espalier_proto::agent_server::Agent;
use espalier_proto::{AgentMessage, CoordinatorMessage};
use prost::Message as _;
use router_core::{AgentReport, ReportLevel, Router, SessionId, Update};
use router_http::Clock;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use self::opening::Opened;
use self::reports::Reports;
use crate::events::EventHub;
use crate::requests::send;
use crate::settings::secret;
use crate::telemetry::ControlMetrics;

/// Messages to an agent that may wait; one that reads more slowly loses its session.
const OUTBOX: usize = 256;

type Outbox = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// The open sessions, to be told things. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    open: Arc<Mutex<HashMap<SessionId, Outbox>>>,
}

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct AgentService {
    pub(crate) router: Router,
    pub(crate) clock: Clock,
    pub(crate) sessions: Sessions,
    pub(crate) metrics: ControlMetrics,
    pub(crate) events: EventHub,
    pub(crate) terms: Terms,
    pub(crate) next_session: Arc<AtomicU64>,
}

/// What is offered to every agent.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) level: ReportLevel,
    pub(crate) lease_ms: u32,
    pub(crate) batch_interval_ms: u32,
    pub(crate) token_file: Option<PathBuf>,
}

impl Sessions {
    pub(crate) fn acknowledge(&self, session: SessionId, rank: u32, seq: u64) {
        let outbox = self.lock().get(&session).cloned();
        if let Some(outbox) = outbox {
            // A later acknowledgement covers this one.
            let _ = outbox.try_send(Ok(convert::ack(rank, seq)));
        }
    }

    pub(crate) fn ask_for_baseline(&self, session: SessionId, rank: u32, reason: &str) {
        let outbox = self.lock().get(&session).cloned();
        let asked = outbox.is_some_and(|outbox| outbox.try_send(Ok(convert::resync(rank, reason))).is_ok());
        if !asked {
            // An agent that cannot be asked must come again, and begins with a baseline then.
            self.lock().remove(&session);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Outbox>> {
        self.open.lock().expect("no holder of the session table panics")
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        self.authorize(&request)?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let service = self.clone();
        tokio::spawn(async move {
            let inbound = request.into_inner();
            if let Err(status) = service.converse(inbound, &outbox).await {
                tracing::warn!(code = ?status.code(), reason = status.message(), "an agent's session was closed");
                let _ = outbox.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl AgentService {
    /// The whole session, until the stream ends or a message breaks the contract.
    async fn converse(&self, mut inbound: Streaming<AgentMessage>, outbox: &Outbox) -> Result<(), Status> {
        let id = SessionId(self.next_session.fetch_add(1, Relaxed));
        let opened = self.open(id, &mut inbound, outbox).await?;
        let (worker, url) = (opened.worker, opened.url.clone());
        // The table holds the only sender that outlives this call: taking it out closes the stream.
        self.sessions.lock().insert(id, outbox.clone());
        let done = self.listen(inbound, id, opened).await;
        self.sessions.lock().remove(&id);
        tracing::debug!(worker = &*url, session = id.0, "an agent's stream ended");
        let left = Update::Agent { worker, session: id, at: self.clock.now(), report: AgentReport::Left };
        let _ = send(&self.router, left).await;
        done
    }

    async fn listen(
        &self,
        mut inbound: Streaming<AgentMessage>,
        id: SessionId,
        opened: Opened,
    ) -> Result<(), Status> {
        let worker = opened.worker;
        let url = opened.url.clone();
        let mut reports = Reports::new(opened, self.router.settings().max_blocks);
        while let Some(message) = inbound.next().await {
            // A stream that breaks is a reconnect, not a fault.
            let Ok(message) = message else { return Ok(()) };
            self.metrics.reported(&url, message.encoded_len());
            if !self.sessions.lock().contains_key(&id) {
                return Err(Status::resource_exhausted("messages to the agent were not read; connect again"));
            }
            for report in reports.take(message)? {
                let update = Update::Agent { worker, session: id, at: self.clock.now(), report };
                let sent = send(&self.router, update).await;
                sent.map_err(|overloaded| Status::unavailable(format!("{overloaded}; connect again")))?;
            }
        }
        Ok(())
    }

    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let wanted = secret("agent-token-file", self.terms.token_file.as_deref()).map_err(|error| {
            Status::internal(format!("the router cannot read its agents' token: {error}"))
        })?;
        let Some(wanted) = wanted else { return Ok(()) };
        let given = request.metadata().get("authorization").map(|value| value.as_encoded_bytes());
        match given.and_then(|given| given.strip_prefix(b"Bearer ")) {
            Some(given) if wanted.matches(given) => Ok(()),
            Some(_) => {
                Err(Status::unauthenticated("the token is not the router's; see --token-file of the agent"))
            }
            None => Err(Status::unauthenticated("a token is required; give the agent --token-file")),
        }
    }
}
