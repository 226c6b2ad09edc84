//! Stories of a router and its writer, told without threads: a turn is a turn.

mod addressed;
mod counted;
mod fleet;
mod older;
mod reconciled;
mod sessions;

use std::collections::HashSet;
use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;

use super::Writer;
use crate::key::{BlockHash, PrefixKey, Salt, Unit};
use crate::{
    Accuracy, AgentReport, BlockRun, CacheKind, ChatTemplate, Delta, Done, EventKind, FleetError,
    FleetUpdate, InFlight, Incarnation, Introduction, JoinError, Joined, LowerTier, MispredictionCause,
    NoTemplate, NotRendered, Notice, Query, ReportLevel, RouteError, RouteRequest, Router, SessionEnd,
    SessionId, SetDigest, Settings, Target, TargetId, Time, Units, Update, Usage, WorkerId, WorkerProfile,
    WorkerState,
};

/// Tokens in a block of the tests' key space.
const BLOCK: usize = 4;

struct Story {
    router: Router,
    writer: Writer,
    now: Time,
    rng: fastrand::Rng,
}

impl Story {
    /// A router in front of ready workers "http://0", "http://1" …
    fn with_workers(count: usize) -> Self {
        Self::with(count, WorkerProfile { capacity_tokens: 4_000, ..WorkerProfile::default() }, |_| {})
    }

    fn with(count: usize, profile: WorkerProfile, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(1);
        settings.token_space = crate::key::KeySpace::new(Unit::Token, BLOCK as u32, 1).unwrap();
        settings.text_space = crate::key::KeySpace::new(Unit::Text, 16, 1).unwrap();
        change(&mut settings);
        let (router, writer) = Router::new(settings);
        let rng = fastrand::Rng::with_seed(1);
        let mut story = Self { router, writer, now: Time::from_micros(1_000_000), rng };
        for index in 0..count {
            let worker = story.add(&format!("http://{index}")).unwrap();
            story.profile(worker, profile.clone()).unwrap();
            story.healthy(worker, true);
        }
        story
    }

    fn send(&mut self, update: Update) -> Vec<Notice> {
        self.router.updates().try_send(update).unwrap();
        self.turn()
    }

    fn turn(&mut self) -> Vec<Notice> {
        self.pass(Duration::from_millis(1))
    }

    fn pass(&mut self, time: Duration) -> Vec<Notice> {
        self.now = self.now + time;
        self.writer.turn(self.now)
    }

    /// Sends an update and returns what its `done` was called with.
    fn ask<T: Send + 'static>(&mut self, update: impl FnOnce(Done<T>) -> Update) -> T {
        let (answer, answered) = mpsc::channel();
        self.send(update(Done::new(move |result| answer.send(result).unwrap())));
        answered.try_recv().expect("every question is answered in the turn that takes it")
    }

    fn add(&mut self, url: &str) -> Result<WorkerId, FleetError> {
        let url = url.into();
        self.ask(|done| Update::Fleet(FleetUpdate::Add { url, done }))
    }

    fn profile(&mut self, worker: WorkerId, profile: WorkerProfile) -> Result<(), FleetError> {
        self.ask(|done| Update::Fleet(FleetUpdate::Profile { worker, profile: profile.into(), done }))
    }

    fn healthy(&mut self, worker: WorkerId, reachable: bool) {
        self.send(Update::Fleet(FleetUpdate::Health { worker, reachable, reason: "probed".into() }));
    }

    fn report(&mut self, worker: WorkerId, session: u64, report: AgentReport) -> Vec<Notice> {
        let at = self.now;
        self.send(Update::Agent { worker, session: SessionId(session), at, report })
    }

    fn join(
        &mut self,
        worker: WorkerId,
        session: u64,
        incarnation: u64,
        resume: Vec<(u32, u64)>,
    ) -> Result<Vec<(u32, u64)>, JoinError> {
        let agent = self.introduction(worker, incarnation, resume);
        self.join_as(agent, session).map(|joined| joined.resumed)
    }

    fn join_as(&mut self, agent: Introduction, session: u64) -> Result<Joined, JoinError> {
        let (session, level, at) = (SessionId(session), ReportLevel::Full, self.now);
        self.ask(|done| Update::Fleet(FleetUpdate::Join { agent: agent.into(), session, level, at, done }))
    }

    fn consider(&mut self, agent: Introduction) -> Result<Vec<(u32, u64)>, JoinError> {
        let considered = self.ask(|done| Update::Fleet(FleetUpdate::Consider { agent: agent.into(), done }));
        considered.map(|considered| considered.resume)
    }

    /// The agent of a registered worker, with nothing new to say about its engine.
    fn introduction(&self, worker: WorkerId, incarnation: u64, resume: Vec<(u32, u64)>) -> Introduction {
        let snapshot = self.router.snapshot();
        let worker = snapshot.fleet.workers.iter().find(|known| known.id == worker).unwrap();
        let (url, profile) = (worker.url.clone(), worker.profile.clone());
        let units = Units::TOKENS;
        Introduction {
            url,
            incarnation: Incarnation(incarnation),
            profile,
            resume,
            reconcile: Vec::new(),
            units,
            reconciles: false,
            routers: 1,
            chat_template: None,
        }
    }

    fn baseline(&mut self, worker: WorkerId, session: u64, seq: u64, stored: Vec<BlockRun>) -> Vec<Notice> {
        let report = AgentReport::Baseline { rank: 0, unit: Unit::Token, seq, stored, incomplete: false };
        self.report(worker, session, report)
    }

    fn delta(&mut self, worker: WorkerId, session: u64, delta: Delta) -> Vec<Notice> {
        self.report(worker, session, AgentReport::Delta { rank: 0, delta })
    }

    fn key(&self, prompt: &[u32]) -> PrefixKey {
        self.router.key_space(Unit::Token).key_of_tokens(Salt::default(), prompt)
    }

    fn hashes(&self, prompt: &[u32]) -> Vec<BlockHash> {
        self.key(prompt).hashes().to_vec()
    }

    fn route(&mut self, prompt: &[u32]) -> InFlight {
        let key = self.key(prompt);
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        self.router.route(&request, self.now, &mut self.rng).unwrap()
    }

    /// Routes a prompt and answers it with what the engine had cached.
    fn serve(&mut self, prompt: &[u32], cached_tokens: u64) -> (TargetId, Vec<Notice>) {
        let mut in_flight = self.route(prompt);
        let target = in_flight.target();
        self.turn();
        in_flight.first_token(self.now);
        in_flight.usage(Usage { prompt_tokens: prompt.len() as u64, cached_tokens }, true);
        in_flight.complete(self.now);
        let notices = self.turn();
        (target, notices)
    }

    /// Blocks of a prompt that a worker is believed to hold, as a decision would see it.
    fn matched(&mut self, worker: WorkerId, prompt: &[u32]) -> u64 {
        self.turn();
        let key = self.key(prompt);
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        let explained = self.router.explain(&request, self.now, &mut self.rng).unwrap();
        let candidate = explained.candidates.iter().find(|c| c.target.worker == worker).unwrap();
        candidate.matched_tokens / BLOCK as u64
    }

    fn claimed(&mut self, worker: WorkerId) -> usize {
        let target = TargetId { worker, rank: 0 };
        self.ask(|done| Update::Query(Query::Claims { target, unit: Unit::Token, done })).len()
    }

    /// What snapshots show of the error of what is believed of a worker's first rank.
    fn accuracy(&self, worker: WorkerId) -> Accuracy {
        *self.router.snapshot().fleet.accuracy(TargetId { worker, rank: 0 }).unwrap()
    }

    fn state(&self, worker: WorkerId) -> WorkerState {
        self.router.snapshot().fleet.workers.iter().find(|w| w.id == worker).unwrap().state
    }
}

/// A prompt of whole blocks, one more token, and a first token that tells it apart.
fn prompt(first: u32, blocks: usize) -> Vec<u32> {
    (0..=(blocks * BLOCK) as u32).map(|i| if i == 0 { first } else { i }).collect()
}

fn stored(parent: Option<BlockHash>, hashes: &[BlockHash]) -> BlockRun {
    BlockRun { parent, hashes: hashes.to_vec() }
}

fn delta(seq: u64) -> Delta {
    Delta {
        unit: Unit::Token,
        seq,
        cleared: false,
        removed: Vec::new(),
        stored: Vec::new(),
        incomplete: false,
    }
}

fn happened(notices: &[Notice], wanted: EventKind) -> bool {
    notices.iter().any(|notice| matches!(notice, Notice::Happened { kind, .. } if *kind == wanted))
}

#[test]
fn a_prediction_attracts_the_next_request_at_once() {
    let mut story = Story::with_workers(4);
    let first = story.route(&prompt(1, 8));
    story.turn();
    let second = story.route(&prompt(1, 8));
    assert_eq!(first.target(), second.target());
    assert_eq!(second.predicted_tokens(), 32);
}

#[test]
fn what_fails_before_its_first_token_was_never_there() {
    let mut story = Story::with_workers(1);
    let request = story.route(&prompt(1, 8));
    let worker = request.target().worker;
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8);
    drop(request);
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    assert_eq!(story.claimed(worker), 0);
    assert_eq!(story.router.snapshot().size, crate::IndexSize::default());
}

#[test]
fn what_is_cancelled_after_its_first_token_stays() {
    let mut story = Story::with_workers(1);
    let mut request = story.route(&prompt(1, 8));
    let worker = request.target().worker;
    request.first_token(story.now);
    drop(request);
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8);
}

#[test]
fn what_fails_is_left_out_until_its_trial_succeeds_and_never_are_all() {
    let mut story = Story::with_workers(3);
    let limit = crate::EjectionSettings::default();
    let fail = |story: &mut Story, worker: WorkerId| {
        for _ in 0..limit.failures {
            let others: Vec<_> = story.router.snapshot().fleet.workers.iter().map(|other| other.id).collect();
            let tried: Vec<_> = others.into_iter().filter(|other| *other != worker).collect();
            let request = RouteRequest { tried: &tried, ..RouteRequest::default() };
            let mut sent = story.router.route(&request, story.now, &mut story.rng).unwrap();
            assert_eq!(sent.target().worker, worker);
            sent.failed(crate::FaultKind::Status, story.now);
        }
    };
    let all: Vec<_> = story.router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
    fail(&mut story, all[0]);
    let where_to = |story: &mut Story| {
        let request = RouteRequest::default();
        let go = |_| story.router.route(&request, story.now, &mut story.rng).unwrap().target().worker;
        (0..100).map(go).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(where_to(&mut story), all[1..].iter().copied().collect());
    let explained = story.router.explain(&RouteRequest::default(), story.now, &mut story.rng).unwrap();
    assert!(explained.excluded[0].why.contains("ejected after failures"), "{:?}", explained.excluded);
    // Two of three are more than half: then nobody's ejection is believed.
    fail(&mut story, all[1]);
    assert_eq!(where_to(&mut story).len(), 3);
    // The time is over: one trial each, and no second one beside it.
    story.now = story.now + limit.base;
    let request = RouteRequest { tried: &all[1..], ..RouteRequest::default() };
    let mut trial = story.router.route(&request, story.now, &mut story.rng).unwrap();
    assert_eq!(trial.target().worker, all[0]);
    assert_eq!(where_to(&mut story), all[1..].iter().copied().collect());
    trial.first_token(story.now);
    trial.complete(story.now);
    assert_eq!(where_to(&mut story).len(), 3);
    for target in &story.router.snapshot().fleet.targets {
        assert_eq!(target.load.read(), crate::Load::default());
    }
}

#[test]
fn a_worker_that_comes_back_starts_slowly() {
    let mut story = Story::with_workers(3);
    let slow_start = crate::EjectionSettings::default().slow_start;
    story.now = story.now + slow_start;
    let back = story.router.snapshot().fleet.workers[0].id;
    story.healthy(back, false);
    story.healthy(back, true);
    let request = RouteRequest::default();
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(story.router.route(&request, story.now, &mut story.rng).unwrap());
    }
    let there = |held: &[crate::InFlight]| held.iter().filter(|sent| sent.target().worker == back).count();
    assert!((1..=4).contains(&there(&held)), "a tenth of what the others carry: {}", there(&held));
    story.now = story.now + slow_start;
    held.clear();
    for _ in 0..60 {
        held.push(story.router.route(&request, story.now, &mut story.rng).unwrap());
    }
    assert!(there(&held) > 10, "its share: {}", there(&held));
}

#[test]
fn counters_return_to_zero_on_every_way_out() {
    let mut story = Story::with_workers(1);
    let mut prefilled = story.route(&prompt(1, 2));
    let dropped = story.route(&prompt(2, 2));
    let completed = story.route(&prompt(3, 2));
    prefilled.first_token(story.now);
    prefilled.first_token(story.now);
    let counters = story.router.snapshot().fleet.targets[0].load.clone();
    assert_eq!((counters.read().in_flight, counters.read().in_prefill), (3, 2));
    assert!(counters.read().backlog_us > 0);
    drop((prefilled, dropped));
    completed.complete(story.now);
    assert_eq!(counters.read(), crate::Load::default());
    let panicked = story.route(&prompt(4, 2));
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = panicked;
        std::panic::resume_unwind(Box::new("a handler"));
    }));
    assert!(unwound.is_err());
    assert_eq!(counters.read(), crate::Load::default());
}

#[test]
fn a_prediction_that_nothing_confirms_lapses() {
    let mut story = Story::with_workers(1);
    let request = story.route(&prompt(1, 8));
    let worker = request.target().worker;
    story.turn();
    story.pass(Duration::from_secs(599));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8);
    story.pass(Duration::from_secs(2));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    drop(request);
    story.turn();
}

#[test]
fn claims_stay_within_the_capacity_oldest_first() {
    let mut story = Story::with_workers(1);
    for first in 0..200 {
        story.serve(&prompt(first, 10), 0);
    }
    let worker = story.router.snapshot().fleet.workers[0].id;
    let claimed = story.router.snapshot().fleet.targets[0].claimed_tokens;
    assert!((3_900..=4_000).contains(&claimed), "{claimed}");
    assert_eq!(story.matched(worker, &prompt(199, 10)), 10);
    assert_eq!(story.matched(worker, &prompt(50, 10)), 0);
}

#[test]
fn the_whole_index_stays_within_its_bound() {
    let profile = WorkerProfile { capacity_tokens: 1 << 40, ..WorkerProfile::default() };
    let mut story = Story::with(2, profile, |settings| settings.max_blocks = 100);
    for first in 0..50 {
        story.serve(&prompt(first, 10), 0);
        assert!(story.router.snapshot().size.blocks <= 100);
    }
    let latest: Vec<_> = story.router.snapshot().fleet.workers.iter().map(|w| w.id).collect();
    let best = latest.into_iter().map(|worker| story.matched(worker, &prompt(49, 10))).max();
    assert_eq!(best, Some(10));
}

/// Channel 1: a confirmed block turned out to be evicted.
#[test]
fn one_short_answer_drops_the_branches_below_and_moves_the_horizon() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let branch = |tail: u32| -> Vec<u32> {
        let mut tokens = prompt(1, 40)[..160].to_vec();
        tokens.extend((0..41).map(|i| tail * 1_000 + i));
        tokens
    };
    // Oldest: an unrelated prompt. Then a shared prefix with two branches. Then something newer.
    story.serve(&prompt(7, 20), 0);
    story.serve(&branch(1), 0);
    story.serve(&branch(2), 160);
    story.serve(&prompt(8, 20), 0);
    assert_eq!(story.matched(worker, &branch(1)), 50);
    // The engine had to compute branch 2 from its 20th block on.
    let (_, notices) = story.serve(&branch(2), 80);
    let expected = Notice::Mispredicted {
        target: TargetId { worker, rank: 0 },
        error_tokens: 120,
        cause: Some(MispredictionCause::Evicted),
    };
    assert!(notices.contains(&expected), "{notices:?}");
    assert_eq!(story.matched(worker, &branch(2)), 50, "it was stored again");
    assert_eq!(story.matched(worker, &branch(1)), 40, "the other branch hung below what was evicted");
    assert_eq!(story.matched(worker, &prompt(7, 20)), 0, "older than what was evicted");
    assert_eq!(story.matched(worker, &prompt(8, 20)), 20, "newer than what was evicted");
}

#[test]
fn nothing_follows_from_blocks_that_were_only_predicted() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    story.serve(&prompt(7, 20), 0);
    let first = story.route(&prompt(1, 20));
    story.turn();
    // The second one was scheduled in the same batch, so that the first could not help it.
    let (_, notices) = story.serve(&prompt(1, 20), 0);
    let cause = notices.iter().find_map(|notice| match notice {
        Notice::Mispredicted { cause, .. } => *cause,
        _ => None,
    });
    assert_eq!(cause, Some(MispredictionCause::NotYetStored));
    assert_eq!(story.matched(worker, &prompt(7, 20)), 20);
    drop(first);
}

#[test]
fn a_short_answer_tells_of_others_by_the_rule_and_the_kind_of_the_cache() {
    let plain = WorkerProfile { capacity_tokens: 4_000, ..WorkerProfile::default() };
    let cases = [
        (WorkerProfile { cache_kind: CacheKind::Full, ..plain.clone() }, 0),
        (WorkerProfile { cache_kind: CacheKind::Unknown, ..plain.clone() }, 0),
        (WorkerProfile { evicts_lru: false, ..plain.clone() }, 20),
        (WorkerProfile { lower_tier: Some(LowerTier::default()), ..plain.clone() }, 20),
        (WorkerProfile { cache_kind: CacheKind::SlidingWindow, ..plain.clone() }, 20),
        (WorkerProfile { cache_kind: CacheKind::RecurrentState, ..plain }, 20),
    ];
    for (profile, expected) in cases {
        let mut story = Story::with(1, profile.clone(), |_| {});
        let worker = story.router.snapshot().fleet.workers[0].id;
        story.serve(&prompt(7, 20), 0);
        story.serve(&prompt(1, 40), 0);
        story.serve(&prompt(1, 40), 0);
        let left = story.matched(worker, &prompt(7, 20));
        assert_eq!(left, expected, "{profile:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_hybrid_cache_loses_no_claim_to_short_answers_and_stays_within_its_capacity(
        recurrent: bool,
        requests in prop::collection::vec((prop::collection::vec(0_u32..3, 1..8), 0_u64..40), 1..40),
    ) {
        let cache_kind = if recurrent { CacheKind::RecurrentState } else { CacheKind::SlidingWindow };
        // Room for all of these prompts, and for ten blocks.
        for (capacity_tokens, fits) in [(100_000, true), (40, false)] {
            let profile = WorkerProfile { cache_kind, capacity_tokens, ..WorkerProfile::default() };
            let mut story = Story::with(1, profile, |_| {});
            let worker = story.router.snapshot().fleet.workers[0].id;
            let mut stored = HashSet::new();
            for (symbols, cached) in &requests {
                let prompt: Vec<u32> = symbols.iter().flat_map(|symbol| [*symbol; BLOCK]).collect();
                story.serve(&prompt, (*cached).min(prompt.len() as u64 - 1));
                stored.extend(story.hashes(&prompt));
                let claimed = story.claimed(worker);
                if fits {
                    prop_assert_eq!(claimed, stored.len());
                } else {
                    prop_assert!(claimed * BLOCK <= 40, "{} blocks", claimed);
                }
            }
        }
    }
}

#[test]
fn claims_are_worth_what_responses_find_of_them() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let retention = |story: &Story| story.router.snapshot().fleet.targets[0].retention;
    story.serve(&prompt(1, 40), 0);
    story.serve(&prompt(1, 40), 156);
    assert_eq!(retention(&story), 1.0, "nothing was expected, and then all of it was there");
    story.serve(&prompt(1, 40), 0);
    assert_eq!(retention(&story), 0.5);
    // What is waited for there takes so much longer: half of what is matched has to be computed.
    let waiting = story.route(&prompt(1, 40));
    let backlog = story.router.snapshot().fleet.targets[0].load.read().backlog_us;
    let model = story.router.snapshot().fleet.targets[0].prefill;
    let half = waiting.predicted_tokens() / 2;
    assert_eq!(backlog, model.prefill_time(waiting.prompt_tokens(), half).as_micros() as u64);
    drop(waiting);
    story.send(Update::Fleet(FleetUpdate::Void { worker, reason: "another process".into() }));
    assert_eq!(retention(&story), 1.0, "of another life nothing is known");
}

#[test]
fn room_is_worth_what_requests_find_in_its_tail() {
    let mut story = Story::with_workers(1);
    let target = |story: &Story| story.router.snapshot().fleet.targets[0].clone();
    story.serve(&prompt(1, 40), 0);
    assert_eq!(target(&story).tail_reuse, 0.0);
    story.pass(Duration::from_secs(10));
    story.serve(&prompt(2, 40), 0);
    story.serve(&prompt(2, 40), 160);
    assert_eq!(target(&story).tail_reuse, 0.0, "it was used just now");
    story.pass(Duration::from_secs(2));
    story.serve(&prompt(1, 40), 160);
    assert!(target(&story).tail_reuse > 1.0, "it would have gone first");
    for other in 100..200 {
        story.serve(&prompt(other, 40), 0);
    }
    let Target { tail_reuse, arrivals, .. } = target(&story);
    assert!(tail_reuse > 0.0 && tail_reuse < 0.02, "{tail_reuse}");
    assert!(arrivals.requests > 80.0 && arrivals.seconds < 15.0, "{arrivals:?}");
    story.pass(Duration::from_secs(300));
    story.serve(&prompt(1, 40), 0);
    let arrivals = target(&story).arrivals;
    assert!(arrivals.requests < 1.1 && arrivals.seconds > 29.0, "{arrivals:?}");
}

#[test]
fn each_of_several_routers_is_taken_to_send_as_much() {
    let measured = |routers: u32| {
        let mut story = Story::with_workers(1);
        let worker = story.router.snapshot().fleet.workers[0].id;
        let agent = Introduction { routers, ..story.introduction(worker, 1, Vec::new()) };
        story.join_as(agent, 7).unwrap();
        let hashes = story.hashes(&prompt(1, 40));
        story.baseline(worker, 7, 1, vec![stored(None, &hashes)]);
        story.pass(Duration::from_secs(2));
        story.serve(&prompt(1, 40), 160);
        story.serve(&prompt(2, 40), 0);
        let Target { tail_reuse, arrivals, .. } = story.router.snapshot().fleet.targets[0].clone();
        story.report(worker, 7, AgentReport::Left);
        let alone = story.router.snapshot().fleet.targets[0].arrivals;
        (tail_reuse, arrivals, alone)
    };
    let (reuse, arrivals, _) = measured(0);
    let (of_all, all, alone) = measured(4);
    assert!(reuse > 0.0 && arrivals.requests > 1.0 && arrivals.prefill_seconds > 0.0);
    assert_eq!(of_all, 4.0 * reuse);
    assert_eq!(
        (all.requests, all.prefill_seconds),
        (4.0 * arrivals.requests, 4.0 * arrivals.prefill_seconds)
    );
    assert_eq!(all.seconds, arrivals.seconds);
    assert!(alone.requests < all.requests / 3.0, "nobody says any more that there are others");
}

#[test]
fn a_router_that_predicts_nothing_measures_all_the_same() {
    let profile = WorkerProfile { capacity_tokens: 4_000, ..WorkerProfile::default() };
    let mut story = Story::with(1, profile, |settings| settings.predict = false);
    let worker = story.router.snapshot().fleet.workers[0].id;
    story.join(worker, 1, 1, Vec::new()).unwrap();
    let hashes = story.hashes(&prompt(1, 40));
    story.baseline(worker, 1, 0, vec![stored(None, &hashes)]);
    story.pass(Duration::from_secs(2));
    story.serve(&prompt(1, 40), 160);
    let target = story.router.snapshot().fleet.targets[0].clone();
    assert!(target.tail_reuse > 1.0 && target.arrivals.requests > 0.0, "{target:?}");
}

#[test]
fn a_first_token_and_usage_at_once_are_as_one_after_the_other() {
    // Cached as predicted, and evicted since it was predicted.
    for cached_tokens in [160, 0] {
        let told = |at_once: bool| {
            let mut story = Story::with_workers(1);
            story.serve(&prompt(2, 20), 0);
            story.serve(&prompt(1, 40), 0);
            let mut again = story.route(&prompt(1, 40));
            story.turn();
            let usage = Usage { prompt_tokens: 161, cached_tokens };
            let now = story.now;
            if at_once {
                again.first_token_and_usage(usage, false, now);
                // It has been told.
                again.first_token(now);
            } else {
                again.first_token(now);
                again.usage(usage, false);
            }
            again.complete(now);
            let notices = story.turn();
            let target = story.router.snapshot().fleet.targets[0].clone();
            let claims = [&prompt(1, 40), &prompt(2, 20)].map(|prompt| story.matched(WorkerId(0), prompt));
            (format!("{notices:?}"), format!("{target:?}"), claims, story.accuracy(WorkerId(0)))
        };
        let (at_once, one_by_one) = (told(true), told(false));
        assert_eq!(format!("{at_once:?}"), format!("{one_by_one:?}"));
        assert!(at_once.0.contains("Mispredicted"), "{at_once:?}");
    }
}

#[test]
fn text_prompts_are_claimed_and_their_tokens_learned() {
    let mut story = Story::with_workers(2);
    let text = "All human beings are born free and equal in dignity and rights. ".repeat(20);
    let key = story.router.key_space(Unit::Text).key_of_text(Salt::default(), text.as_bytes());
    let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
    let mut first = story.router.route(&request, story.now, &mut story.rng).unwrap();
    first.first_token(story.now);
    first.usage(Usage { prompt_tokens: 256, cached_tokens: 0 }, true);
    first.complete(story.now);
    story.turn();
    assert!(story.router.snapshot().text_bytes_per_token > 4.0);
    let again = story.router.route(&request, story.now, &mut story.rng).unwrap();
    assert!(again.predicted_tokens() > 200);
}

#[test]
fn a_removal_takes_what_hangs_below_and_a_store_extends() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    assert_eq!(story.join(worker, 1, 10, Vec::new()), Ok(Vec::new()));
    story.baseline(worker, 1, 0, vec![stored(None, &key[..4]), stored(Some(key[3]), &key[4..6])]);
    assert_eq!(story.matched(worker, &prompt(1, 8)), 6);
    let notices = story.delta(worker, 1, Delta { stored: vec![stored(Some(key[5]), &key[6..])], ..delta(1) });
    assert!(notices.contains(&Notice::Acked { session: SessionId(1), rank: 0, seq: 1 }), "{notices:?}");
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8);
    story.delta(worker, 1, Delta { removed: vec![key[2]], ..delta(2) });
    assert_eq!(story.matched(worker, &prompt(1, 8)), 2);
    assert_eq!(story.claimed(worker), 2);
    // Under an unknown parent there is no place for a run.
    story.delta(worker, 1, Delta { stored: vec![stored(Some(key[5]), &key[6..])], ..delta(3) });
    assert_eq!(story.claimed(worker), 2);
}

#[test]
fn divergence_is_measured_at_the_same_sequence_number_only() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 50));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, vec![stored(None, &key)]);
    let mut digest = SetDigest::empty();
    key[..40].iter().for_each(|hash| digest.add(*hash));
    story.report(
        worker,
        1,
        AgentReport::Fingerprint { rank: 0, unit: Unit::Token, seq: 1, digest: digest.clone() },
    );
    assert_eq!(story.accuracy(worker).divergence, None);
    story.report(worker, 1, AgentReport::Fingerprint { rank: 0, unit: Unit::Token, seq: 0, digest });
    let divergence = story.accuracy(worker).divergence.unwrap().tokens;
    assert!((36..=48).contains(&divergence), "{divergence}");
}

#[test]
fn a_snapshot_that_is_held_does_not_change() {
    let mut story = Story::with_workers(1);
    story.serve(&prompt(1, 8), 0);
    let held = story.router.snapshot();
    let worker = held.fleet.workers[0].id;
    story.send(Update::Fleet(FleetUpdate::Void { worker, reason: "flushed".into() }));
    assert_eq!(story.claimed(worker), 0);
    let key = story.key(&prompt(1, 8));
    let mut matches = crate::index::Matches::default();
    held.tree.match_prefix(key.hashes(), &mut matches);
    assert_eq!(matches.blocks(held.fleet.targets[0].slot), 8);
    assert!(story.router.snapshot().epoch > held.epoch);
}

#[test]
fn a_full_queue_refuses_counts_and_claims_less() {
    let mut story = Story::with(1, WorkerProfile::default(), |settings| settings.queue_capacity = 2);
    let requests: Vec<_> = (0..5).map(|first| story.route(&prompt(first, 3))).collect();
    assert_eq!(story.router.updates().refused(), 3);
    drop(requests);
    story.turn();
    let counters = story.router.snapshot().fleet.targets[0].load.read();
    assert_eq!(counters, crate::Load::default());
}

#[test]
fn blocks_below_unknown_parents_are_ignored_and_counted() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    let runs = vec![stored(Some(key[3]), &key[4..]), stored(None, &key[..2])];
    let notices = story.baseline(worker, 1, 0, runs);
    let target = TargetId { worker, rank: 0 };
    assert!(notices.contains(&Notice::UnknownParents { target, runs: 1 }), "{notices:?}");
    assert_eq!(story.claimed(worker), 2);
}

#[test]
fn all_ranks_of_a_tried_worker_are_passed_over() {
    let profile = WorkerProfile { dp_size: 3, ..WorkerProfile::default() };
    let mut story = Story::with(2, profile, |_| {});
    let first = story.route(&prompt(1, 8)).target().worker;
    for _ in 0..10 {
        let request = RouteRequest { tried: &[first], ..RouteRequest::default() };
        let routed = story.router.route(&request, story.now, &mut story.rng).unwrap();
        assert_ne!(routed.target().worker, first);
    }
}

#[test]
fn without_its_writer_a_router_serves_on_by_load_alone() {
    let mut story = Story::with_workers(2);
    let (holder, _) = story.serve(&prompt(1, 8), 0);
    assert_eq!(story.matched(holder.worker, &prompt(1, 8)), 8);
    let Story { router, writer, now, mut rng } = story;
    drop(writer);
    router.orphan();
    assert!(router.is_orphaned());
    let key = router.key_space(Unit::Token).key_of_tokens(Salt::default(), &prompt(1, 8));
    let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
    let routed: Vec<_> = (0..4).map(|_| router.route(&request, now, &mut rng).unwrap()).collect();
    assert!(routed.iter().all(|request| request.predicted_tokens() == 0));
    let at_holder = routed.iter().filter(|request| request.target() == holder).count();
    assert_eq!(at_holder, 2, "load decides");
    drop(routed);
    assert!(router.snapshot().fleet.targets.iter().all(|target| target.load.read().in_flight == 0));
}

#[test]
fn a_baseline_touches_nothing_that_its_agent_cannot_name() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    story.serve(&prompt(1, 6), 0);
    let text_space = story.router.key_space(Unit::Text).clone();
    let text = text_space.key_of_text(Salt::default(), &[b'x'; 160]);
    let salted = {
        let space = story.router.key_space(Unit::Token);
        space.key_of_tokens(Salt::new("", "", "tenant"), &prompt(1, 6))
    };
    for key in [&text, &salted] {
        let request = RouteRequest { key: Some(key), ..RouteRequest::default() };
        let routed = story.router.route(&request, story.now, &mut story.rng).unwrap();
        routed.complete(story.now);
    }
    story.join(worker, 1, 7, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, Vec::new());
    assert_eq!(story.matched(worker, &prompt(1, 6)), 0, "the agent does not hold it");
    let blocks = |story: &mut Story, key: &PrefixKey| {
        story.ask(|done| Update::Query(Query::Confirmed { key: key.clone(), done })).first().map(|(_, n)| *n)
    };
    assert_eq!((blocks(&mut story, &text), blocks(&mut story, &salted)), (Some(10), Some(6)));
}

#[test]
fn an_exact_agent_does_not_stop_what_responses_teach_of_other_blocks() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    story.join(worker, 1, 7, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, Vec::new());
    let text = |first: u8| {
        let bytes: Vec<u8> = (0..1_600).map(|i| if i == 0 { first } else { b'a' + (i % 13) as u8 }).collect();
        bytes
    };
    let serve = |story: &mut Story, first: u8, cached_tokens: u64| {
        let key = story.router.key_space(Unit::Text).key_of_text(Salt::default(), &text(first));
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        let mut routed = story.router.route(&request, story.now, &mut story.rng).unwrap();
        story.turn();
        routed.first_token(story.now);
        routed.usage(Usage { prompt_tokens: 400, cached_tokens }, true);
        routed.complete(story.now);
        story.turn();
    };
    serve(&mut story, b'1', 0);
    serve(&mut story, b'2', 0);
    let target = TargetId { worker, rank: 0 };
    let held = |story: &mut Story| {
        story.ask(|done| Update::Query(Query::Claims { target, unit: Unit::Text, done })).len()
    };
    assert_eq!(held(&mut story), 200);
    // The second had been confirmed and is gone: so is what was used before it.
    serve(&mut story, b'2', 0);
    assert_eq!(held(&mut story), 100);
}

/// What an agent in doubt does not remove may be gone: responses are believed again, until it is exact again.
#[test]
fn an_incomplete_agent_proves_nothing_by_its_silence() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    story.join(worker, 1, 7, Vec::new()).unwrap();
    let (old, new) = (prompt(1, 20), prompt(2, 20));
    let both = vec![stored(None, &story.hashes(&old)), stored(None, &story.hashes(&new))];
    for (seq, incomplete, old_left) in [(1, false, 20), (2, true, 0), (3, false, 20)] {
        story.baseline(worker, 1, seq - 1, both.clone());
        story.delta(worker, 1, Delta { incomplete, ..delta(seq) });
        story.serve(&old, 80);
        story.serve(&new, 80);
        assert_eq!(story.matched(worker, &old), 20, "both have been used");
        // The newer one is said to be gone, although nobody removed it.
        story.serve(&new, 0);
        assert_eq!(story.matched(worker, &old), old_left, "incomplete: {incomplete}");
    }
    let (unit, seq, stored) = (Unit::Token, 9, both);
    story.report(worker, 1, AgentReport::Baseline { rank: 0, unit, seq, stored, incomplete: true });
    story.serve(&old, 80);
    story.serve(&new, 80);
    story.serve(&new, 0);
    assert_eq!(story.matched(worker, &old), 0, "a baseline can be incomplete too");
}

#[test]
fn text_that_an_agent_names_is_what_it_names() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    let both = [Unit::Token, Unit::Text].into_iter().collect();
    let agent = Introduction { units: both, ..story.introduction(worker, 7, Vec::new()) };
    story.join_as(agent, 1).unwrap();
    let target = TargetId { worker, rank: 0 };
    let baseline = |story: &mut Story, unit, stored| {
        story.report(worker, 1, AgentReport::Baseline { rank: 0, unit, seq: 0, stored, incomplete: false })
    };
    baseline(&mut story, Unit::Token, Vec::new());
    baseline(&mut story, Unit::Text, Vec::new());
    let key = story.router.key_space(Unit::Text).key_of_text(Salt::default(), &[b'x'; 160]);
    let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
    let mut routed = story.router.route(&request, story.now, &mut story.rng).unwrap();
    story.turn();
    routed.first_token(story.now);
    routed.complete(story.now);
    story.turn();
    let held = |story: &mut Story| {
        story.ask(|done| Update::Query(Query::Claims { target, unit: Unit::Text, done })).len()
    };
    assert_eq!(held(&mut story), 10, "until the agent had time to say what was stored");
    // The engine's last whole page ended in the ninth block.
    let text = |seq, removed, stored| Delta { unit: Unit::Text, removed, stored, ..delta(seq) };
    story.delta(worker, 1, text(1, Vec::new(), vec![stored(None, &key.hashes()[..8])]));
    story.pass(Duration::from_secs(3));
    assert_eq!(held(&mut story), 8, "and no more than it named");
    let mut digest = SetDigest::empty();
    key.hashes()[..8].iter().for_each(|hash| digest.add(*hash));
    story.report(worker, 1, AgentReport::Fingerprint { rank: 0, unit: Unit::Text, seq: 1, digest });
    assert_eq!(story.accuracy(worker).divergence.unwrap().tokens, 0);
    story.delta(worker, 1, text(2, vec![key.hashes()[3]], Vec::new()));
    assert_eq!(held(&mut story), 3, "what hangs below goes too");
    baseline(&mut story, Unit::Token, Vec::new());
    assert_eq!(held(&mut story), 3, "a baseline speaks of its unit alone");
    baseline(&mut story, Unit::Text, Vec::new());
    assert_eq!(held(&mut story), 0);
}

#[test]
fn a_prediction_outlives_a_baseline_and_can_still_be_taken_back() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    story.join(worker, 1, 7, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, Vec::new());
    let on_its_way = story.route(&prompt(1, 6));
    story.turn();
    story.baseline(worker, 1, 0, Vec::new());
    assert_eq!(story.matched(worker, &prompt(1, 6)), 6);
    drop(on_its_way);
    assert_eq!(story.matched(worker, &prompt(1, 6)), 0);
}

#[test]
fn what_decisions_of_an_earlier_tenure_say_changes_nothing() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    story.join(worker, 1, 7, Vec::new()).unwrap();
    let mut earlier = story.route(&prompt(1, 6));
    story.turn();
    // Two lives later the target may stand in the slot that it had then.
    for incarnation in 8..12 {
        story.report(worker, 1, AgentReport::NewIncarnation(Incarnation(incarnation)));
    }
    earlier.first_token(story.now);
    assert_eq!(story.matched(worker, &prompt(1, 6)), 0);
}
