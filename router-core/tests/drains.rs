//! Drains beside decisions: when one is said to have begun, all that its worker gets is counted.

mod fleet;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use router_core::{
    Done, FleetUpdate, InFlight, RouteRequest, Router, Settings, Time, Update, WorkerId, Writer,
};

/// Times that a worker is drained.
const DRAINS: usize = 100;
/// Threads that decide, more than the cores of a small machine, so that some are stopped anywhere.
const DECIDERS: usize = 4;

#[test]
fn nothing_is_counted_at_a_worker_once_its_drain_has_begun() {
    let (router, mut writer, workers) = fleet::of_ready_workers(2, Settings::new(1));
    let load = router.snapshot().fleet.targets[0].load.clone();
    assert_eq!(router.snapshot().fleet.targets[0].id.worker, workers[0]);
    let (ended, begins, ends) =
        (AtomicBool::new(false), Barrier::new(DECIDERS + 1), Barrier::new(DECIDERS + 1));
    let counted = thread::scope(|scope| {
        for seed in 0..DECIDERS as u64 {
            let (router, ended, begins, ends) = (&router, &ended, &begins, &ends);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                for _ in 0..DRAINS {
                    begins.wait();
                    let routed = decide_until(ended, router, &mut rng);
                    // Nothing ends before it is compared.
                    ends.wait();
                    ends.wait();
                    drop(routed);
                }
            });
        }
        let one = |_| {
            drain(&router, &mut writer, workers[0], false);
            ended.store(false, Ordering::Relaxed);
            begins.wait();
            drain(&router, &mut writer, workers[0], true);
            let told = load.read().in_flight;
            ended.store(true, Ordering::Relaxed);
            ends.wait();
            let at_last = load.read().in_flight;
            ends.wait();
            (told, at_last)
        };
        (0..DRAINS).map(one).collect::<Vec<_>>()
    });
    let later: Vec<_> = counted.iter().filter(|(told, at_last)| told != at_last).collect();
    assert!(later.is_empty(), "in flight when told, and at last: {later:?}");
    assert!(counted.iter().any(|(told, _)| *told > 0), "it got requests until then");
}

fn decide_until(ended: &AtomicBool, router: &Router, rng: &mut fastrand::Rng) -> Vec<InFlight> {
    let mut routed = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let decided = router.route(&RouteRequest::default(), Time::from_micros(1), rng);
        routed.push(decided.expect("one worker stays ready"));
    }
    routed
}

/// Returns once it has begun, or is over.
fn drain(router: &Router, writer: &mut Writer, worker: WorkerId, on: bool) {
    let (answer, answered) = mpsc::channel();
    let done = Done::new(move |drained| answer.send(drained).expect("it is waited for"));
    let update = Update::Fleet(FleetUpdate::Drain { worker, on, done });
    router.updates().try_send(update).expect("the queue has room");
    // The time does not pass: it is the readers that are waited for.
    while writer.wait(Duration::from_secs(1)) {
        writer.turn(Time::from_micros(1));
        if let Ok(drained) = answered.try_recv() {
            return drained.expect("it is registered");
        }
    }
}
