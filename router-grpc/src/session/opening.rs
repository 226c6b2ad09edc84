//! Hello, Welcome, Accept: who speaks, on what terms, and whether both sides hash alike. Until Accept nothing changes.

use std::sync::Arc;
use std::time::Duration;

use chat_template::Source;
use espalier_proto::agent_message::Message;
use espalier_proto::{Accept, AgentMessage, Hello};
use router_core::key::{KeySpace, SCHEME, Unit};
use router_core::{
    ChatTemplate, Considered, EventKind, FleetUpdate, Introduction, JoinError, Joined, ReportLevel,
    SessionId, Units, Update, WorkerId,
};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use super::convert::{self, Greeting};
use super::{Account, AgentService, Outbox};
use crate::requests::{Unheard, ask};

/// Terms that both sides have agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    agent: Introduction,
    level: ReportLevel,
    pub(super) account: Arc<Account>,
}

/// A session that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) worker: WorkerId,
    pub(super) url: Arc<str>,
    pub(super) bounds: Bounds,
    pub(super) account: Arc<Account>,
    /// The agent decodes symbols.
    pub(super) reconciles: bool,
    /// Ranks that have to be reconciled.
    pub(super) unreconciled: Vec<u32>,
}

/// What a session may speak of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) dp_size: u32,
    /// The units that block hashes may come in: both sides hash alike, and the level has them.
    pub(super) units: Units,
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
        let Message::Hello(mut hello) = first(inbound, "Hello").await? else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let greeting = convert::hello(&hello)?;
        let Greeting { url, incarnation, profile, max_level, units, reconciles, routers } = greeting;
        let mut level = self.terms.level.min(max_level);
        let spaces: Vec<_> = match level {
            ReportLevel::Counts => Vec::new(),
            _ => units.iter().map(|unit| self.router.key_space(unit)).collect(),
        };
        if spaces.is_empty() {
            level = ReportLevel::Counts;
        }
        let mut shortfall = self.below_wanted(max_level, &spaces);
        let (resume, fingerprint) = self.resumable(&hello);
        let chat_template = hello.chat_template.take().filter(|_| units.contains(Unit::Text));
        let chat_template =
            chat_template.and_then(|offered| self.template(&url, convert::chat_template(offered)));
        let reconciles = reconciles && level > ReportLevel::Counts;
        let (reconcile, units) = (Vec::new(), Units::default());
        let mut agent = Introduction {
            url,
            incarnation,
            profile,
            resume,
            reconcile,
            units,
            reconciles,
            routers,
            chat_template,
        };
        let considered = self.consider(&agent).await?;
        let welcome = convert::welcome(&self.terms, level, &spaces, (&considered, fingerprint));
        (agent.resume, agent.reconcile) = (considered.resume, considered.reconcile);
        outbox.send(Ok(welcome)).await.map_err(|_| Status::cancelled("the agent went away"))?;
        let Message::Accept(accept) = first(inbound, "Accept").await? else {
            return Err(Status::invalid_argument("the second message must be Accept"));
        };
        let accepted = spaces.iter().filter(|space| accept.fingerprints.contains(&space.fingerprint()));
        agent.units = accepted.map(|space| space.unit()).collect();
        if agent.units.iter().count() < spaces.len() {
            let reason = self.tell_mismatch(&agent.url, &accept);
            shortfall.get_or_insert(reason);
        } else if !accept.reason.is_empty() {
            tracing::info!(
                worker = &*agent.url,
                reason = shown(&accept.reason),
                "what its agent does not report"
            );
            if self.terms.level > ReportLevel::Counts {
                shortfall.get_or_insert_with(|| shown(&accept.reason));
            }
        }
        let hashes = agent.units != Units::default();
        let account = Arc::new(Account::new(self.terms.level, shortfall.unwrap_or_default()));
        Ok(Agreed { agent, level: if hashes { level } else { ReportLevel::Counts }, account })
    }

    /// Why a session will report less than is wanted, as far as Hello shows it.
    fn below_wanted(&self, max_level: ReportLevel, spaces: &[&KeySpace]) -> Option<String> {
        let wanted = self.terms.level;
        if max_level < wanted {
            return Some(format!(
                "the agent reports no more than {max_level}: its engine publishes no KV events, or its own --report-level is lower"
            ));
        }
        let names_nothing = wanted > ReportLevel::Counts && spaces.is_empty();
        names_nothing.then(|| {
            format!("the agent hashes in no way that is known here ({SCHEME}); use versions of router and agent that match")
        })
    }

    /// The template that an agent offers; `None`, with the reason in the log, where it cannot be used.
    fn template(&self, url: &Arc<str>, offered: Source) -> Option<Arc<dyn ChatTemplate>> {
        let compiled = self.chat_templates.compile(offered).inspect_err(|error| {
            let (worker, reason) = (&**url, shown(&error.to_string()));
            tracing::warn!(
                worker,
                reason,
                "the chat template that the agent offers cannot be used: chats are not rendered"
            );
        });
        compiled.ok()
    }

    /// From now on the session speaks for its worker.
    pub(super) async fn join(&self, session: SessionId, agreed: Agreed) -> Result<Opened, Status> {
        let Agreed { agent, level, account } = agreed;
        let agent = Box::new(agent);
        let (url, dp_size, at) = (agent.url.clone(), agent.profile.dp_size, self.clock.now());
        let (units, reconciles) = (agent.units, agent.reconciles);
        let joined =
            ask(&self.router, |done| Update::Fleet(FleetUpdate::Join { agent, session, level, at, done }));
        let joined = joined.await.map_err(unheard)?.map_err(|error| refuse(&error))?;
        let bounds = Bounds { dp_size, units, level };
        let Joined { worker, unreconciled, .. } = joined;
        Ok(Opened { worker, url, bounds, account, reconciles, unreconciled })
    }

    /// How its ranks could begin, if the agent may speak for its worker at all.
    async fn consider(&self, agent: &Introduction) -> Result<Considered, Status> {
        let agent = Box::new(agent.clone());
        let considered = ask(&self.router, |done| Update::Fleet(FleetUpdate::Consider { agent, done })).await;
        considered.map_err(unheard)?.map_err(|error| refuse(&error))
    }

    /// Ranks whose buffered deltas are written in key spaces of today, and what names these. An agent that will report in others
    /// now does not resume.
    fn resumable(&self, hello: &Hello) -> (Vec<(u32, u64)>, u64) {
        let [token, text] = [Unit::Token, Unit::Text].map(|unit| self.router.key_space(unit).fingerprint());
        let today = [token, text, token.wrapping_add(text)];
        let named = hello.resume.first().map_or(0, |point| point.key_space_fingerprint);
        let points = hello.resume.iter().filter(|point| {
            point.key_space_fingerprint == named && today.contains(&point.key_space_fingerprint)
        });
        (points.map(|point| (point.rank, point.acked_seq)).collect(), named)
    }

    /// The sides hash differently: the session goes on with counts, and everybody is told. Returns why.
    fn tell_mismatch(&self, url: &Arc<str>, accept: &Accept) -> String {
        let reason = match accept.reason.is_empty() {
            true => "the agent computes another fingerprint; use versions of router and agent that match"
                .to_owned(),
            false => shown(&accept.reason),
        };
        tracing::warn!(
            worker = &**url,
            reason,
            "the agent does not report blocks of every kind; of those the session goes on with counts"
        );
        self.metrics.key_space_mismatches.inc();
        self.events.tell(EventKind::KeySpaceMismatch, url.clone(), None, reason.as_str().into());
        reason
    }
}

/// As much of an agent's reason as is shown.
fn shown(reason: &str) -> String {
    reason.chars().take(200).collect()
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
