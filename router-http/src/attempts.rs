//! Tries one worker after the other until one answers.

use std::cell::RefCell;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use router_core::{InFlight, RouteError, RouteRequest, WorkerId};

use crate::arrived::{Arrived, Wanted};
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::service::Plane;
use crate::upstream::{Attempt, WorkerBody};

/// A worker's answer as far as it was waited for.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<WorkerBody>,
    /// The first data of a stream.
    pub(crate) first: Option<Frame<Bytes>>,
}

thread_local! {
    static RNG: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::new());
}

/// Tries one worker after the other until one answers.
pub(crate) async fn answer(
    plane: &Plane,
    arrived: &Arrived,
    wanted: &Wanted,
    began: Instant,
    exchange: &mut Exchange,
) -> Result<Answered, Failure> {
    let mut tried: Vec<WorkerId> = Vec::new();
    let mut last: Option<Failure> = None;
    // A request that was sent and lost is repeated once: the worker may have closed a connection that it had kept, just
    // then. Not more often, lest one that kills its worker kill them all.
    let mut lost_at: Option<WorkerId> = None;
    for attempt in 0..plane.config.max_attempts.max(1) {
        let routed = route(plane, arrived, wanted, &tried).or_else(|error| match lost_at {
            // Nobody else can do it.
            Some(worker) if error == RouteError::AllTried => {
                tried.retain(|tried| *tried != worker);
                route(plane, arrived, wanted, &tried)
            }
            _ => Err(error),
        });
        let in_flight = match routed {
            Ok(in_flight) => in_flight,
            // What the last worker said is of more use than that there is no other.
            Err(error) => return Err(last.unwrap_or(Failure::Route(error))),
        };
        if attempt == 0 {
            plane.metrics.families.decision_s.observe(began.elapsed().as_secs_f64());
        }
        let worker = in_flight.target().worker;
        tried.push(worker);
        let request = (&arrived.method, &arrived.path);
        let (headers, body) = (arrived.headers.clone(), arrived.body.clone());
        let pin_rank = arrived.kind.takes_rank() && wanted.rank.is_none();
        let sent = plane.upstream.send(exchange.sent(in_flight), request, headers, body, pin_rank);
        let answered = match sent.await {
            Ok(response) => begin(plane, arrived, response).await,
            Err(attempt) => Err(attempt),
        };
        match answered {
            Ok(answered) => return Ok(answered),
            Err(Attempt { failure, unsent }) => {
                exchange.failed_attempt();
                let lost = matches!(failure, Failure::Lost) && arrived.may_repeat() && lost_at.is_none();
                if !unsent && !lost {
                    return Err(failure);
                }
                if lost {
                    lost_at = Some(worker);
                }
                last = Some(failure);
            }
        }
    }
    Err(last.unwrap_or(Failure::Route(RouteError::AllTried)))
}

/// Waits for the first data of a stream, before which nothing has been said that another worker could not say too.
pub(crate) async fn begin(
    plane: &Plane,
    arrived: &Arrived,
    mut response: Response<WorkerBody>,
) -> Result<Answered, Attempt> {
    let holds = arrived.may_repeat() && response.status().is_success() && is_stream(response.headers());
    if !holds || !takes_event(response.headers()) {
        return Ok(Answered { response, first: None });
    }
    let frame = response.body_mut().frame();
    let frame = match plane.config.idle_timeout {
        None => frame.await,
        Some(timeout) => match tokio::time::timeout(timeout, frame).await {
            Ok(frame) => frame,
            Err(_) => {
                let failure = Failure::Slow { seconds: timeout.as_secs() };
                return Err(Attempt { failure, unsent: false });
            }
        },
    };
    match frame.transpose() {
        Ok(first) => Ok(Answered { response, first }),
        Err(_) => Err(Attempt { failure: Failure::Lost, unsent: false }),
    }
}

fn route(
    plane: &Plane,
    arrived: &Arrived,
    wanted: &Wanted,
    tried: &[WorkerId],
) -> Result<InFlight, RouteError> {
    let request = RouteRequest {
        key: wanted.key.as_ref(),
        model: wanted.model.as_deref(),
        rank: wanted.rank.or(wanted.only_rank),
        tried,
        role: wanted.role,
        only: wanted.only,
        unpinned: !arrived.kind.takes_rank(),
    };
    RNG.with_borrow_mut(|rng| plane.router.route(&request, plane.clock.now(), rng))
}

/// The answer is a stream of server-sent events.
pub(crate) fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"))
}

/// Whether something can be put after a stream: not into compressed data, and not beyond a length that was announced.
pub(crate) fn takes_event(headers: &HeaderMap) -> bool {
    let encoding = headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes);
    let plain = encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case(b"identity"));
    plain && !headers.contains_key(header::CONTENT_LENGTH)
}
