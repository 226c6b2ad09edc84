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
use serde_json::json;
use tokio::time::{Instant, Sleep};

use crate::decode::RouteKind;
use crate::exchange::Exchange;
use crate::metrics::Outcome;
use crate::upstream::WorkerBody;
use crate::usage::UsageSearch;
use crate::wire::client::{BrokenOff, Link};

/// A response body of the data plane.
#[derive(Debug)]
pub(crate) struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Own(Full<Bytes>),
    Passing(Box<Passing>),
}

#[derive(Debug)]
struct Passing {
    inner: WorkerBody,
    /// Data that has been read and not passed yet.
    first: Option<Frame<Bytes>>,
    exchange: Exchange,
    search: UsageSearch,
    /// An event may be put after what was cut off.
    takes_event: bool,
    idle_timeout: Option<Duration>,
    /// Runs from the first silence on, and is only set anew when it rings too early.
    idle: Option<Pin<Box<Sleep>>>,
    /// When something came last, once [`idle`](Self::idle) runs.
    heard: Option<Instant>,
    /// Runs from the request's head on.
    deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
    /// What is said next, once all before it is on its way.
    broken: Option<BrokenBody>,
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
}

impl Body {
    pub(crate) fn own(body: Full<Bytes>) -> Self {
        Self(Kind::Own(body))
    }

    /// A worker's body. `takes_event`: it is a stream of server-sent events in plain text and of no length known beforehand, so
    /// that one can be put after what was cut off.
    pub(crate) fn passing(
        inner: WorkerBody,
        first: Option<Frame<Bytes>>,
        exchange: Exchange,
        takes_event: bool,
        idle_timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Self {
        let search = UsageSearch::of(exchange.route());
        let mut passing = Passing {
            inner,
            first,
            exchange,
            search,
            takes_event,
            idle_timeout,
            idle: None,
            heard: None,
            deadline: deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline))),
            ended: false,
            broken: None,
        };
        passing.end_if_complete();
        Self(Kind::Passing(Box::new(passing)))
    }
}

/// What a connection goes on as once it is no HTTP any more.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) link: Link,
    pub(crate) exchange: Exchange,
    /// Longest silence in both directions.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
}

impl Body {
    /// What is left of an answer that changes the protocol: its connection. `None` if it is no such answer.
    pub(crate) fn into_tunnel(self) -> Option<Tunnel> {
        let Kind::Passing(passing) = self.0 else { return None };
        let Passing { inner, exchange, idle_timeout, deadline, .. } = *passing;
        let deadline = deadline.map(|sleep| sleep.deadline());
        Some(Tunnel { link: inner.into_link()?, exchange, idle_timeout, deadline })
    }
}

impl Passing {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(error) = self.broken.take() {
            self.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(frame) = self.first.take() {
            self.pass(&frame);
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return self.break_off(BrokenBody::Deadline, context);
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.pass(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.break_off(error.into(), context),
            Poll::Ready(None) => {
                self.ended = true;
                self.exchange.complete();
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_idle(context),
        }
    }

    fn pass(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.exchange.passed(data);
            if let Some(usage) = self.search.look(data) {
                self.exchange.used(usage);
            }
        }
        if self.idle.is_some() {
            self.heard = Some(Instant::now());
        }
        self.end_if_complete();
    }

    /// A body of known length need not be asked again after its last byte.
    fn end_if_complete(&mut self) {
        if self.first.is_none() && self.inner.is_end_stream() {
            self.ended = true;
            self.exchange.complete();
        }
    }

    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let Some(timeout) = self.idle_timeout else { return Poll::Pending };
        let sleep = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        while sleep.as_mut().poll(context).is_ready() {
            let due = self.heard.map_or(sleep.deadline(), |heard| heard + timeout);
            if Instant::now() >= due {
                return self.break_off(BrokenBody::Silent(timeout), context);
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// The worker's answer ends too early. A stream says so in an event, after the end of whatever was cut; any other body
    /// must not look complete.
    fn break_off(
        &mut self,
        error: BrokenBody,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let code = match error {
            // Not the worker's fault: nobody says that it could have been faster.
            BrokenBody::Deadline => "deadline_exceeded",
            BrokenBody::Broken(_) | BrokenBody::Silent(_) => {
                self.exchange.broke();
                "stream_broken"
            }
        };
        self.exchange.end(Outcome::Broken);
        if !self.takes_event {
            // The client's connection ends with the error, and takes along what it has not sent: it gets to send that first.
            self.broken = Some(error);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ended = true;
        let event = error_event(self.exchange.route(), &error, code);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(event)))))
    }
}

/// The event that says so, after the end of whatever was cut, in the shape that the API's clients raise an error for:
/// Anthropic's pass over an event without a name.
fn error_event(route: RouteKind, error: &BrokenBody, code: &str) -> String {
    let message = error.to_string();
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
        match &mut self.0 {
            Kind::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Kind::Passing(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(body) => body.is_end_stream(),
            Kind::Passing(body) => body.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(body) => body.size_hint(),
            // A stream of which something was read beforehand has no length.
            Kind::Passing(body) if body.first.is_some() => SizeHint::default(),
            Kind::Passing(body) => body.inner.size_hint(),
        }
    }
}
