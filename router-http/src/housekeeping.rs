//! What a thread does now and then for all of its requests, so that none needs a timer of its own.

use std::sync::Arc;
use std::time::Duration;

use router_core::{WorkerId, WorkerState};
use tokio::time::MissedTickBehavior;

use crate::service::Plane;
use crate::wire::spare;

/// Time between two looks at the workers.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Looks between two for connections to workers that have waited too long.
const LOOKS_PER_SWEEP: u64 = 10;

/// Looks for which requests that wait are told that the fleet has changed: one may have been decided just before.
const LOOKS_AFTER_CHANGE: u64 = 50;

/// Goes on until it is dropped: tells requests that wait for a worker when it may be gone, and closes idle connections.
pub(crate) async fn keep_house(plane: Arc<Plane>) {
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut looks, mut changed): (u64, u64) = (0, 0);
    let mut known: Vec<WorkerId> = Vec::new();
    loop {
        tick.tick().await;
        looks += 1;
        if looks.is_multiple_of(LOOKS_PER_SWEEP) {
            plane.upstream.sweep();
            spare::sweep();
        }
        let snapshot = plane.router.snapshot();
        let workers = &snapshot.fleet.workers;
        if !workers.iter().map(|worker| worker.id).eq(known.iter().copied()) {
            known = workers.iter().map(|worker| worker.id).collect();
            changed = looks;
        }
        let unreachable = workers.iter().any(|worker| worker.state == WorkerState::Unreachable);
        if unreachable || looks - changed < LOOKS_AFTER_CHANGE {
            plane.bad_news.notify_waiters();
        }
    }
}
