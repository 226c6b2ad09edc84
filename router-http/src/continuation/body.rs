//! The body of an answer that can go on at another worker.

use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::progress::Progress;
use super::{Asking, Continuation, Gone};
use crate::attempts::{Answered, is_stream, takes_event};
use crate::body::{BrokenBody, Passing, Told, error_event};
use crate::events::Events;
use crate::exchange::Exchange;
use crate::metrics::Outcome;

/// See the module.
pub(crate) struct Continuable {
    state: State,
    continuation: Continuation,
    events: Events,
    progress: Progress,
    /// What had been generated when the worker at work took over; `None` while it is the first.
    joined: Option<Progress>,
    idle_timeout: Option<Duration>,
    deadline: Option<Instant>,
}

enum State {
    Passing(Box<Passing>, Option<Gone>),
    /// Another worker is asked, because of this.
    Asking(Asking, BrokenBody),
    Ended,
}

type Polled = Poll<Option<Result<Bytes, BrokenBody>>>;

impl Continuable {
    pub(crate) fn new(
        continuation: Continuation,
        passing: Box<Passing>,
        idle_timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Self {
        let gone = passing.worker().map(|worker| continuation.gone(worker));
        Self {
            state: State::Passing(passing, gone),
            events: Events::default(),
            progress: continuation.progress(),
            joined: None,
            continuation,
            idle_timeout,
            deadline,
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Polled {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Passing(mut passing, gone) => match self.poll_passing(&mut passing, gone, context) {
                    Passed::Pending(gone) => {
                        self.state = State::Passing(passing, gone);
                        return Poll::Pending;
                    }
                    Passed::Some(whole, gone) => {
                        self.state = State::Passing(passing, gone);
                        if !whole.is_empty() {
                            return Poll::Ready(Some(Ok(whole)));
                        }
                    }
                    Passed::Rest(rest) => {
                        return Poll::Ready((!rest.is_empty()).then_some(Ok(rest)));
                    }
                    Passed::Broken(error) => {
                        if let Some(last) = self.go_on(passing.into_exchange(), error) {
                            return last;
                        }
                    }
                },
                State::Asking(asking, error) => return self.poll_asking(asking, error, context),
            }
        }
    }

    fn poll_passing(
        &mut self,
        passing: &mut Passing,
        mut gone: Option<Gone>,
        context: &mut Context<'_>,
    ) -> Passed {
        match passing.poll(context) {
            Poll::Ready(Some(Ok(data))) => Passed::Some(self.pass(data), gone),
            Poll::Ready(Some(Err(error))) => Passed::Broken(error),
            Poll::Ready(None) => Passed::Rest(self.events.take_rest()),
            Poll::Pending => match gone.as_mut().map(|gone| gone.as_mut().poll(context)) {
                Some(Poll::Ready(())) => {
                    passing.broke();
                    Passed::Broken(BrokenBody::Unreachable)
                }
                _ => Passed::Pending(gone),
            },
        }
    }

    fn pass(&mut self, data: Bytes) -> Bytes {
        let whole = self.events.push(data);
        let told = match &self.joined {
            Some(before) => before.join(&whole).into(),
            None => whole,
        };
        self.progress.see(&told);
        told
    }

    /// The worker is lost. Returns what is left to say if nobody can go on.
    fn go_on(&mut self, mut exchange: Box<Exchange>, error: BrokenBody) -> Option<Polled> {
        // The client has nothing of an event that was cut, and never will.
        self.events.take_rest();
        if self.progress.is_finished() && self.continuation.original.ends_with_its_last_token() {
            exchange.complete(std::time::Instant::now());
            return Some(Poll::Ready(Some(Ok(Bytes::from_static(b"data: [DONE]\n\n")))));
        }
        let rest = match error {
            BrokenBody::Deadline => None,
            _ => self.continuation.rest(&self.progress, self.joined.as_ref()),
        };
        let Some(rest) = rest else { return Some(end(exchange, &error)) };
        self.state = State::Asking(self.continuation.ask(rest, exchange, self.deadline), error);
        None
    }

    fn poll_asking(&mut self, mut asking: Asking, error: BrokenBody, context: &mut Context<'_>) -> Polled {
        let Poll::Ready((answered, exchange)) = asking.as_mut().poll(context) else {
            self.state = State::Asking(asking, error);
            return Poll::Pending;
        };
        let good = |answered: &Answered| {
            let head = &answered.response;
            head.status().is_success() && is_stream(head.headers()) && takes_event(head)
        };
        match answered {
            Ok(answered) if good(&answered) => Poll::Ready(Some(Ok(self.join(answered, exchange)))),
            _ => end(exchange, &error),
        }
    }

    /// Another worker goes on; returns what is said of that, in a comment that clients pass over.
    fn join(&mut self, answered: Answered, mut exchange: Box<Exchange>) -> Bytes {
        exchange.continued();
        let said = exchange.worker_url().map(|worker| format!(": continued at {worker}\n\n"));
        let told = if answered.asked_usage { Told::AllButUsage } else { Told::All };
        let body = answered.response.into_body();
        let passing = Passing::held(body, answered.first, exchange, told, self.idle_timeout, self.deadline);
        let gone = passing.worker().map(|worker| self.continuation.gone(worker));
        self.joined = Some(self.progress.clone());
        self.state = State::Passing(passing, gone);
        said.unwrap_or_default().into()
    }
}

/// What came of a look at what passes.
enum Passed {
    Pending(Option<Gone>),
    Some(Bytes, Option<Gone>),
    /// The worker's answer is complete, and this is what was left of it.
    Rest(Bytes),
    Broken(BrokenBody),
}

/// Nobody goes on.
fn end(mut exchange: Box<Exchange>, error: &BrokenBody) -> Polled {
    exchange.end(Outcome::Broken);
    Poll::Ready(Some(Ok(Bytes::from(error_event(exchange.route(), error)))))
}

impl fmt::Debug for Continuable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Continuable").field("progress", &self.progress).finish_non_exhaustive()
    }
}
