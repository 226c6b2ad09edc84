//! Commands: sent to every worker, or to the one that is meant; each one's result is told, and what it changes in what the
//! router believes is in force before the caller hears of it.
//!
//! A command is carried out to its end also when its caller goes away, as a server would: half of a fleet must not be left with
//! other weights than the rest because somebody pressed a key.

use std::borrow::Cow;
use std::sync::Arc;

use http::{Response, StatusCode};
use router_core::{Done, FleetUpdate, Refused, Update, Worker, WorkerId};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use super::ask::Told;
use super::{Call, ask_all, json_response, passed, results, workers};
use crate::arrived::Arrived;
use crate::body::Body;
use crate::error::Failure;
use crate::route::Effect;
use crate::service::Plane;
use crate::shared::MOST_COMMANDS;

/// How long a full queue of the writer is tried again, and how often.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

/// Sends a command to every worker, or to `only` one.
pub(super) async fn command(
    plane: &Arc<Plane>,
    arrived: Arrived,
    effect: Effect,
    only: Option<WorkerId>,
) -> Result<Response<Body>, Failure> {
    let told = carry_out(plane, arrived, effect, workers(plane, only)?).await?;
    if only.is_some() { one(told) } else { Ok(all(&told)) }
}

/// Sends a command to the one worker that the caller names, or that there is.
pub(super) async fn command_one(
    plane: &Arc<Plane>,
    arrived: Arrived,
    effect: Effect,
    only: Option<WorkerId>,
) -> Result<Response<Body>, Failure> {
    let workers = workers(plane, only)?;
    if workers.len() > 1 {
        return Err(Failure::WorkerNotNamed);
    }
    one(carry_out(plane, arrived, effect, workers).await?)
}

/// Tells workers to the end, whoever waits for it.
async fn carry_out(
    plane: &Arc<Plane>,
    arrived: Arrived,
    effect: Effect,
    workers: Vec<Arc<Worker>>,
) -> Result<Vec<Told>, Failure> {
    let permit = plane.shared.commands.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Failure::TooManyCommands { most: MOST_COMMANDS })?;
    let plane = plane.clone();
    let carried_out = tokio::spawn(async move {
        let _permit = permit;
        let told = tell(&plane, &arrived, effect, workers).await;
        let failed = told.iter().filter(|told| told.good().is_none()).count();
        tracing::info!(command = arrived.path.path(), workers = told.len(), failed, "carried out a command");
        told
    });
    carried_out.await.map_err(|_| Failure::Lost)
}

/// Sends an abort to the workers that have the request. Where nobody is known to, and where all are meant, all of them get it.
pub(super) async fn abort(
    plane: &Plane,
    arrived: &Arrived,
    only: Option<WorkerId>,
) -> Result<Response<Body>, Failure> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Abort<'a> {
        abort_all: bool,
        #[serde(borrow)]
        rid: Option<Cow<'a, str>>,
    }
    let mut meant = workers(plane, only)?;
    let asked: Abort<'_> = serde_json::from_slice(&arrived.body).unwrap_or_default();
    if let Some(rid) = asked.rid.filter(|rid| !rid.is_empty() && !asked.abort_all && only.is_none()) {
        let holders = plane.shared.rids.holders(&rid);
        if meant.iter().any(|worker| holders.contains(&worker.id)) {
            meant.retain(|worker| holders.contains(&worker.id));
        }
    }
    let told = tell(plane, arrived, Effect::None, meant).await;
    if only.is_some() { one(told) } else { Ok(all(&told)) }
}

async fn tell(plane: &Plane, arrived: &Arrived, effect: Effect, workers: Vec<Arc<Worker>>) -> Vec<Told> {
    let call = Call { arrived, limit: plane.config.api.control_timeout, reads: false };
    let told = ask_all(plane, workers, &call).await;
    let mut in_force = Vec::new();
    for told in told.iter().filter(|told| may_have_happened(told, effect)) {
        let (done, seen) = oneshot::channel();
        let done = Done::new(move |()| {
            // Nobody waits where the client has gone away.
            let _ = done.send(());
        });
        if let Some(update) = update(effect, told.worker.id, arrived.path.path(), done) {
            send(plane, update).await;
            in_force.push(seen);
        }
    }
    for seen in in_force {
        // A writer that has died answers by dropping it, and leaves nothing to wait for.
        let _ = seen.await;
    }
    told
}

/// Whether the router has to believe that a worker did what it was told. Of a cache it believes the worst: that it is gone,
/// unless the worker never heard of it, or refused.
fn may_have_happened(told: &Told, effect: Effect) -> bool {
    match (&told.outcome, effect) {
        (Ok(heard), Effect::Flushes) => !heard.status.is_client_error(),
        (Err(failure), Effect::Flushes) => !matches!(failure, Failure::Unreachable(_) | Failure::Route(_)),
        (outcome, _) => outcome.as_ref().is_ok_and(|heard| heard.status.is_success()),
    }
}

fn update(effect: Effect, worker: WorkerId, path: &str, done: Done<()>) -> Option<Update> {
    let reason = format!("{path} was passed on to it").into();
    Some(Update::Fleet(match effect {
        Effect::None => return None,
        Effect::Flushes => FleetUpdate::Flushed { worker, reason, done },
        Effect::Pauses => FleetUpdate::Pause { worker, on: true, reason, done },
        Effect::Continues => FleetUpdate::Pause { worker, on: false, reason, done },
    }))
}

/// Sends an update, waiting for room for a while.
async fn send(plane: &Plane, update: Update) {
    let give_up = Instant::now() + PATIENCE;
    let mut update = update;
    while let Err(Refused(back)) = plane.router.updates().try_send(update) {
        if plane.router.is_orphaned() || Instant::now() >= give_up {
            tracing::error!("the router's writer did not take what a control call has changed");
            return;
        }
        update = *back;
        tokio::time::sleep(PAUSE).await;
    }
}

/// The one worker's own answer.
fn one(told: Vec<Told>) -> Result<Response<Body>, Failure> {
    told.into_iter().next().map_or(Err(Failure::UnknownWorker), passed)
}

/// All results as one answer. Its members are those of the first answer that failed, or else of the first, so that whoever
/// looks for SGLang's `success` or `message` finds them.
pub(super) fn all(told: &[Told]) -> Response<Body> {
    let status = overall(told);
    let speaks = told.iter().find(|told| told.good().is_none()).or(told.first());
    let heard = speaks.and_then(|told| told.outcome.as_ref().ok()).map(|heard| heard.value());
    let mut value = match heard {
        Some(Value::Object(members)) => Value::Object(members),
        _ => json!({}),
    };
    if !status.is_success() && value.get("error").is_none() && value.get("message").is_none() {
        let failed = told.iter().filter(|told| told.good().is_none()).count();
        let message =
            format!("{failed} of {} workers did not do it; `results` says what each answered", told.len());
        let unanswered = told.iter().find_map(|told| told.outcome.as_ref().err());
        let code = unanswered.map_or("not_everywhere", |failure| failure.verdict().code);
        value["error"] = json!({"message": message, "code": code, "source": "worker"});
    }
    if !status.is_success() && value.get("success").is_some() {
        value["success"] = Value::Bool(false);
    }
    value["results"] = results(told);
    json_response(status, &value)
}

/// 200 if all did it; what they said if they all refused it alike; or else 502, so that nobody takes it for done who looks no
/// further than the status.
fn overall(told: &[Told]) -> StatusCode {
    if told.iter().all(|told| told.good().is_some()) {
        return StatusCode::OK;
    }
    let mut statuses = told.iter().map(|told| told.outcome.as_ref().ok().map(|heard| heard.status));
    match statuses.next().flatten() {
        Some(first) if statuses.all(|status| status == Some(first)) => first,
        _ => StatusCode::BAD_GATEWAY,
    }
}
