//! What counts of an engine's own change, and what is known of errors.

use std::collections::VecDeque;

use super::*;
use crate::{Counts, DivergenceSource, Mispredicted, Witness};

/// KV tokens of the engines.
const CAPACITY: u64 = 4_000;

/// Blocks of a prompt.
const BLOCKS: usize = 50;

fn count(story: &mut Story, worker: WorkerId, held_tokens: u64, evicted: u64) {
    let counts = Counts { held_tokens, evicted_tokens_total: Some(evicted) };
    let (target, at) = (TargetId { worker, rank: 0 }, story.now);
    story.send(Update::Fleet(FleetUpdate::Counted { target, counts, at }));
}

#[test]
fn an_engine_without_an_agent_is_believed_how_much_it_holds() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    for first in [1_000, 2_000, 3_000] {
        drop(story.serve(&prompt(first, BLOCKS), 0));
    }
    count(&mut story, worker, 400 - CAPACITY / 64, 0);
    assert_eq!(story.matched(worker, &prompt(1_000, BLOCKS)), 0, "the oldest is gone");
    assert_eq!(story.claimed(worker), 2 * BLOCKS);
    let accuracy = story.accuracy(worker);
    assert_eq!(accuracy.counts.unwrap().by, Witness::Engine);
    let divergence = accuracy.divergence.unwrap();
    assert_eq!((divergence.tokens, divergence.source), (CAPACITY / 64, DivergenceSource::Counts));
    // Flushed behind the router's back.
    count(&mut story, worker, 0, 0);
    assert!(story.claimed(worker) as u64 * BLOCK as u64 <= CAPACITY / 64);
}

#[test]
fn counts_are_not_asked_for_where_an_agent_speaks_or_they_are_switched_off() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    story.join(worker, 1, 1, Vec::new()).unwrap();
    story.report(worker, 1, AgentReport::Level(ReportLevel::Counts));
    drop(story.serve(&prompt(1_000, BLOCKS), 0));
    count(&mut story, worker, 0, 0);
    assert_eq!((story.claimed(worker), story.accuracy(worker).counts), (BLOCKS, None));
    let profile = WorkerProfile { capacity_tokens: CAPACITY, ..WorkerProfile::default() };
    let mut off = Story::with(1, profile, |settings| settings.count_from_engines = false);
    drop(off.serve(&prompt(1_000, BLOCKS), 0));
    count(&mut off, worker, 0, 0);
    assert_eq!((off.claimed(worker), off.accuracy(worker).counts), (BLOCKS, None));
}

/// An engine that evicts the least recently used prompt.
#[derive(Default)]
struct Cache {
    prompts: VecDeque<u32>,
    evicted: u64,
}

impl Cache {
    fn store(&mut self, first: u32) {
        self.prompts.push_back(first);
        while self.held() > CAPACITY {
            self.prompts.pop_front();
            self.evicted += (BLOCKS * BLOCK) as u64;
        }
    }

    fn held(&self) -> u64 {
        (self.prompts.len() * BLOCKS * BLOCK) as u64
    }
}

/// Prompts that are claimed and gone, and that are held and not claimed, after this router has sent every third prompt to an engine
/// and others the rest.
fn divergence(counts: bool) -> (usize, usize) {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    let mut cache = Cache::default();
    let own: Vec<u32> = (0..120).filter(|number| number % 3 == 0).map(|number| 10_000 + number).collect();
    for number in 10_000..10_120 {
        if own.contains(&number) {
            drop(story.serve(&prompt(number, BLOCKS), 0));
        }
        cache.store(number);
        story.pass(Duration::from_secs(1));
        if counts {
            count(&mut story, worker, cache.held(), cache.evicted);
        }
    }
    let states: Vec<_> = own
        .into_iter()
        .map(|number| {
            let claimed = story.matched(worker, &prompt(number, BLOCKS)) > 0;
            (claimed, cache.prompts.contains(&number))
        })
        .collect();
    let are = |state| states.iter().filter(|other| **other == state).count();
    (are((true, false)), are((false, true)))
}

#[test]
fn counts_find_what_traffic_of_others_has_pushed_out() {
    // The engine holds 20 prompts, 6 of them ours.
    assert_eq!(divergence(false), (14, 0), "as many of ours are claimed as would fit");
    assert_eq!(divergence(true), (1, 0), "but for what may have been used again since the count");
}

#[test]
fn evictions_say_nothing_of_an_engine_that_evicts_by_another_rule() {
    let plain = WorkerProfile { capacity_tokens: CAPACITY, ..WorkerProfile::default() };
    let cases = [
        (WorkerProfile { cache_kind: CacheKind::Full, ..plain.clone() }, 0),
        (WorkerProfile { evicts_lru: false, ..plain.clone() }, BLOCKS),
        (WorkerProfile { lower_tier: Some(LowerTier::default()), ..plain.clone() }, BLOCKS),
        (WorkerProfile { cache_kind: CacheKind::SlidingWindow, ..plain.clone() }, BLOCKS),
        (WorkerProfile { cache_kind: CacheKind::RecurrentState, ..plain }, BLOCKS),
    ];
    for (profile, expected) in cases {
        let mut story = Story::with(1, profile.clone(), |_| {});
        let worker = WorkerId(0);
        drop(story.serve(&prompt(1_000, BLOCKS), 0));
        for second in 1..20 {
            story.pass(Duration::from_secs(1));
            count(&mut story, worker, CAPACITY, second * CAPACITY);
        }
        assert_eq!(story.claimed(worker), expected, "{profile:?}");
    }
}

/// What an engine counts is its device, and what it evicts from there may be below it.
#[test]
fn counts_of_a_device_say_nothing_of_the_tier_below() {
    for (lower_tier, expected) in [(None, (true, true)), (Some(LowerTier::default()), (false, false))] {
        let profile = WorkerProfile {
            capacity_tokens: CAPACITY,
            evicts_lru: false,
            lower_tier,
            ..WorkerProfile::default()
        };
        let mut story = Story::with(1, profile, |_| {});
        let worker = WorkerId(0);
        drop(story.serve(&prompt(1_000, BLOCKS), 0));
        for evicted in [0, CAPACITY] {
            count(&mut story, worker, 0, evicted);
        }
        assert!(story.accuracy(worker).counts.is_some(), "they are shown");
        let pressure = story.router.snapshot().fleet.targets[0].eviction_pressure;
        assert_eq!((story.accuracy(worker).divergence.is_some(), pressure > 0.0), expected);
    }
}

#[test]
fn text_is_counted_with_the_length_of_its_tokens() {
    const PROMPTS: u64 = 250;
    let profile = WorkerProfile { capacity_tokens: 40_000, ..WorkerProfile::default() };
    let mut story = Story::with(1, profile, |_| {});
    let worker = WorkerId(0);
    // 8 bytes a token, twice what is taken for granted: claims count twice the tokens that there are.
    for number in 0..PROMPTS {
        let text = format!("{number:03}{}", "x".repeat(509));
        let key = story.router.key_space(Unit::Text).key_of_text(Salt::default(), text.as_bytes());
        let request = RouteRequest { key: Some(&key), ..RouteRequest::default() };
        let mut routed = story.router.route(&request, story.now, &mut story.rng).unwrap();
        routed.first_token(story.now);
        routed.usage(Usage { prompt_tokens: 64, cached_tokens: 0 }, false);
        routed.complete(story.now);
        story.turn();
    }
    let claimed = |story: &mut Story| {
        let target = TargetId { worker, rank: 0 };
        story.ask(|done| Update::Query(Query::Claims { target, unit: Unit::Text, done })).len()
    };
    let all = claimed(&mut story);
    let held = (all * 2) as u64;
    count(&mut story, worker, held, 0);
    assert_eq!(claimed(&mut story), all, "all of it fits into what is held");
    assert!(story.accuracy(worker).divergence.unwrap().tokens < held / 50);
    count(&mut story, worker, held / 2, 0);
    let left = claimed(&mut story);
    assert!((all / 2..all * 11 / 20).contains(&left), "{left} of {all}");
}

#[test]
fn totals_of_different_witnesses_are_not_compared() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    drop(story.serve(&prompt(1_000, BLOCKS), 0));
    story.pass(Duration::from_secs(5));
    count(&mut story, worker, CAPACITY, 100);
    for session in 1..=2 {
        let level = AgentReport::Level(ReportLevel::Counts);
        story.join(worker, session, 1, Vec::new()).unwrap();
        story.report(worker, session, level);
        let evicted_tokens_total = session * 10 * CAPACITY;
        let counts = AgentReport::Counts { rank: 0, evicted_tokens_total, cached_tokens: CAPACITY };
        story.report(worker, session, counts);
        story.pass(Duration::from_secs(5));
    }
    story.report(worker, 2, AgentReport::Left);
    count(&mut story, worker, CAPACITY, 100 * CAPACITY);
    assert_eq!(story.claimed(worker), BLOCKS, "nobody has said that anything was evicted");
    count(&mut story, worker, CAPACITY, 101 * CAPACITY);
    assert_eq!(story.claimed(worker), 0);
}

#[test]
fn what_is_on_its_way_outlives_the_horizon() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    let waiting = story.route(&prompt(1_000, BLOCKS));
    for second in 1..20 {
        story.pass(Duration::from_secs(1));
        count(&mut story, worker, CAPACITY, second * CAPACITY);
    }
    assert_eq!(story.matched(worker, &prompt(1_000, BLOCKS)), BLOCKS as u64);
    drop(waiting);
    assert_eq!(story.matched(worker, &prompt(1_000, BLOCKS)), 0, "and is taken back when it fails");
}

#[test]
fn errors_are_summed_by_target_and_cause() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    drop(story.serve(&prompt(1, BLOCKS), 0));
    drop(story.serve(&prompt(1, BLOCKS), 200));
    drop(story.serve(&prompt(1, BLOCKS), 80));
    drop(story.serve(&prompt(2, BLOCKS), 100));
    let sums = story.accuracy(worker).predictions;
    assert_eq!((sums.checked, sums.unchecked), (4, 0));
    assert_eq!(sums.evicted, Mispredicted { responses: 1, tokens: 120 });
    assert_eq!(sums.other_traffic, Mispredicted { responses: 1, tokens: 100 });
    assert_eq!((sums.mean_tokens(), sums.mean_absolute_tokens()), (5.0, 55.0));
}

/// Serves a prompt without a word of what was cached.
fn serve_silently(story: &mut Story, first: u32) -> Vec<Notice> {
    let mut in_flight = story.route(&prompt(first, BLOCKS));
    story.turn();
    in_flight.first_token(story.now);
    in_flight.complete(story.now);
    story.pass(Duration::from_millis(200))
}

#[test]
fn it_is_told_once_when_nothing_vouches_and_once_when_something_does() {
    let mut story = Story::with_workers(1);
    let worker = WorkerId(0);
    let mut told = Vec::new();
    for first in 0..40 {
        told.push(happened(&serve_silently(&mut story, first), EventKind::Unvouched));
        assert_eq!(story.accuracy(worker).unvouched, first >= 15, "{first}");
    }
    assert_eq!(told.iter().filter(|told| **told).count(), 1);
    story.serve(&prompt(100, BLOCKS), 0);
    assert!(happened(&story.pass(Duration::from_millis(200)), EventKind::Vouched), "a response does");
    for first in 40..60 {
        serve_silently(&mut story, first);
    }
    assert!(story.accuracy(worker).unvouched);
    story.join(worker, 1, 1, Vec::new()).unwrap();
    assert!(happened(&story.pass(Duration::from_millis(200)), EventKind::Vouched), "an agent does");
    assert!(!story.accuracy(worker).unvouched);
}

#[test]
fn a_policy_that_does_not_look_at_caches_needs_no_witness() {
    let mut story = Story::with(1, WorkerProfile::default(), |settings| {
        settings.policy = crate::policy::PolicyConfig::RoundRobin;
    });
    for first in 0..40 {
        assert!(!happened(&serve_silently(&mut story, first), EventKind::Unvouched));
    }
}
