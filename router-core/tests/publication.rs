//! Publication and reclamation under stress: one writer changes the index and publishes, readers look up and hold snapshots.
//!
//! With every snapshot goes what it must answer, computed from the prompts that are held and without any hash. Readers hold
//! it against each snapshot when they get it, again at random while they hold it, and last when they let it go, many
//! publications later. What is bounded is the number of operations; nothing depends on time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, RwLock};
use std::thread;

use router_core::Slot;
use router_core::index::{Index, Matches, Tree};
use router_core::key::{BlockHash, KeySpace, Salt, Unit};

/// Changes that the writer makes; fewer where every step is interpreted.
const OPERATIONS: usize = if cfg!(miri) { 200 } else { 8_000 };
/// Readers, more than the cores of a small machine, so that some are stopped anywhere.
const READERS: usize = 4;
/// Checks of every reader at least, however late it starts.
const LEAST_CHECKS: usize = if cfg!(miri) { 20 } else { 2_000 };
/// Snapshots that one reader holds at most.
const HELD: usize = 24;

const SLOTS: u16 = 40;
const GROUPS: usize = 4;
/// Prompts of one group: each parts from the group's common prefix at a depth of its own.
const PROMPTS_OF_GROUP: usize = 12;
const PROMPTS: usize = GROUPS * PROMPTS_OF_GROUP;
const PROMPT_BLOCKS: usize = if cfg!(miri) { 40 } else { 160 };

/// For every prompt and every slot the leading blocks held.
type Held = Vec<[u32; SLOTS as usize]>;

/// A snapshot, and what it must say.
struct Published {
    tree: Tree,
    expected: Held,
}

#[test]
fn readers_see_whole_states_and_held_snapshots_do_not_change() {
    let keys: Vec<Vec<BlockHash>> = (0..PROMPTS).map(key).collect();
    let mut writer = Writer::new();
    let in_force = RwLock::new(Arc::new(writer.publish()));
    let (ended, started) = (AtomicBool::new(false), Barrier::new(READERS + 1));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (keys, in_force, ended, started) = (&keys, &in_force, &ended, &started);
                scope.spawn(move || {
                    started.wait();
                    read(reader as u64, keys, in_force, ended)
                })
            })
            .collect();
        started.wait();
        for operation in 0..OPERATIONS {
            writer.change(&keys);
            if operation % 5 == 0 {
                let next = Arc::new(writer.publish());
                *in_force.write().expect("no reader panics with the lock held") = next;
            }
        }
        ended.store(true, Ordering::Release);
        for reader in readers {
            let checks = reader.join().expect("what a reader saw was what was published");
            assert!(checks >= LEAST_CHECKS);
        }
    });
}

/// Checks until the writer has ended, and so often at least; returns how often.
fn read(seed: u64, keys: &[Vec<BlockHash>], in_force: &RwLock<Arc<Published>>, ended: &AtomicBool) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut matches = Matches::default();
    let mut held: VecDeque<Arc<Published>> = VecDeque::new();
    let mut checks = 0;
    while checks < LEAST_CHECKS || !ended.load(Ordering::Acquire) {
        let current = in_force.read().expect("the writer does not panic with the lock held").clone();
        check(&current, keys, &mut matches, &mut rng);
        // Half of what is taken goes at once; of the rest any may go, so that some stay for very long.
        if rng.bool() {
            held.push_back(current);
        }
        if held.len() > HELD {
            let gone = held.swap_remove_back(rng.usize(HELD / 2..held.len())).expect("it is in range");
            check(&gone, keys, &mut matches, &mut rng);
        }
        if let Some(any) = held.get(rng.usize(..held.len().max(1))) {
            check(any, keys, &mut matches, &mut rng);
        }
        checks += 1;
    }
    for published in held {
        (0..keys.len()).for_each(|prompt| check_prompt(&published, keys, prompt, &mut matches));
    }
    checks
}

fn check(published: &Published, keys: &[Vec<BlockHash>], matches: &mut Matches, rng: &mut fastrand::Rng) {
    check_prompt(published, keys, rng.usize(..keys.len()), matches);
}

fn check_prompt(published: &Published, keys: &[Vec<BlockHash>], prompt: usize, matches: &mut Matches) {
    published.tree.match_prefix(&keys[prompt], matches);
    let expected = &published.expected[prompt];
    let seen: [u32; SLOTS as usize] = std::array::from_fn(|slot| matches.blocks(Slot::new(slot as u16)));
    assert_eq!(&seen, expected, "prompt {prompt}");
    assert_eq!(matches.holders().len(), expected.iter().filter(|blocks| **blocks > 0).count());
}

/// The one writer: the index, and what it must hold.
struct Writer {
    index: Index,
    held: Held,
    rng: fastrand::Rng,
}

impl Writer {
    fn new() -> Self {
        let mut index = Index::default();
        index.locate_blocks();
        let held = vec![[0; SLOTS as usize]; PROMPTS];
        Self { index, held, rng: fastrand::Rng::with_seed(11) }
    }

    /// Stores, removes or clears at random. Few slots are cleared, so that the index stays large.
    fn change(&mut self, keys: &[Vec<BlockHash>]) {
        let slot = self.rng.usize(..usize::from(SLOTS));
        let (prompt, depth) = (self.rng.usize(..PROMPTS), self.rng.usize(..PROMPT_BLOCKS));
        let place = Slot::new(slot as u16);
        let others = self.held.iter_mut().enumerate();
        let shared = others.map(|(other, held)| (common_blocks(prompt, other), &mut held[slot]));
        match self.rng.u8(..20) {
            0..12 => {
                self.index.insert(&keys[prompt][..=depth], place);
                shared.for_each(|(common, held)| *held = (*held).max(common.min(depth + 1) as u32));
            }
            12..19 => {
                self.index.remove(&keys[prompt][depth..=depth], place);
                // All prompts that go through the block lose it, with all below.
                let through = shared.filter(|(common, _)| *common > depth);
                through.for_each(|(_, held)| *held = (*held).min(depth as u32));
            }
            _ => {
                self.index.clear(place);
                shared.for_each(|(_, held)| *held = 0);
            }
        }
    }

    fn publish(&mut self) -> Published {
        Published { tree: self.index.snapshot(), expected: self.held.clone() }
    }
}

/// Leading blocks that two prompts have in common.
fn common_blocks(one: usize, other: usize) -> usize {
    match () {
        () if one == other => PROMPT_BLOCKS,
        () if one / PROMPTS_OF_GROUP != other / PROMPTS_OF_GROUP => 0,
        () => parts_at(one).min(parts_at(other)),
    }
}

/// Blocks of a prompt that are its group's. One prompt of each group shares nothing, one nearly all.
fn parts_at(prompt: usize) -> usize {
    prompt % PROMPTS_OF_GROUP * (PROMPT_BLOCKS - 1) / (PROMPTS_OF_GROUP - 1)
}

/// One token is one block.
fn key(prompt: usize) -> Vec<BlockHash> {
    let group = (prompt / PROMPTS_OF_GROUP) as u32;
    let token = |at: usize| if at < parts_at(prompt) { group } else { 1 << 16 | prompt as u32 };
    let tokens: Vec<u32> = (0..PROMPT_BLOCKS).map(token).collect();
    let space = KeySpace::new(Unit::Token, 1, 5).expect("a block of one token is allowed");
    space.key_of_tokens(Salt::default(), &tokens).hashes().to_vec()
}
