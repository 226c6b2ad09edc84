//! Waits for a time that is moved often and reached seldom.
//!
//! The timer is only set anew when it rings too early, and only looked at when it can have rung: whoever waits for each event of a stream
//! finds its timer's memory cold.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep};

/// See the module.
#[derive(Debug)]
pub(crate) struct Patience {
    pub(crate) bound: Duration,
    due: Instant,
    /// When the timer does, which may be before that.
    rings: Instant,
    /// Whom the timer wakes.
    wakes: Option<Waker>,
    timer: Pin<Box<Sleep>>,
}

impl Patience {
    pub(crate) fn new(bound: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(bound));
        let due = timer.deadline();
        Self { bound, due, rings: due, wakes: None, timer }
    }

    pub(crate) fn renew(&mut self) {
        self.renew_at(Instant::now());
    }

    pub(crate) fn renew_at(&mut self, now: Instant) {
        self.due = now + self.bound;
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let wakes = self.wakes.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        // No timer rings before its time, so that the wake for it is still to come.
        if wakes && Instant::now() < self.rings {
            return Poll::Pending;
        }
        // Where a task has had its share of a turn, a timer would not even note whom it wakes.
        while pin!(unconstrained(self.timer.as_mut())).poll(context).is_ready() {
            if Instant::now() >= self.due {
                return Poll::Ready(());
            }
            self.rings = self.due;
            self.timer.as_mut().reset(self.due);
        }
        if !wakes {
            self.wakes = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::consume_budget;
    use tokio::time::timeout;

    use super::*;

    const BOUND: Duration = Duration::from_millis(5);

    /// A timer that wakes nobody is waited for in vain.
    const FOREVER: Duration = Duration::from_secs(60);

    /// Polls until the end, by the timer's wakes alone but for those that `turn` sees to; it is called before each poll. Returns how long
    /// that was after the last renewal.
    async fn ends(
        patience: &mut Patience,
        mut turn: impl FnMut(usize, &mut Patience, &mut Context<'_>),
    ) -> Duration {
        let mut polls = 0;
        let began = Instant::now();
        let polling = poll_fn(|context| {
            polls += 1;
            turn(polls, patience, context);
            patience.poll(context)
        });
        timeout(FOREVER, polling).await.expect("it ends");
        assert!(began.elapsed() < FOREVER, "it was not woken");
        (patience.due - BOUND).elapsed()
    }

    #[tokio::test]
    async fn it_ends_when_it_was_not_renewed_for_so_long() {
        let mut patience = Patience::new(BOUND);
        let took = ends(&mut patience, |polls, patience, context| match polls {
            1 => context.waker().wake_by_ref(),
            2 => patience.renew(),
            _ => {}
        });
        assert!(took.await >= BOUND);
    }

    #[tokio::test]
    async fn a_timer_that_rings_as_it_is_renewed_is_set_anew() {
        let mut patience = Patience::new(BOUND);
        let took = ends(&mut patience, |polls, patience, _| {
            // It is the timer that led here.
            if polls == 2 {
                patience.renew();
            }
        });
        assert!(took.await >= BOUND);
    }

    #[tokio::test]
    async fn a_wake_that_led_to_no_poll_is_not_waited_for_again() {
        let mut patience = Patience::new(BOUND);
        let mut turns = 0;
        poll_fn(|context| {
            turns += 1;
            match turns {
                1 => patience.poll(context),
                // Woken by the timer, after something else was heard, for which there was no room to be read.
                2 => {
                    patience.due = patience.rings + BOUND / 2;
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
        assert!(ends(&mut patience, |_, _, _| {}).await >= BOUND);
    }

    #[tokio::test]
    async fn it_wakes_a_task_that_had_its_share_of_a_turn() {
        let mut patience = Patience::new(BOUND);
        let took = ends(&mut patience, |polls, patience, context| match polls {
            // Which wakes it for another turn.
            1 => while pin!(consume_budget()).poll(context).is_ready() {},
            2 => patience.renew(),
            _ => {}
        });
        assert!(took.await >= BOUND);
    }

    #[tokio::test]
    async fn whoever_polls_last_is_woken() {
        let mut patience = Patience::new(BOUND);
        let _ = patience.poll(&mut Context::from_waker(Waker::noop()));
        let took = ends(&mut patience, |polls, patience, _| {
            if polls == 1 {
                patience.renew();
            }
        });
        assert!(took.await >= BOUND);
    }
}
