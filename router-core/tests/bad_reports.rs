//! Agents that say what cannot be: hashes that no prompt has, one hash in two places, parents nobody has heard of.
//!
//! Issue 3: no panic, nothing lost. What a broken agent says may make a mess of its own target's claims; it must not stop
//! the writer, and what another target holds must stay and be found.

mod fleet;

use proptest::prelude::*;
use router_core::key::{BlockHash, KeySpace, PrefixKey, Salt, Unit};
use router_core::{
    AgentReport, BlockRun, Delta, Incarnation, RouteRequest, Router, SessionId, Settings, Time, Update,
    WorkerId, Writer,
};

/// Lists of reports that are tried; fewer where every step is interpreted.
const CASES: u32 = if cfg!(miri) { 2 } else { 200 };
/// Blocks of the prompt that the sound worker holds.
const SOUND_BLOCKS: usize = 12;

#[derive(Clone, Debug)]
struct Report {
    baseline: bool,
    cleared: bool,
    removed: Vec<u64>,
    stored: Vec<(Option<u64>, Vec<u64>)>,
}

/// Few values, so that the same hash is met in many places; some are the sound prompt's own.
fn hash() -> impl Strategy<Value = u64> {
    0_u64..16
}

fn report() -> impl Strategy<Value = Report> {
    let run = (prop::option::of(hash()), prop::collection::vec(hash(), 0..6));
    (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
        prop::collection::vec(hash(), 0..4),
        prop::collection::vec(run, 0..4),
    )
        .prop_map(|(baseline, cleared, removed, stored)| Report { baseline, cleared, removed, stored })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    // Who lies about hashes makes a mess of its own claims, of no one else's.
    #[test]
    fn a_broken_agent_stops_nothing_and_goes_without_a_trace(
        reports in prop::collection::vec(report(), 1..30),
    ) {
        let mut story = Story::new();
        for report in reports {
            story.tell(report);
            prop_assert_eq!(story.sound_tokens(), SOUND_BLOCKS as u64);
        }
        // What it holds can be taken out again, to the last block.
        story.restart_broken();
        prop_assert_eq!(story.router.snapshot().size.blocks, SOUND_BLOCKS as u64);
        prop_assert_eq!(story.sound_tokens(), SOUND_BLOCKS as u64);
    }
}

/// A sound worker, whose prompt is known, and one whose agent is broken.
struct Story {
    router: Router,
    writer: Writer,
    workers: Vec<WorkerId>,
    sound: PrefixKey,
    seq: u64,
    now: Time,
}

impl Story {
    fn new() -> Self {
        let space = KeySpace::new(Unit::Token, 1, 5).expect("a block of one token is allowed");
        let tokens: Vec<u32> = (0..=SOUND_BLOCKS as u32).collect();
        let sound = space.key_of_tokens(Salt::default(), &tokens);
        let settings = Settings { token_space: space, ..Settings::new(1) };
        let (router, writer, workers) = fleet::of_ready_workers(2, settings);
        let mut story = Self { router, writer, workers, sound, seq: 0, now: Time::from_micros(10) };
        for worker in 0..2 {
            story.join(worker);
        }
        let hashes = story.sound.hashes()[..SOUND_BLOCKS].to_vec();
        story.report(0, baseline(vec![BlockRun { parent: None, hashes }]));
        story.report(1, baseline(Vec::new()));
        story
    }

    fn join(&mut self, worker: usize) {
        self.send(fleet::join(&self.router, worker, self.now));
    }

    fn tell(&mut self, report: Report) {
        let value = |value: u64| match self.sound.hashes().get(value as usize) {
            // Some of the other worker's blocks, torn out of their prompt.
            Some(hash) if value.is_multiple_of(3) => *hash,
            _ => BlockHash::new(value + 1).expect("it is not zero"),
        };
        let stored = report.stored.into_iter().map(|(parent, hashes)| BlockRun {
            parent: parent.map(value),
            hashes: hashes.into_iter().map(value).collect(),
        });
        let stored = stored.collect();
        if report.baseline {
            self.seq = 0;
            return self.report(1, baseline(stored));
        }
        self.seq += 1;
        let delta = Delta {
            unit: Unit::Token,
            seq: self.seq,
            cleared: report.cleared,
            removed: report.removed.into_iter().map(value).collect(),
            stored,
            incomplete: false,
        };
        self.report(1, AgentReport::Delta { rank: 0, delta });
    }

    /// Tokens that the sound worker is believed to hold of its prompt; one token is one block.
    fn sound_tokens(&self) -> u64 {
        let request = RouteRequest { key: Some(&self.sound), ..RouteRequest::default() };
        let explained = self.router.explain(&request, Time::from_micros(1), &mut fastrand::Rng::with_seed(1));
        explained.expect("both workers are ready").candidates[0].matched_tokens
    }

    fn restart_broken(&mut self) {
        self.report(1, AgentReport::NewIncarnation(Incarnation(2)));
        self.report(1, baseline(Vec::new()));
        // Retired slots are released a bounded number of runs a turn.
        for _ in 0..10 {
            self.turn();
        }
    }

    fn report(&mut self, worker: usize, report: AgentReport) {
        let (session, at) = (SessionId(worker as u64), self.now);
        self.send(Update::Agent { worker: self.workers[worker], session, at, report });
    }

    fn send(&mut self, update: Update) {
        self.router.updates().try_send(update).expect("the queue has room");
        self.turn();
    }

    fn turn(&mut self) {
        self.now = Time::from_micros(self.now.as_micros() + 1_000);
        self.writer.turn(self.now);
    }
}

fn baseline(stored: Vec<BlockRun>) -> AgentReport {
    AgentReport::Baseline { rank: 0, unit: Unit::Token, seq: 0, stored, incomplete: false }
}
