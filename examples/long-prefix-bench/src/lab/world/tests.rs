//! Whole runs: everybody answers, the seed decides, and what goes wrong has its price.

use router_core::policy::CacheAwareSettings;
use rustc_hash::FxHashSet;

use super::super::{Clients, contestants};
use super::*;
use crate::lab::MOST_BLOCKS;
use crate::reference::Accesses;
use crate::workload::{Pattern, draft};

fn setting(capacity_tokens: usize) -> Setting {
    Setting::undisturbed(4, capacity_tokens)
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
            let (_, outcome) = troubled(Pattern::Agents, contestant.name, |setting| {
                setting.fault = Some(fault);
                setting.routers = if fault == Fault::Takeover { 2 } else { 1 };
            });
            let over =
                |request: &Request| request.done.is_some() || request.failed || request.first.is_none();
            assert!(outcome.requests.iter().all(over), "{}, {}", contestant.name, fault.name());
            let failed = outcome.requests.iter().filter(|request| request.failed).count();
            if fault != Fault::Kill && fault != Fault::Takeover {
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

/// Two routers that die in turn.
fn taken_over(name: &str, clients: Clients) -> (Traffic, Outcome) {
    troubled(Pattern::Agents, name, |setting| {
        (setting.fault, setting.routers, setting.clients) = (Some(Fault::Takeover), 2, clients);
    })
}

#[test]
fn what_a_dead_router_had_begun_fails_and_another_one_takes_the_rest() {
    for clients in [Clients::BySession, Clients::AtRandom] {
        for name in ["cache_aware", "cache_aware, no agents", "session_sticky", "consistent_hash"] {
            let (_, outcome) = taken_over(name, clients);
            let failed: Vec<_> = outcome.requests.iter().filter(|request| request.failed).collect();
            assert!(!failed.is_empty() && failed.len() < 40, "{name}: {}", failed.len());
            assert!(failed.iter().all(|request| request.first.is_some()), "{name}: a replica is there");
            let again = taken_over(name, clients).1;
            assert_eq!((outcome.requests, outcome.polls), (again.requests, again.polls), "{name}");
        }
    }
}

#[test]
fn without_a_second_router_requests_fail_while_the_only_one_is_gone() {
    let (_, outcome) =
        troubled(Pattern::Agents, "cache_aware", |setting| setting.fault = Some(Fault::Takeover));
    let refused = outcome.requests.iter().filter(|request| request.failed && request.first.is_none());
    let refused: Vec<Duration> = refused.map(|request| request.sent).collect();
    assert!(!refused.is_empty());
    let last =
        outcome.requests.iter().filter(|request| request.done.is_some()).map(|request| request.sent).max();
    assert!(last > refused.iter().max().copied(), "it comes back");
}

/// Tokens that a new router did not expect to be found are what its agents have not told it.
#[test]
fn agents_tell_a_new_router_what_is_there() {
    let surprises = |name, fault| {
        let (_, outcome) =
            troubled(Pattern::Agents, name, |setting| (setting.fault, setting.routers) = (fault, 2));
        let seen = outcome.requests.iter().filter(|request| request.first.is_some());
        seen.map(|request| (request.cached_tokens as u64).saturating_sub(request.predicted_tokens))
            .sum::<u64>()
    };
    assert_eq!(surprises("cache_aware", Some(Fault::Takeover)), 0);
    // What the other router has sent surprises one that is told nothing anyway.
    let untold = |fault| surprises("cache_aware, no agents", fault);
    let (living, replaced) = (untold(None), untold(Some(Fault::Takeover)));
    assert!(replaced > 4 * living, "{replaced}, {living}");
}

/// A router expects no more than its index holds, also one that takes another's place.
#[test]
fn every_router_has_the_bound_on_its_index() {
    const BOUND_BLOCKS: u64 = 64;
    let most_expected = |most_blocks| {
        let (_, outcome) = troubled(Pattern::Agents, "cache_aware", |setting| {
            (setting.fault, setting.routers) = (Some(Fault::Takeover), 2);
            setting.most_blocks = most_blocks;
        });
        outcome.requests.iter().map(|request| request.predicted_tokens).max()
    };
    let bound_tokens = BOUND_BLOCKS * BLOCK_TOKENS as u64;
    assert!(most_expected(BOUND_BLOCKS) <= Some(bound_tokens));
    assert!(most_expected(MOST_BLOCKS) > Some(bound_tokens));
}

#[test]
fn routers_that_are_told_agree_and_those_that_are_not_do_less() {
    let share = |name, clients| {
        let (_, outcome) = troubled(Pattern::Agents, name, |setting| {
            (setting.routers, setting.clients) = (2, clients);
        });
        assert!(outcome.polls.len() > 20);
        outcome.polls.iter().filter(|poll| poll.agreed).count() as f64 / outcome.polls.len() as f64
    };
    for clients in [Clients::BySession, Clients::AtRandom] {
        let (told, untold) = (share("cache_aware", clients), share("cache_aware, no agents", clients));
        assert!(told > untold && untold < 0.9, "{clients:?}: {told} {untold}");
    }
    assert_eq!(share("prefix_hash", Clients::BySession), 1.0, "a hash is the same everywhere");
    assert!(share("random", Clients::BySession) < 0.5);
}

#[test]
fn clients_at_random_reach_every_router() {
    let with_two = |clients| {
        let (_, outcome) = troubled(Pattern::SystemPrompts, "cache_aware, no agents", |setting| {
            (setting.routers, setting.clients) = (2, clients);
        });
        outcome.requests
    };
    assert_ne!(with_two(Clients::BySession), with_two(Clients::AtRandom));
}

#[test]
fn engines_that_come_get_work_and_those_that_go_finish_it() {
    for contestant in contestants(CacheAwareSettings::default()) {
        let (traffic, outcome) =
            troubled(Pattern::Agents, contestant.name, |setting| setting.fault = Some(Fault::Scale));
        let name = contestant.name;
        assert!(outcome.requests.iter().all(|request| request.done.is_some()), "{name}");
        let [out, back] = Fault::Scale.moments(4, 1, traffic.span)[..] else { panic!("out and in") };
        for engine in [4, 5] {
            let (joined, left) = outcome.stays[engine];
            assert!(joined == out.at && left > back.at && left < outcome.end, "{name}: {joined:?} {left:?}");
            let its_own = outcome.requests.iter().filter(|request| request.engine == engine);
            let sent: Vec<Duration> = its_own.map(|request| request.sent).collect();
            assert!(sent.iter().all(|sent| (out.at..=back.at).contains(sent)), "{name}");
        }
        if ["session_sticky", "consistent_hash", "least_load", "round_robin"].contains(&name) {
            assert!(outcome.requests.iter().any(|request| request.engine >= 4), "{name}");
        }
    }
}

#[test]
fn a_ring_moves_sessions_for_nothing_that_others_leave_where_they_are() {
    let moved = |name, fault| {
        let (_, outcome) = troubled(Pattern::Chat, name, |setting| setting.fault = fault);
        let returned = outcome.requests.iter().filter_map(|request| request.returned);
        let lost = returned.map(|of| of.held_tokens.saturating_sub(of.here_tokens));
        lost.filter(|lost| *lost > 0).count()
    };
    assert_eq!(moved("session_sticky", None), 0);
    assert_eq!(moved("session_sticky", Some(Fault::Scale)), 0, "those that leave take nothing any more");
    assert_eq!(moved("pooled cache", Some(Fault::Scale)), 0, "everything is everywhere");
    assert!(moved("consistent_hash", Some(Fault::Scale)) > 0);
}
