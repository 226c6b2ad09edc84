//! What a drain and a removal promise of requests that are being decided as they begin.

use std::sync::mpsc::Receiver;

use super::*;

/// Longer than any test may take: whoever waits so long waits for ever.
const NEVER: Duration = Duration::from_secs(3_600);

impl Story {
    /// Sends an update, and returns where the call of its `done` will arrive.
    fn begin<T: Send + 'static>(&mut self, update: impl FnOnce(Done<T>) -> FleetUpdate) -> Receiver<T> {
        let (answer, answered) = mpsc::channel();
        self.send(Update::Fleet(update(Done::new(move |result| answer.send(result).unwrap()))));
        answered
    }

    fn begin_drain(&mut self, worker: WorkerId) -> Receiver<Result<(), FleetError>> {
        self.begin(|done| FleetUpdate::Drain { worker, on: true, done })
    }

    fn begin_removal(&mut self, worker: WorkerId) -> Receiver<Result<u64, FleetError>> {
        self.begin(|done| FleetUpdate::Remove { worker, done })
    }

    fn only_worker(&self) -> WorkerId {
        self.router.snapshot().fleet.workers[0].id
    }
}

#[test]
fn a_request_that_is_being_decided_as_a_drain_begins_is_counted_when_it_has() {
    let mut story = Story::with_workers(1);
    let worker = story.only_worker();
    let load = story.router.snapshot().fleet.targets[0].load.clone();
    let router = story.router.clone();
    let deciding = router.cell().load();
    let drained = story.begin_drain(worker);
    assert_eq!(story.state(worker), WorkerState::Draining);
    story.turn();
    assert!(drained.try_recv().is_err(), "a request may still be counted");
    let request = RouteRequest::default();
    let in_flight = router.decide(&deciding, &request, story.now, &mut story.rng).unwrap();
    story.turn();
    assert!(drained.try_recv().is_err());
    drop(deciding);
    assert!(story.writer.wait(NEVER), "the writer looks by itself whether it is over");
    assert!(!story.writer.has_update());
    story.turn();
    assert_eq!(drained.try_recv(), Ok(Ok(())));
    assert_eq!(load.read().in_flight, 1);
    assert!(router.route(&request, story.now, &mut story.rng).is_err());
    drop(in_flight);
}

#[test]
fn a_removal_counts_what_was_being_decided() {
    let mut story = Story::with_workers(1);
    let worker = story.only_worker();
    let router = story.router.clone();
    let deciding = router.cell().load();
    let removed = story.begin_removal(worker);
    let decide = |story: &mut Story| {
        router.decide(&deciding, &RouteRequest::default(), story.now, &mut story.rng).unwrap()
    };
    let (ends, lasts) = (decide(&mut story), decide(&mut story));
    assert!(removed.try_recv().is_err());
    ends.complete(story.now);
    drop(deciding);
    story.turn();
    assert_eq!(removed.try_recv(), Ok(Ok(1)));
    lasts.complete(story.now);
}

#[test]
fn only_snapshots_from_before_are_waited_for() {
    let mut story = Story::with_workers(2);
    let workers: Vec<_> = story.router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
    let before = story.router.snapshot();
    let first = story.begin_drain(workers[0]);
    let between = story.router.snapshot();
    let second = story.begin_drain(workers[1]);
    let _after = story.router.snapshot();
    story.add("http://another").unwrap();
    drop(before);
    story.turn();
    assert_eq!(first.try_recv(), Ok(Ok(())));
    assert!(second.try_recv().is_err());
    drop(between);
    story.turn();
    assert_eq!(second.try_recv(), Ok(Ok(())));
}

#[test]
fn a_snapshot_that_is_kept_delays_a_drain_for_a_second_and_nothing_else_at_all() {
    let mut story = Story::with_workers(1);
    let worker = story.only_worker();
    let _kept = story.router.snapshot();
    let drained = story.begin_drain(worker);
    // Each of these expects its answer in the turn that takes it.
    story.add("http://another").unwrap();
    story.ask(|done| Update::Fleet(FleetUpdate::Drain { worker, on: false, done })).unwrap();
    story.pass(Duration::from_millis(997));
    assert!(drained.try_recv().is_err(), "after 999 ms");
    story.turn();
    assert_eq!(drained.try_recv(), Ok(Ok(())));
    let removed = story.begin_removal(worker);
    assert!(removed.try_recv().is_err());
    story.pass(Duration::from_secs(1));
    assert_eq!(removed.try_recv(), Ok(Ok(0)));
}

#[test]
fn whether_a_wait_ended_with_an_update_can_be_told_until_the_next_turn() {
    let mut story = Story::with_workers(1);
    assert!(story.writer.wait(Duration::ZERO) && !story.writer.has_update());
    let worker = story.only_worker();
    let update = FleetUpdate::Health { worker, reachable: false, reason: "probed".into() };
    story.router.updates().try_send(Update::Fleet(update)).unwrap();
    assert!(story.writer.wait(NEVER) && story.writer.has_update());
    story.turn();
    assert_eq!(story.state(worker), WorkerState::Unreachable);
    assert!(!story.writer.has_update());
}

#[test]
fn where_no_router_is_left_nobody_decides() {
    let mut story = Story::with_workers(1);
    let worker = story.only_worker();
    let _kept = story.router.snapshot();
    let drained = story.begin_drain(worker);
    let Story { router, mut writer, .. } = story;
    assert!(drained.try_recv().is_err());
    drop(router);
    assert!(!writer.wait(NEVER));
    assert_eq!(drained.try_recv(), Ok(Ok(())));
}
