//! Asks workers the same thing at once: so many at a time, each for so long, each answer so large, each counted in flight.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use prometheus_client::metrics::gauge::Gauge;
use router_core::{InFlight, RouteRequest, Worker};
use serde_json::Value;

use crate::arrived::Arrived;
use crate::error::Failure;
use crate::service::Plane;

/// What is asked.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) arrived: &'a Arrived,
    /// Longest wait for one worker's whole answer.
    pub(crate) limit: Duration,
    /// It reads, and is repeated once where a worker had just closed its connection.
    pub(crate) reads: bool,
}

/// What a worker said.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) worker: Arc<Worker>,
    pub(super) outcome: Result<Heard, Failure>,
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) body: Bytes,
}

/// Workers asked at a time. A collective operation waits for all of its members, so that a fleet beyond this cannot be led
/// through one by a single call.
const MOST_AT_ONCE: usize = 256;

/// Largest answer of one worker, in bytes, and of all together.
const MOST_BYTES: usize = 4 << 20;
const MOST_BYTES_OF_ALL: usize = 256 << 20;

/// Asks all, and waits for all. In the order of the workers.
pub(super) async fn ask_all(plane: &Plane, workers: Vec<Arc<Worker>>, call: &Call<'_>) -> Vec<Told> {
    let most_bytes = MOST_BYTES.min(MOST_BYTES_OF_ALL / workers.len().max(1));
    let told = stream::iter(workers).map(|worker| async move {
        let mut outcome = ask(plane, &worker, call, most_bytes).await;
        if call.reads && matches!(outcome, Err(Failure::Lost)) {
            outcome = ask(plane, &worker, call, most_bytes).await;
        }
        if outcome.is_err() {
            plane.metrics.families.fan_out_failures.inc();
        }
        Told { worker, outcome }
    });
    told.buffered(MOST_AT_ONCE).collect().await
}

/// A request counted in flight, in the core and in the metrics.
struct Counted<'a> {
    in_flight: Option<InFlight>,
    gauge: &'a Gauge,
}

async fn ask(plane: &Plane, worker: &Worker, call: &Call<'_>, most_bytes: usize) -> Result<Heard, Failure> {
    let request = RouteRequest { only: Some(worker.id), unbounded: true, ..RouteRequest::default() };
    let in_flight = plane.router.route(&request, plane.clock.now(), &mut fastrand::Rng::new())?;
    let gauge = &plane.metrics.families.in_flight;
    gauge.inc();
    let mut counted = Counted { in_flight: Some(in_flight), gauge };
    let exchange = exchange(plane, &counted, call, most_bytes);
    let heard = tokio::time::timeout(call.limit, exchange).await;
    let heard = heard.unwrap_or_else(|_| Err(Failure::Slow { seconds: call.limit.as_secs() }))?;
    if let Some(in_flight) = counted.in_flight.take() {
        in_flight.complete(plane.clock.now());
    }
    Ok(heard)
}

async fn exchange(
    plane: &Plane,
    counted: &Counted<'_>,
    call: &Call<'_>,
    most_bytes: usize,
) -> Result<Heard, Failure> {
    let Some(in_flight) = &counted.in_flight else { return Err(Failure::Lost) };
    let arrived = call.arrived;
    let (mut headers, body) = (arrived.headers.clone(), arrived.body.clone());
    // The answer is read here: whole, and as it is.
    for name in [header::ACCEPT_ENCODING, header::RANGE, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE] {
        headers.remove(name);
    }
    let headers = (&headers, &arrived.added);
    let sent = plane.upstream.send(in_flight, (&arrived.method, &arrived.path), headers, body, false);
    let response = sent.await.map_err(|attempt| attempt.failure)?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, most_bytes).collect().await.map_err(|error| {
        match error.downcast_ref::<LengthLimitError>() {
            Some(_) => Failure::AnswerTooLarge { limit: most_bytes },
            None => Failure::Lost,
        }
    })?;
    let content_type = head.headers.get(header::CONTENT_TYPE).cloned();
    Ok(Heard { status: head.status, content_type, body: body.to_bytes() })
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Heard {
    /// The answer as JSON: itself, or else as a string.
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| match &*self.body {
            b"" => Value::Null,
            text => Value::String(String::from_utf8_lossy(text).into_owned()),
        })
    }
}

impl Told {
    /// The answer, if it is one of success.
    pub(super) fn good(&self) -> Option<&Heard> {
        self.outcome.as_ref().ok().filter(|heard| heard.status.is_success())
    }
}
