//! A router inside another program: `cargo run -p router-core --example embed`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use router_core::key::{Salt, Unit};
use router_core::{Done, FleetUpdate, RouteRequest, Router, Settings, Time, Update, Usage};

fn main() {
    // Take the seed from the operating system. A server drives the writer from a thread of its own: see `Writer`.
    let (router, mut writer) = Router::new(Settings::new(0x5EED));
    let send = |update| router.updates().try_send(Update::Fleet(update)).expect("the queue has room");
    for url in ["http://10.0.0.1:30000", "http://10.0.0.2:30000"] {
        send(FleetUpdate::Add { url: url.into(), done: Done::ignore() });
    }
    writer.turn(Time::from_micros(1));
    for worker in &router.snapshot().fleet.workers {
        send(FleetUpdate::Health { worker: worker.id, reachable: true, reason: "it answers".into() });
    }
    let mut rng = fastrand::Rng::with_seed(1);
    for turn in 1..=4 {
        let now = Time::from_micros(turn * 1_000_000);
        writer.turn(now);
        let tokens: Vec<u32> = (0..6_400 + 640 * turn as u32).collect(); // a chat that grows
        let key = router.key_space(Unit::Token).key_of_tokens(Salt::default(), &tokens);
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        let mut routed = router.route(&request, now, &mut rng).expect("two workers are ready");
        let (url, expected) = (routed.worker().url.clone(), routed.predicted_tokens());
        assert!(turn == 1 || expected > 6_400, "a chat stays where its cache is");
        println!("turn {turn}: {url}, {expected} of {} tokens cached: {}", key.units(), routed.reason());
        // Here it is forwarded. The answer begins, says how much was cached, and ends.
        routed.first_token(now);
        routed.usage(Usage { prompt_tokens: key.units(), cached_tokens: expected }, true);
        routed.complete(now);
    }
}
