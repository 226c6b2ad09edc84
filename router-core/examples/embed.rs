//! A router inside another program: `cargo run -p router-core --example embed`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use router_core::key::{Salt, Unit};
use router_core::{
    Done, FleetUpdate, Query, RouteRequest, Router, Settings, Time, Update, Usage, WorkerProfile,
};

fn main() {
    // The seed keeps others from aiming collisions at the index: take it from the operating system.
    let (router, mut writer) = Router::new(Settings::new(0x5EED));
    let origin = Instant::now();
    let now = move || Time::from_micros(origin.elapsed().as_micros() as u64);
    let writing = thread::spawn(move || {
        while writer.wait(Duration::from_millis(50)) {
            writer.turn(now());
        }
    });

    for url in ["http://10.0.0.1:30000", "http://10.0.0.2:30000"] {
        let add = |done| Update::Fleet(FleetUpdate::Add { url: url.into(), done });
        let worker = ask(&router, add).expect("no other worker has this URL");
        let healthy = FleetUpdate::Health { worker, reachable: true, reason: "it answers".into() };
        router.updates().try_send(Update::Fleet(healthy)).expect("the queue has room");
        let profile = WorkerProfile { capacity_tokens: 400_000, ..WorkerProfile::default() };
        let known = |done| Update::Fleet(FleetUpdate::Profile { worker, profile, done });
        ask(&router, known).expect("the fleet has room");
    }

    let mut rng = fastrand::Rng::with_seed(1);
    let mut went_to = Vec::new();
    for turn in 1..=4_u32 {
        // A chat that grows by 640 tokens a turn.
        let tokens: Vec<u32> = (0..6_400 + 640 * turn).collect();
        let key = router.key_space(Unit::Token).key_of_tokens(Salt::default(), &tokens);
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        let mut routed = router.route(&request, now(), &mut rng).expect("two workers are ready");
        let (url, expected) = (routed.worker().url.clone(), routed.predicted_tokens());
        println!(
            "turn {turn}: {url}, {expected} of {} tokens expected cached: {}",
            key.units(),
            routed.reason()
        );
        // Here the request is forwarded. The answer begins, says how much was cached, and ends.
        routed.first_token(now());
        routed.usage(Usage { prompt_tokens: key.units(), cached_tokens: expected }, true);
        routed.complete(now());
        // Only so that the next turn of this example finds what this one left: a server does not wait.
        ask(&router, |done| Update::Query(Query::Confirmed { key, done }));
        went_to.push((url, expected));
    }
    assert!(went_to.windows(2).all(|turns| turns[0].0 == turns[1].0), "a chat stays where its cache is");
    assert!(went_to[1..].iter().all(|(_, expected)| *expected > 6_400), "and finds what came before");

    drop(router);
    writing.join().expect("the writer ends once nobody can send it anything");
}

/// Sends an update and waits for what it says when it is in force.
fn ask<T: Send + 'static>(router: &Router, update: impl FnOnce(Done<T>) -> Update) -> T {
    let (answer, answered) = mpsc::channel();
    let done = Done::new(move |result| drop(answer.send(result)));
    router.updates().try_send(update(done)).expect("the queue has room");
    answered.recv().expect("the writer runs")
}
