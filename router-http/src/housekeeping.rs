//! What a thread does now and then for all of its requests, so that none needs a timer of its own.
//!
//! Each wake finds the caches cold, and takes longer than an event of a stream. So a thread looks for news only while requests wait for
//! them: those without an answer, and streams that may go on elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use router_core::{WorkerId, WorkerState};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::service::Plane;
use crate::wire::spare;

/// Time between two looks at the workers, while requests wait for them.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Time between two looks for connections to workers, and for memory, that have not been used for too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Looks for which requests that wait are told that the fleet has changed: one may have been decided just before. So are those of a
/// thread's first looks.
const LOOKS_AFTER_CHANGE: u64 = 50;

/// Tells requests that wait for a worker when it may be gone.
#[derive(Debug, Default)]
pub(crate) struct BadNews {
    waiting: AtomicUsize,
    /// Somebody waits, where nobody did.
    awaited: Notify,
    told: Notify,
}

/// Somebody waits for as long as this lives.
struct Waiting<'n>(&'n BadNews);

impl BadNews {
    /// Waits until a worker may be gone.
    pub(crate) async fn come(&self) {
        let _waiting = Waiting::begin(self);
        self.told.notified().await;
    }

    /// Waits until somebody waits for it.
    async fn awaited(&self) {
        while self.waiting.load(Relaxed) == 0 {
            self.awaited.notified().await;
        }
    }
}

impl<'n> Waiting<'n> {
    fn begin(news: &'n BadNews) -> Self {
        if news.waiting.fetch_add(1, Relaxed) == 0 {
            news.awaited.notify_one();
        }
        Self(news)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// Goes on until it is dropped: tells requests that wait for a worker when it may be gone, and closes idle connections.
pub(crate) async fn keep_house(plane: Arc<Plane>) {
    tokio::join!(look(&plane), sweep(&plane));
}

async fn look(plane: &Plane) {
    let (mut looks, mut changed): (u64, u64) = (0, 0);
    let mut known: Vec<WorkerId> = Vec::new();
    loop {
        plane.bad_news.awaited().await;
        tokio::time::sleep(LOOK_INTERVAL).await;
        looks += 1;
        let snapshot = plane.router.snapshot();
        let workers = &snapshot.fleet.workers;
        if !workers.iter().map(|worker| worker.id).eq(known.iter().copied()) {
            known = workers.iter().map(|worker| worker.id).collect();
            changed = looks;
        }
        let unreachable = workers.iter().any(|worker| worker.state == WorkerState::Unreachable);
        if unreachable || looks - changed < LOOKS_AFTER_CHANGE {
            plane.bad_news.told.notify_waiters();
        }
    }
}

async fn sweep(plane: &Plane) {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        plane.upstream.sweep();
        spare::sweep();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};

    use super::*;

    /// Counts how often it wakes.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn news_is_looked_for_while_somebody_waits_for_it() {
        let news = BadNews::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let keeper = &mut Context::from_waker(&waker);
        let waits = &mut Context::from_waker(Waker::noop());
        let mut awaited = pin!(news.awaited());
        assert!(awaited.as_mut().poll(keeper).is_pending());
        let mut first = Box::pin(news.come());
        assert!(first.as_mut().poll(waits).is_pending());
        assert_eq!(woken.0.load(Relaxed), 1);
        assert!(awaited.poll(keeper).is_ready());
        let mut second = Box::pin(news.come());
        assert!(second.as_mut().poll(waits).is_pending());
        drop(first);
        assert!(pin!(news.awaited()).poll(keeper).is_ready(), "one is left");
        news.told.notify_waiters();
        assert!(second.as_mut().poll(waits).is_ready());
        assert_eq!(woken.0.load(Relaxed), 1, "nobody looked for somebody to wait");
        let mut awaited = pin!(news.awaited());
        assert!(awaited.as_mut().poll(keeper).is_pending(), "nobody waits any more");
        let mut third = Box::pin(news.come());
        assert!(third.as_mut().poll(waits).is_pending());
        assert_eq!(woken.0.load(Relaxed), 2);
        // Somebody comes and goes unseen.
        drop(third);
        let mut awaited = pin!(news.awaited());
        assert!(awaited.as_mut().poll(keeper).is_pending());
        let mut fourth = Box::pin(news.come());
        assert!(fourth.as_mut().poll(waits).is_pending());
        assert_eq!(woken.0.load(Relaxed), 3);
    }
}
