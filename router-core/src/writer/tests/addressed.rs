//! One worker addressed, in whatever state; ranks that the engine chooses; flushes and pauses that passed the router.

use super::*;

#[test]
fn the_worker_that_is_addressed_is_reached_in_any_state_and_counted() {
    let mut story = Story::with_workers(3);
    let workers: Vec<_> = story.router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
    let drain = |worker, on| Update::Fleet(FleetUpdate::Drain { worker, on, done: Done::ignore() });
    story.send(drain(workers[1], true));
    story.healthy(workers[2], false);
    for worker in &workers {
        let request = RouteRequest { only: Some(*worker), model: Some("any"), ..RouteRequest::default() };
        let in_flight = story.router.route(&request, story.now, &mut story.rng).unwrap();
        assert_eq!(in_flight.target().worker, *worker);
        let load =
            |story: &Story| story.router.snapshot().fleet.targets_of(*worker).next().unwrap().load.read();
        assert_eq!(load(&story).in_flight, 1);
        drop(in_flight);
        assert_eq!(load(&story).in_flight, 0);
    }
    let mut refused = |request: RouteRequest<'_>| {
        story.router.route(&request, story.now, &mut story.rng).map(drop).unwrap_err()
    };
    let only = Some(workers[0]);
    let tried = [workers[0]];
    assert_eq!(
        refused(RouteRequest { only, tried: &tried, ..RouteRequest::default() }),
        RouteError::AllTried
    );
    assert_eq!(
        refused(RouteRequest { only, rank: Some(7), ..RouteRequest::default() }),
        RouteError::UnknownRank { rank: 7 }
    );
    let done = Done::ignore();
    story.send(Update::Fleet(FleetUpdate::Remove { worker: workers[0], done }));
    let gone = RouteRequest { only, ..RouteRequest::default() };
    let error = story.router.route(&gone, story.now, &mut story.rng).map(drop).unwrap_err();
    assert_eq!(error, RouteError::UnknownWorker(workers[0]));
}

#[test]
fn where_the_engine_chooses_the_rank_nothing_is_matched_or_predicted() {
    for (dp_size, claimed) in [(1, 8), (2, 0)] {
        let profile = WorkerProfile { dp_size, ..WorkerProfile::default() };
        let mut story = Story::with(1, profile, |_| {});
        let worker = story.router.snapshot().fleet.workers[0].id;
        let key = story.key(&prompt(1, 8));
        let request = RouteRequest { key: Some(&key), unpinned: true, ..RouteRequest::default() };
        for _ in 0..2 {
            story.router.route(&request, story.now, &mut story.rng).unwrap().complete(story.now);
            story.turn();
        }
        let ranks = (0..dp_size).map(|rank| TargetId { worker, rank });
        let claims: usize = ranks
            .map(|target| {
                story.ask(|done| Update::Query(Query::Claims { target, unit: Unit::Token, done })).len()
            })
            .sum();
        assert_eq!(claims, claimed, "of {dp_size} ranks");
        let again = story.router.route(&request, story.now, &mut story.rng).unwrap();
        assert_eq!(again.predicted_tokens() > 0, dp_size == 1);
    }
}

#[test]
fn a_flush_that_passed_voids_at_once_and_the_agents_deltas_go_on() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, vec![stored(None, &key)]);
    assert_eq!(story.claimed(worker), 8);
    let (reason, done) = ("flushed".into(), Done::ignore());
    let notices = story.send(Update::Fleet(FleetUpdate::Flushed { worker, reason, done }));
    assert!(happened(&notices, EventKind::ClaimsVoided));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    // What the agent reports of it comes later, in order, and no baseline is asked for.
    let notices = story.delta(worker, 1, Delta { cleared: true, ..delta(1) });
    assert!(!notices.iter().any(|notice| matches!(notice, Notice::ResyncNeeded { .. })));
    story.delta(worker, 1, Delta { stored: vec![stored(None, &key[..3])], ..delta(2) });
    assert_eq!(story.claimed(worker), 3);
}

#[test]
fn a_pause_is_no_death() {
    let mut story = Story::with_workers(2);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let (target, _) = story.serve(&prompt(1, 8), 0);
    let paused = target.worker;
    let pause = |on| {
        move |done| Update::Fleet(FleetUpdate::Pause { worker: paused, on, reason: "paused".into(), done })
    };
    story.ask(pause(true));
    assert_eq!(story.state(paused), WorkerState::Updating);
    assert_eq!(story.claimed(paused), 8, "its cache is what it was");
    assert_ne!(story.route(&prompt(1, 8)).target().worker, paused);
    story.ask(pause(false));
    assert_eq!(story.state(paused), WorkerState::Ready);
    assert!(worker == paused || story.state(worker) == WorkerState::Ready);
}
