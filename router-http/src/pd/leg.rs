//! The prefill half of a generation: sent beside the decode half, its answer read to the end and kept from the client.
//!
//! It has a task of its own, since the connection to a worker is driven by whoever waits on it and the client's waits on the
//! decode half. The task ends with what it belongs to: see [`PrefillLeg`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response};
use router_core::{FaultKind, InFlight, WorkerId};
use tokio::sync::oneshot;

use crate::attempts::{Answered, is_stream};
use crate::decode::RouteKind;
use crate::error::Failure;
use crate::faults;
use crate::headers::Added;
use crate::service::Plane;
use crate::upstream::{Attempt, WorkerBody};
use crate::usage::UsageSearch;

/// A prefill under way. Dropping it cancels it: its connection closes, by which the engine learns to abort.
#[derive(Debug)]
pub(crate) struct PrefillLeg {
    pub(super) worker: WorkerId,
    pub(crate) url: Arc<str>,
    pub(crate) rank: u32,
    pub(crate) predicted_tokens: u64,
    /// Dropped unused it cancels the task.
    release: oneshot::Sender<()>,
    /// Until it is known how.
    ended: Option<oneshot::Receiver<Ended>>,
}

/// What is sent to a worker.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) added: Added,
    pub(super) body: Bytes,
}

/// How a prefill ended before its decode half had anything to say.
#[derive(Debug)]
pub(super) enum Ended {
    /// The worker could not be reached, or was lost.
    Failed(Attempt),
    /// The worker answers that it will not.
    Refused(Box<Refusal>),
}

/// The words of a prefill worker that will not, with the request that it is about.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) in_flight: InFlight,
    pub(super) answered: Answered,
}

/// How long a prefill whose decode half is complete may take to say so too. It was done before the first token.
const LINGER: Duration = Duration::from_secs(30);

/// How a stream begins that is an error.
const ERROR_EVENT: &[u8] = b"data: {\"error\"";

impl PrefillLeg {
    /// Sends it. `several`: the request has several prompts, whose usage teaches nothing about any of them.
    pub(super) fn start(plane: Arc<Plane>, in_flight: InFlight, outgoing: Outgoing, several: bool) -> Self {
        let (release, released) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let leg = Self {
            worker: in_flight.target().worker,
            url: in_flight.worker().url.clone(),
            rank: in_flight.target().rank,
            predicted_tokens: in_flight.predicted_tokens(),
            release,
            ended: Some(ended),
        };
        tokio::spawn(async move {
            tokio::select! {
                outcome = prefill(&plane, in_flight, outgoing, several) => {
                    if let Err(outcome) = outcome {
                        // Nobody listens any more once the client has had a byte: the prefill has served its purpose then.
                        let _ = end.send(outcome);
                    }
                }
                () = given_up(released) => {}
            }
        });
        leg
    }

    /// Waits until it fails; for ever if it does not.
    pub(super) async fn failed(&mut self) -> Ended {
        if let Some(ended) = &mut self.ended {
            let outcome = ended.await;
            self.ended = None;
            if let Ok(ended) = outcome {
                return ended;
            }
        }
        std::future::pending().await
    }

    /// The decode half is complete: what the prefill still has to say is heard.
    pub(crate) fn let_finish(self) {
        // A task that has ended needs no permission.
        let _ = self.release.send(());
    }
}

/// Until nobody wants the prefill any more.
async fn given_up(released: oneshot::Receiver<()>) {
    if released.await.is_ok() {
        tokio::time::sleep(LINGER).await;
    }
}

/// Sends the request and reads the answer to its end.
async fn prefill(
    plane: &Plane,
    mut in_flight: InFlight,
    outgoing: Outgoing,
    several: bool,
) -> Result<(), Ended> {
    let Outgoing { method, path, headers, added, body } = outgoing;
    let headers = (&headers, &added);
    let sent = plane.upstream.send(&in_flight, (&method, &path), headers, body, false).await;
    let mut response = match sent {
        Ok(response) => response,
        Err(attempt) => {
            faults::count_failure(plane, &mut in_flight, &attempt.failure);
            return Err(Ended::Failed(attempt));
        }
    };
    if !response.status().is_success() {
        return Err(refused(plane, in_flight, Answered { response, first: None, asked_usage: false }));
    }
    let stream = is_stream(response.headers());
    let mut search = UsageSearch::of(RouteKind::Generate);
    let mut prefilled = false;
    loop {
        let data = match next(plane, &mut response).await {
            Ok(Some(data)) => data,
            Ok(None) => break,
            Err(failure) => {
                faults::count_failure(plane, &mut in_flight, &failure);
                return Err(Ended::Failed(Attempt { failure, unsent: false }));
            }
        };
        if !prefilled && stream && data.starts_with(ERROR_EVENT) {
            return Err(refused(
                plane,
                in_flight,
                Answered { response, first: Some(data), asked_usage: false },
            ));
        }
        prefilled = true;
        in_flight.first_token(plane.clock.now());
        if let Some(usage) = search.look(&data) {
            let families = &plane.metrics.families;
            families.prompt_tokens.inc_by(usage.prompt_tokens);
            families.cached_tokens.inc_by(usage.cached_tokens);
            if !several {
                families.predicted_tokens.inc_by(in_flight.predicted_tokens());
                // The time to this answer has the transfer in it, and teaches nothing about the prefill speed.
                in_flight.usage(usage, false);
            }
        }
    }
    in_flight.complete(plane.clock.now());
    Ok(())
}

fn refused(plane: &Plane, mut in_flight: InFlight, answered: Answered) -> Ended {
    if is_worker_failure(&answered) {
        faults::count(&plane.metrics.families, &mut in_flight, FaultKind::Status, plane.clock.now());
    }
    Ended::Refused(Box::new(Refusal { in_flight, answered }))
}

async fn next(plane: &Plane, response: &mut Response<WorkerBody>) -> Result<Option<Bytes>, Failure> {
    let data = response.body_mut().data();
    let data = match plane.config.idle_timeout {
        None => data.await,
        Some(timeout) => tokio::time::timeout(timeout, data)
            .await
            .map_err(|_| Failure::Slow { seconds: timeout.as_secs() })?,
    };
    data.transpose().map_err(|_| Failure::Lost)
}

/// Whether an answer says that the worker failed, rather than that the request is wrong.
pub(super) fn is_worker_failure(answered: &Answered) -> bool {
    if answered.response.status().is_server_error() {
        return true;
    }
    let first = answered.first.as_ref();
    let error = first.filter(|data| is_stream(answered.response.headers()) && data.starts_with(ERROR_EVENT));
    error.is_some_and(|data| says_server_error(data))
}

/// Whether an error event has a code of 5xx.
fn says_server_error(event: &[u8]) -> bool {
    let event = event.strip_prefix(b"data: ").unwrap_or(event);
    let event = serde_json::Deserializer::from_slice(event).into_iter::<serde_json::Value>().next();
    let code = event.and_then(Result::ok).and_then(|event| event["error"]["code"].as_u64());
    code.is_some_and(|code| (500..600).contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_event_says_whose_fault_it_is() {
        let event = |code: &str| {
            format!("data: {{\"error\":{{\"message\":\"m\",\"code\":{code}}}}}\n\ndata: [DONE]\n\n")
        };
        assert!(says_server_error(event("500").as_bytes()));
        assert!(!says_server_error(event("400").as_bytes()));
        assert!(!says_server_error(event("null").as_bytes()));
        assert!(!says_server_error(b"data: {\"error\""));
    }
}
