//! Whole runs: everybody answers, the seed decides, and what goes wrong has its price.

use router_core::policy::CacheAwareSettings;
use sglang_sim::Timing;

use super::super::contestants;
use super::*;
use crate::engine::Limits;
use crate::lab::MOST_BLOCKS;
use crate::reference::Accesses;
use crate::workload::{Pattern, draft};

fn setting(capacity_tokens: usize) -> Setting {
    Setting {
        workers: 4,
        capacity_tokens,
        most_blocks: MOST_BLOCKS,
        limits: Limits::default(),
        timing: Timing::default(),
        timeout: Duration::from_secs(120),
        seed: 1,
        routers: 1,
        fault: None,
    }
}

fn outcome(pattern: Pattern, name: &str, capacity_tokens: usize) -> (Traffic, Outcome) {
    let setting = setting(capacity_tokens);
    let traffic = draft(pattern, 200, 7).at_load(0.4, setting.workers, &setting.timing);
    let contestant = contestants(CacheAwareSettings::default())
        .into_iter()
        .find(|contestant| contestant.name == name)
        .unwrap();
    let outcome = run(&setting, &traffic, &contestant).unwrap();
    (traffic, outcome)
}

fn cached(outcome: &Outcome) -> usize {
    outcome.requests.iter().map(|request| request.cached_tokens).sum()
}

#[test]
fn the_seed_decides_everything() {
    for contestant in contestants(CacheAwareSettings::default()) {
        let run = || outcome(Pattern::Agents, contestant.name, 100_000).1;
        let (one, other) = (run(), run());
        assert_eq!(one.requests, other.requests, "{}", contestant.name);
        assert_eq!(one.samples, other.samples, "{}", contestant.name);
    }
}

#[test]
fn everybody_answers_every_request() {
    for contestant in contestants(CacheAwareSettings::default()) {
        for pattern in [Pattern::Chat, Pattern::Branching] {
            let (traffic, outcome) = outcome(pattern, contestant.name, 1 << 20);
            let answered = outcome.requests.iter().filter(|request| request.done.is_some()).count();
            assert_eq!(answered, traffic.requests.len(), "{}, {}", contestant.name, pattern.name());
            for session in &traffic.sessions {
                for turns in session.turns.windows(2) {
                    let over = turns[0].requests.iter().map(|at| outcome.requests[*at as usize].done);
                    let asked = outcome.requests[turns[1].requests[0] as usize].sent;
                    assert!(over.max().flatten().unwrap() + turns[1].think <= asked, "an answer comes first");
                }
            }
        }
    }
}

/// Hits of the timed references are ordered as the replayed ones are.
#[test]
fn an_infinite_cache_finds_most_and_a_pooled_one_more_than_parts() {
    let tokens = 60_000;
    let hits = |name| cached(&outcome(Pattern::Documents, name, tokens).1);
    let (infinite, pooled, blind) = (hits("infinite cache"), hits("pooled cache"), hits("round_robin"));
    assert!(infinite >= pooled && pooled > blind, "{infinite} {pooled} {blind}");
    let (traffic, outcome) = outcome(Pattern::Chat, "infinite cache", tokens);
    assert_eq!(outcome.replication, 1.0, "a block in one cache is there once");
    let replayed: usize = Accesses::new(&traffic.requests).infinite().iter().sum();
    let found = cached(&outcome);
    let difference = found.abs_diff(replayed) as f64 / replayed as f64;
    assert!(difference < 0.02, "in time {found}, replayed {replayed}");
}

/// A router that is told what engines hold never expects less than it gets.
#[test]
fn agents_leave_nothing_to_be_found_by_surprise() {
    let surprises = |name| {
        let (_, outcome) = outcome(Pattern::Agents, name, 100_000);
        let seen = outcome.requests.iter().filter(|request| request.first.is_some());
        seen.map(|request| (request.cached_tokens as u64).saturating_sub(request.predicted_tokens))
            .sum::<u64>()
    };
    assert_eq!(surprises("cache_aware"), 0);
    assert!(surprises("cache_aware, no agents") > 0);
}

#[test]
fn clients_leave_when_nothing_comes_and_the_engine_goes_on() {
    let setting = Setting { timeout: Duration::from_secs(1), workers: 1, ..setting(1 << 20) };
    let traffic = draft(Pattern::NoSharing, 60, 7).schedule(Duration::from_secs(1));
    let router = contestants(CacheAwareSettings::default())
        .into_iter()
        .find(|contestant| contestant.name == "round_robin")
        .unwrap();
    let outcome = run(&setting, &traffic, &router).unwrap();
    let left = outcome.requests.iter().filter(|request| request.first.is_none()).count();
    assert!(left > 20 && left < 60, "{left}");
    let late = |request: &&Request| request.first.is_some_and(|first| first > request.sent + setting.timeout);
    assert_eq!(outcome.requests.iter().filter(late).count(), 0);
}

fn troubled(pattern: Pattern, name: &str, change: impl FnOnce(&mut Setting)) -> (Traffic, Outcome) {
    let mut setting = setting(150_000);
    change(&mut setting);
    let traffic = draft(pattern, 400, 7).at_load(0.2, setting.workers, &setting.timing);
    let all = contestants(CacheAwareSettings::default());
    let contestant = all.into_iter().find(|contestant| contestant.name == name).unwrap();
    let outcome = run(&setting, &traffic, &contestant).unwrap();
    (traffic, outcome)
}

#[test]
fn whatever_goes_wrong_every_request_comes_to_an_end() {
    for fault in Fault::ALL {
        for contestant in contestants(CacheAwareSettings::default()) {
            let (_, outcome) =
                troubled(Pattern::Agents, contestant.name, |setting| setting.fault = Some(fault));
            let over =
                |request: &Request| request.done.is_some() || request.failed || request.first.is_none();
            assert!(outcome.requests.iter().all(over), "{}, {}", contestant.name, fault.name());
            let failed = outcome.requests.iter().filter(|request| request.failed).count();
            if fault != Fault::Kill {
                assert_eq!(failed, 0, "{}, {}", contestant.name, fault.name());
            }
        }
    }
}

#[test]
fn what_a_dead_engine_had_begun_fails_and_the_rest_is_sent_elsewhere() {
    for name in ["cache_aware", "cache_aware, no agents", "session_sticky", "round_robin"] {
        let (_, outcome) = troubled(Pattern::Agents, name, |setting| setting.fault = Some(Fault::Kill));
        let failed: Vec<_> = outcome.requests.iter().filter(|request| request.failed).collect();
        assert!(!failed.is_empty() && failed.len() < 40, "{name}: {}", failed.len());
        assert!(
            failed.iter().all(|request| request.first.is_some()),
            "{name}: others take what has not begun"
        );
    }
}

#[test]
fn an_engine_that_is_back_gets_work_again() {
    let (_, outcome) = troubled(Pattern::Agents, "round_robin", |setting| setting.fault = Some(Fault::Kill));
    let last = outcome.requests.iter().map(|request| request.sent).max().unwrap();
    for engine in 0..4 {
        let later = outcome.prefills.iter().rfind(|(by, ..)| *by == engine).unwrap().1;
        assert!(later > last / 2, "engine {engine}: {later:?} of {last:?}");
    }
}

#[test]
fn whoever_is_told_of_new_weights_expects_nothing_that_is_gone() {
    let expected_in_vain = |name| {
        let (_, outcome) = troubled(Pattern::Agents, name, |setting| setting.fault = Some(Fault::Update));
        let vain = |request: &Request| {
            let seen = request.first.is_some();
            request.predicted_tokens.saturating_sub(request.cached_tokens as u64) * u64::from(seen)
        };
        outcome.requests.iter().map(vain).sum::<u64>()
    };
    let (told, untold) = (expected_in_vain("cache_aware"), expected_in_vain("cache_aware, no agents"));
    assert!(told < untold / 2, "{told} {untold}");
}

#[test]
fn sessions_stay_with_one_of_several_routers_and_two_know_less_than_one() {
    let hits = |routers| {
        let (traffic, outcome) =
            troubled(Pattern::SystemPrompts, "cache_aware, no agents", |setting| setting.routers = routers);
        assert!(outcome.requests.iter().all(|request| request.done.is_some()));
        cached(&outcome) as f64 / traffic.prompt_tokens() as f64
    };
    assert!(hits(4) < hits(1), "{} {}", hits(4), hits(1));
}

#[test]
fn a_ring_keeps_sessions_together_and_bounds_loads() {
    let (traffic, outcome) = troubled(Pattern::Chat, "consistent_hash", |_| {});
    let engines_of = |session: &crate::workload::Session| {
        let requests = session.turns.iter().flat_map(|turn| &turn.requests);
        let engines: FxHashSet<usize> =
            requests.map(|request| outcome.requests[*request as usize].engine).collect();
        engines.len() as f64 / session.turns.len() as f64
    };
    let several = traffic.sessions.iter().filter(|session| session.turns.len() > 3);
    let spread = crate::stats::mean(&several.map(engines_of).collect::<Vec<_>>());
    assert!(spread < 0.7, "a share of the turns changes places: {spread}");
    // All have the same first blocks, and would be at one engine without a bound.
    let (_, outcome) = troubled(Pattern::OnePrompt, "consistent_hash", |_| {});
    let at = |engine| outcome.requests.iter().filter(|request| request.engine == engine).count();
    assert!((0..4).all(|engine| at(engine) < 200), "{:?}", [at(0), at(1), at(2), at(3)]);
}
