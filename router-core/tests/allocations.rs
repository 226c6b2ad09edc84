//! What the core allocates: nothing in a decision, a bounded number of bytes a block in the index.
//!
//! Bytes are what the allocator was asked for, counted on the thread that asks. The tests share nothing, so that they may
//! run beside each other.

mod fleet;

use allocation_counter::measure;
use router_core::index::{Index, Matches, Tree};
use router_core::key::{BlockHash, KeySpace, PrefixKey, Salt, Unit};
use router_core::{RouteRequest, Router, Settings, Slot, Time, Usage};

/// Blocks of one prompt; half of them it shares with its group.
const PROMPT_BLOCKS: usize = 512;
/// Groups of prompts in one load.
const GROUPS: u32 = 50;
/// Prompts of one group.
const PROMPTS: u32 = 16;
/// Who holds them.
const SLOTS: u16 = 64;

/// Decisions before those that are counted: buffers have grown, and every thread-local has been made.
const WARM_UP: u32 = 2_000;

/// Decisions that are counted.
const COUNTED: u32 = 2_000;

/// Issue 3: `Router::route` allocates nothing after warm-up, whether it looks at all targets or at some of a large fleet.
#[test]
fn a_decision_and_its_end_allocate_nothing() {
    for workers in [8, 300] {
        let settings = Settings { token_space: key_space(), ..Settings::new(1) };
        let (router, mut writer, _) = fleet::of_ready_workers(workers, settings);
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut at_first, mut allocations) = (0, 0);
        for number in 0..WARM_UP + COUNTED {
            let key = key_space().key_of_tokens(Salt::default(), &prompt(0, number % 20, number % 150));
            let now = Time::from_micros(u64::from(number) * 1_000);
            let counted = measure(|| decide(&router, &key, now, &mut rng));
            match number {
                0..WARM_UP => at_first += counted.count_total,
                _ => allocations += counted.count_total,
            }
            // The writer may allocate: it is on no request's way.
            writer.turn(now);
        }
        assert!(at_first > 0, "buffers have to grow once: what allocates is counted");
        assert_eq!(allocations, 0, "in {COUNTED} decisions over {workers} targets");
        assert!(router.snapshot().size.blocks > 1_000, "something was learned");
    }
}

/// What a full queue refuses is dropped, and that is all.
#[test]
fn a_full_queue_costs_a_decision_nothing() {
    let settings = Settings { token_space: key_space(), queue_capacity: 64, ..Settings::new(1) };
    let (router, _writer, _) = fleet::of_ready_workers(8, settings);
    let mut rng = fastrand::Rng::with_seed(1);
    let key = key_space().key_of_tokens(Salt::default(), &prompt(0, 1, 1));
    (0..64).for_each(|_| decide(&router, &key, Time::from_micros(1), &mut rng));
    let refused = router.updates().refused();
    assert!(refused > 0, "nobody takes anything out of the queue");
    let counted = measure(|| decide(&router, &key, Time::from_micros(1), &mut rng));
    assert_eq!(counted.count_total, 0);
    assert!(router.updates().refused() > refused);
}

/// One request, from its decision to its end, on every way that reports something.
fn decide(router: &Router, key: &PrefixKey, now: Time, rng: &mut fastrand::Rng) {
    let request = RouteRequest { key: Some(key), ..RouteRequest::default() };
    let mut routed = router.route(&request, now, rng).expect("every worker is ready");
    routed.first_token(now);
    routed.usage(Usage { prompt_tokens: key.units(), cached_tokens: routed.predicted_tokens() }, true);
    routed.complete(now);
    drop(router.route(&request, now, rng));
}

#[test]
fn a_lookup_allocates_nothing() {
    let mut index = Index::default();
    load(&mut index, 0);
    let tree = index.snapshot();
    let mut matches = Matches::default();
    tree.match_prefix(&key(0, 0, 0), &mut matches);
    let keys: Vec<_> = (0..GROUPS).map(|group| key(0, group, group % PROMPTS)).collect();
    let counted = measure(|| keys.iter().for_each(|key| tree.match_prefix(key, &mut matches)));
    assert_eq!(counted.count_total, 0);
}

/// Design: 8.5–12 bytes a distinct block, where a block's hash alone takes 8.
#[test]
fn a_block_takes_little_more_than_its_hash() {
    let (mut index, mut bytes) = (Index::default(), Bytes::default());
    bytes.of(|| load(&mut index, 0));
    let blocks = index.size().blocks;
    assert_eq!(blocks, u64::from(GROUPS) * (u64::from(PROMPTS) + 1) * (PROMPT_BLOCKS as u64 / 2));
    let each = bytes.now as f64 / blocks as f64;
    println!("{each:.2} bytes a block, {blocks} blocks, {} runs", index.size().runs);
    assert!((8.0..12.0).contains(&each), "{each:.2} bytes a block");
}

/// Finding blocks by their hash alone, for agents, is paid only once somebody asks for it.
#[test]
fn a_block_that_can_be_named_takes_a_bounded_number_of_bytes_more() {
    let (mut index, mut bytes) = (Index::default(), Bytes::default());
    index.locate_blocks();
    bytes.of(|| load(&mut index, 0));
    let each = bytes.now as f64 / index.size().blocks as f64;
    println!("{each:.2} bytes a block that can be named");
    assert!(each < 24.0, "{each:.2} bytes a block");
}

/// Invariant 10: what comes and goes leaves no memory behind, whatever had to be cut, joined, copied and cleaned for it.
#[test]
fn churn_leaves_nothing_behind() {
    let (mut index, mut bytes) = (Index::default(), Bytes::default());
    bytes.of(|| load(&mut index, 0));
    let once = bytes.now;
    let mut most = 0;
    for round in 1..9 {
        bytes.of(|| {
            load(&mut index, round);
            clear(&mut index, round - 1);
        });
        most = most.max(bytes.now);
    }
    println!("{once} bytes once, at most {most} under churn");
    // Two loads are there at a time, and up to 40 % of the log may be dead.
    assert!(most < once * 4, "{once} bytes once, {most} under churn");
    let settled = bytes.now;
    for round in 9..17 {
        bytes.of(|| {
            load(&mut index, round);
            clear(&mut index, round - 1);
        });
    }
    assert!(bytes.now < settled + settled / 10, "{settled} bytes after half of it, {} after all", bytes.now);
    bytes.of(|| drop(index));
    assert_eq!(bytes.now, 0, "what is dropped is gone");
}

/// ADR 2: a snapshot that is held for long costs what it sees, at most about one more copy of the index.
#[test]
fn a_held_snapshot_costs_one_more_copy_at_most() {
    let alone = bytes_after_churn(|_| None);
    let with_one_held = bytes_after_churn(|index| Some(index.snapshot()));
    println!("{alone} bytes, {with_one_held} with a snapshot held");
    assert!(with_one_held < 2 * alone + alone / 4, "{alone} bytes, {with_one_held} with a snapshot held");
}

/// Bytes of an index whose load has been replaced several times since a snapshot was taken.
fn bytes_after_churn(take: impl FnOnce(&mut Index) -> Option<Tree>) -> i64 {
    let (mut index, mut bytes) = (Index::default(), Bytes::default());
    let mut held = None;
    bytes.of(|| {
        load(&mut index, 0);
        held = take(&mut index);
        for round in 1..6 {
            clear(&mut index, round - 1);
            load(&mut index, round);
        }
    });
    if let Some(held) = held {
        let mut matches = Matches::default();
        held.match_prefix(&key(0, 1, 1), &mut matches);
        assert_eq!(matches.blocks(slot_of(0, 1, 1)) as usize, PROMPT_BLOCKS, "it is as it was taken");
    }
    bytes.now
}

/// Bytes that were asked for and not given back.
#[derive(Default)]
struct Bytes {
    now: i64,
}

impl Bytes {
    fn of(&mut self, work: impl FnOnce()) {
        self.now += measure(work).bytes_current;
    }
}

/// Claims every prompt of a round, each published by itself as a router does.
fn load(index: &mut Index, round: u32) {
    for prompt in 0..PROMPTS {
        for group in 0..GROUPS {
            index.insert(&key(round, group, prompt), slot_of(round, group, prompt));
            index.snapshot();
        }
    }
}

/// Takes the prompts of a round from everybody.
fn clear(index: &mut Index, round: u32) {
    for place in 0..SLOTS {
        index.clear(Slot::new(first_slot(round) + place));
        index.snapshot();
    }
}

fn slot_of(round: u32, group: u32, prompt_in_group: u32) -> Slot {
    Slot::new(first_slot(round) + (group * 7 + prompt_in_group * 5) as u16 % SLOTS)
}

/// Rounds take turns with two sets of slots, so that one can be taken out beside the next.
fn first_slot(round: u32) -> u16 {
    (round % 2) as u16 * SLOTS
}

fn key(round: u32, group: u32, prompt_in_group: u32) -> Vec<BlockHash> {
    key_space().key_of_tokens(Salt::default(), &prompt(round, group, prompt_in_group)).hashes().to_vec()
}

/// One token is one block: half of them the group's, half its own.
fn prompt(round: u32, group: u32, own: u32) -> Vec<u32> {
    let shared = (0..PROMPT_BLOCKS as u32 / 2).map(|at| round << 24 | group << 16 | at);
    let rest = (PROMPT_BLOCKS as u32 / 2..PROMPT_BLOCKS as u32).map(|at| own << 16 | at);
    shared.chain(rest).collect()
}

fn key_space() -> KeySpace {
    KeySpace::new(Unit::Token, 1, 5).expect("a block of one token is allowed")
}
