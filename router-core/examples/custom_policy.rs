//! A policy of one's own: `cargo run -p router-core --example custom_policy`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;

use router_core::key::{PrefixKey, Salt, Unit};
use router_core::policy::{Choice, Policy, Reason, View};
use router_core::{Done, FleetUpdate, InFlight, RouteRequest, Router, Settings, Time, Update};

/// Follows the cache as long as the target that holds most is not full; else takes the one with least to do.
#[derive(Debug)]
struct CacheUpTo {
    /// Requests in flight from which a target counts as full.
    full_from: u64,
}

impl Policy for CacheUpTo {
    fn name(&self) -> &'static str {
        "cache_up_to"
    }

    fn choose(&self, view: &View<'_>, _rng: &mut fastrand::Rng) -> Choice {
        let all = || view.candidates.iter().enumerate();
        let open = all().filter(|(_, candidate)| candidate.load.in_flight < self.full_from);
        let held = open.max_by_key(|(_, candidate)| candidate.matched_tokens);
        if let Some((index, _)) = held.filter(|(_, candidate)| candidate.matched_tokens > 0) {
            return Choice { index, reason: Reason::LongestMatch };
        }
        // Equal loads are told apart by the prefix, so that all routers send the same new prompt to the same place.
        let first = view.first_blocks.unwrap_or(view.ordinal);
        let least =
            all().min_by_key(|(_, candidate)| (candidate.load.in_flight, candidate.rendezvous(first)));
        let (index, _) = least.expect("a view has at least one candidate");
        Choice { index, reason: Reason::LeastLoad }
    }
}

fn main() {
    // Without threads: a turn of the writer is a call.
    let (router, mut writer) = Router::new(Settings::new(0x5EED));
    let send = |update| router.updates().try_send(Update::Fleet(update)).expect("the queue has room");
    for url in ["http://10.0.0.1:30000", "http://10.0.0.2:30000"] {
        send(FleetUpdate::Add { url: url.into(), done: Done::ignore() });
    }
    send(FleetUpdate::Policy(Arc::new(CacheUpTo { full_from: 2 })));
    writer.turn(Time::from_micros(1));
    for worker in &router.snapshot().fleet.workers {
        send(FleetUpdate::Health { worker: worker.id, reachable: true, reason: "it answers".into() });
    }
    writer.turn(Time::from_micros(2));

    let tokens: Vec<u32> = (0..4_096).collect();
    let key = router.key_space(Unit::Token).key_of_tokens(Salt::default(), &tokens);
    let mut routed = Vec::new();
    for at in 3..6 {
        routed.push(route(&router, &key, Time::from_micros(at)));
        // What has been routed is expected to be cached, once the writer has taken it in.
        writer.turn(Time::from_micros(at));
    }
    let reasons: Vec<_> = routed.iter().map(InFlight::reason).collect();
    assert_eq!(reasons, [Reason::LeastLoad, Reason::LongestMatch, Reason::LeastLoad]);
    assert_eq!(routed[0].target(), routed[1].target());
    assert_ne!(routed[1].target(), routed[2].target(), "the first is full");
    routed.into_iter().for_each(|request| request.complete(Time::from_micros(9)));
}

fn route(router: &Router, key: &PrefixKey, now: Time) -> InFlight {
    let request = RouteRequest { key: Some(key), ..RouteRequest::default() };
    let mut rng = fastrand::Rng::with_seed(now.as_micros());
    let routed = router.route(&request, now, &mut rng).expect("two workers are ready");
    println!(
        "{}: {} tokens expected cached: {}",
        routed.worker().url,
        routed.predicted_tokens(),
        routed.reason()
    );
    routed
}
