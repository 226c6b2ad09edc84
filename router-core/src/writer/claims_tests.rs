//! The claim table and its index against their specification, under random operations.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::claim::{Scope, Source};
use super::claims::{BlockTokens, ClaimTable};
use crate::digest::SetDigest;
use crate::fleet::Slot;
use crate::index::{Matches, NaiveIndex, Origin, Tree};
use crate::key::{BlockHash, BlockKind, KeySpace, Salt, Unit};
use crate::time::Time;

const SLOTS: u16 = 5;
const BLOCK_TOKENS: u64 = 3;

#[derive(Clone, Debug)]
enum Operation {
    Claim {
        slot: u16,
        prompt: Vec<u32>,
    },
    Predict {
        slot: u16,
        prompt: Vec<u32>,
    },
    /// Takes back one of the open predictions.
    Undo {
        pick: usize,
    },
    Confirm {
        slot: u16,
        prompt: Vec<u32>,
    },
    Remove {
        slot: u16,
        /// Each by a prompt and its place there.
        blocks: Vec<(Vec<u32>, usize)>,
    },
    Evict {
        slot: u16,
        most_blocks: u64,
    },
    Horizon {
        slot: u16,
        back: u64,
    },
    Clear {
        slot: u16,
    },
    Snapshot,
}

fn prompt() -> impl Strategy<Value = Vec<u32>> {
    // Few symbols, so that prompts share, part and contain each other; some long enough for several runs and segments, which are
    // small in unit tests.
    let stretched = |(symbols, times): (Vec<u32>, usize)| {
        symbols.into_iter().flat_map(|symbol| std::iter::repeat_n(symbol, times)).collect()
    };
    (prop::collection::vec(0_u32..3, 1..14), prop_oneof![Just(1_usize), Just(9)]).prop_map(stretched)
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let slot = 0..SLOTS;
    prop_oneof![
        6 => (slot.clone(), prompt()).prop_map(|(slot, prompt)| Claim { slot, prompt }),
        4 => (slot.clone(), prompt()).prop_map(|(slot, prompt)| Predict { slot, prompt }),
        3 => any::<usize>().prop_map(|pick| Undo { pick }),
        2 => (slot.clone(), prompt()).prop_map(|(slot, prompt)| Confirm { slot, prompt }),
        4 => (slot.clone(), prop::collection::vec((prompt(), 0_usize..120), 1..5))
            .prop_map(|(slot, blocks)| Remove { slot, blocks }),
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
    /// Predictions that have not been taken back: slot, decision, prompt.
    predictions: Vec<(u16, u64, Vec<u32>)>,
    /// The decisions that predict each block of a slot that nothing vouches for.
    predicted: BTreeMap<(u16, BlockHash), BTreeSet<u64>>,
    now: u64,
}

impl Pair {
    fn new() -> Self {
        let mut table = ClaimTable::new(BlockTokens { token: BLOCK_TOKENS, text: 1 });
        table.locate_blocks();
        Self {
            table,
            naive: NaiveIndex::default(),
            taken: Vec::new(),
            predictions: Vec::new(),
            predicted: BTreeMap::new(),
            now: 0,
        }
    }

    fn apply(&mut self, operation: Operation) {
        self.now += 1;
        let at = Time::from_micros(self.now);
        match operation {
            Operation::Claim { slot, prompt } => self.claim(slot, &prompt, Source::Confirmed { at }),
            Operation::Predict { slot, prompt } => {
                let by = self.now;
                self.claim(slot, &prompt, Source::Predicted { by });
                let vouched = self.table.vouched(Slot(slot), Unit::Token);
                for hash in hashes(&prompt).into_iter().filter(|hash| !vouched.contains(hash)) {
                    self.predicted.entry((slot, hash)).or_default().insert(by);
                }
                self.predictions.push((slot, by, prompt));
            }
            Operation::Undo { pick } => self.undo(pick),
            Operation::Confirm { slot, prompt } => {
                let before = self.held(slot);
                self.table.confirm(Slot(slot), &hashes(&prompt), at);
                assert_eq!(self.held(slot), before, "confirming claims nothing");
            }
            Operation::Remove { slot, blocks } => {
                // A place beyond the prompt is counted on from its beginning.
                let block = |(prompt, place): &(Vec<u32>, usize)| hashes(prompt)[place % prompt.len()];
                let gone: Vec<_> = blocks.iter().map(block).collect();
                self.table.remove(Slot(slot), &gone);
                gone.iter().for_each(|hash| self.naive.remove(*hash, Slot(slot)));
            }
            Operation::Evict { slot, most_blocks } => {
                let before = self.held(slot);
                let evicted = self.table.evict_to(Slot(slot), Scope::ALL, most_blocks * BLOCK_TOKENS);
                let after = self.held(slot);
                assert!(after.is_subset(&before) && after.len() as u64 <= most_blocks);
                assert_eq!(evicted, (before.len() - after.len()) as u64 * BLOCK_TOKENS);
                self.follow(slot);
            }
            Operation::Horizon { slot, back } => {
                let horizon = Time::from_micros(self.now.saturating_sub(back));
                self.table.move_horizon(Slot(slot), Scope::ALL, horizon);
                assert!(self.table.oldest(Slot(slot)).is_none_or(|oldest| oldest >= horizon));
                self.follow(slot);
            }
            Operation::Clear { slot } => {
                while !self.table.sweep(Slot(slot), &mut 2) {}
                self.naive.clear(Slot(slot));
            }
            Operation::Snapshot => self.taken.push((self.table.tree(), self.naive.clone())),
        }
        // Nothing predicts what is not claimed any more, or what something vouches for.
        for slot in 0..SLOTS {
            let (held, vouched) = (self.held(slot), self.table.vouched(Slot(slot), Unit::Token));
            self.predicted.retain(|(other, hash), _| {
                *other != slot || (held.contains(hash) && !vouched.contains(hash))
            });
        }
    }

    fn undo(&mut self, pick: usize) {
        if self.predictions.is_empty() {
            return;
        }
        let (slot, by, prompt) = self.predictions.swap_remove(pick % self.predictions.len());
        // What stays is what something vouches for or another decision still predicts.
        let mut kept: BTreeSet<_> = self.table.vouched(Slot(slot), Unit::Token).into_iter().collect();
        for ((_, hash), decisions) in self.predicted.iter_mut().filter(|((other, _), _)| *other == slot) {
            decisions.remove(&by);
            if !decisions.is_empty() {
                kept.insert(*hash);
            }
        }
        let before = self.held(slot);
        self.table.undo(Slot(slot), &hashes(&prompt), by);
        assert_eq!(self.held(slot), before.intersection(&kept).copied().collect());
        self.follow(slot);
    }

    fn claim(&mut self, slot: u16, prompt: &[u32], source: Source) {
        let predicted = matches!(source, Source::Predicted { .. });
        let origin = if predicted { Origin::Derived } else { Origin::Reported };
        let before = self.held(slot).len();
        let claimed = self.table.claim(
            Slot(slot),
            BlockKind::Tokens,
            (&hashes(prompt), origin),
            Time::from_micros(self.now),
            source,
        );
        self.naive.claim(&hashes(prompt), Slot(slot));
        assert_eq!(claimed, (self.held(slot).len() - before) as u64 * BLOCK_TOKENS);
    }

    fn held(&self, slot: u16) -> BTreeSet<BlockHash> {
        let all = self.table.all(Slot(slot), Unit::Token);
        let set: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(set.len(), all.len(), "every block is claimed once");
        set
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

    fn check(&mut self, probes: &[Vec<u32>]) {
        for slot in 0..SLOTS {
            let held = self.held(slot);
            assert_eq!(held, self.naive.claims(Slot(slot)));
            assert_eq!(self.table.tokens(Slot(slot), Scope::ALL), held.len() as u64 * BLOCK_TOKENS);
            let mut digest = SetDigest::empty();
            held.iter().for_each(|hash| digest.add(*hash));
            assert_eq!(self.table.digest(Slot(slot), Unit::Token), digest);
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
fn each_decision_takes_back_its_own_predictions() {
    let mut pair = Pair::new();
    pair.apply(Operation::Claim { slot: 0, prompt: vec![0, 1] });
    pair.apply(Operation::Predict { slot: 0, prompt: vec![0, 1, 2, 2, 1] });
    pair.apply(Operation::Predict { slot: 0, prompt: vec![0, 1, 2] });
    let undo = |pair: &mut Pair, prompt: &[u32], by| pair.table.undo(Slot(0), &hashes(prompt), by);
    undo(&mut pair, &[0, 1, 2, 2, 1], 2);
    assert_eq!(pair.held(0).len(), 3, "the other decision still predicts the third block");
    undo(&mut pair, &[0, 1, 2], 3);
    assert_eq!(pair.held(0).len(), 2, "what was confirmed stays");
}

#[test]
fn a_shorter_prompt_touches_its_own_blocks_only() {
    let mut pair = Pair::new();
    for prompt in [vec![0, 0, 0, 0], vec![1, 1], vec![0, 0]] {
        pair.apply(Operation::Claim { slot: 0, prompt });
    }
    // The tail of [0, 0, 0, 0] is older than [1, 1]; its head is not.
    pair.apply(Operation::Evict { slot: 0, most_blocks: 4 });
    let of = |prompt: &[u32]| pair.naive.match_prefix(&hashes(prompt), Slot(0));
    assert_eq!((of(&[0, 0, 0, 0]), of(&[1, 1])), (2, 2));
}

#[test]
fn a_prompt_that_grows_is_few_runs() {
    let mut pair = Pair::new();
    let prompt: Vec<u32> = (0..60).map(|i| i % 3).collect();
    for len in 1..=60 {
        pair.apply(Operation::Claim { slot: 0, prompt: prompt[..len].to_vec() });
    }
    assert!(pair.table.size().runs <= 4, "{}", pair.table.size().runs);
    pair.check(std::slice::from_ref(&prompt));
    // Another holder of a part tells it apart again.
    pair.apply(Operation::Claim { slot: 1, prompt: prompt[..20].to_vec() });
    pair.apply(Operation::Remove { slot: 0, blocks: vec![(prompt.clone(), 40)] });
    assert_eq!(pair.table.size().blocks, 40);
    pair.check(std::slice::from_ref(&prompt));
}

#[test]
fn a_chain_of_many_runs_is_dropped_without_deep_recursion() {
    let mut pair = Pair::new();
    let prompt: Vec<u32> = (0..20_000).map(|i| i % 3).collect();
    let key = hashes(&prompt);
    for (slot, len) in (0..SLOTS).cycle().zip((1..=key.len()).rev().step_by(2)) {
        pair.table.claim(
            Slot(slot),
            BlockKind::Tokens,
            (&key[..len], Origin::Derived),
            Time::default(),
            Source::Predicted { by: 1 },
        );
        if len < key.len() - 400 {
            break;
        }
    }
    assert!(pair.table.size().runs > 100);
    drop(pair);
}
