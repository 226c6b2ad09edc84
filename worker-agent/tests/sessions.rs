//! An agent between an engine and coordinators, all in this process, over real ZeroMQ, HTTP and gRPC.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use espalier_proto::coordinator_message::Message as Answer;
use espalier_proto::{
    CacheKind, EvictionPolicy, KeyUnit, Predicted, ReportLevel, Resync, SetReportLevel, WorkerState,
};
use router_core::key::Salt;
use support::{Coordinator, Engine, Setup, Wishes, agent, config, prompt};
use worker_agent::mirror::Doubt;
use worker_agent::{Agent, AgentConfig, Level};

async fn both() -> (Engine, Coordinator) {
    (Engine::start(Setup::default()).await, Coordinator::start(Wishes::default()).await)
}

#[tokio::test]
async fn stores_and_evictions_arrive_as_they_happen() {
    let (mut engine, coordinator) = both().await;
    engine.store(0, &prompt(1, 40)).await;
    engine.show_load(3);
    let agent = agent(&engine, &[&coordinator]);
    // Published before the agent was there.
    let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!(book.blocks(0).len(), 10);
    let hello = &book.hellos[0];
    assert_eq!((hello.worker_url.as_str(), hello.dp_size, hello.page_size), (engine.url().as_str(), 1, 4));
    assert_eq!((hello.model.as_str(), hello.capacity_tokens), ("fake", 4096));
    assert_eq!(
        (hello.eviction_policy(), hello.cache_kind()),
        (EvictionPolicy::Lru, CacheKind::SlidingWindow)
    );
    assert_eq!(book.accepts[0].fingerprints, [coordinator.space().fingerprint()]);

    engine.store(0, &prompt(2, 80)).await;
    engine.evict(0, &prompt(1, 40), 3).await;
    let mut longer = prompt(2, 40);
    longer.extend(prompt(3, 23));
    engine.store(0, &longer).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    engine.flush(0).await;
    let book = coordinator.until_holds(0, &HashSet::new()).await;
    assert!(book.deltas.last().unwrap().cleared);
    engine.store(0, &prompt(1, 16)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;

    let digests = coordinator.book().digests;
    let counts = |book: &support::Book| {
        book.counts.last().map(|counts| (counts.evicted_tokens_total, counts.cached_tokens))
    };
    let book = coordinator
        .until("counts and digest", |book| counts(book) == Some((28, 16)) && book.digests > digests)
        .await;
    let load = book.loads.last().unwrap();
    let load = load.load.unwrap();
    assert_eq!((load.running_requests, load.waiting_requests, load.prefill_busy_us_total), (3, 1, 6));
    assert_eq!(book.last_state(), Some(WorkerState::Ready));
    assert_eq!(book.baselines, 1);
    let stats = agent.stats();
    assert_eq!((stats.mirror_pages, stats.mirror_blocks, stats.incomplete), (4, 4, false));
    assert!(stats.bytes_sent as usize >= book.bytes && stats.deltas_sent as usize >= book.deltas.len());
    agent.shutdown().await;
}

/// Nothing changes, so that every load after the first is sent for the lease alone. That they come often enough in time is
/// a test of the terms.
#[tokio::test]
async fn the_lease_is_renewed_when_nothing_happens() {
    let engine = Engine::start(Setup::default()).await;
    engine.show_load(1);
    let coordinator =
        Coordinator::start(Wishes { lease: Duration::from_millis(300), ..Wishes::default() }).await;
    let _agent = agent(&engine, &[&coordinator]);
    let book = coordinator.until("ten loads", |book| book.loads.len() >= 10).await;
    assert!(book.loads.windows(2).all(|pair| pair[0].load == pair[1].load));
    assert_eq!((book.sessions, book.deltas.len()), (1, 0));
}

#[tokio::test]
async fn a_lost_message_is_replayed() {
    let (mut engine, coordinator) = both().await;
    let agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    // Nothing follows the lost message: only asking shows it.
    engine.store_unheard(0, &prompt(2, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    engine.store_unheard(0, &prompt(3, 8)).await;
    engine.store(0, &prompt(4, 8)).await;
    let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!((book.baselines, agent.stats().holes, agent.stats().incomplete), (1, 0, false));
}

#[tokio::test]
async fn what_cannot_be_replayed_is_no_longer_claimed() {
    let mut engine = Engine::start(Setup { ring: 2, ..Setup::default() }).await;
    let coordinator = Coordinator::start(Wishes::default()).await;
    let config = AgentConfig { verify_interval: support::PATIENCE, ..config(engine.url(), &[&coordinator]) };
    let agent = Agent::start(config).unwrap();
    engine.store(0, &prompt(1, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    for lost in 2..6 {
        engine.store_unheard(0, &prompt(lost, 8)).await;
    }
    engine.store(0, &prompt(6, 12)).await;
    // The ring holds the last two batches; nothing vouches for what came before.
    let mut known = Engine::start(Setup::default()).await;
    known.store(0, &prompt(5, 8)).await;
    known.store(0, &prompt(6, 12)).await;
    coordinator.until_holds(0, &known.blocks(0, coordinator.space())).await;
    let told = |book: &support::Book| book.states.last().is_some_and(|state| state.reason.contains("less"));
    coordinator.until("the doubt is told", told).await;
    assert!(coordinator.book().incomplete(0), "with the first delta after the hole");
    let stats = agent.stats();
    assert_eq!((stats.holes, stats.ranks[0].doubt), (1, Some(Doubt::Hole)));
    // A page below one that was forgotten cannot be placed, and its removal means nothing.
    engine.store(0, &prompt(2, 12)).await;
    engine.evict(0, &prompt(2, 12), 2).await;
    engine.store(0, &prompt(7, 8)).await;
    known.store(0, &prompt(7, 8)).await;
    coordinator.until_holds(0, &known.blocks(0, coordinator.space())).await;
    assert_eq!(agent.stats().ranks[0].unknown_parent_pages, 1);
    engine.flush(0).await;
    engine.store(0, &prompt(2, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    let exact = |book: &support::Book| book.states.last().is_some_and(|state| state.reason.contains("exact"));
    let book = coordinator.until("it is exact again", exact).await;
    assert!(!agent.stats().incomplete && !book.incomplete(0));
}

#[tokio::test]
async fn a_doubt_without_a_change_is_told_and_kept_in_baselines() {
    let (mut engine, coordinator) = both().await;
    let agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 8)).await;
    let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert!(!book.incomplete(0));
    engine.store_orphans(0, &prompt(2, 12)).await;
    let book = coordinator.until("the doubt", |book| book.incomplete(0)).await;
    let last = book.deltas.last().unwrap();
    assert!(!last.cleared && last.removed.is_empty() && last.stored.is_empty());
    assert_eq!(agent.stats().ranks[0].doubt, Some(Doubt::UnknownParent));
    coordinator.tell(Answer::Resync(Resync { rank: 0, reason: "a test".to_owned() })).await;
    let again = coordinator.until("a baseline", |again| again.baselines > book.baselines).await;
    assert!(again.incomplete(0));
    engine.flush(0).await;
    coordinator.until("it is exact again", |book| !book.incomplete(0)).await;
}

#[tokio::test]
async fn a_restarted_engine_is_another_incarnation() {
    for setup in [Setup::default(), Setup { shows_start: false, ..Setup::default() }] {
        let mut engine = Engine::start(setup).await;
        let coordinator = Coordinator::start(Wishes::default()).await;
        let agent = agent(&engine, &[&coordinator]);
        engine.store(0, &prompt(1, 40)).await;
        let before = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
        let first = before.hellos[0].incarnation;
        let engine = engine.kill_for_later().await;
        coordinator.until("it is gone", |book| book.last_state() == Some(WorkerState::Unreachable)).await;
        let mut engine = Engine::revive(engine).await;
        engine.store(0, &prompt(2, 8)).await;
        let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
        let born = book.states.iter().find(|state| state.incarnation > 0).expect("a new incarnation is told");
        assert!(born.incarnation > first);
        assert_eq!((book.sessions, agent.stats().incarnation), (1, born.incarnation));
        coordinator.until("it is ready", |book| book.last_state() == Some(WorkerState::Ready)).await;
        // The next restart is quicker than anybody looks.
        let mut engine = engine.restart().await;
        engine.store(0, &prompt(3, 12)).await;
        coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
        assert!(agent.stats().incarnation > born.incarnation);
    }
}

#[tokio::test]
async fn a_clock_stepped_back_locks_nobody_out() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let least_incarnation = (now.as_micros() + 3_600_000_000) as u64;
    for says_little in [false, true] {
        let mut engine = Engine::start(Setup::default()).await;
        let behind = Coordinator::start(Wishes::default()).await;
        let wishes = Wishes { least_incarnation, says_little, ..Wishes::default() };
        let ahead = Coordinator::start(wishes).await;
        let agent = agent(&engine, &[&ahead, &behind]);
        engine.store(0, &prompt(1, 8)).await;
        let book = ahead.until_holds(0, &engine.blocks(0, ahead.space())).await;
        assert!(book.hellos[0].incarnation >= least_incarnation);
        assert_eq!((book.sessions, says_little || book.refused == 1), (1, true));
        // The other router hears of another life, and the mirror went on.
        engine.store(0, &prompt(2, 8)).await;
        behind.until_holds(0, &engine.blocks(0, behind.space())).await;
        assert_eq!(agent.stats().incarnation, book.hellos[0].incarnation);
        // What follows is greater still.
        let mut engine = engine.restart().await;
        engine.store(0, &prompt(3, 8)).await;
        ahead.until_holds(0, &engine.blocks(0, ahead.space())).await;
        assert!(agent.stats().incarnation > book.hellos[0].incarnation);
    }
}

#[tokio::test]
async fn a_restarted_agent_knows_the_life_of_an_engine_that_dates_its_start() {
    let mut engine = Engine::start(Setup { dates_start: true, ..Setup::default() }).await;
    let coordinator = Coordinator::start(Wishes::default()).await;
    engine.store(0, &prompt(1, 8)).await;
    for sessions in 1..=2 {
        let agent = agent(&engine, &[&coordinator]);
        coordinator.until("a session", |book| book.sessions == sessions).await;
        coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
        agent.shutdown().await;
    }
    let hellos = coordinator.book().hellos;
    assert_eq!(hellos[0].incarnation, hellos[1].incarnation);
    let engine = engine.restart().await;
    let _agent = agent(&engine, &[&coordinator]);
    let book = coordinator.until("a third session", |book| book.sessions == 3).await;
    assert!(book.hellos[2].incarnation > hellos[1].incarnation);
}

#[tokio::test]
async fn without_replay_an_old_life_is_not_mistaken_for_the_present_one() {
    let mut engine = Engine::start(Setup { replays: false, ..Setup::default() }).await;
    let coordinator = Coordinator::start(Wishes::default()).await;
    let agent = agent(&engine, &[&coordinator]);
    let unsure = |book: &support::Book| book.states.iter().any(|state| state.reason.contains("less"));
    coordinator.until("the past is not known", unsure).await;
    engine.flush(0).await;
    engine.store(0, &prompt(1, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert!(!agent.stats().incomplete);
    let mut engine = engine.restart().await;
    coordinator
        .until("a new incarnation", |book| book.states.iter().any(|state| state.incarnation > 0))
        .await;
    coordinator.until_holds(0, &HashSet::new()).await;
    // The agent subscribes at its own time; nothing tells when, and lost messages cannot be replayed.
    let mut fresh = 10;
    while coordinator.book().blocks(0).is_empty() {
        engine.flush(0).await;
        engine.store(0, &prompt(fresh, 8)).await;
        fresh += 1;
        tokio::task::yield_now().await;
    }
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_stopped() {
    let (mut engine, coordinator) = both().await;
    let agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 40)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    for round in 0..5 {
        coordinator.cut();
        engine.evict(0, &prompt(1 + round, 40), 2).await;
        engine.store(0, &prompt(2 + round, 40)).await;
        coordinator.until("a new session", |book| book.sessions == round as usize + 2).await;
        coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    }
    let book = coordinator.book();
    assert_eq!((book.baselines, agent.stats().routers[0].resumed), (1, 5), "nothing was told twice");
}

#[tokio::test]
async fn a_restarted_coordinator_gets_a_baseline() {
    let (mut engine, coordinator) = both().await;
    let agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 400)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    // With another secret: all hashes differ.
    let coordinator = coordinator.restart(Wishes { seed: 8, ..Wishes::default() }).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    let coordinator = coordinator.restart(Wishes { seed: 8, resumes: false, ..Wishes::default() }).await;
    engine.evict(0, &prompt(1, 400), 30).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!((agent.stats().baselines_sent, agent.stats().routers[0].resumed), (3, 0));
}

#[tokio::test]
async fn a_coordinator_that_never_acknowledges_costs_bounded_memory() {
    let mut engine = Engine::start(Setup::default()).await;
    let coordinator = Coordinator::start(Wishes { acks: false, ..Wishes::default() }).await;
    let config = AgentConfig { max_unacked_deltas: 3, ..config(engine.url(), &[&coordinator]) };
    let agent = Agent::start(config).unwrap();
    coordinator.until_holds(0, &HashSet::new()).await;
    for first in 0..10 {
        engine.store(0, &prompt(first, 8)).await;
        coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    }
    let book = coordinator.until("more baselines", |book| book.baselines >= 3).await;
    assert!(agent.stats().routers[0].overflows >= 2);
    assert_eq!(book.sessions, 1);
}

#[tokio::test]
async fn a_resync_is_answered_with_a_baseline() {
    let mut engine = Engine::start(Setup { ranks: 2, ..Setup::default() }).await;
    let coordinator = Coordinator::start(Wishes::default()).await;
    let agent = agent(&engine, &[&coordinator]);
    for rank in 0..2 {
        engine.store(rank, &prompt(rank as u32, 40)).await;
        coordinator.until_holds(rank as u32, &engine.blocks(rank, coordinator.space())).await;
    }
    assert_eq!((coordinator.book().hellos[0].dp_size, coordinator.book().baselines), (2, 2));
    coordinator.tell(Answer::Resync(Resync { rank: 1, reason: "a test".to_owned() })).await;
    coordinator.until("a third baseline", |book| book.baselines == 3).await;
    engine.evict(1, &prompt(1, 40), 0).await;
    engine.store(1, &prompt(3, 40)).await;
    coordinator.until_holds(1, &engine.blocks(1, coordinator.space())).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    let in_force = async || {
        while agent.stats().routers[0].baselines_in_force < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::PATIENCE, in_force()).await.unwrap();
    assert_eq!(agent.stats().routers[0].resyncs, 1);
}

#[tokio::test]
async fn after_a_restart_of_the_engine_the_session_still_hears_its_coordinator() {
    let (mut engine, coordinator) = both().await;
    let agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 40)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    let mut engine = engine.restart().await;
    engine.store(0, &prompt(2, 8)).await;
    let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!(book.sessions, 1);
    let baselines = book.baselines;
    coordinator.tell(Answer::Resync(Resync { rank: 0, reason: "a test".to_owned() })).await;
    coordinator.until("a baseline in the new life", |book| book.baselines > baselines).await;
    // Acknowledgements are heard too: a reconnect goes on where it stopped.
    engine.store(0, &prompt(3, 8)).await;
    let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    coordinator.cut();
    coordinator.until("a second session", |book| book.sessions == 2).await;
    engine.store(0, &prompt(4, 8)).await;
    let again = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!((again.baselines, agent.stats().routers[0].resumed), (book.baselines, 1));
    let counts = SetReportLevel { level: ReportLevel::Counts.into() };
    coordinator.tell(Answer::SetReportLevel(counts)).await;
    let level = async || {
        while agent.stats().routers[0].level != Some(Level::Counts) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::PATIENCE, level()).await.unwrap();
}

#[tokio::test]
async fn levels_are_served_and_changed() {
    let mut engine = Engine::start(Setup::default()).await;
    let wishes = Wishes { level: ReportLevel::Removals, ..Wishes::default() };
    let coordinator = Coordinator::start(wishes).await;
    let agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 8)).await;
    let book = coordinator.until("a baseline", |book| book.baselines == 1).await;
    let known = book.blocks(0);
    engine.store(0, &prompt(2, 40)).await;
    let stored = engine.blocks(0, coordinator.space());
    engine.evict(0, &prompt(2, 40), 2).await;
    let left = engine.blocks(0, coordinator.space());
    let gone: HashSet<u64> = stored.difference(&left).copied().collect();
    let key = coordinator.space().key_of_tokens(Salt::default(), &prompt(2, 40));
    let topmost = key.hashes().iter().map(|hash| hash.get()).find(|hash| gone.contains(hash)).unwrap();
    let removed = |book: &support::Book| -> Vec<u64> {
        book.deltas.iter().flat_map(|delta| delta.removed.iter().copied()).collect()
    };
    // Depending on when the baseline was taken it has the second prompt or not; what goes is told in any case, the topmost block
    // for all below it.
    let book = coordinator.until("the removal", |book| removed(book) == [topmost]).await;
    assert!(book.deltas.iter().all(|delta| delta.stored.is_empty()));
    assert!(known.is_subset(&stored));
    assert_eq!(agent.stats().routers[0].level, Some(Level::Removals));

    let set = |level: ReportLevel| Answer::SetReportLevel(SetReportLevel { level: level.into() });
    coordinator.tell(set(ReportLevel::Full)).await;
    coordinator.until_holds(0, &left).await;
    assert_eq!(coordinator.book().baselines, 2);
    engine.store(0, &prompt(3, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;

    coordinator.tell(set(ReportLevel::Counts)).await;
    let level = async || {
        while agent.stats().routers[0].level != Some(Level::Counts) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::PATIENCE, level()).await.unwrap();
    let before = coordinator.book();
    engine.store(0, &prompt(4, 8)).await;
    let counted = |book: &support::Book| book.counts.last().is_some_and(|counts| counts.cached_tokens == 32);
    let book = coordinator.until("counts", counted).await;
    assert_eq!(book.deltas.len(), before.deltas.len(), "no block hash at this level");
    coordinator.tell(set(ReportLevel::Full)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!(coordinator.book().baselines, 3);
}

#[tokio::test]
async fn sides_that_hash_differently_exchange_no_hashes() {
    let mut engine = Engine::start(Setup::default()).await;
    let different = Coordinator::start(Wishes { hashes_differently: true, ..Wishes::default() }).await;
    let odd = Coordinator::start(Wishes { block: 6, ..Wishes::default() }).await;
    let fine = Coordinator::start(Wishes { block: 8, seed: 9, ..Wishes::default() }).await;
    let agent = agent(&engine, &[&different, &odd, &fine]);
    engine.store(0, &prompt(1, 44)).await;
    fine.until_holds(0, &engine.blocks(0, fine.space())).await;
    for (coordinator, word) in [(&different, "differently"), (&odd, "fit")] {
        let counted = |book: &support::Book| book.counts.iter().any(|counts| counts.cached_tokens == 44);
        let book = coordinator.until("counts", counted).await;
        let accept = &book.accepts[0];
        assert!(accept.fingerprints.is_empty() && accept.reason.contains(word), "{}", accept.reason);
        assert_eq!((book.deltas.len(), book.baselines), (0, 0));
    }
    let levels: Vec<_> = agent.stats().routers.iter().map(|router| router.level.unwrap()).collect();
    assert_eq!(levels, [Level::Counts, Level::Counts, Level::Full]);
}

#[tokio::test]
async fn everything_may_come_up_in_any_order() {
    let engine = Engine::start(Setup::default()).await;
    let url = engine.url();
    let coordinator = Coordinator::start(Wishes::default()).await;
    let config = config(url, &[&coordinator]);
    let engine = engine.kill_for_later().await;
    let agent = Agent::start(config).unwrap();
    let coordinator = coordinator.restart(Wishes::default()).await;
    let mut engine = Engine::revive(engine).await;
    engine.store(0, &prompt(1, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!(agent.stats().ranks.len(), 1);
}

#[tokio::test]
async fn pausing_is_told_and_an_old_encoding_understood() {
    let mut engine = Engine::start(Setup { old: true, page: 2, ..Setup::default() }).await;
    let coordinator = Coordinator::start(Wishes::default()).await;
    let _agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 20)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    for (ready, ping, state) in [
        (503, 200, WorkerState::Updating),
        (503, 503, WorkerState::Unreachable),
        (200, 200, WorkerState::Ready),
        // A front end without this route is asked for its models.
        (500, 404, WorkerState::Unreachable),
        (404, 404, WorkerState::Ready),
    ] {
        engine.show(ready, ping);
        coordinator.until(&format!("{state:?}"), |book| book.last_state() == Some(state)).await;
    }
    engine.evict(0, &prompt(1, 20), 5).await;
    let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!(book.sessions, 1);
}

#[tokio::test]
async fn keys_and_tokens_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let (key, token) = (folder.path().join("key"), folder.path().join("token"));
    std::fs::write(&key, "k1\n").unwrap();
    std::fs::write(&token, "t1\n").unwrap();
    let mut engine = Engine::start(Setup { api_key: Some("k1"), ..Setup::default() }).await;
    let coordinator = Coordinator::start(Wishes::default()).await;
    let config = AgentConfig {
        api_key_file: Some(key),
        token_file: Some(token.clone()),
        ..config(engine.url(), &[&coordinator])
    };
    let _agent = Agent::start(config).unwrap();
    engine.store(0, &prompt(1, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    std::fs::write(&token, "t2").unwrap();
    coordinator.cut();
    let book = coordinator.until("a second session", |book| book.sessions == 2).await;
    assert_eq!(book.tokens, [Some("Bearer t1".to_owned()), Some("Bearer t2".to_owned())]);
}

#[tokio::test]
async fn an_engine_without_events_reports_load_only() {
    let engine = Engine::start(Setup { events: false, ..Setup::default() }).await;
    engine.show_load(2);
    let coordinator = Coordinator::start(Wishes::default()).await;
    let _agent = agent(&engine, &[&coordinator]);
    let book = coordinator.until("loads", |book| book.loads.len() >= 2).await;
    assert_eq!(book.hellos[0].max_level(), ReportLevel::Counts);
    assert_eq!((book.baselines, book.deltas.len()), (0, 0));
    // A restart shows in the engine's own description only.
    let engine = engine.restart().await;
    engine.show_load(2);
    coordinator
        .until("a new incarnation", |book| book.states.iter().any(|state| state.incarnation > 0))
        .await;
}

#[tokio::test]
async fn garbage_voids_what_was_known_and_no_more() {
    let (mut engine, coordinator) = both().await;
    let agent = agent(&engine, &[&coordinator]);
    engine.store(0, &prompt(1, 8)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    engine.publish_garbage(0).await;
    coordinator.until_holds(0, &HashSet::new()).await;
    assert_eq!(agent.stats().ranks[0].doubt, Some(Doubt::Malformed));
    let mut known = Engine::start(Setup::default()).await;
    engine.store(0, &prompt(2, 8)).await;
    known.store(0, &prompt(2, 8)).await;
    coordinator.until_holds(0, &known.blocks(0, coordinator.space())).await;
    assert_eq!(agent.stats().ranks[0].undecodable_batches, 1);
}

#[tokio::test]
async fn a_cache_larger_than_the_mirror_falls_back_to_counts() {
    let mut engine = Engine::start(Setup::default()).await;
    let coordinator = Coordinator::start(Wishes::default()).await;
    let config = AgentConfig { max_pages: Some(5), ..config(engine.url(), &[&coordinator]) };
    let agent = Agent::start(config).unwrap();
    engine.store(0, &prompt(1, 16)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    engine.store(0, &prompt(2, 16)).await;
    coordinator.until_holds(0, &HashSet::new()).await;
    let counted = |book: &support::Book| book.counts.last().is_some_and(|counts| counts.cached_tokens == 32);
    coordinator.until("counts go on", counted).await;
    assert_eq!(agent.stats().ranks[0].doubt, Some(Doubt::Full));
    engine.flush(0).await;
    engine.store(0, &prompt(2, 16)).await;
    coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
}

#[tokio::test]
async fn a_tokenizer_that_loses_something_is_named_as_the_reason_and_tokens_are_reported() {
    let (mut engine, coordinator) = both().await;
    engine.store(0, &prompt(1, 40)).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    std::fs::write(&path, r#"{"model":{"type":"WordPiece","vocab":{"a":0}}}"#).unwrap();
    let tokenizer = Some(directory.path().to_owned());
    let config = AgentConfig { tokenizer, ..config(engine.url(), &[&coordinator]) };
    let agent = Agent::start(config).unwrap();
    let book = coordinator.until_holds(0, &engine.blocks(0, coordinator.space())).await;
    assert_eq!(book.hellos[0].units, [i32::from(espalier_proto::KeyUnit::Token)]);
    let reason = &book.accepts[0].reason;
    assert!(reason.contains("WordPiece") && reason.contains("text"), "{reason}");
    agent.shutdown().await;
}

#[tokio::test]
async fn a_router_that_names_prompts_of_one_rank_is_told_what_others_store_on_any() {
    let mut engine = Engine::start(Setup { ranks: 2, ..Setup::default() }).await;
    let wishes = || Wishes { level: ReportLevel::Removals, ..Wishes::default() };
    let (one, other) = (Coordinator::start(wishes()).await, Coordinator::start(wishes()).await);
    let _agent = agent(&engine, &[&one, &other]);
    for rank in 0..2 {
        one.until_holds(rank, &HashSet::new()).await;
    }
    let key = one.space().key_of_tokens(Salt::default(), &prompt(1, 40));
    let last = key.hashes().last().unwrap().get();
    one.tell(Answer::Predicted(Predicted { rank: 0, unit: KeyUnit::Token.into(), last: vec![last] })).await;
    engine.store(1, &prompt(2, 40)).await;
    one.until_holds(1, &engine.blocks(1, one.space())).await;
}
