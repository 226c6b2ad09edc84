//! Requests that concern all workers: asked of them at once within bounds, and answered as one.
//!
//! [`ask`] does the asking, [`questions`] puts answers about the fleet together, [`control`] carries out commands and tells each
//! worker's result, and [`prometheus`] joins metrics.

mod ask;
mod control;
mod prometheus;
mod questions;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use router_core::{Worker, WorkerId};
use serde_json::{Value, json};

pub(crate) use self::ask::Call;
use self::ask::{Told, ask_all};
use crate::arrived::Arrived;
use crate::body::Body;
use crate::error::Failure;
use crate::route::{Concern, Route};
use crate::service::Plane;

/// Carries out a request that concerns all workers, or `only` one of them.
pub(crate) async fn answer(
    plane: &Arc<Plane>,
    route: &Route,
    concern: Concern,
    arrived: Arrived,
    only: Option<WorkerId>,
) -> Result<Response<Body>, Failure> {
    match concern {
        Concern::Control(effect) => control::command(plane, arrived, effect, only).await,
        Concern::Named(effect) => control::command_one(plane, arrived, effect, only).await,
        Concern::Abort => control::abort(plane, &arrived, only).await,
        Concern::Fleet(question) => questions::answer(plane, route, &arrived, question, only).await,
    }
}

/// All workers, or the one that is meant.
fn workers(plane: &Plane, only: Option<WorkerId>) -> Result<Vec<Arc<Worker>>, Failure> {
    let snapshot = plane.router.snapshot();
    let meant = |worker: &&Arc<Worker>| only.is_none_or(|only| worker.id == only);
    let workers: Vec<_> = snapshot.fleet.workers.iter().filter(meant).cloned().collect();
    match (workers.is_empty(), only) {
        (false, _) => Ok(workers),
        (true, None) => Err(Failure::Route(router_core::RouteError::NoWorkers)),
        (true, Some(_)) => Err(Failure::UnknownWorker),
    }
}

/// A worker's own answer, as it is.
fn passed(told: Told) -> Result<Response<Body>, Failure> {
    let heard = told.outcome?;
    let mut response = Response::new(Body::own(Full::new(heard.body)));
    *response.status_mut() = heard.status;
    if let Some(content_type) = heard.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    if let Ok(url) = HeaderValue::from_str(&told.worker.url) {
        response.headers_mut().insert(crate::addressee::WORKER, url);
    }
    Ok(response)
}

/// Each worker's result, in the order of their registration.
fn results(told: &[Told]) -> Value {
    let result = |told: &Told| match &told.outcome {
        Ok(heard) => {
            json!({"worker": &*told.worker.url, "status": heard.status.as_u16(), "body": heard.value()})
        }
        Err(failure) => {
            let verdict = failure.verdict();
            json!({"worker": &*told.worker.url, "status": null,
                "error": {"message": failure.to_string(), "code": verdict.code, "source": verdict.source.name()}})
        }
    };
    told.iter().map(result).collect()
}

fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    typed(status, "application/json", value.to_string())
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::own(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
