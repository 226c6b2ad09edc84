//! Agents' sessions: the service `espalier.v1.Agent`.
//!
//! [`opening`] answers Hello with Welcome and checks Accept; only then does the session speak for its worker, so that an agent
//! that gets no further silences nobody. [`reports`] turns every later message into an update for the writer. What the writer
//! has to say to an agent goes through [`Sessions`]. [`rounds`] finds out what was lost, and makes sure now and then that nothing was.

mod account;
mod chat_templates;
mod convert;
mod opening;
mod predictions;
mod reports;
mod rounds;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use espalier_proto::agent_message::Message;
use espalier_proto::agent_server::Agent;
use espalier_proto::{AgentMessage, CoordinatorMessage};
use prost::Message as _;
use router_core::key::{BlockHash, Unit};
use router_core::{AgentReport, Delta, ReportLevel, Router, SessionEnd, SessionId, Update};
use router_http::{Clock, bearer};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

pub(crate) use self::account::Account;
pub(crate) use self::chat_templates::ChatTemplates;
pub(crate) use self::convert::role;
use self::opening::{Opened, PATIENCE};
use self::predictions::{Predicted, Predictions, WAITING};
use self::reports::Reports;
use self::rounds::Rounds;
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
    open: Arc<Mutex<HashMap<SessionId, Open>>>,
}

/// One of them.
#[derive(Debug)]
struct Open {
    outbox: Outbox,
    /// Ranks that have lost something.
    needs: mpsc::UnboundedSender<u32>,
    predictions: mpsc::Sender<Predicted>,
    account: Arc<Account>,
    /// Ends it, with what its agent is told. Dropped, it ends because its agent does not read.
    end: oneshot::Sender<Status>,
}

/// What a session is told by the writer, besides what is for its agent.
#[derive(Debug)]
struct Told {
    ended: oneshot::Receiver<Status>,
    /// Unbounded, and still few: a rank that has lost something is not doubted again before it is whole.
    needed: mpsc::UnboundedReceiver<u32>,
    predicted: mpsc::Receiver<Predicted>,
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
    pub(crate) chat_templates: ChatTemplates,
    pub(crate) next_session: Arc<AtomicU64>,
    /// Room for streams, those that have not said Hello yet included.
    pub(crate) room: Arc<Semaphore>,
    /// Room for reconciliations, each of which holds 12 bytes for every block of a rank.
    pub(crate) reconciling: Arc<Semaphore>,
}

/// What is offered to every agent.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) level: ReportLevel,
    pub(crate) lease_ms: u32,
    pub(crate) batch_interval_ms: u32,
    /// `None`: only what was lost is reconciled, not what nobody has missed.
    pub(crate) reconcile_interval: Option<Duration>,
    pub(crate) token_file: Option<PathBuf>,
}

impl Sessions {
    /// Enters a session that is about to open; the result comes when it has to end.
    fn enter(&self, session: SessionId, outbox: Outbox, account: Arc<Account>) -> Told {
        let (end, ended) = oneshot::channel();
        let (needs, needed) = mpsc::unbounded_channel();
        let (predictions, predicted) = mpsc::channel(WAITING);
        self.lock().insert(session, Open { outbox, needs, predictions, account, end });
        Told { ended, needed, predicted }
    }

    /// What is known of an open session.
    pub(crate) fn account(&self, session: SessionId) -> Option<Arc<Account>> {
        self.lock().get(&session).map(|open| open.account.clone())
    }

    fn leave(&self, session: SessionId) {
        self.lock().remove(&session);
    }

    /// Closes a session's stream, so that its agent connects again.
    pub(crate) fn end(&self, session: SessionId, why: SessionEnd) {
        if let Some(open) = self.lock().remove(&session) {
            // It may be ending by itself.
            let _ = open.end.send(Status::aborted(why.to_string()));
        }
    }

    pub(crate) fn acknowledge(&self, session: SessionId, rank: u32, seq: u64) {
        if let Some(outbox) = self.outbox(session) {
            // A later acknowledgement covers this one.
            let _ = outbox.try_send(Ok(convert::ack(rank, seq)));
        }
    }

    pub(crate) fn ask_for_baseline(&self, session: SessionId, rank: u32, reason: &str) {
        let outbox = self.outbox(session);
        let asked = outbox.is_some_and(|outbox| outbox.try_send(Ok(convert::resync(rank, reason))).is_ok());
        if !asked {
            // An agent that cannot be asked must come again, and begins with a baseline then.
            self.leave(session);
        }
    }

    pub(crate) fn reconcile(&self, session: SessionId, rank: u32) {
        if let Some(open) = self.lock().get(&session) {
            // One that is ending begins anew.
            let _ = open.needs.send(rank);
        }
    }

    pub(crate) fn predicted(&self, session: SessionId, rank: u32, unit: Unit, last: BlockHash) {
        if let Some(open) = self.lock().get(&session) {
            // What finds no room is told by the agent.
            let _ = open.predictions.try_send(Predicted { rank, unit, last });
        }
    }

    fn outbox(&self, session: SessionId) -> Option<Outbox> {
        self.lock().get(&session).map(|open| open.outbox.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Open>> {
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
        let Ok(room) = self.room.clone().try_acquire_owned() else {
            self.metrics.sessions_refused.inc();
            return Err(Status::resource_exhausted(
                "too many agents are connected; connect again later, or raise --max-agent-sessions of the router",
            ));
        };
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let service = self.clone();
        tokio::spawn(async move {
            let _room = room;
            let inbound = request.into_inner();
            if let Err(status) = service.converse(inbound, &outbox).await {
                tracing::warn!(code = ?status.code(), reason = status.message(), "an agent's session was closed");
                // An agent that does not even read this learns it from the end of its stream.
                let _ = tokio::time::timeout(PATIENCE, outbox.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl AgentService {
    /// The whole session, until the stream ends, the writer ends it, or a message breaks the contract.
    async fn converse(&self, mut inbound: Streaming<AgentMessage>, outbox: &Outbox) -> Result<(), Status> {
        let id = SessionId(self.next_session.fetch_add(1, Relaxed));
        let agreed = self.agree(&mut inbound, outbox).await?;
        let account = agreed.account.clone();
        // Before the writer knows of it, so that nothing that the writer has to say to it is lost.
        let told = self.sessions.enter(id, outbox.clone(), account);
        let opened = self.join(id, agreed).await.inspect_err(|_| self.sessions.leave(id))?;
        let (worker, url) = (opened.worker, opened.url.clone());
        let done = self.listen(inbound, outbox, told, id, opened).await;
        self.sessions.leave(id);
        tracing::debug!(worker = &*url, session = id.0, "an agent's stream ended");
        let left = Update::Agent { worker, session: id, at: self.clock.now(), report: AgentReport::Left };
        let _ = send(&self.router, left).await;
        done
    }

    async fn listen(
        &self,
        mut inbound: Streaming<AgentMessage>,
        outbox: &Outbox,
        mut told: Told,
        id: SessionId,
        opened: Opened,
    ) -> Result<(), Status> {
        let Opened { worker, url, bounds, account, .. } = opened;
        let mut reports = Reports::new(bounds, self.router.settings().max_blocks);
        let interval = self.terms.reconcile_interval.filter(|_| opened.reconciles);
        let mut rounds =
            Rounds::new((worker, bounds.dp_size, bounds.units), interval, self.reconciling.clone());
        let mut predictions = Predictions::new(Duration::from_millis(self.terms.batch_interval_ms.into()));
        // A rank that is to be reconciled begins with a delta: only then are its claims those of a known moment.
        let mut to_begin = opened.unreconciled;
        loop {
            let next = rounds.next();
            let message = tokio::select! {
                biased;
                status = &mut told.ended => return Err(status.unwrap_or_else(|_| {
                    Status::resource_exhausted("messages to the agent were not read; connect again")
                })),
                Some(rank) = told.needed.recv() => {
                    rounds.need(rank);
                    rounds.step(self, outbox).await;
                    continue;
                }
                Some(predicted) = told.predicted.recv() => {
                    predictions.add(predicted);
                    continue;
                }
                () = sleep_until(predictions.due()) => {
                    predictions.send(outbox);
                    continue;
                }
                message = inbound.next() => message,
                () = sleep_until(next) => {
                    rounds.step(self, outbox).await;
                    continue;
                }
            };
            // A stream that breaks is a reconnect, not a fault.
            let Some(Ok(message)) = message else { return Ok(()) };
            let about = About::of(&message);
            self.metrics.reported(&url, about.bytes);
            account.received(about.bytes);
            let taken = reports.take(message).inspect_err(|status| {
                if status.code() == Code::ResourceExhausted {
                    self.metrics.baselines_refused.inc();
                }
            });
            for report in taken? {
                let report = match report {
                    AgentReport::Delta { rank, delta } if about.reconciles > 0 => {
                        match rounds.answered(rank, &delta, about.reconciles, self) {
                            Some((as_of, sent)) => {
                                let bytes = sent + about.bytes as u64;
                                AgentReport::Reconciled { rank, as_of, bytes, delta }
                            }
                            None => {
                                AgentReport::Delta { rank, delta: Delta { removed: Vec::new(), ..delta } }
                            }
                        }
                    }
                    AgentReport::Baseline { rank, .. } => {
                        rounds.baseline_came(rank, self);
                        to_begin.retain(|other| *other != rank);
                        report
                    }
                    report => report,
                };
                let begins = match &report {
                    AgentReport::Delta { rank, .. } => to_begin.iter().position(|other| other == rank),
                    _ => None,
                };
                let update = Update::Agent { worker, session: id, at: self.clock.now(), report };
                let sent = send(&self.router, update).await;
                sent.map_err(|unheard| Status::unavailable(format!("{unheard}; connect again")))?;
                if let Some(at) = begins {
                    rounds.need(to_begin.swap_remove(at));
                }
            }
            if let Some((place, until)) = about.more {
                rounds.more(place, (until, about.bytes), self, outbox).await;
            }
            rounds.step(self, outbox).await;
        }
    }

    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let wanted = secret("agent-token-file", self.terms.token_file.as_deref()).map_err(|error| {
            Status::internal(format!("the router cannot read its agents' token: {error}"))
        })?;
        let Some(wanted) = wanted else { return Ok(()) };
        let given = request.metadata().get("authorization").map(|value| value.as_encoded_bytes());
        match given.and_then(bearer) {
            Some(given) if wanted.matches(given) => Ok(()),
            Some(_) => {
                Err(Status::unauthenticated("the token is not the router's; see --token-file of the agent"))
            }
            None => Err(Status::unauthenticated("a token is required; give the agent --token-file")),
        }
    }
}

/// What of a message is for the session itself.
#[derive(Clone, Copy, Debug, Default)]
struct About {
    /// As it is encoded.
    bytes: usize,
    /// The round that a delta answers; 0 for none.
    reconciles: u64,
    /// Rank, unit and round of which more symbols are wanted, and up to which.
    more: Option<((u32, Unit, u64), u32)>,
}

impl About {
    fn of(message: &AgentMessage) -> Self {
        let about = Self { bytes: message.encoded_len(), ..Self::default() };
        match &message.message {
            Some(Message::Delta(delta)) => Self { reconciles: delta.reconciles, ..about },
            Some(Message::MoreSymbols(more)) => {
                let unit = convert::named_unit(more.unit()).ok();
                Self { more: unit.map(|unit| ((more.rank, unit, more.round), more.until)), ..about }
            }
            _ => about,
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
