//! Whole decisions: snapshot, match, policy over all targets, in-flight accounting; hashes given.
//!
//! The router fills its own index: every stored prompt is routed and completed. What is timed is `route` alone; the
//! request ends at once, and the writer takes its turn between batches, so that the snapshot in force keeps changing.

use std::hint::black_box;
use std::time::Instant;

use router_core::key::{PrefixKey, Salt};
use router_core::{Done, FleetUpdate, RouteRequest, Router, Settings, Time, Update, WorkerProfile, Writer};

use crate::cells::Effort;
use crate::rows::Plan;
use crate::timing::{Times, clock_ns, since_ns};
use crate::work::{Cell, Work};

/// Fleets, and what a decision may take on them in nanoseconds.
const FLEETS: [(u16, f64); 3] = [(64, 3_000.0), (512, 8_000.0), (4_096, 8_000.0)];
/// Decisions between two turns of the writer.
const BATCH: usize = 64;
/// Time between two turns: the default publication interval, in microseconds.
const TURN_US: u64 = 500;
/// What a turn of the writer may take, publication included, in microseconds.
const TURN_BOUND_US: f64 = 1_000.0;

/// Measures the row of every fleet.
pub(crate) fn run(plan: &Plan) {
    let effort = Effort::of(plan);
    for (targets, bound_ns) in FLEETS {
        let cell = Cell { prompt_blocks: 512, targets, blocks: effort.blocks };
        let (row, turn) =
            (format!("route p50, {}", cell.name()), format!("writer's turn p99, {}", cell.name()));
        if !plan.wants(&row) && !plan.wants(&turn) {
            continue;
        }
        plan.progress(&row);
        let work = Work::new(cell, effort.lookups, |_| (Vec::new(), Vec::new()), true);
        let mut decisions = Decisions::over(&work);
        let rounds = (0..effort.rounds).map(|_| decisions.round());
        let (routes, turns): (Vec<f64>, Vec<f64>) = rounds.unzip();
        plan.bound(&row, "ns", &routes, bound_ns);
        plan.bound(&turn, "µs", &turns, TURN_BOUND_US);
    }
}

fn key_of(work: &Work, tokens: &[u32]) -> PrefixKey {
    work.space.key_of_tokens(Salt::default(), tokens)
}

/// A router over a ready fleet that has served what the workload stores.
fn router_of(work: &Work) -> (Router, Writer) {
    let settings = Settings { token_space: work.space.clone(), ..Settings::new(1) };
    let (router, mut writer) = Router::new(settings);
    let send = |update| router.updates().try_send(update).expect("the queue is larger than the fleet");
    let now = Time::from_micros(1);
    for worker in 0..work.cell.targets {
        let url = format!("http://worker-{worker}").into();
        send(Update::Fleet(FleetUpdate::Add { url, done: Done::ignore() }));
    }
    writer.turn(now);
    for worker in &router.snapshot().fleet.workers {
        let profile = Box::new(WorkerProfile { capacity_tokens: 1 << 30, ..WorkerProfile::default() });
        send(Update::Fleet(FleetUpdate::Profile { worker: worker.id, profile, done: Done::ignore() }));
        send(Update::Fleet(FleetUpdate::Health { worker: worker.id, reachable: true, reason: "".into() }));
    }
    writer.turn(now);
    let mut rng = fastrand::Rng::with_seed(1);
    for held in &work.stored {
        let key = key_of(work, &held.prompt.tokens);
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        let mut routed = router.route(&request, now, &mut rng).expect("every worker is ready");
        routed.first_token(now);
        routed.complete(now);
        writer.turn(now);
    }
    (router, writer)
}

/// A router that decides the workload's lookups round after round.
struct Decisions {
    router: Router,
    writer: Writer,
    keys: Vec<PrefixKey>,
    now: Time,
}

impl Decisions {
    fn over(work: &Work) -> Self {
        let (router, writer) = router_of(work);
        let keys = work.lookups.iter().map(|prompt| key_of(work, &prompt.tokens)).collect();
        Self { router, writer, keys, now: Time::from_micros(2) }
    }

    /// The median of a decision in nanoseconds, and what all turns of the writer but one in a hundred stay below, in
    /// microseconds: a turn takes in and publishes a batch of decisions that came to nothing.
    fn round(&mut self) -> (f64, f64) {
        let mut rng = fastrand::Rng::with_seed(2);
        let clock_ns = clock_ns();
        let mut routes = Vec::with_capacity(self.keys.len());
        let mut turns = Vec::new();
        for batch in self.keys.chunks(BATCH) {
            for key in batch {
                black_box(key.hashes().iter().fold(0, |all, hash| all ^ hash.get()));
                let request = RouteRequest { key: Some(key), ..RouteRequest::default() };
                let began = Instant::now();
                let routed = self.router.route(black_box(&request), self.now, &mut rng);
                routes.push(since_ns(began));
                drop(routed);
            }
            self.now = Time::from_micros(self.now.as_micros() + TURN_US);
            let began = Instant::now();
            self.writer.turn(self.now);
            turns.push(since_ns(began));
        }
        (Times::new(routes, clock_ns).p50(), Times::new(turns, clock_ns).p99() / 1_000.0)
    }
}
