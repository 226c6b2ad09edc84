//! Hello, Welcome, Accept: who speaks, on what terms, and whether both sides hash alike.

use std::sync::Arc;
use std::time::Duration;

use espalier_proto::agent_message::Message;
use espalier_proto::{Accept, AgentMessage, Hello};
use router_core::key::Unit;
use router_core::{
    AgentReport, EventKind, FleetError, FleetUpdate, JoinError, ReportLevel, SessionId, Update, WorkerId,
};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use super::convert::{self, Greeting};
use super::{AgentService, Outbox};
use crate::requests::{Overloaded, ask, send};

/// A session that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) worker: WorkerId,
    pub(super) url: Arc<str>,
    pub(super) dp_size: u32,
    /// Whether block hashes may come: both sides hash alike, and the level has them.
    pub(super) hashes: bool,
    /// The protocol allows no other message between Welcome and Accept.
    pub(super) level: ReportLevel,
}

/// Time an agent has for each of its first two messages.
const PATIENCE: Duration = Duration::from_secs(10);

impl AgentService {
    /// Greets an agent and agrees on terms with it.
    pub(super) async fn open(
        &self,
        id: SessionId,
        inbound: &mut Streaming<AgentMessage>,
        outbox: &Outbox,
    ) -> Result<Opened, Status> {
        let Message::Hello(hello) = first(inbound, "Hello").await? else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let greeting = convert::hello(&hello)?;
        let worker = self.enlist(&greeting).await?;
        let space = greeting.understands_tokens.then(|| self.router.key_space(Unit::Token));
        let level = match space {
            Some(_) => self.terms.level.min(greeting.max_level),
            None => ReportLevel::Counts,
        };
        let resume = self.resumable(&hello);
        let at = self.clock.now();
        let joined = ask(&self.router, |done| Update::Agent {
            worker,
            session: id,
            at,
            report: AgentReport::Joined { incarnation: greeting.incarnation, level, resume, done },
        });
        let resumed = joined.await.map_err(overloaded)?.map_err(|error| refuse(&error))?;
        let space = space.filter(|_| level > ReportLevel::Counts);
        let welcome = convert::welcome(&self.terms, level, space, &resumed);
        outbox.send(Ok(welcome)).await.map_err(|_| Status::cancelled("the agent went away"))?;
        let Message::Accept(accept) = first(inbound, "Accept").await? else {
            return Err(Status::invalid_argument("the second message must be Accept"));
        };
        let hashes = space.is_some_and(|space| accept.fingerprints.contains(&space.fingerprint()));
        if space.is_some() && !hashes {
            self.fall_back(worker, id, &greeting.url, &accept).await?;
        }
        let level = if hashes { level } else { ReportLevel::Counts };
        Ok(Opened { worker, url: greeting.url, dp_size: greeting.profile.dp_size, hashes, level })
    }

    /// The worker the agent speaks for; registered if nobody had.
    async fn enlist(&self, greeting: &Greeting) -> Result<WorkerId, Status> {
        let url = greeting.url.clone();
        let added = ask(&self.router, |done| Update::Fleet(FleetUpdate::Add { url, done }))
            .await
            .map_err(overloaded)?;
        let worker = match added {
            Ok(worker) | Err(FleetError::AlreadyRegistered { worker, .. }) => worker,
            Err(error) => return Err(full(&error)),
        };
        let snapshot = self.router.snapshot();
        let known = snapshot.fleet.workers.iter().find(|known| known.id == worker);
        let mut profile = greeting.profile.clone();
        // What a probe found out, the names above all, is more than an agent says.
        if let Some(known) = known.filter(|known| !known.profile.models.is_empty()) {
            profile.models.clone_from(&known.profile.models);
        }
        let set = ask(&self.router, |done| Update::Fleet(FleetUpdate::Profile { worker, profile, done }));
        set.await.map_err(overloaded)?.map_err(|error| full(&error))?;
        Ok(worker)
    }

    /// Ranks whose buffered deltas are written in the key space of today.
    fn resumable(&self, hello: &Hello) -> Vec<(u32, u64)> {
        let today = self.router.key_space(Unit::Token).fingerprint();
        let points = hello.resume.iter().filter(|point| point.key_space_fingerprint == today);
        points.map(|point| (point.rank, point.acked_seq)).collect()
    }

    /// The sides hash differently: the session goes on with counts, and everybody is told.
    async fn fall_back(
        &self,
        worker: WorkerId,
        id: SessionId,
        url: &Arc<str>,
        accept: &Accept,
    ) -> Result<(), Status> {
        let reason = match accept.reason.is_empty() {
            true => "the agent computes another fingerprint; use versions of router and agent that match"
                .to_owned(),
            false => accept.reason.chars().take(200).collect(),
        };
        tracing::warn!(
            worker = &**url,
            reason,
            "the agent cannot report blocks; its session goes on with counts"
        );
        self.metrics.key_space_mismatches.inc();
        self.events.tell(EventKind::KeySpaceMismatch, url.clone(), None, reason.into());
        let report = AgentReport::Level(ReportLevel::Counts);
        let update = Update::Agent { worker, session: id, at: self.clock.now(), report };
        send(&self.router, update).await.map_err(overloaded)
    }
}

async fn first(inbound: &mut Streaming<AgentMessage>, name: &str) -> Result<Message, Status> {
    let waited = tokio::time::timeout(PATIENCE, inbound.next()).await;
    let message = waited.map_err(|_| Status::deadline_exceeded(format!("{name} did not come")))?;
    let message = message.ok_or_else(|| Status::cancelled(format!("the stream ended before {name}")))??;
    message.message.ok_or_else(|| Status::invalid_argument(format!("an empty message where {name} was due")))
}

fn overloaded(error: Overloaded) -> Status {
    Status::unavailable(error.to_string())
}

fn full(error: &FleetError) -> Status {
    Status::resource_exhausted(error.to_string())
}

fn refuse(error: &JoinError) -> Status {
    match error {
        JoinError::UnknownWorker(_) => Status::unavailable(format!("{error}; connect again")),
        JoinError::StaleIncarnation { .. } => Status::failed_precondition(error.to_string()),
    }
}
