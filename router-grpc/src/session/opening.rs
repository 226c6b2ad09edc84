//! Hello, Welcome, Accept: who speaks, on what terms, and whether both sides hash alike. Until Accept nothing changes.

use std::sync::Arc;
use std::time::Duration;

use espalier_proto::agent_message::Message;
use espalier_proto::{Accept, AgentMessage, Hello};
use router_core::key::Unit;
use router_core::{
    EventKind, FleetUpdate, Introduction, JoinError, ReportLevel, SessionId, Update, WorkerId,
};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use super::convert::{self, Greeting};
use super::{AgentService, Outbox};
use crate::requests::{Unheard, ask};

/// Terms that both sides have agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    agent: Introduction,
    level: ReportLevel,
    /// Whether block hashes may come: both sides hash alike, and the level has them.
    hashes: bool,
}

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

/// Time an agent has for each of its first two messages, and for reading the last one it is sent.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

impl AgentService {
    /// Greets an agent and agrees on terms with it. The fleet stays as it is.
    pub(super) async fn agree(
        &self,
        inbound: &mut Streaming<AgentMessage>,
        outbox: &Outbox,
    ) -> Result<Agreed, Status> {
        let Message::Hello(hello) = first(inbound, "Hello").await? else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let greeting = convert::hello(&hello)?;
        let space = greeting.understands_tokens.then(|| self.router.key_space(Unit::Token));
        let level = match space {
            Some(_) => self.terms.level.min(greeting.max_level),
            None => ReportLevel::Counts,
        };
        let Greeting { url, incarnation, profile, .. } = greeting;
        let mut agent = Introduction { url, incarnation, profile, resume: self.resumable(&hello) };
        agent.resume = self.consider(&agent).await?;
        let space = space.filter(|_| level > ReportLevel::Counts);
        let welcome = convert::welcome(&self.terms, level, space, &agent.resume);
        outbox.send(Ok(welcome)).await.map_err(|_| Status::cancelled("the agent went away"))?;
        let Message::Accept(accept) = first(inbound, "Accept").await? else {
            return Err(Status::invalid_argument("the second message must be Accept"));
        };
        let hashes = space.is_some_and(|space| accept.fingerprints.contains(&space.fingerprint()));
        if space.is_some() && !hashes {
            self.tell_mismatch(&agent.url, &accept);
        }
        Ok(Agreed { agent, level: if hashes { level } else { ReportLevel::Counts }, hashes })
    }

    /// From now on the session speaks for its worker.
    pub(super) async fn join(&self, session: SessionId, agreed: Agreed) -> Result<Opened, Status> {
        let Agreed { agent, level, hashes } = agreed;
        let (url, dp_size, at) = (agent.url.clone(), agent.profile.dp_size, self.clock.now());
        let joined =
            ask(&self.router, |done| Update::Fleet(FleetUpdate::Join { agent, session, level, at, done }));
        let joined = joined.await.map_err(unheard)?.map_err(|error| refuse(&error))?;
        Ok(Opened { worker: joined.worker, url, dp_size, hashes, level })
    }

    /// The ranks that could go on with deltas, if the agent may speak for its worker at all.
    async fn consider(&self, agent: &Introduction) -> Result<Vec<(u32, u64)>, Status> {
        let agent = agent.clone();
        let considered = ask(&self.router, |done| Update::Fleet(FleetUpdate::Consider { agent, done })).await;
        considered.map_err(unheard)?.map_err(|error| refuse(&error))
    }

    /// Ranks whose buffered deltas are written in the key space of today.
    fn resumable(&self, hello: &Hello) -> Vec<(u32, u64)> {
        let today = self.router.key_space(Unit::Token).fingerprint();
        let points = hello.resume.iter().filter(|point| point.key_space_fingerprint == today);
        points.map(|point| (point.rank, point.acked_seq)).collect()
    }

    /// The sides hash differently: the session goes on with counts, and everybody is told.
    fn tell_mismatch(&self, url: &Arc<str>, accept: &Accept) {
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
    }
}

async fn first(inbound: &mut Streaming<AgentMessage>, name: &str) -> Result<Message, Status> {
    let waited = tokio::time::timeout(PATIENCE, inbound.next()).await;
    let message = waited.map_err(|_| Status::deadline_exceeded(format!("{name} did not come")))?;
    let message = message.ok_or_else(|| Status::cancelled(format!("the stream ended before {name}")))??;
    message.message.ok_or_else(|| Status::invalid_argument(format!("an empty message where {name} was due")))
}

fn unheard(error: Unheard) -> Status {
    Status::unavailable(error.to_string())
}

fn refuse(error: &JoinError) -> Status {
    match error {
        JoinError::Fleet(error) => Status::resource_exhausted(error.to_string()),
        JoinError::StaleIncarnation { registered, .. } => {
            let mut status = Status::failed_precondition(error.to_string());
            // An agent whose clock was stepped back can go on only with a greater one.
            status.metadata_mut().insert("espalier-registered-incarnation", registered.0.into());
            status
        }
    }
}
