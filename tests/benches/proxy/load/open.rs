//! The times of requests that do not wait for answers: a Poisson process, kept by a thread of its own.
//!
//! A timer of the runtime would be late by up to a millisecond, which is more than what is measured.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Requests that are due, in order. What nobody is free to send waits, and its time counts from when it was due.
#[derive(Debug)]
pub(super) struct Arrivals {
    due: Mutex<UnboundedReceiver<Instant>>,
}

impl Arrivals {
    pub(super) fn start(began: Instant, time: Duration, per_second: f64) -> Self {
        let (sender, due) = unbounded_channel();
        std::thread::spawn(move || keep(began, began + time, per_second, &sender));
        Self { due: Mutex::new(due) }
    }

    /// When the next request is due, once it is and the caller is the one to send it.
    pub(super) async fn next(&self) -> Option<Instant> {
        self.due.lock().await.recv().await
    }
}

#[expect(clippy::disallowed_methods, reason = "a rate is made of times")]
fn keep(began: Instant, end: Instant, per_second: f64, due: &UnboundedSender<Instant>) {
    // The same times for every contestant.
    let mut rng = fastrand::Rng::with_seed(0);
    let mut at = began;
    loop {
        at += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / per_second);
        if at >= end {
            return;
        }
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if due.send(at).is_err() {
            return;
        }
    }
}
