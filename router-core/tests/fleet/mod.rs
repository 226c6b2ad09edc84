//! A router in front of workers that are ready, for tests of decisions.

use router_core::{
    Done, FleetUpdate, Incarnation, Introduction, ReportLevel, Router, SessionId, Settings, Time, Update,
    WorkerId, WorkerProfile, Writer,
};

/// Tokens one worker can hold: more than any test stores, so that nothing is evicted.
const CAPACITY_TOKENS: u64 = 1 << 40;

/// A router, its writer, and so many ready workers of one rank each. Nothing runs: a turn is a turn.
pub(crate) fn of_ready_workers(count: usize, settings: Settings) -> (Router, Writer, Vec<WorkerId>) {
    let (router, mut writer) = Router::new(settings);
    let send = |update| router.updates().try_send(Update::Fleet(update)).expect("the queue has room");
    for number in 0..count {
        send(FleetUpdate::Add { url: format!("http://worker-{number}").into(), done: Done::ignore() });
    }
    let now = Time::from_micros(1);
    writer.turn(now);
    let workers: Vec<WorkerId> = router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
    for &worker in &workers {
        let profile = WorkerProfile { capacity_tokens: CAPACITY_TOKENS, ..WorkerProfile::default() };
        send(FleetUpdate::Profile { worker, profile: profile.into(), done: Done::ignore() });
        send(FleetUpdate::Health { worker, reachable: true, reason: "ready".into() });
    }
    writer.turn(now);
    (router, writer, workers)
}

/// The agent of a registered worker says who it is.
#[allow(dead_code, reason = "not every test has agents")]
pub(crate) fn join(router: &Router, worker: usize, at: Time) -> Update {
    let registered = router.snapshot().fleet.workers[worker].clone();
    let agent = Box::new(Introduction {
        url: registered.url.clone(),
        incarnation: Incarnation(1),
        profile: registered.profile.clone(),
        resume: Vec::new(),
        units: router_core::Units::TOKENS,
        reconcile: Vec::new(),
        reconciles: false,
        routers: 1,
        chat_template: None,
    });
    let (session, level) = (SessionId(worker as u64), ReportLevel::Full);
    Update::Fleet(FleetUpdate::Join { agent, session, level, at, done: Done::ignore() })
}
