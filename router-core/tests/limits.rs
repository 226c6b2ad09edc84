//! Bounds on what is in flight hold whatever threads do at once, and whoever waits for room hears of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use router_core::admission::Limits;
use router_core::{
    Declaration, Done, FleetUpdate, InFlight, Load, Role, RouteError, RouteRequest, Router, Settings, Time,
    Update, Writer,
};

fn now() -> Time {
    Time::from_micros(3)
}

fn fleet(roles: &[Role], limits: Limits) -> (Router, Writer) {
    let (router, mut writer) = Router::new(Settings { limits, ..Settings::new(7) });
    let send = |update| router.updates().try_send(Update::Fleet(update)).unwrap();
    for at in 0..roles.len() {
        send(FleetUpdate::Add { url: format!("http://w{at}:1").into(), done: Done::ignore() });
    }
    writer.turn(Time::from_micros(1));
    for (worker, role) in router.snapshot().fleet.workers.iter().zip(roles) {
        let worker = worker.id;
        let declaration = Declaration { role: Some(*role), ..Declaration::default() };
        send(FleetUpdate::Declare { worker, declaration, done: Done::ignore() });
        send(FleetUpdate::Health { worker, reachable: true, reason: "".into() });
    }
    writer.turn(Time::from_micros(2));
    (router, writer)
}

fn route(router: &Router, request: &RouteRequest<'_>) -> Result<InFlight, RouteError> {
    router.route(request, now(), &mut fastrand::Rng::with_seed(1))
}

#[test]
fn what_is_full_is_no_candidate_and_room_is_used_again() {
    let limits = Limits { per_target: 2, ..Limits::NONE };
    let (router, _writer) = fleet(&[Role::Unified; 2], limits);
    let any = RouteRequest::default();
    let running: Vec<InFlight> = (0..4).map(|_| route(&router, &any).unwrap()).collect();
    let snapshot = router.snapshot();
    assert!(snapshot.fleet.targets.iter().all(|target| target.load.read().in_flight == 2));
    assert_eq!(route(&router, &any).unwrap_err(), RouteError::AtBound);
    let only = RouteRequest { only: Some(snapshot.fleet.workers[0].id), ..any };
    assert_eq!(route(&router, &only).unwrap_err(), RouteError::AtBound, "also for whoever means that one");
    let control = route(&router, &RouteRequest { unbounded: true, ..only }).unwrap();
    drop(control);
    let freed = running.into_iter().next().unwrap();
    let target = freed.target();
    freed.complete(now());
    assert_eq!(route(&router, &any).unwrap().target(), target);
    let explained = router.explain(&any, now(), &mut fastrand::Rng::with_seed(1)).unwrap();
    assert_eq!(explained.candidates.len(), 2);
}

#[test]
fn a_full_worker_is_no_reason_to_ask_one_that_fails() {
    let limits = Limits { per_target: 1, ..Limits::NONE };
    let (router, _writer) = fleet(&[Role::Unified; 2], limits);
    let any = RouteRequest::default();
    let ill = RouteRequest { only: Some(router.snapshot().fleet.workers[1].id), ..any };
    for _ in 0..router.settings().ejection.failures {
        route(&router, &ill).unwrap().failed(router_core::FaultKind::Status, now());
    }
    let _running = route(&router, &any).unwrap();
    assert_eq!(route(&router, &any).unwrap_err(), RouteError::AtBound);
}

#[test]
fn whoever_waits_is_told_of_room_and_not_of_what_never_was() {
    let limits = Limits { per_target: 1, total: 3 };
    let (router, _writer) = fleet(&[Role::Prefill, Role::Decode], limits);
    let told = Arc::new(AtomicUsize::new(0));
    let counts = told.clone();
    assert!(router.on_room(move || _ = counts.fetch_add(1, SeqCst)));
    assert!(!router.on_room(|| ()));
    let any = RouteRequest::default();
    let rng = &mut fastrand::Rng::with_seed(1);
    let prefill = RouteRequest { role: Some(Role::Prefill), ..any };
    let held = route(&router, &prefill).unwrap();
    assert_eq!(router.route_pair(&any, now(), rng).unwrap_err(), RouteError::AtBound);
    assert_eq!(told.load(SeqCst), 0, "a decode worker was chosen, and nobody had been there");
    assert_eq!(router.match_with_room(&prefill, now(), rng), Err(RouteError::AtBound));
    drop(held);
    assert_eq!(told.load(SeqCst), 1);
    assert_eq!(router.match_with_room(&prefill, now(), rng), Ok(0));
    let pair = router.route_pair(&any, now(), rng).unwrap().unwrap();
    assert_eq!(told.load(SeqCst), 1);
    drop(pair);
    assert_eq!(told.load(SeqCst), 3);
    let (free, _writer) = fleet(&[Role::Unified], Limits::NONE);
    assert!(!free.on_room(|| ()), "nobody ever waits");
}

#[test]
fn no_bound_is_passed_by_threads_that_decide_at_once() {
    let limits = Limits { per_target: 3, total: 8 };
    let (router, _writer) = fleet(&[Role::Unified; 3], limits);
    let (inside, most, sent, refused) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (router, inside, most, sent, refused) = (&router, &inside, &most, &sent, &refused);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut held = Vec::new();
                for _ in 0..3_000 {
                    match router.route(&RouteRequest::default(), now(), &mut rng) {
                        Ok(in_flight) => {
                            sent.fetch_add(1, SeqCst);
                            most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                            for target in &router.snapshot().fleet.targets {
                                assert!(target.load.read().in_flight <= 3);
                            }
                            held.push(in_flight);
                        }
                        Err(error) => {
                            assert_eq!(error, RouteError::AtBound);
                            refused.fetch_add(1, SeqCst);
                        }
                    }
                    if rng.bool() && !held.is_empty() {
                        // Counted out first: it may be in no longer before the room is given away.
                        inside.fetch_sub(1, SeqCst);
                        held.swap_remove(rng.usize(..held.len())).complete(now());
                    }
                }
                inside.fetch_sub(held.len() as u64, SeqCst);
            });
        }
    });
    assert!(most.load(SeqCst) <= 8);
    assert!(sent.load(SeqCst) > 1_000 && refused.load(SeqCst) > 100, "{sent:?} {refused:?}");
    for target in &router.snapshot().fleet.targets {
        assert_eq!(target.load.read(), Load::default());
    }
    let all: Vec<_> = (0..8).map(|_| route(&router, &RouteRequest::default()).unwrap()).collect();
    assert_eq!(route(&router, &RouteRequest::default()).unwrap_err(), RouteError::AtBound);
    drop(all);
}
