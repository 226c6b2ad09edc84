//! Streams that go on at another worker when theirs is lost.
//!
//! While such a stream passes, what it has generated is kept ([`Progress`]), and only whole events are passed on. If its worker is lost,
//! another one is asked for the rest: the prompt is what it was, followed by what has been generated ([`Original`]). Its events are
//! told as the going-on of those before ([`Progress::join`]). `docs/fault-tolerance.md` says which requests that is done for, and
//! what is not as it would have been.

mod body;
mod original;
mod progress;

use std::pin::Pin;

use router_core::{WorkerId, WorkerState};
use tokio::time::Instant;

pub(crate) use body::Continuable;

use self::original::Original;
use self::progress::Progress;
use crate::admission::Standing;
use crate::arrived::{Arrived, Wanted};
use crate::attempts::{Answered, is_stream, takes_event, withdraw};
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::route::Route;
use crate::service::Service;

/// Asks for the rest, and gives back the exchange that it needs for that.
type Asking = Pin<Box<dyn Future<Output = (Result<Answered, Failure>, Box<Exchange>)> + Send>>;

/// A future that is ready when the worker is unreachable, or gone.
type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is kept of a request so that its stream can go on elsewhere.
pub(crate) struct Continuation {
    service: Service,
    route: &'static Route,
    arrived: Arrived,
    standing: Standing,
    original: Original,
    /// Workers that were lost.
    lost: Vec<WorkerId>,
}

impl Continuation {
    /// `None` where it was not asked for, or could not be without being another request.
    pub(crate) fn of(
        service: &Service,
        route: &'static Route,
        arrived: &Arrived,
        wanted: &Wanted,
        answered: &Answered,
    ) -> Option<Box<Self>> {
        let (plane, head) = (service.plane(), &answered.response);
        plane.config.continue_streams.then_some(())?;
        // Who names a worker means that one; a pair of workers is not put together anew.
        let is_free = wanted.only.is_none() && arrived.may_repeat() && !plane.router.has_pools();
        let takes_events = is_stream(head.headers()) && takes_event(head);
        (is_free && takes_events && head.status().is_success()).then_some(())?;
        let original = Original::of(arrived.kind, &arrived.body)?;
        Some(Box::new(Self {
            service: service.clone(),
            route,
            arrived: arrived.clone(),
            standing: wanted.standing.clone(),
            original,
            lost: Vec::new(),
        }))
    }

    fn progress(&self) -> Progress {
        Progress::of(self.arrived.kind)
    }

    /// The request for what comes after `progress`, if it can be and is to be made. A worker that took over, `joined`, and was lost
    /// before it came any further has no follower: the request may be what kills them.
    fn rest(&self, progress: &Progress, joined: Option<&Progress>) -> Option<Arrived> {
        let plane = self.service.plane();
        let further = joined.is_none_or(|joined| joined.tokens() < progress.tokens());
        let may = further && self.lost.len() + 1 < plane.config.max_attempts;
        let body = self.original.rest(&self.arrived.body, progress).filter(|_| may && withdraw(plane))?;
        Some(Arrived { body: body.into(), ..self.arrived.clone() })
    }

    /// Makes it, at another worker than the one that is lost.
    fn ask(&mut self, rest: Arrived, mut exchange: Box<Exchange>, deadline: Option<Instant>) -> Asking {
        self.lost.extend(exchange.in_flight().map(|in_flight| in_flight.target().worker));
        exchange.failed_attempt();
        let (service, route) = (self.service.clone(), self.route);
        let (standing, lost) = (self.standing.clone(), self.lost.clone());
        Box::pin(async move {
            let answer = service.answer_rest(route, rest, standing, &lost, &mut exchange);
            let answered = match deadline {
                None => answer.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answered) => answered,
                    Err(_) => Err(Failure::Lost),
                },
            };
            (answered, exchange)
        })
    }

    /// Waits until a worker is unreachable, or gone: it may be silent for long before its connection breaks.
    fn gone(&self, worker: WorkerId) -> Gone {
        let service = self.service.clone();
        Box::pin(async move {
            let plane = service.plane();
            loop {
                plane.bad_news.come().await;
                let snapshot = plane.router.snapshot();
                let known = snapshot.fleet.workers.iter().find(|known| known.id == worker);
                // A worker that was removed serves what it has begun.
                if known.is_some_and(|known| known.state == WorkerState::Unreachable) {
                    return;
                }
            }
        })
    }
}
