//! Whole runs: everybody answers, the seed decides, and what goes wrong has its price.

use router_core::policy::CacheAwareSettings;
use sglang_sim::Timing;

use super::super::contestants;
use super::*;
use crate::engine::Limits;
use crate::reference::Accesses;
use crate::workload::{Pattern, draft};

fn setting(capacity_tokens: usize) -> Setting {
    Setting {
        workers: 4,
        capacity_tokens,
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
