//! Workers come, go and change; targets are found and chosen among many.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::Fleet;
use crate::index::Matches;
use crate::policy::Reason;

#[test]
fn only_ready_workers_are_candidates() {
    let mut story = Story::with_workers(3);
    let ids: Vec<_> = story.router.snapshot().fleet.workers.iter().map(|w| w.id).collect();
    story.healthy(ids[0], false);
    story.ask(|done| Update::Fleet(FleetUpdate::Drain { worker: ids[1], on: true, done })).unwrap();
    for first in 0..20 {
        assert_eq!(story.route(&prompt(first, 3)).target().worker, ids[2]);
    }
    let state = AgentReport::State { updating: true, reachable: true, reason: "new weights".into() };
    story.join(ids[2], 1, 1, Vec::new()).unwrap();
    story.report(ids[2], 1, state);
    let key = story.key(&prompt(1, 3));
    let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
    let refused = story.router.route(&request, story.now, &mut story.rng).unwrap_err();
    assert_eq!(refused, RouteError::NoneReady { registered: 3, unreachable: 1, draining: 1, updating: 1 });
    story.ask(|done| Update::Fleet(FleetUpdate::Drain { worker: ids[1], on: false, done })).unwrap();
    assert_eq!(story.route(&prompt(1, 3)).target().worker, ids[1]);
}

#[test]
fn a_removed_worker_is_gone_and_its_requests_end_in_peace() {
    let mut story = Story::with_workers(2);
    let mut request = story.route(&prompt(1, 8));
    let worker = request.target().worker;
    story.turn();
    let left = story.ask(|done| Update::Fleet(FleetUpdate::Remove { worker, done }));
    assert_eq!(left, Ok(1));
    request.first_token(story.now);
    request.complete(story.now);
    story.turn();
    assert_eq!(story.router.snapshot().fleet.workers.len(), 1);
    assert_eq!(story.router.snapshot().size, crate::IndexSize::default());
    let again = story.ask(|done| Update::Fleet(FleetUpdate::Remove { worker, done }));
    assert_eq!(again, Err(FleetError::UnknownWorker(worker)));
    assert_ne!(
        story.add("http://0").or_else(|_| story.add("http://0b")).unwrap(),
        worker,
        "ids are not reused"
    );
}

#[test]
fn requests_that_can_go_nowhere_say_why() {
    let mut story = Story::with(0, WorkerProfile::default(), |_| {});
    let route = |story: &mut Story, request: &RouteRequest<'_>| {
        story.router.route(request, story.now, &mut story.rng).map(drop).unwrap_err()
    };
    assert_eq!(route(&mut story, &RouteRequest::default()), RouteError::NoWorkers);
    let worker = story.add("http://a").unwrap();
    story
        .profile(worker, WorkerProfile { models: vec!["llama".into()], ..WorkerProfile::default() })
        .unwrap();
    story.healthy(worker, true);
    let other = RouteRequest { model: Some("qwen"), ..RouteRequest::default() };
    assert_eq!(route(&mut story, &other), RouteError::UnknownModel { served: vec!["llama".into()] });
    let rank = RouteRequest { rank: Some(3), ..RouteRequest::default() };
    assert_eq!(route(&mut story, &rank), RouteError::UnknownRank { rank: 3 });
    let tried = RouteRequest { tried: &[worker], ..RouteRequest::default() };
    assert_eq!(route(&mut story, &tried), RouteError::AllTried);
    let adapter = RouteRequest { model: Some("llama:adapter"), ..RouteRequest::default() };
    assert!(story.router.route(&adapter, story.now, &mut story.rng).is_ok());
}

#[test]
fn the_fleet_has_a_bound_and_ranks_count() {
    let mut story = Story::with(0, WorkerProfile::default(), |settings| settings.max_targets = 3);
    let worker = story.add("http://a").unwrap();
    let two = WorkerProfile { dp_size: 2, ..WorkerProfile::default() };
    let four = WorkerProfile { dp_size: 4, ..WorkerProfile::default() };
    story.profile(worker, two).unwrap();
    assert_eq!(story.profile(worker, four), Err(FleetError::Full { in_use: 2, max: 3, wanted: 2 }));
    assert_eq!(story.router.snapshot().fleet.targets.len(), 2);
    story.add("http://b").unwrap();
    assert_eq!(story.add("http://c"), Err(FleetError::Full { in_use: 3, max: 3, wanted: 1 }));
    let known = story.router.snapshot().fleet.workers[0].id;
    let twice = FleetError::AlreadyRegistered { url: "http://a".into(), worker: known };
    assert_eq!(story.add("http://a"), Err(twice));
}

#[test]
fn reports_for_ranks_that_do_not_exist_change_nothing() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    story.join(worker, 1, 10, vec![(9, 3)]).unwrap();
    let (unit, stored) = (Unit::Token, Vec::new());
    let report = AgentReport::Baseline { rank: 7, unit, seq: 1, stored, incomplete: false };
    assert!(!happened(&story.report(worker, 1, report), EventKind::Resynced));
    story.report(worker, 1, AgentReport::Delta { rank: 7, delta: delta(1) });
    story.report(WorkerId(99), 1, AgentReport::Alive);
}

#[test]
fn slots_never_run_out_however_often_claims_are_voided() {
    let profile = WorkerProfile { dp_size: 64, capacity_tokens: 4_000, ..WorkerProfile::default() };
    let mut story = Story::with(1, profile, |_| {});
    let worker = WorkerId(0);
    story.join(worker, 1, 1, Vec::new()).unwrap();
    let at = story.now;
    for incarnation in 2..1_202 {
        let report = AgentReport::NewIncarnation(Incarnation(incarnation));
        let update = Update::Agent { worker, session: SessionId(1), at, report };
        story.router.updates().try_send(update).unwrap();
    }
    story.turn();
    assert_eq!(story.router.snapshot().fleet.targets.len(), 64);
}

#[test]
fn a_large_fleet_is_sampled_and_its_holders_are_not_missed() {
    let mut story = Story::with_workers(300);
    for first in 0..20 {
        let (holder, _) = story.serve(&prompt(first, 200), 0);
        for _ in 0..5 {
            assert_eq!(story.serve(&prompt(first, 200), 800).0, holder);
        }
    }
    let explained = story.router.explain(&RouteRequest::default(), story.now, &mut story.rng).unwrap();
    assert_eq!(explained.candidates.len(), 300, "explaining shows every one");
    // One that is ready is found among many that are not.
    for worker in (0..300).filter(|worker| *worker != 123) {
        story.healthy(WorkerId(worker), false);
    }
    assert_eq!(story.route(&prompt(1, 200)).target().worker, WorkerId(123));
}

#[test]
fn snapshots_share_a_large_fleet_until_something_must_be_seen() {
    let mut story = Story::with_workers(600);
    drop(story.route(&prompt(3, 1)));
    story.pass(Duration::from_millis(10));
    let fleet_of = |story: &Story| story.router.snapshot().fleet.clone();
    let claimed = |fleet: &Fleet| fleet.targets.iter().map(|target| target.claimed_tokens).sum::<u64>();
    let (epoch, before) = (story.router.snapshot().epoch, fleet_of(&story));
    drop(story.route(&prompt(1, 8)));
    story.pass(Duration::from_micros(100));
    assert!(story.router.snapshot().epoch > epoch, "a decision has been published");
    assert!(Arc::ptr_eq(&before, &fleet_of(&story)), "and changed nothing but figures");
    assert_eq!(claimed(&before), 0);
    let worker = before.workers[7].id;
    story.send(Update::Fleet(FleetUpdate::Drain { worker, on: true, done: Done::ignore() }));
    assert_eq!(fleet_of(&story).workers[7].state, WorkerState::Draining, "this is seen at once");
    assert!(Arc::ptr_eq(&before.workers[8], &fleet_of(&story).workers[8]), "the others are as they were");
    let mut in_flight = story.route(&prompt(2, 8));
    in_flight.first_token(story.now);
    story.pass(Duration::from_micros(100));
    story.pass(Duration::from_millis(10));
    assert_eq!(claimed(&fleet_of(&story)), 8 * BLOCK as u64, "figures follow even if nothing else happens");
}

#[test]
fn a_snapshot_says_who_holds_what() {
    let mut story = Story::with_workers(3);
    let (long, short) = (prompt(1, 8), prompt(1, 3));
    let (first, _) = story.serve(&long, 0);
    let snapshot = story.router.snapshot();
    let mut matches = Matches::default();
    let mut held = |prompt: &[u32]| -> Vec<(TargetId, u32)> {
        let key = story.key(prompt);
        snapshot.holders(&key, &mut matches).map(|(target, blocks)| (target.id, blocks)).collect()
    };
    assert_eq!(held(&long), [(first, 8)]);
    assert_eq!(held(&short), [(first, 3)]);
    assert_eq!(held(&prompt(9, 3)), []);
}

/// Of 600 workers eight serve a model: chance alone would hardly ever meet one.
#[test]
fn a_rare_model_is_looked_for_in_the_whole_fleet() {
    let mut story = Story::with_workers(600);
    let rare: Vec<WorkerId> =
        story.router.snapshot().fleet.workers[..8].iter().map(|worker| worker.id).collect();
    for worker in story.router.snapshot().fleet.workers.clone() {
        let model = if rare.contains(&worker.id) { "rare" } else { "common" };
        story
            .profile(worker.id, WorkerProfile { models: vec![model.into()], ..worker.profile.clone() })
            .unwrap();
    }
    let mut routed = Vec::new();
    for own in 0..64 {
        // All begin alike, so that somebody holds the beginning; what follows is to be computed.
        let tokens = [prompt(1, 20), prompt(100_000 + 10_000 * own, 1_000)].concat();
        let key = story.key(&tokens);
        let request = RouteRequest { key: Some(&key), model: Some("rare"), ..RouteRequest::default() };
        routed.push(story.router.route(&request, story.now, &mut story.rng).unwrap());
        story.turn();
    }
    assert!(routed.iter().all(|routed| routed.reason() != Reason::Only), "there were always eight");
    let used: BTreeSet<WorkerId> = routed.iter().map(|routed| routed.target().worker).collect();
    assert_eq!(used, rare.into_iter().collect(), "64 requests at once are too many for one");
}

#[test]
fn what_nobody_claims_any_more_goes_before_what_is_claimed() {
    let mut story = Story::with(2, WorkerProfile::default(), |settings| settings.max_blocks = 9_000);
    let workers: Vec<WorkerId> =
        story.router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
    story.join(workers[0], 1, 1, Vec::new()).unwrap();
    story.join(workers[1], 2, 1, Vec::new()).unwrap();
    let runs = |story: &Story, from: u32| -> Vec<BlockRun> {
        (from..from + 4_500).map(|first| stored(None, &story.hashes(&prompt(first, 1)))).collect()
    };
    let (old, gone) = (runs(&story, 0), runs(&story, 10_000));
    story.baseline(workers[1], 2, 1, old);
    story.baseline(workers[0], 1, 1, gone);
    // The one that goes has more runs than a turn sweeps, and what the other stores in the same turn needs their room.
    let more = Delta { stored: runs(&story, 20_000), ..delta(2) };
    let report = AgentReport::NewIncarnation(Incarnation(2));
    let at = story.now;
    for (worker, session, report) in
        [(workers[0], 1, report), (workers[1], 2, AgentReport::Delta { rank: 0, delta: more })]
    {
        let update = Update::Agent { worker, session: SessionId(session), at, report };
        story.router.updates().try_send(update).unwrap();
    }
    story.turn();
    assert_eq!(story.claimed(workers[1]), 9_000, "nothing that is claimed had to go");
}

/// Nothing else happens, and the clock may stand still or be set back.
#[test]
fn figures_of_a_large_fleet_are_published_once_more_and_no_oftener() {
    let mut story = Story::with_workers(600);
    drop(story.route(&prompt(3, 1)));
    story.pass(Duration::from_millis(10));
    drop(story.route(&prompt(1, 8)));
    story.pass(Duration::ZERO);
    let epoch = |story: &Story| story.router.snapshot().epoch;
    let at_rest = epoch(&story);
    (0..10).for_each(|_| drop(story.pass(Duration::ZERO)));
    assert_eq!(epoch(&story), at_rest, "nothing has changed since");
    (0..10).for_each(|_| drop(story.pass(Duration::from_millis(1))));
    assert_eq!(epoch(&story), at_rest + 1);
    story.now = Time::from_micros(5);
    drop(story.route(&prompt(2, 8)));
    story.pass(Duration::ZERO);
    let set_back = epoch(&story);
    (0..10).for_each(|_| drop(story.pass(Duration::from_millis(1))));
    assert!(epoch(&story) <= set_back + 1);
}

#[test]
fn how_far_off_a_large_fleet_is_waits_for_figures_and_is_not_published_in_vain() {
    let mut story = Story::with_workers(600);
    let epoch = |story: &Story| story.router.snapshot().epoch;
    // All of it is published anew.
    story.healthy(story.router.snapshot().fleet.workers[0].id, false);
    drop(story.route(&prompt(1, 8)));
    // The figures alone, just before all of it is due.
    story.pass(Duration::from_micros(29_500));
    let at_rest = epoch(&story);
    story.pass(Duration::from_micros(600));
    (0..10).for_each(|_| drop(story.pass(Duration::ZERO)));
    assert_eq!(epoch(&story), at_rest);
    (0..10).for_each(|_| drop(story.pass(Duration::from_micros(100))));
    assert_eq!(epoch(&story), at_rest + 1);
}

#[test]
fn how_far_off_a_large_fleet_is_follows_later_even_if_nothing_else_happens() {
    let mut story = Story::with_workers(600);
    story.pass(Duration::from_millis(50));
    let checked = |story: &Story| -> u64 {
        story.router.snapshot().fleet.with_accuracy().map(|(_, accuracy)| accuracy.predictions.checked).sum()
    };
    story.serve(&prompt(1, 8), 0);
    let told = checked(&story);
    story.serve(&prompt(2, 8), 0);
    story.pass(Duration::from_millis(2));
    assert_eq!(checked(&story), told, "what was told a moment ago is shared");
    (0..50).for_each(|_| drop(story.pass(Duration::from_millis(1))));
    assert_eq!(checked(&story), 2);
}

/// A template that says no more than its name.
#[derive(Debug)]
struct Named(u64);

impl ChatTemplate for Named {
    fn id(&self) -> u64 {
        self.0
    }

    fn render(&self, _: &[u8]) -> Result<String, NotRendered> {
        Ok(self.0.to_string())
    }

    fn render_messages(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.render(body)
    }

    fn render_responses(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.render(body)
    }

    fn render_ollama(&self, body: &[u8]) -> Result<String, NotRendered> {
        self.render(body)
    }
}

#[test]
fn a_template_counts_where_all_workers_of_a_model_offer_it() {
    let mut story = Story::with_workers(3);
    let ids: Vec<_> = story.router.snapshot().fleet.workers.iter().map(|worker| worker.id).collect();
    let found = |story: &Story, model| story.router.chat_template(model).map(|template| template.id());
    for (worker, model) in ids.iter().zip(["a", "a", "b"]) {
        let models = vec![model.into()];
        story.profile(*worker, WorkerProfile { models, ..WorkerProfile::default() }).unwrap();
    }
    let offer = |story: &mut Story, worker: usize, name: Option<u64>, incarnation| {
        let chat_template = name.map(|name| Arc::new(Named(name)) as Arc<dyn ChatTemplate>);
        let agent =
            Introduction { chat_template, ..story.introduction(ids[worker], incarnation, Vec::new()) };
        story.join_as(agent, 100 * incarnation + worker as u64).unwrap();
    };
    assert_eq!(found(&story, Some("a")), Err(NoTemplate::NotOffered));
    offer(&mut story, 0, Some(1), 10);
    assert_eq!(found(&story, Some("a")), Err(NoTemplate::NotOffered));
    offer(&mut story, 1, Some(1), 10);
    offer(&mut story, 2, Some(2), 10);
    assert_eq!((found(&story, Some("a")), found(&story, Some("b"))), (Ok(1), Ok(2)));
    assert_eq!(found(&story, Some("a:adapter")), Ok(1));
    assert_eq!(found(&story, None), Err(NoTemplate::Different));
    assert_eq!(found(&story, Some("c")), Err(NoTemplate::NoWorker));
    offer(&mut story, 1, Some(2), 11);
    assert_eq!(found(&story, Some("a")), Err(NoTemplate::Different));
    story.healthy(ids[1], false);
    assert_eq!(found(&story, Some("a")), Ok(1), "a worker that cannot be reached gets no chats");
    offer(&mut story, 0, None, 11);
    assert_eq!(found(&story, Some("a")), Err(NoTemplate::NotOffered));
    // The agent of the other one falls silent for good.
    assert_eq!(found(&story, Some("b")), Ok(2));
    story.pass(Duration::from_secs(16));
    story.pass(Duration::from_secs(16));
    assert_eq!(found(&story, Some("b")), Err(NoTemplate::NotOffered));
}
