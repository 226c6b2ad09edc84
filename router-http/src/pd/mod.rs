//! Generations that a prefill and a decode worker share (prefill-decode disaggregation, PD).
//!
//! ```text
//!            ┌─ prefill: body + bootstrap fields ─▶ prefill worker ─┐ its answer is read for usage, and kept from the client
//! request ──▶│                                                      │ KV, by the room that both were told
//!            └─ decode:  the same fields ─────────▶ decode worker ◀─┘ its answer is the client's
//! ```
//! Both are sent at once. Until the client has seen a byte, a failure of either ends both, and the pair is tried anew with the
//! failing side elsewhere and a new room. From then on the decode half alone decides; see `docs/pd.md`.

mod fields;
mod leg;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use router_core::{FaultKind, InFlight, Pair, Role, RouteError, RouteRequest, WorkerId};

use self::fields::Pairing;
pub(crate) use self::leg::PrefillLeg;
use self::leg::{Ended, Outgoing, Refusal, is_worker_failure};
use crate::admission::{Admission, Granted};
use crate::arrived::{Arrived, Wanted};
use crate::attempts::{self, Answered};
use crate::decode::RouteKind;
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::faults;
use crate::service::Plane;
use crate::upstream::Attempt;

thread_local! {
    static RNG: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::new());
}

/// What came of one pair.
enum Outcome {
    Answered(Answered),
    /// A worker failed without a word for the client.
    Failed {
        worker: WorkerId,
        attempt: Attempt,
    },
    /// The prefill worker says that it will not.
    PrefillRefused {
        worker: WorkerId,
        refusal: Box<Refusal>,
    },
    /// The decode worker says that it cannot, for which the prefill worker may be to blame.
    DecodeFailed {
        worker: WorkerId,
        prefill: WorkerId,
        answered: Answered,
    },
}

/// How long a decode worker's failure waits for that of its prefill worker, which would explain it.
const BLAME: Duration = Duration::from_millis(100);

/// What came of a request that a pair might serve.
pub(crate) enum Served {
    Answered(Answered),
    /// It is for one worker, of the pool that [`Wanted`] names; if that has been decided on, the exchange has it.
    ByOne,
}

/// Tries one pair after the other until one answers.
pub(crate) async fn answer(
    plane: &Arc<Plane>,
    arrived: &Arrived,
    wanted: &mut Wanted,
    began: Instant,
    exchange: &mut Exchange,
) -> Result<Served, Failure> {
    if !matches!(arrived.kind, RouteKind::Generate | RouteKind::Completions | RouteKind::Chat) {
        wanted.role = plane.router.pool_of_others(&request(wanted, &[]), plane.clock.now());
        return Ok(Served::ByOne);
    }
    let mut tried: Vec<WorkerId> = Vec::new();
    // As with a single worker: what was sent and lost is repeated once, lest one that kills its worker kill them all.
    let mut repeated = false;
    let mut pair = match route_or_wait(plane, wanted, &tried, Some(began)).await? {
        Granted::Pair(pair) => pair,
        Granted::One(in_flight) => return Ok(by_one(wanted, in_flight, exchange)),
    };
    let prompts = if wanted.several { fields::prompts(&arrived.body) } else { None };
    let mut attempt = 1;
    loop {
        let outcome = try_pair(plane, arrived, wanted, prompts, pair, exchange).await;
        let (worker, unsent, lost) = outcome.blame();
        let again = worker.filter(|_| {
            let may = attempt < plane.config.max_attempts;
            may && (unsent || (lost && !repeated && attempts::withdraw(plane)))
        });
        if let Some(worker) = again {
            repeated |= lost;
            tried.push(worker);
            let mut routed = route_or_wait(plane, wanted, &tried, None).await;
            if lost
                && matches!(routed, Err(Failure::Route(RouteError::AllTried)))
                && outcome.excuses(&mut tried)
            {
                routed = route_or_wait(plane, wanted, &tried, None).await;
            }
            if let Ok(next) = routed {
                exchange.failed_attempt();
                match next {
                    Granted::Pair(next) => pair = next,
                    Granted::One(in_flight) => return Ok(by_one(wanted, in_flight, exchange)),
                }
                attempt += 1;
                continue;
            }
        }
        return settle(outcome, exchange).map(Served::Answered);
    }
}

/// What the client is told when there is nothing more to try.
fn settle(outcome: Outcome, exchange: &mut Exchange) -> Result<Answered, Failure> {
    match outcome {
        Outcome::Answered(answered) => Ok(answered),
        Outcome::Failed { attempt, .. } => {
            exchange.failed_attempt();
            Err(attempt.failure)
        }
        Outcome::PrefillRefused { refusal, .. } => {
            let Refusal { in_flight, answered } = *refusal;
            exchange.stands_in(in_flight);
            Ok(answered)
        }
        Outcome::DecodeFailed { answered, .. } => Ok(answered),
    }
}

impl Outcome {
    /// The worker at whose place another one may do better, whether the request never reached it, and whether it was lost there.
    fn blame(&self) -> (Option<WorkerId>, bool, bool) {
        match self {
            Self::Answered(_) => (None, false, false),
            Self::Failed { worker, attempt } => {
                (Some(*worker), attempt.unsent, matches!(attempt.failure, Failure::Lost))
            }
            Self::PrefillRefused { worker, refusal } => {
                (Some(*worker).filter(|_| is_worker_failure(&refusal.answered)), false, true)
            }
            Self::DecodeFailed { worker, .. } => (Some(*worker), false, true),
        }
    }
}

impl Outcome {
    /// Nobody but whoever was tried last can do it. Whether that one may be tried again.
    fn excuses(&self, tried: &mut Vec<WorkerId>) -> bool {
        tried.pop();
        match self {
            // It may have been the other one.
            Self::DecodeFailed { prefill, .. } => tried.push(*prefill),
            // A connection that had been kept may have been closed just then.
            Self::Failed { .. } => {}
            Self::Answered(_) | Self::PrefillRefused { .. } => return false,
        }
        true
    }
}

/// A unified worker serves it.
fn by_one(wanted: &mut Wanted, in_flight: InFlight, exchange: &mut Exchange) -> Served {
    wanted.role = Some(Role::Unified);
    exchange.sent(in_flight);
    Served::ByOne
}

impl PrefillLeg {
    /// What its failure makes of the pair.
    fn outcome(&self, ended: Ended) -> Outcome {
        let worker = self.worker;
        match ended {
            Ended::Failed(attempt) => Outcome::Failed { worker, attempt },
            Ended::Refused(refusal) => Outcome::PrefillRefused { worker, refusal },
        }
    }
}

/// Sends both halves and waits for the first the client may see, or until one fails. Whatever is not kept is cancelled.
async fn try_pair(
    plane: &Arc<Plane>,
    arrived: &Arrived,
    wanted: &Wanted,
    prompts: Option<usize>,
    pair: Pair,
    exchange: &mut Exchange,
) -> Outcome {
    let Pair { prefill, decode } = pair;
    let pairing = RNG.with_borrow_mut(|rng| Pairing::new(&prefill, prompts, rng));
    let asked_rank = wanted.rank.is_some();
    let mut headers = arrived.headers.clone();
    fields::strip_headers(&mut headers);
    let outgoing = Outgoing {
        method: arrived.method.clone(),
        path: arrived.path.clone(),
        headers: readable(headers.clone()),
        added: arrived.added.clone(),
        body: pairing.put_into(&arrived.body, &prefill, asked_rank),
    };
    let body = pairing.put_into(&arrived.body, &decode, asked_rank);
    let decode_worker = decode.target().worker;
    let mut leg = PrefillLeg::start(plane.clone(), prefill, outgoing, wanted.several);
    let decode = exchange.sent(decode);
    let decoded = async {
        let headers = (&headers, &arrived.added);
        let sent = plane.upstream.send(decode, (&arrived.method, &arrived.path), headers, body, false);
        attempts::begin(plane, arrived, sent.await?).await
    };
    let decoded = tokio::select! {
        biased;
        ended = leg.failed() => return leg.outcome(ended),
        decoded = decoded => decoded,
    };
    let failed = match decoded {
        Err(attempt) => {
            if let Some(in_flight) = exchange.in_flight_mut() {
                faults::count_failure(plane, in_flight, &attempt.failure);
            }
            return Outcome::Failed { worker: decode_worker, attempt };
        }
        Ok(answered) if is_worker_failure(&answered) => answered,
        Ok(answered) => {
            exchange.shares(leg);
            return Outcome::Answered(answered);
        }
    };
    match tokio::time::timeout(BLAME, leg.failed()).await {
        Ok(ended) => leg.outcome(ended),
        Err(_) => {
            exchange.fault(FaultKind::Status);
            Outcome::DecodeFailed { worker: decode_worker, prefill: leg.worker, answered: failed }
        }
    }
}

/// The headers for an answer that is read here.
fn readable(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(header::ACCEPT_ENCODING);
    headers
}

/// Decides for a pair, or a unified worker where that is what there is, if need be once they have room. `began`: when the first
/// decision did.
async fn route_or_wait(
    plane: &Plane,
    wanted: &Wanted,
    tried: &[WorkerId],
    began: Option<Instant>,
) -> Result<Granted, Failure> {
    let (wish, admission) = (wanted.wish(false, tried, true), plane.shared.admission.as_deref());
    let routed = match admission.is_none_or(Admission::is_idle) {
        true => RNG.with_borrow_mut(|rng| wish.route(&plane.router, plane.clock.now(), rng)),
        false => Err(RouteError::AtBound),
    };
    if let Some(began) = began {
        plane.metrics.families.decision_s.observe(began.elapsed().as_secs_f64());
    }
    match (routed, admission) {
        (Err(RouteError::AtBound), Some(admission)) => admission.wait(wish, &wanted.standing).await,
        (routed, _) => routed.map_err(Failure::Route),
    }
}

fn request<'a>(wanted: &'a Wanted, tried: &'a [WorkerId]) -> RouteRequest<'a> {
    let (key, model) = (wanted.key.as_ref(), wanted.model.as_deref());
    RouteRequest { key, model, rank: wanted.rank, tried, ..RouteRequest::default() }
}
