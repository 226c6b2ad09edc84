//! Agents join, fall silent, resume and are sent away.

use super::*;

#[test]
fn after_a_gap_nothing_matches_until_a_baseline() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, vec![stored(None, &key)]);
    let notices = story.delta(worker, 1, delta(2));
    assert!(happened(&notices, EventKind::Gap));
    assert!(notices.iter().any(|n| matches!(n, Notice::ResyncNeeded { session: SessionId(1), rank: 0, .. })));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    assert_eq!(story.claimed(worker), 8, "doubtful claims are kept");
    story.delta(worker, 1, Delta { cleared: true, ..delta(3) });
    assert_eq!(story.claimed(worker), 8, "nothing counts before the baseline");
    let notices = story.baseline(worker, 1, 3, vec![stored(None, &key[..5])]);
    assert!(happened(&notices, EventKind::Resynced));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 5);
    assert_eq!(story.claimed(worker), 5);
}

#[test]
fn a_baseline_keeps_what_is_on_its_way() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let request = story.route(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, Vec::new());
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8);
    drop(request);
    // The claim moved with the baseline; the old decision's undoing belongs to the slot it was made in.
    story.pass(Duration::from_secs(601));
    story.pass(Duration::from_secs(1));
    assert_eq!(story.claimed(worker), 0);
}

#[test]
fn a_reconnect_resumes_where_it_stopped_and_a_restart_begins_anew() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 4, vec![stored(None, &key)]);
    story.delta(worker, 1, delta(5));
    story.report(worker, 1, AgentReport::Left);
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8, "losing the stream loses nothing");
    assert_eq!(story.join(worker, 2, 10, vec![(0, 4)]), Ok(vec![(0, 5)]));
    story.delta(worker, 1, Delta { cleared: true, ..delta(6) });
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8, "the old session has nothing to say any more");
    story.delta(worker, 2, Delta { removed: vec![key[7]], ..delta(6) });
    assert_eq!(story.matched(worker, &prompt(1, 8)), 7);
    let stale = JoinError::StaleIncarnation { offered: Incarnation(9), registered: Incarnation(10) };
    assert_eq!(story.join(worker, 3, 9, Vec::new()), Err(stale));
    assert_eq!(story.join(worker, 4, 11, vec![(0, 6)]), Ok(Vec::new()));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0, "a restarted engine holds nothing");
}

#[test]
fn an_agents_word_that_the_engine_restarted_voids_at_once() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, vec![stored(None, &key)]);
    let request = story.route(&prompt(1, 8));
    let notices = story.report(worker, 1, AgentReport::NewIncarnation(Incarnation(11)));
    assert!(happened(&notices, EventKind::ClaimsVoided));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    // An answer from the old life confirms nothing in the new one.
    request.complete(story.now);
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    assert_eq!(story.router.snapshot().size, crate::IndexSize::default(), "the old slot has been swept");
}

#[test]
fn a_cleared_cache_is_void_and_its_sequence_goes_on() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, vec![stored(None, &key)]);
    story.delta(worker, 1, Delta { cleared: true, stored: vec![stored(None, &key[..1])], ..delta(1) });
    assert_eq!(story.matched(worker, &prompt(1, 8)), 1);
    story.delta(worker, 1, Delta { stored: vec![stored(Some(key[0]), &key[1..3])], ..delta(2) });
    assert_eq!(story.matched(worker, &prompt(1, 8)), 3);
}

#[test]
fn a_silent_agent_is_doubted_then_forgotten_and_its_worker_served_on() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 0, vec![stored(None, &key)]);
    let notices = story.pass(Duration::from_secs(16));
    assert!(happened(&notices, EventKind::AgentLost));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    assert_eq!(story.claimed(worker), 8);
    story.pass(Duration::from_secs(15));
    assert_eq!(story.claimed(worker), 0);
    assert_eq!(story.state(worker), WorkerState::Ready);
    story.serve(&prompt(2, 8), 0);
    assert_eq!(story.matched(worker, &prompt(2, 8)), 8, "what it serves is learned from its traffic again");
}

fn ended(notices: &[Notice]) -> Vec<(u64, SessionEnd)> {
    let ended = |notice: &Notice| match notice {
        Notice::SessionEnded { session, why } => Some((session.0, *why)),
        _ => None,
    };
    notices.iter().filter_map(ended).collect()
}

#[test]
fn a_later_session_ends_the_earlier_and_one_that_only_asks_does_not() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 4, vec![stored(None, &key)]);
    let rival = story.introduction(worker, 10, vec![(0, 3), (7, 1)]);
    assert_eq!(story.consider(rival.clone()), Ok(vec![(0, 4)]));
    let notices = story.delta(worker, 1, Delta { removed: vec![key[7]], ..delta(5) });
    assert!(notices.contains(&Notice::Acked { session: SessionId(1), rank: 0, seq: 5 }), "{notices:?}");
    assert_eq!(story.matched(worker, &prompt(1, 8)), 7, "whoever only asks changes nothing");
    let (at, session) = (story.now, SessionId(2));
    let join = FleetUpdate::Join {
        agent: rival.into(),
        session,
        level: ReportLevel::Full,
        at,
        done: Done::ignore(),
    };
    let notices = story.send(Update::Fleet(join));
    assert_eq!(ended(&notices), [(1, SessionEnd::Replaced)]);
    assert!(notices.contains(&Notice::Acked { session, rank: 0, seq: 5 }), "what it missed is acknowledged");
    story.delta(worker, 1, Delta { cleared: true, ..delta(6) });
    assert_eq!(story.matched(worker, &prompt(1, 8)), 7);
}

#[test]
fn a_rank_that_was_to_resume_and_cannot_any_more_is_asked_for_a_baseline() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 4, Vec::new());
    let agent = story.introduction(worker, 10, vec![(0, 4)]);
    assert_eq!(story.consider(agent.clone()), Ok(vec![(0, 4)]));
    // Between the two the earlier session finds a gap.
    story.delta(worker, 1, delta(9));
    let (at, session) = (story.now, SessionId(2));
    let join = FleetUpdate::Join {
        agent: agent.into(),
        session,
        level: ReportLevel::Full,
        at,
        done: Done::ignore(),
    };
    let notices = story.send(Update::Fleet(join));
    let asked =
        |notice: &Notice| matches!(notice, Notice::ResyncNeeded { session: s, rank: 0, .. } if *s == session);
    assert!(notices.iter().any(asked), "{notices:?}");
}

#[test]
fn an_agent_that_is_refused_leaves_no_trace() {
    let mut story = Story::with(1, WorkerProfile::default(), |settings| settings.max_targets = 2);
    let worker = story.router.snapshot().fleet.workers[0].id;
    story.join(worker, 1, 10, Vec::new()).unwrap();
    let profile = WorkerProfile { dp_size: 2, ..WorkerProfile::default() };
    let stale = Introduction { profile: profile.clone(), ..story.introduction(worker, 9, Vec::new()) };
    let refused = JoinError::StaleIncarnation { offered: Incarnation(9), registered: Incarnation(10) };
    assert_eq!(story.consider(stale.clone()), Err(refused.clone()));
    assert_eq!(story.join_as(stale.clone(), 2), Err(refused));
    let full = JoinError::Fleet(FleetError::Full { in_use: 1, max: 2, wanted: 2 });
    let other = Introduction { url: "http://other".into(), ..stale };
    assert_eq!(story.join_as(other, 3), Err(full));
    let fleet = story.router.snapshot().fleet.clone();
    assert_eq!((fleet.workers.len(), fleet.targets.len()), (1, 1));
    assert!(fleet.workers[0].agent.is_some(), "the good session goes on");
    let newer = Introduction { profile, ..story.introduction(worker, 10, Vec::new()) };
    assert_eq!(story.join_as(newer, 4), Ok(Joined { worker, resumed: Vec::new(), unreconciled: Vec::new() }));
    assert_eq!(story.router.snapshot().fleet.targets.len(), 2);
}

#[test]
fn an_agent_that_was_late_is_sent_away_once_and_resumes_without_a_doubt() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let key = story.hashes(&prompt(1, 8));
    story.join(worker, 1, 10, Vec::new()).unwrap();
    story.baseline(worker, 1, 4, vec![stored(None, &key)]);
    assert_eq!(ended(&story.pass(Duration::from_secs(16))), [(1, SessionEnd::LeaseEnded)]);
    assert_eq!(ended(&story.pass(Duration::from_secs(1))), []);
    story.delta(worker, 1, Delta { cleared: true, ..delta(5) });
    assert_eq!(story.claimed(worker), 8, "an ended session has nothing to say");
    assert_eq!(story.matched(worker, &prompt(1, 8)), 0);
    assert_eq!(story.join(worker, 2, 10, vec![(0, 4)]), Ok(vec![(0, 4)]));
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8);
    // Twice the lease later its reports are forgotten; it begins anew.
    story.pass(Duration::from_secs(16));
    story.pass(Duration::from_secs(16));
    assert_eq!(story.join(worker, 3, 10, vec![(0, 4)]), Ok(Vec::new()));
    story.baseline(worker, 3, 9, vec![stored(None, &key)]);
    assert_eq!(story.matched(worker, &prompt(1, 8)), 8);
}

#[test]
fn removing_a_worker_ends_its_session() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    let agent = story.introduction(worker, 10, Vec::new());
    story.join(worker, 1, 10, Vec::new()).unwrap();
    let notices = story.send(Update::Fleet(FleetUpdate::Remove { worker, done: Done::ignore() }));
    assert!(happened(&notices, EventKind::WorkerRemoved));
    assert_eq!(ended(&notices), [(1, SessionEnd::WorkerRemoved)]);
    let again = story.join_as(agent, 2).unwrap().worker;
    assert_ne!(again, worker);
    story.healthy(again, true);
    let key = story.hashes(&prompt(1, 8));
    story.baseline(again, 2, 0, vec![stored(None, &key)]);
    assert_eq!(story.matched(again, &prompt(1, 8)), 8);
}

#[test]
fn no_more_is_claimed_than_an_engine_says_that_it_holds() {
    let mut story = Story::with_workers(1);
    let worker = story.router.snapshot().fleet.workers[0].id;
    story.join(worker, 1, 1, Vec::new()).unwrap();
    story.report(worker, 1, AgentReport::Level(ReportLevel::Counts));
    for first in [1_000, 2_000, 3_000] {
        drop(story.serve(&prompt(first, 50), 0));
    }
    let _on_its_way = story.route(&prompt(4_000, 50));
    story.turn();
    // 4 prompts of 200 tokens, of which one is on its way; a margin of 4,000 / 64 tokens.
    let counts = |cached_tokens| AgentReport::Counts { rank: 0, evicted_tokens_total: 0, cached_tokens };
    story.report(worker, 1, counts(600 - 60));
    assert_eq!(story.claimed(worker), 200);
    story.report(worker, 1, counts(400 - 60));
    assert_eq!(story.matched(worker, &prompt(1_000, 50)), 0, "the oldest is gone");
    for first in [2_000, 3_000, 4_000] {
        assert_eq!(story.matched(worker, &prompt(first, 50)), 50, "{first}");
    }
}

/// 1,000 tokens on the device, and 2,400 below it.
#[test]
fn claims_have_room_for_what_a_lower_tier_holds() {
    let below = LowerTier { capacity_tokens: 2_400 };
    for (lower_tier, named, guessed) in [(None, 500, 250), (Some(below), 1_100, 850)] {
        let profile = WorkerProfile { capacity_tokens: 1_000, lower_tier, ..WorkerProfile::default() };
        let mut story = Story::with(1, profile.clone(), |_| {});
        let worker = story.router.snapshot().fleet.workers[0].id;
        for first in 1..=60 {
            drop(story.serve(&prompt(first * 1_000, 25), 0));
        }
        assert_eq!(story.claimed(worker), guessed, "of what no agent names");
        let agent = story.introduction(worker, 1, Vec::new());
        story.join_as(agent, 1).unwrap();
        let prompts: Vec<_> = (1..=60).map(|first| story.hashes(&prompt(first * 1_000, 25))).collect();
        let runs = prompts.iter().map(|hashes| stored(None, hashes)).collect();
        story.baseline(worker, 1, 0, runs);
        assert_eq!(story.claimed(worker), named, "and of what one does");
    }
}

#[test]
fn nothing_follows_from_counts_of_an_engine_that_evicts_by_another_rule() {
    let plain = WorkerProfile { capacity_tokens: 4_000, ..WorkerProfile::default() };
    for profile in [
        WorkerProfile { evicts_lru: false, ..plain.clone() },
        WorkerProfile { lower_tier: Some(LowerTier { capacity_tokens: 8_000 }), ..plain.clone() },
        WorkerProfile { cache_kind: CacheKind::SlidingWindow, ..plain.clone() },
        WorkerProfile { cache_kind: CacheKind::RecurrentState, ..plain },
    ] {
        let mut story = Story::with(1, profile.clone(), |_| {});
        let worker = story.router.snapshot().fleet.workers[0].id;
        let agent = story.introduction(worker, 1, Vec::new());
        assert_eq!(agent.profile, profile);
        story.join_as(agent, 1).unwrap();
        story.report(worker, 1, AgentReport::Level(ReportLevel::Counts));
        drop(story.serve(&prompt(1_000, 50), 0));
        story.report(worker, 1, AgentReport::Counts { rank: 0, evicted_tokens_total: 0, cached_tokens: 0 });
        assert_eq!(story.claimed(worker), 50, "{profile:?}");
    }
}

#[test]
fn an_agent_that_wants_to_know_is_told_what_is_predicted() {
    let named = |notices: &[Notice]| -> Vec<(u64, BlockHash)> {
        let of = |notice: &Notice| match notice {
            Notice::Predicted { session, rank: 0, unit: Unit::Token, last } => Some((session.0, *last)),
            _ => None,
        };
        notices.iter().filter_map(of).collect()
    };
    for (level, routers, expected) in [
        (ReportLevel::Removals, 2, true),
        (ReportLevel::Removals, 1, false),
        (ReportLevel::Full, 2, false),
        (ReportLevel::Counts, 2, false),
    ] {
        let mut story = Story::with_workers(1);
        let worker = story.router.snapshot().fleet.workers[0].id;
        let agent = Introduction { routers, ..story.introduction(worker, 1, Vec::new()) };
        let (session, at) = (SessionId(7), story.now);
        story
            .ask(|done| Update::Fleet(FleetUpdate::Join { agent: agent.into(), session, level, at, done }))
            .unwrap();
        story.baseline(worker, 7, 0, Vec::new());
        let mut other = story.route(&prompt(2, 4));
        let last = *story.hashes(&prompt(2, 4)).last().unwrap();
        let predicted = if expected { vec![(7, last)] } else { Vec::new() };
        assert_eq!(named(&story.turn()), predicted, "{level:?}");
        other.first_token(story.now);
        other.usage(Usage { prompt_tokens: 17, cached_tokens: 0 }, true);
        assert_eq!(named(&story.turn()), [], "once");
        let answer: Vec<u32> = prompt(2, 4).into_iter().chain(100..109).collect();
        other.generated(story.key(&answer), story.now);
        other.complete(story.now);
        let last = *story.hashes(&answer).last().unwrap();
        let predicted = if expected { vec![(7, last)] } else { Vec::new() };
        assert_eq!(named(&story.turn()), predicted, "and its answer");
        story.report(worker, 7, AgentReport::Left);
        let _third = story.route(&prompt(3, 4));
        assert_eq!(named(&story.turn()), []);
    }
}
