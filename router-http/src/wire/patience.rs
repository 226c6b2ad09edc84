//! Waits for a time that is moved often and reached seldom: the timer is only set anew when it rings too early.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// See the module.
#[derive(Debug)]
pub(super) struct Patience {
    pub(super) bound: Duration,
    due: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Patience {
    pub(super) fn new(bound: Duration) -> Self {
        Self { bound, due: Instant::now() + bound, sleep: Box::pin(tokio::time::sleep(bound)) }
    }

    pub(super) fn renew(&mut self) {
        self.due = Instant::now() + self.bound;
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(context));
            if Instant::now() >= self.due {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.due);
        }
    }
}
