//! Decisions beside a working writer: each is made on one published state, whatever is applied meanwhile.
//!
//! Agents store, remove, clear and restart; the writer notes what every epoch must say. Deciding threads note what they
//! saw at which epoch, and hold snapshots over many publications. The notes are compared when all have ended.

mod fleet;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use router_core::key::{BlockHash, KeySpace, PrefixKey, Salt, Unit};
use router_core::{
    AgentReport, BlockRun, Delta, Incarnation, RouteRequest, Router, SessionId, Settings, Snapshot, Time,
    Update, WorkerId, Writer,
};

const WORKERS: usize = 6;
const PROMPTS: usize = 8;
const PROMPT_BLOCKS: usize = 48;
const BLOCK_TOKENS: usize = 4;
/// Turns of the writer.
const TURNS: usize = 3_000;
const DECIDERS: usize = 3;
/// Decisions of every thread at least, however late it starts.
const LEAST_DECISIONS: usize = 500;

/// For every prompt the leading blocks that each worker holds.
type Held = [[u64; WORKERS]; PROMPTS];

/// What one decision saw: the epoch, the prompt, and the tokens that each worker holds of it.
type Seen = (u64, usize, [u64; WORKERS]);

#[test]
fn every_decision_is_made_on_one_published_state() {
    let settings = Settings { token_space: key_space(), ..Settings::new(1) };
    let (router, writer, workers) = fleet::of_ready_workers(WORKERS, settings);
    let keys: Vec<PrefixKey> = (0..PROMPTS).map(key).collect();
    let mut agents = Agents::of(router.clone(), writer, workers);
    let ended = AtomicBool::new(false);
    let seen: Vec<Vec<Seen>> = thread::scope(|scope| {
        let deciders: Vec<_> = (0..DECIDERS)
            .map(|seed| {
                let (router, keys, ended) = (&router, &keys, &ended);
                scope.spawn(move || decide(router, keys, ended, seed as u64))
            })
            .collect();
        (0..TURNS).for_each(|_| agents.turn(&keys));
        ended.store(true, Ordering::Release);
        deciders.into_iter().map(|decider| decider.join().expect("no decision panics")).collect()
    });
    for (epoch, prompt, tokens) in seen.into_iter().flatten() {
        let held = agents.published[&epoch][prompt];
        assert_eq!(tokens, held.map(|blocks| blocks * BLOCK_TOKENS as u64), "prompt {prompt} at {epoch}");
    }
    assert!(agents.published.len() > TURNS / 2, "most turns changed something");
}

fn decide(router: &Router, keys: &[PrefixKey], ended: &AtomicBool, seed: u64) -> Vec<Seen> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut seen = Vec::new();
    let mut held = Vec::new();
    while seen.len() < LEAST_DECISIONS || !ended.load(Ordering::Acquire) {
        let prompt = rng.usize(..PROMPTS);
        let request = RouteRequest { key: Some(&keys[prompt]), ..RouteRequest::default() };
        let explained =
            router.explain(&request, Time::from_micros(1), &mut rng).expect("every worker is ready");
        let tokens = std::array::from_fn(|worker| explained.candidates[worker].matched_tokens);
        seen.push((explained.snapshot.epoch, prompt, tokens));
        if rng.u8(..16) == 0 {
            held.push((claimed(&explained.snapshot), explained.snapshot));
        }
        if held.len() > 100 {
            let (claimed_then, snapshot) = held.swap_remove(rng.usize(..held.len()));
            assert_eq!(claimed(&snapshot), claimed_then, "a snapshot that is held does not change");
        }
    }
    seen
}

fn claimed(snapshot: &Snapshot) -> (u64, Vec<u64>) {
    (snapshot.size.blocks, snapshot.fleet.targets.iter().map(|target| target.claimed_tokens).collect())
}

/// One agent a worker, and the writer that takes their reports.
struct Agents {
    router: Router,
    writer: Writer,
    workers: Vec<WorkerId>,
    /// Next sequence number and incarnation of each worker.
    next: [(u64, u64); WORKERS],
    held: Held,
    /// What must be seen at each epoch.
    published: BTreeMap<u64, Held>,
    now: Time,
    rng: fastrand::Rng,
}

impl Agents {
    fn of(router: Router, writer: Writer, workers: Vec<WorkerId>) -> Self {
        let mut agents = Self {
            router,
            writer,
            workers,
            next: [(1, 1); WORKERS],
            held: Held::default(),
            published: BTreeMap::new(),
            now: Time::from_micros(1_000),
            rng: fastrand::Rng::with_seed(5),
        };
        for worker in 0..WORKERS {
            agents.join(worker);
            agents.report(worker, baseline());
        }
        agents.publish();
        agents
    }

    fn join(&mut self, worker: usize) {
        self.send(fleet::join(&self.router, worker, self.now));
    }

    /// Some reports, one publication.
    fn turn(&mut self, keys: &[PrefixKey]) {
        for _ in 0..self.rng.usize(1..5) {
            let (worker, prompt) = (self.rng.usize(..WORKERS), self.rng.usize(..PROMPTS));
            let depth = self.rng.usize(..PROMPT_BLOCKS);
            let hashes = keys[prompt].hashes();
            match self.rng.u8(..24) {
                0..14 => self.store(worker, prompt, &hashes[..=depth]),
                14..22 => self.remove(worker, prompt, hashes, depth),
                22 => self.delta(worker, |delta| delta.cleared = true, |_| 0),
                _ => self.restart(worker),
            }
        }
        self.publish();
    }

    fn store(&mut self, worker: usize, prompt: usize, hashes: &[BlockHash]) {
        let run = BlockRun { parent: None, hashes: hashes.to_vec() };
        let before = self.held;
        let len = hashes.len();
        self.delta(
            worker,
            |delta| delta.stored.push(run),
            |other| before[other][worker].max(common_blocks(prompt, other).min(len) as u64),
        );
    }

    fn remove(&mut self, worker: usize, prompt: usize, hashes: &[BlockHash], depth: usize) {
        let before = self.held;
        self.delta(
            worker,
            |delta| delta.removed.push(hashes[depth]),
            |other| match before[other][worker] {
                held if common_blocks(prompt, other) > depth => held.min(depth as u64),
                held => held,
            },
        );
    }

    /// The engine is another process: its claims are void, and a baseline is due before anything counts again.
    fn restart(&mut self, worker: usize) {
        self.next[worker].1 += 1;
        self.report(worker, AgentReport::NewIncarnation(Incarnation(self.next[worker].1)));
        self.report(worker, baseline());
        self.next[worker].0 = 1;
        self.held.iter_mut().for_each(|held| held[worker] = 0);
    }

    fn delta(&mut self, worker: usize, change: impl FnOnce(&mut Delta), held: impl Fn(usize) -> u64) {
        let seq = self.next[worker].0;
        self.next[worker].0 += 1;
        let (removed, stored) = (Vec::new(), Vec::new());
        let mut delta = Delta { unit: Unit::Token, seq, cleared: false, removed, stored, incomplete: false };
        change(&mut delta);
        self.report(worker, AgentReport::Delta { rank: 0, delta });
        (0..PROMPTS).for_each(|other| self.held[other][worker] = held(other));
    }

    fn report(&mut self, worker: usize, report: AgentReport) {
        let (session, at) = (SessionId(worker as u64), self.now);
        self.send(Update::Agent { worker: self.workers[worker], session, at, report });
    }

    fn send(&mut self, update: Update) {
        self.router.updates().try_send(update).expect("the queue has room");
    }

    /// Publishes, and notes what must be seen from then on.
    fn publish(&mut self) {
        self.now = Time::from_micros(self.now.as_micros() + 1_000);
        self.writer.turn(self.now);
        self.published.insert(self.router.snapshot().epoch, self.held);
    }
}

fn baseline() -> AgentReport {
    AgentReport::Baseline { rank: 0, unit: Unit::Token, seq: 0, stored: Vec::new(), incomplete: false }
}

/// Leading blocks that two prompts have in common.
fn common_blocks(one: usize, other: usize) -> usize {
    if one == other { PROMPT_BLOCKS } else { parts_at(one).min(parts_at(other)) }
}

/// Blocks of a prompt that all prompts begin with.
fn parts_at(prompt: usize) -> usize {
    prompt * (PROMPT_BLOCKS - 1) / (PROMPTS - 1)
}

fn key(prompt: usize) -> PrefixKey {
    let token = |at: usize| if at / BLOCK_TOKENS < parts_at(prompt) { 7 } else { 1 << 16 | prompt as u32 };
    // The last token is never expected to be cached: one more than the blocks have.
    let tokens: Vec<u32> = (0..=PROMPT_BLOCKS * BLOCK_TOKENS).map(token).collect();
    key_space().key_of_tokens(Salt::default(), &tokens)
}

fn key_space() -> KeySpace {
    KeySpace::new(Unit::Token, BLOCK_TOKENS as u32, 5).expect("a block of four tokens is allowed")
}
