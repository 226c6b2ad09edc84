//! Tries one worker after the other until one answers: what is repeated, and what is told of those that failed.
//!
//! Only before the first byte of an answer, never at the same worker twice while there is another, and within the
//! [budget](crate::budget). `docs/fault-tolerance.md` has the rules.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use router_core::{FaultKind, InFlight, Pair, RouteError, RouteRequest, WorkerId, WorkerState};
use smallvec::SmallVec;

use crate::admission::{Admission, Granted};
use crate::arrived::{Arrived, Wanted};
use crate::error::Failure;
use crate::exchange::{Aside, Exchange};
use crate::faults;
use crate::headers::find;
use crate::service::Plane;
use crate::stream_usage;
use crate::upstream::{Attempt, WorkerBody};

/// A worker's answer as far as it was waited for.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Box<Response<WorkerBody>>,
    /// The first data of a stream.
    pub(crate) first: Option<Bytes>,
    /// The worker was asked for usage, and the client did not.
    pub(crate) asked_usage: bool,
}

/// How an attempt ended.
enum Ended {
    Answered(Answered),
    Failed(Attempt),
    /// Its worker is unreachable by now, and this one takes the request over.
    Abandoned(Box<InFlight>),
}

/// What has been tried.
#[derive(Default)]
struct Tries {
    tried: SmallVec<[WorkerId; 4]>,
    /// A request that was sent and lost is repeated once: the worker may have closed a connection that it had kept, just then. Not
    /// more often, lest one that kills its worker kill them all.
    lost_at: Option<WorkerId>,
    failure: Option<Failure>,
    /// An answer that another worker was to better. The client gets it if none does.
    kept: Option<Box<(Answered, Aside)>>,
}

/// Longest time for which a worker's `Retry-After` is followed.
const LONGEST_HOLD_OFF: Duration = Duration::from_secs(60);

/// Tries one worker after the other until one answers, those that were `lost` at last. If the request is in flight already, that is the
/// first attempt.
pub(crate) async fn answer(
    plane: &Plane,
    arrived: &Arrived,
    wanted: &Wanted,
    lost: &[WorkerId],
    began: Instant,
    exchange: &mut Exchange,
) -> Result<Answered, Failure> {
    let mut tries = Tries { tried: lost.into(), lost_at: lost.last().copied(), ..Tries::default() };
    let most = plane.config.max_attempts.max(1);
    for attempt in 1..=most {
        let in_flight = match exchange.in_flight() {
            Some(in_flight) => in_flight,
            None => {
                let began = (attempt == 1).then_some(began);
                match tries.route_or_wait(plane, arrived, wanted, began, exchange).await {
                    Ok(in_flight) => in_flight,
                    Err(failure) => return tries.give_up(failure, exchange),
                }
            }
        };
        tries.tried.push(in_flight.target().worker);
        let may_go_on = attempt < most;
        match try_at(plane, arrived, wanted, in_flight, &tries.tried, may_go_on).await {
            Ended::Answered(answered) => {
                judge(plane, &answered.response, exchange);
                let status = answered.response.status();
                let better =
                    may_go_on && arrived.may_repeat() && is_retried(plane, status) && withdraw(plane);
                match if better { exchange.set_aside() } else { None } {
                    Some(aside) => tries.kept = Some(Box::new((answered, aside))),
                    None => return Ok(answered),
                }
            }
            Ended::Failed(attempt) => {
                if let Some(failure) = tries.failed(plane, arrived, attempt, exchange) {
                    return tries.give_up(failure, exchange);
                }
            }
            Ended::Abandoned(other) => {
                exchange.failed_attempt();
                exchange.sent(*other);
            }
        }
    }
    tries.give_up(Failure::Route(RouteError::AllTried), exchange)
}

/// Sends the request to one worker and waits until its answer begins.
async fn try_at(
    plane: &Plane,
    arrived: &Arrived,
    wanted: &Wanted,
    in_flight: &InFlight,
    tried: &[WorkerId],
    may_go_on: bool,
) -> Ended {
    let pin_rank = arrived.kind.takes_rank() && wanted.rank.is_none();
    let attempt = async {
        let request = (&arrived.method, &arrived.path);
        let asks = wanted.asks_usage && in_flight.worker().profile.usage_on_request == Some(true);
        let body = if asks { stream_usage::asking(&arrived.body) } else { arrived.body.clone() };
        let headers = (&arrived.headers, &arrived.added);
        let response = plane.upstream.send(in_flight, request, headers, body, pin_rank).await?;
        let answered = begin(plane, arrived, response).await?;
        Ok(Answered { asked_usage: asks, ..answered })
    };
    let takes_over = async {
        if may_go_on && arrived.may_repeat() {
            Box::new(another(plane, arrived, wanted, in_flight.target().worker, tried).await)
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        biased;
        answered = attempt => match answered {
            Ok(answered) => Ended::Answered(answered),
            Err(attempt) => Ended::Failed(attempt),
        },
        other = takes_over => Ended::Abandoned(other),
    }
}

/// Waits until a worker is unreachable, or gone, and another one takes the request. Where nobody does, waiting goes on: a worker
/// that is paused answers once it is not.
async fn another(
    plane: &Plane,
    arrived: &Arrived,
    wanted: &Wanted,
    worker: WorkerId,
    tried: &[WorkerId],
) -> InFlight {
    let mut refused = false;
    loop {
        plane.bad_news.come().await;
        let snapshot = plane.router.snapshot();
        let known = snapshot.fleet.workers.iter().find(|known| known.id == worker);
        if known.is_some_and(|known| known.state != WorkerState::Unreachable) {
            continue;
        }
        let request = request(arrived, wanted, tried);
        let now = plane.clock.now();
        if plane.router.match_with_room(&request, now, &mut fastrand::Rng::new()).is_err() {
            continue;
        }
        if !plane.budget.withdraw(&plane.config.retry, now) {
            // Counted once, however long it goes on waiting.
            if !std::mem::replace(&mut refused, true) {
                plane.metrics.families.retries_refused.inc();
            }
            continue;
        }
        if let Ok(other) = route(plane, arrived, wanted, tried) {
            return other;
        }
    }
}

impl Tries {
    /// Decides for a worker, if need be once one has room, where the request is in flight then. `began`: when the first decision did.
    async fn route_or_wait<'e>(
        &mut self,
        plane: &Plane,
        arrived: &Arrived,
        wanted: &Wanted,
        began: Option<Instant>,
        exchange: &'e mut Exchange,
    ) -> Result<&'e InFlight, Failure> {
        let admission = plane.shared.admission.as_deref();
        // Whoever waits comes first.
        let routed = match admission.is_none_or(Admission::is_idle) {
            true => self.route(plane, arrived, wanted),
            false => Err(RouteError::AtBound),
        };
        if let Some(began) = began {
            plane.metrics.families.decision_s.observe(began.elapsed().as_secs_f64());
        }
        let error = match routed {
            Ok(in_flight) => return Ok(exchange.sent(in_flight)),
            Err(error) => error,
        };
        let (RouteError::AtBound, Some(admission)) = (&error, admission) else {
            return Err(Failure::Route(error));
        };
        let unpinned = !arrived.kind.takes_rank();
        let wish = wanted.wish(unpinned, &self.tried, false);
        Ok(exchange.sent(match admission.wait(wish, &wanted.standing).await? {
            Granted::One(in_flight) => in_flight,
            // What is not to be paired is not.
            Granted::Pair(Pair { decode, .. }) => decode,
        }))
    }

    fn route(&mut self, plane: &Plane, arrived: &Arrived, wanted: &Wanted) -> Result<InFlight, RouteError> {
        let Some(worker) = self.lost_at.filter(|_| self.kept.is_none()) else {
            return route(plane, arrived, wanted, &self.tried);
        };
        match route(plane, arrived, wanted, &self.tried) {
            // Nobody else can do it.
            Err(RouteError::AllTried) => {
                self.tried.retain(|tried| *tried != worker);
                route(plane, arrived, wanted, &self.tried)
            }
            routed => routed,
        }
    }

    /// An attempt came to nothing. Returns its failure if nothing more is to be tried.
    fn failed(
        &mut self,
        plane: &Plane,
        arrived: &Arrived,
        attempt: Attempt,
        exchange: &mut Exchange,
    ) -> Option<Failure> {
        let Attempt { failure, unsent } = attempt;
        if let Some(in_flight) = exchange.in_flight_mut() {
            faults::count_failure(plane, in_flight, &failure);
        }
        exchange.failed_attempt();
        let lost = matches!(failure, Failure::Lost) && arrived.may_repeat() && self.lost_at.is_none();
        if lost && withdraw(plane) {
            self.lost_at = self.tried.last().copied();
        } else if !unsent {
            return Some(failure);
        }
        self.failure = Some(failure);
        None
    }

    /// What the client gets when nobody is left: a worker's own words, if there are any, else what went wrong last.
    fn give_up(self, failure: Failure, exchange: &mut Exchange) -> Result<Answered, Failure> {
        if let Some(kept) = self.kept {
            let (answered, aside) = *kept;
            exchange.resume(aside);
            return Ok(answered);
        }
        // What went wrong at the last worker is of more use than that there is no other.
        Err(match failure {
            Failure::Route(error) => self.failure.unwrap_or(Failure::Route(error)),
            failure => failure,
        })
    }
}

/// What an answer says of its worker's health.
fn judge(plane: &Plane, response: &Response<WorkerBody>, exchange: &mut Exchange) {
    let status = response.status();
    if status.is_server_error() {
        exchange.fault(FaultKind::Status);
    }
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
        && let Some(time) = retry_after(response.headers())
    {
        exchange.hold_off(plane.clock.now() + time.min(LONGEST_HOLD_OFF));
    }
}

/// The seconds of `Retry-After`; as a date it is not followed.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn is_retried(plane: &Plane, status: StatusCode) -> bool {
    plane.config.retry.statuses.contains(&status.as_u16())
}

/// Takes a retry out of the budget.
pub(crate) fn withdraw(plane: &Plane) -> bool {
    let taken = plane.budget.withdraw(&plane.config.retry, plane.clock.now());
    if !taken {
        plane.metrics.families.retries_refused.inc();
    }
    taken
}

/// Waits for the first data of a stream, before which nothing has been said that another worker could not say too.
pub(crate) async fn begin(
    plane: &Plane,
    arrived: &Arrived,
    mut response: Box<Response<WorkerBody>>,
) -> Result<Answered, Attempt> {
    let holds = arrived.may_repeat() && response.status().is_success() && is_stream(response.headers());
    if !holds || !takes_event(&response) {
        return Ok(Answered { response, first: None, asked_usage: false });
    }
    let data = response.body_mut().data();
    let data = match plane.config.idle_timeout {
        None => data.await,
        Some(timeout) => match tokio::time::timeout(timeout, data).await {
            Ok(data) => data,
            Err(_) => {
                let failure = Failure::Slow { seconds: timeout.as_secs() };
                return Err(Attempt { failure, unsent: false });
            }
        },
    };
    match data.transpose() {
        Ok(first) => Ok(Answered { response, first, asked_usage: false }),
        Err(_) => Err(Attempt { failure: Failure::Lost, unsent: false }),
    }
}

fn route(
    plane: &Plane,
    arrived: &Arrived,
    wanted: &Wanted,
    tried: &[WorkerId],
) -> Result<InFlight, RouteError> {
    let request = request(arrived, wanted, tried);
    plane.router.route(&request, plane.clock.now(), &mut fastrand::Rng::new())
}

fn request<'a>(arrived: &Arrived, wanted: &'a Wanted, tried: &'a [WorkerId]) -> RouteRequest<'a> {
    RouteRequest {
        key: wanted.key.as_ref(),
        model: wanted.model.as_deref(),
        rank: wanted.rank.or(wanted.only_rank),
        tried,
        role: wanted.role,
        only: wanted.only,
        unpinned: !arrived.kind.takes_rank(),
        unbounded: false,
    }
}

/// The answer is a stream of server-sent events.
pub(crate) fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"))
}

/// Whether something can be put after a stream: not into compressed data, and not beyond a length that was announced.
pub(crate) fn takes_event(response: &Response<WorkerBody>) -> bool {
    let encoding = find(response.headers(), &header::CONTENT_ENCODING).map(HeaderValue::as_bytes);
    let plain = encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case(b"identity"));
    plain && response.body().size_hint().exact().is_none()
}
