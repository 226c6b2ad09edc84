//! Bodies of answers: our own words, or a worker's as they pass.
//!
//! A worker's bytes pass through untouched. On the way they are looked at for usage, the first data of a stream is marked, and
//! the end is reported, whichever way it comes. A stream that its worker breaks off ends with an error event that the API's
//! clients understand.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use router_core::WorkerId;
use serde_json::json;
use tokio::time::{Instant, Sleep};

use crate::continuation::{Continuable, Continuation};
use crate::decided::Said;
use crate::decode::RouteKind;
use crate::exchange::Exchange;
use crate::metrics::Outcome;
use crate::stream_usage::Withheld;
use crate::upstream::WorkerBody;
use crate::usage::UsageSearch;
use crate::wire::client::{BrokenOff, Link};
use crate::wire::patience::Patience;

/// A response body of the data plane.
#[derive(Debug)]
pub(crate) struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Own(Full<Bytes>),
    Passing(Box<Passing>),
    Continuable(Box<Continuable>),
}

/// A worker's bytes on their way.
#[derive(Debug)]
pub(crate) struct Passing {
    inner: WorkerBody,
    /// Data that has been read and not passed yet.
    first: Option<Bytes>,
    exchange: Box<Exchange>,
    search: UsageSearch,
    /// Keeps from the client what it did not ask for.
    withheld: Option<Withheld>,
    on_break: OnBreak,
    idle_timeout: Option<Duration>,
    /// From the first silence on.
    idle: Option<Patience>,
    /// Runs from the request's head on.
    deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
    /// What is said next, once all before it is on its way.
    broken: Option<BrokenBody>,
}

/// What the client gets of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    All,
    /// The router asked for usage in the stream, and the client did not.
    AllButUsage,
}

/// What becomes of an answer that its worker breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnBreak {
    /// It breaks off here too.
    Break,
    /// An event says so, after what was cut off.
    Event,
    /// Whoever polls decides.
    Tell,
}

/// What ended a worker's body too early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenBody {
    #[error("the worker broke off its answer: {0}")]
    Broken(#[from] BrokenOff),
    #[error("the worker was silent for {} s in the middle of its answer", .0.as_secs())]
    Silent(Duration),
    #[error("the answer was not complete within the time that the request was given")]
    Deadline,
    #[error("the worker became unreachable in the middle of its answer")]
    Unreachable,
}

impl BrokenBody {
    fn code(&self) -> &'static str {
        match self {
            // Not the worker's fault: nobody says that it could have been faster.
            Self::Deadline => "deadline_exceeded",
            Self::Broken(_) | Self::Silent(_) | Self::Unreachable => "stream_broken",
        }
    }
}

impl Body {
    pub(crate) fn own(body: Full<Bytes>) -> Self {
        Self(Kind::Own(body))
    }

    /// A worker's body. `takes_event`: it is a stream of server-sent events in plain text and of no length known beforehand, so
    /// that one can be put after what was cut off.
    pub(crate) fn passing(
        inner: WorkerBody,
        first: Option<Bytes>,
        exchange: Box<Exchange>,
        told: Told,
        takes_event: bool,
        idle_timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Self {
        let on_break = if takes_event { OnBreak::Event } else { OnBreak::Break };
        Self(Kind::Passing(Passing::new(inner, first, exchange, told, on_break, idle_timeout, deadline)))
    }

    /// A stream of events that goes on elsewhere if its worker is lost.
    pub(crate) fn continuable(
        inner: WorkerBody,
        first: Option<Bytes>,
        exchange: Box<Exchange>,
        told: Told,
        continuation: Continuation,
        idle_timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Self {
        let passing = Passing::held(inner, first, exchange, told, idle_timeout, deadline);
        Self(Kind::Continuable(Box::new(Continuable::new(continuation, passing, idle_timeout, deadline))))
    }
}

/// What a connection goes on as once it is no HTTP any more.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) link: Box<Link>,
    pub(crate) exchange: Box<Exchange>,
    /// Longest silence in both directions.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
}

impl Body {
    /// What the router says in the head, beside the headers. Of a stream that may go on elsewhere its headers say it.
    pub(crate) fn said(&self) -> Said<'_> {
        match &self.0 {
            Kind::Passing(passing) => passing.exchange.said(),
            Kind::Own(_) | Kind::Continuable(_) => Said::default(),
        }
    }

    /// What is left of an answer that changes the protocol: its connection. `None` if it is no such answer.
    pub(crate) fn into_tunnel(self) -> Option<Tunnel> {
        let Kind::Passing(passing) = self.0 else { return None };
        let Passing { inner, exchange, idle_timeout, deadline, .. } = *passing;
        let deadline = deadline.map(|sleep| sleep.deadline());
        Some(Tunnel { link: inner.into_link()?, exchange, idle_timeout, deadline })
    }
}

impl Passing {
    fn new(
        inner: WorkerBody,
        first: Option<Bytes>,
        exchange: Box<Exchange>,
        told: Told,
        on_break: OnBreak,
        idle_timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Box<Self> {
        let search = UsageSearch::of(exchange.route());
        let mut passing = Box::new(Self {
            inner,
            first,
            exchange,
            search,
            withheld: (told == Told::AllButUsage).then(Withheld::default),
            on_break,
            idle_timeout,
            idle: None,
            deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline))),
            ended: false,
            broken: None,
        });
        if passing.is_complete() {
            passing.complete(Instant::now());
        }
        passing
    }

    /// One whose break is told to whoever polls it, who then has the rest of the exchange in hand.
    pub(crate) fn held(
        inner: WorkerBody,
        first: Option<Bytes>,
        exchange: Box<Exchange>,
        told: Told,
        idle_timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Box<Self> {
        Self::new(inner, first, exchange, told, OnBreak::Tell, idle_timeout, deadline)
    }

    pub(crate) fn into_exchange(self) -> Box<Exchange> {
        self.exchange
    }

    /// The worker at work.
    pub(crate) fn worker(&self) -> Option<WorkerId> {
        self.exchange.in_flight().map(|in_flight| in_flight.target().worker)
    }

    /// The worker is lost.
    pub(crate) fn broke(&mut self) {
        self.exchange.broke();
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenBody>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(error) = self.broken.take() {
            self.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let polled = match self.first.take() {
                Some(data) => Poll::Ready(Some(Ok(data))),
                None => self.poll_worker(context),
            };
            match polled {
                Poll::Ready(Some(Ok(data))) => {
                    if let Some(data) = self.pass(data) {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return self.break_off(error, context),
                Poll::Ready(None) => {
                    self.complete(Instant::now());
                    return Poll::Ready(self.withheld.as_mut().and_then(Withheld::rest).map(Ok));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// What comes next from the worker, which may be that it is silent for too long.
    fn poll_worker(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenBody>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(BrokenBody::Deadline)));
        }
        match self.inner.poll_data(context) {
            Poll::Pending => self.poll_idle(context).map(|error| Some(Err(error))),
            polled => polled.map_err(BrokenBody::from),
        }
    }

    /// Takes note of what passes; returns what the client gets of it.
    fn pass(&mut self, data: Bytes) -> Option<Bytes> {
        // Read once for all that is noted.
        let now = Instant::now();
        self.exchange.passed(&data, now.into_std());
        if let Some(usage) = self.search.look(&data) {
            self.exchange.used(usage, now.into_std());
        }
        if let Some(idle) = &mut self.idle {
            idle.renew_at(now);
        }
        if self.is_complete() {
            self.complete(now);
        }
        match &mut self.withheld {
            None => Some(data),
            Some(withheld) if self.ended => withheld.pass_last(data),
            Some(withheld) => withheld.pass(data),
        }
    }

    /// A body of known length need not be asked again after its last byte.
    fn is_complete(&self) -> bool {
        self.first.is_none() && self.inner.is_end_stream()
    }

    fn complete(&mut self, now: Instant) {
        self.ended = true;
        self.exchange.complete(now.into_std());
    }

    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<BrokenBody> {
        let Some(timeout) = self.idle_timeout else { return Poll::Pending };
        let idle = self.idle.get_or_insert_with(|| Patience::new(timeout));
        idle.poll(context).map(|()| BrokenBody::Silent(timeout))
    }

    /// The worker's answer ends too early. A stream says so in an event, after the end of whatever was cut; any other body
    /// must not look complete.
    fn break_off(
        &mut self,
        error: BrokenBody,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenBody>>> {
        if !matches!(error, BrokenBody::Deadline) {
            self.exchange.broke();
        }
        match self.on_break {
            OnBreak::Tell => return Poll::Ready(Some(Err(error))),
            OnBreak::Break => {
                self.exchange.end(Outcome::Broken);
                // The client's connection ends with the error, and takes along what it has not sent: it gets to send that first.
                self.broken = Some(error);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            OnBreak::Event => self.exchange.end(Outcome::Broken),
        }
        self.ended = true;
        let event = error_event(self.exchange.route(), &error);
        Poll::Ready(Some(Ok(Bytes::from(event))))
    }
}

/// The event that says so, after the end of whatever was cut, in the shape that the API's clients raise an error for:
/// Anthropic's pass over an event without a name.
pub(crate) fn error_event(route: RouteKind, error: &BrokenBody) -> String {
    let (message, code) = (error.to_string(), error.code());
    let (name, event) = match route {
        RouteKind::Messages => {
            let error = json!({"type": "api_error", "message": message, "code": code, "source": "worker"});
            ("event: error\n", json!({"type": "error", "error": error}))
        }
        _ => {
            let kind = "server_error";
            ("", json!({"error": {"message": message, "type": kind, "code": code, "source": "worker"}}))
        }
    };
    format!("\n\n{name}data: {event}\n\n")
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let polled = match &mut self.0 {
            Kind::Own(body) => {
                return Pin::new(body).poll_frame(context).map_err(|never| match never {});
            }
            Kind::Passing(body) => body.poll(context),
            Kind::Continuable(body) => body.poll(context),
        };
        polled.map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(body) => body.is_end_stream(),
            Kind::Passing(body) => body.ended,
            Kind::Continuable(body) => body.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(body) => body.size_hint(),
            Kind::Passing(body) => {
                let first = body.first.as_ref().map_or(0, |data| data.len() as u64);
                let rest = body.inner.size_hint().exact();
                rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(first + rest))
            }
            Kind::Continuable(_) => SizeHint::default(),
        }
    }
}
