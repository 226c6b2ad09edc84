//! The claim table and its index against their specification, under random operations.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::claim::Source;
use super::claims::{BlockTokens, ClaimTable};
use crate::digest::SetDigest;
use crate::fleet::Slot;
use crate::index::{Matches, NaiveIndex, Tree};
use crate::key::{BlockHash, KeySpace, Salt, Unit};
use crate::time::Time;

const SLOTS: u16 = 5;
const BLOCK_TOKENS: u64 = 3;

#[derive(Clone, Debug)]
enum Operation {
    Claim { slot: u16, prompt: Vec<u32> },
    Predict { slot: u16, prompt: Vec<u32>, by: u64 },
    Undo { slot: u16, prompt: Vec<u32>, by: u64 },
    Confirm { slot: u16, prompt: Vec<u32> },
    Remove { slot: u16, prompt: Vec<u32>, depths: Vec<usize> },
    Evict { slot: u16, most_blocks: u64 },
    Horizon { slot: u16, back: u64 },
    Clear { slot: u16 },
    Snapshot,
}

fn prompt() -> impl Strategy<Value = Vec<u32>> {
    // Few symbols, so that prompts share, part and contain each other.
    prop::collection::vec(0_u32..3, 1..14)
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let slot = 0..SLOTS;
    prop_oneof![
        6 => (slot.clone(), prompt()).prop_map(|(slot, prompt)| Claim { slot, prompt }),
        4 => (slot.clone(), prompt(), 0_u64..4).prop_map(|(slot, prompt, by)| Predict { slot, prompt, by }),
        2 => (slot.clone(), prompt(), 0_u64..4).prop_map(|(slot, prompt, by)| Undo { slot, prompt, by }),
        2 => (slot.clone(), prompt()).prop_map(|(slot, prompt)| Confirm { slot, prompt }),
        4 => (slot.clone(), prompt(), prop::collection::vec(0_usize..14, 1..4))
            .prop_map(|(slot, prompt, depths)| Remove { slot, prompt, depths }),
        2 => (slot.clone(), 0_u64..20).prop_map(|(slot, most_blocks)| Evict { slot, most_blocks }),
        1 => (slot.clone(), 0_u64..30).prop_map(|(slot, back)| Horizon { slot, back }),
        1 => slot.prop_map(|slot| Clear { slot }),
        1 => Just(Snapshot),
    ]
}

fn hashes(prompt: &[u32]) -> Vec<BlockHash> {
    let space = KeySpace::new(Unit::Token, 1, 9).unwrap();
    space.key_of_tokens(Salt::default(), prompt).hashes().to_vec()
}

/// The table, its specification, and the snapshots taken on the way with what they must go on saying.
struct Pair {
    table: ClaimTable,
    naive: NaiveIndex,
    taken: Vec<(Tree, NaiveIndex)>,
    now: u64,
}

impl Pair {
    fn new() -> Self {
        let mut table = ClaimTable::new(BlockTokens { token: BLOCK_TOKENS, text: 1 });
        table.locate_blocks();
        Self { table, naive: NaiveIndex::default(), taken: Vec::new(), now: 0 }
    }

    fn apply(&mut self, operation: Operation) {
        self.now += 1;
        let at = Time::from_micros(self.now);
        match operation {
            Operation::Claim { slot, prompt } => self.claim(slot, &prompt, Source::Confirmed { at }),
            Operation::Predict { slot, prompt, by } => {
                self.claim(slot, &prompt, Source::Predicted { by, until: Time::from_micros(u64::MAX) });
            }
            Operation::Undo { slot, prompt, by } => {
                let before = self.held(slot);
                let confirmed = self.confirmed(slot);
                self.table.undo(Slot(slot), &hashes(&prompt), by);
                let after = self.held(slot);
                assert!(after.is_subset(&before), "undoing claims nothing");
                assert!(confirmed.is_subset(&after), "undoing keeps what is confirmed");
                self.follow(slot);
            }
            Operation::Confirm { slot, prompt } => {
                let before = self.held(slot);
                self.table.confirm(Slot(slot), &hashes(&prompt), at);
                assert_eq!(self.held(slot), before, "confirming claims nothing");
            }
            Operation::Remove { slot, prompt, depths } => {
                let key = hashes(&prompt);
                let gone: Vec<_> = depths.iter().filter_map(|depth| key.get(*depth).copied()).collect();
                self.table.remove(Slot(slot), &gone);
                gone.iter().for_each(|hash| self.naive.remove(*hash, Slot(slot)));
            }
            Operation::Evict { slot, most_blocks } => {
                let before = self.held(slot);
                let evicted = self.table.evict_to(Slot(slot), most_blocks * BLOCK_TOKENS);
                let after = self.held(slot);
                assert!(after.is_subset(&before) && after.len() as u64 <= most_blocks);
                assert_eq!(evicted, (before.len() - after.len()) as u64 * BLOCK_TOKENS);
                self.follow(slot);
            }
            Operation::Horizon { slot, back } => {
                let horizon = Time::from_micros(self.now.saturating_sub(back));
                self.table.move_horizon(Slot(slot), horizon);
                assert!(self.table.oldest(Slot(slot)).is_none_or(|oldest| oldest >= horizon));
                self.follow(slot);
            }
            Operation::Clear { slot } => {
                while !self.table.sweep(Slot(slot), &mut 2) {}
                self.naive.clear(Slot(slot));
            }
            Operation::Snapshot => self.taken.push((self.table.tree(), self.naive.clone())),
        }
    }

    fn claim(&mut self, slot: u16, prompt: &[u32], source: Source) {
        let before = self.held(slot).len();
        let claimed =
            self.table.claim(Slot(slot), Unit::Token, &hashes(prompt), Time::from_micros(self.now), source);
        self.naive.claim(&hashes(prompt), Slot(slot));
        assert_eq!(claimed, (self.held(slot).len() - before) as u64 * BLOCK_TOKENS);
    }

    fn held(&self, slot: u16) -> BTreeSet<BlockHash> {
        let all = self.table.all(Slot(slot), Unit::Token);
        let set: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(set.len(), all.len(), "every block is claimed once");
        set
    }

    fn confirmed(&self, slot: u16) -> BTreeSet<BlockHash> {
        let is_confirmed = |hash: &BlockHash| {
            let (run, offset) = self.table.locate(*hash).unwrap();
            offset < self.table.claim_of(Slot(slot), run).unwrap().confirmed
        };
        self.held(slot).into_iter().filter(is_confirmed).collect()
    }

    /// Lets the specification forget what the table was free to drop.
    fn follow(&mut self, slot: u16) {
        let held = self.held(slot);
        for hash in self.naive.claims(Slot(slot)) {
            if !held.contains(&hash) {
                self.naive.remove(hash, Slot(slot));
            }
        }
    }

    fn check(&self, probes: &[Vec<u32>]) {
        for slot in 0..SLOTS {
            let held = self.held(slot);
            assert_eq!(held, self.naive.claims(Slot(slot)));
            assert_eq!(self.table.tokens(Slot(slot)), held.len() as u64 * BLOCK_TOKENS);
            let mut digest = SetDigest::empty();
            held.iter().for_each(|hash| digest.add(*hash));
            assert_eq!(self.table.digest(Slot(slot)), digest);
        }
        assert_eq!(self.table.size().blocks, self.naive.blocks());
        check_tree(&self.table.tree(), &self.naive, probes);
        for (tree, naive) in &self.taken {
            check_tree(tree, naive, probes);
        }
    }
}

fn check_tree(tree: &Tree, naive: &NaiveIndex, probes: &[Vec<u32>]) {
    let mut matches = Matches::default();
    for probe in probes {
        let key = hashes(probe);
        tree.match_prefix(&key, &mut matches);
        for slot in 0..SLOTS {
            assert_eq!(matches.blocks(Slot(slot)), naive.match_prefix(&key, Slot(slot)), "{probe:?} {slot}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_its_specification(
        operations in prop::collection::vec(operation(), 0..60),
        probes in prop::collection::vec(prompt(), 1..6),
    ) {
        let mut pair = Pair::new();
        for operation in operations {
            pair.apply(operation);
            pair.check(&probes[..1]);
        }
        pair.check(&probes);
        // Everything goes without a trace.
        for slot in 0..SLOTS {
            pair.apply(Operation::Clear { slot });
        }
        prop_assert_eq!(pair.table.size(), crate::IndexSize::default());
        pair.check(&probes);
    }
}

#[test]
fn the_least_recently_used_leaf_goes_first() {
    let mut pair = Pair::new();
    for prompt in [[0, 0, 0], [0, 1, 1], [2, 2, 2]] {
        pair.apply(Operation::Claim { slot: 0, prompt: prompt.to_vec() });
    }
    pair.apply(Operation::Claim { slot: 0, prompt: vec![0, 0, 0] });
    // [0, 1, 1] is the oldest leaf; [0] stays because [0, 0, 0] hangs from it.
    pair.apply(Operation::Evict { slot: 0, most_blocks: 6 });
    let of = |prompt: &[u32]| pair.naive.match_prefix(&hashes(prompt), Slot(0));
    assert_eq!((of(&[0, 0, 0]), of(&[0, 1, 1]), of(&[2, 2, 2])), (3, 1, 3));
}

#[test]
fn a_prediction_lapses_and_what_was_confirmed_stays() {
    let mut pair = Pair::new();
    pair.apply(Operation::Claim { slot: 0, prompt: vec![0, 1] });
    let until = Time::from_micros(50);
    pair.claim(0, &[0, 1, 2, 2], Source::Predicted { by: 1, until });
    let run = pair.table.path(Slot(0), &hashes(&[0, 1, 2, 2])).last().unwrap().run;
    pair.table.lapse(Slot(0), run, Time::from_micros(49));
    assert_eq!(pair.held(0).len(), 4);
    pair.table.lapse(Slot(0), run, until);
    assert_eq!(pair.held(0).len(), 2);
}
