//! The index by itself under loads that fill pages, tables and segments. `tests/specification.rs` has it beside its specification.

use std::collections::VecDeque;

use super::{Index, Matches};
use crate::fleet::Slot;
use crate::key::{BlockHash, KeySpace, Salt, Unit};

/// Enough to need every form of a set of holders.
const SLOTS: u16 = 700;
/// Rounds of coming and going; fewer where every step is interpreted.
const ROUNDS: u32 = if cfg!(miri) { 30 } else { 3_000 };

/// A prompt that shares the beginning of its group's and then goes its own way.
fn prompt(group: u32, shared: usize, own: u32, len: usize) -> Vec<BlockHash> {
    let tokens: Vec<u32> =
        (0..len as u32).map(|at| if (at as usize) < shared { group << 16 } else { own << 8 | 1 }).collect();
    let space = KeySpace::new(Unit::Token, 1, 5).unwrap();
    space.key_of_tokens(Salt::default(), &tokens).hashes().to_vec()
}

/// Prompts come and go for long; what is dead is used again, and a snapshot that was held all the time has not changed.
#[test]
fn memory_is_used_again_under_churn_and_held_snapshots_keep() {
    let mut index = Index::default();
    let mut live: VecDeque<(Vec<BlockHash>, Slot)> = VecDeque::new();
    let mut held = None;
    let mut most = 0;
    let mut rng = fastrand::Rng::with_seed(3);
    for round in 0..ROUNDS {
        let (key, slot) =
            (prompt(round % 5, rng.usize(..60), round, 200 + rng.usize(..200)), Slot(rng.u16(..SLOTS)));
        index.insert(&key, slot);
        live.push_back((key, slot));
        if live.len() > 200 {
            let (_, slot) = live.swap_remove_back(rng.usize(..live.len())).unwrap();
            index.clear(slot);
            live.retain(|(_, other)| *other != slot);
        }
        let tree = index.snapshot();
        if round == ROUNDS / 3 {
            held = Some((tree, live.clone()));
        }
        if round == ROUNDS / 2 {
            most = index.used_words();
        }
    }
    assert!(
        index.used_words() <= most + most / 4,
        "{} segments, {most} after half of it",
        index.used_words()
    );
    let (tree, live) = held.unwrap();
    let mut matches = Matches::default();
    for (key, slot) in live {
        tree.match_prefix(&key, &mut matches);
        assert_eq!(matches.blocks(slot) as usize, key.len());
    }
}

#[test]
fn a_prompt_of_more_blocks_than_a_run_takes_is_several_runs() {
    let mut index = Index::default();
    let key = prompt(1, 10_000, 0, 10_000);
    index.insert(&key[..5_000], Slot(1));
    index.insert(&key, Slot(1));
    index.insert(&key[..9_000], Slot(2));
    let mut matches = Matches::default();
    index.snapshot().match_prefix(&key, &mut matches);
    assert_eq!([1, 2, 3].map(|slot| matches.blocks(Slot(slot))), [10_000, 9_000, 0]);
    assert_eq!(index.size().blocks, 10_000);
}

#[test]
fn keys_without_blocks_and_blocks_that_are_not_there_change_nothing() {
    let mut index = Index::default();
    let key = prompt(1, 8, 1, 8);
    index.insert(&[], Slot(0));
    assert!(!index.extend(key[0], &key[1..], Slot(0)), "blocks are not located");
    index.locate_blocks();
    index.insert(&key, Slot(0));
    assert!(!index.extend(key[7], &key[..1], Slot(1)), "another slot holds it");
    assert_eq!(index.remove(&prompt(2, 4, 4, 4), Slot(0)), 0);
    assert_eq!(index.remove(&key, Slot(1)), 0);
    index.clear(Slot(9));
    let mut matches = Matches::default();
    index.snapshot().match_prefix(&[], &mut matches);
    assert_eq!((matches.holders().len(), index.size().blocks), (0, 8));
}

/// A hash that nobody derived.
fn invented(value: u64) -> BlockHash {
    BlockHash::new(value).unwrap()
}

/// Blocks that each target holds of a prompt.
fn held<const N: usize>(index: &mut Index, key: &[BlockHash], slots: [u16; N]) -> [u32; N] {
    let mut matches = Matches::default();
    index.snapshot().match_prefix(key, &mut matches);
    slots.map(|slot| matches.blocks(Slot(slot)))
}

/// One hash below many parents, and hashes that differ in few bits, take a page each at most.
#[test]
fn invented_hashes_cannot_crowd_the_heads() {
    let mut index = Index::default();
    index.locate_blocks();
    for number in 1..2_000 {
        index.insert_reported(&[invented(number << 20), invented(7)], Slot(0));
        index.insert_reported(&[invented(number << 20), invented(number << 40)], Slot(0));
        index.insert_reported(&[invented((number << 52) | 1)], Slot(0));
    }
    let words = index.used_words();
    assert!(words < 100 * index.size().runs, "{words} words for {} runs", index.size().runs);
    assert_eq!(held(&mut index, &[invented(5 << 20), invented(7)], [0]), [2]);
}

/// Whoever came first, what was derived is found by what was derived.
#[test]
fn a_run_that_merely_ends_alike_is_another() {
    let mut index = Index::default();
    index.locate_blocks();
    let sound = [1, 2, 3].map(invented);
    index.insert_reported(&[1, 99, 3].map(invented), Slot(0));
    index.insert(&sound, Slot(1));
    assert_eq!(held(&mut index, &sound[..2], [0, 1]), [1, 2]);
    assert_eq!(held(&mut index, &sound, [0, 1]), [1, 3]);
    assert_eq!(index.remove(&sound[1..], Slot(1)), 2);
    assert_eq!(held(&mut index, &sound, [0, 1]), [1, 1]);
}

/// What was derived stays what it is, whoever claims to hold something that ends alike; what was reported and then derived is
/// vouched for from then on.
#[test]
fn reports_do_not_change_what_was_derived() {
    let sound = [1, 2, 3, 4].map(invented);
    let torn = [1, 99, 98, 4].map(invented);
    let mut index = Index::default();
    index.locate_blocks();
    index.insert(&sound, Slot(1));
    index.insert_reported(&torn, Slot(0));
    index.insert_reported(&torn[..3], Slot(2));
    for depth in 1..=4 {
        assert_eq!(held(&mut index, &sound[..depth], [1]), [depth as u32]);
    }
    // A run that grows by what is reported is not vouched for any more.
    assert!(index.extend(sound[3], &[77, 6].map(invented), Slot(1)));
    index.insert(&[1, 2, 3, 4, 5, 6].map(invented), Slot(3));
    assert_eq!(held(&mut index, &[1, 2, 3, 4, 5].map(invented), [1, 3]), [4, 5]);
}

#[test]
fn slots_may_be_anywhere() {
    let mut index = Index::default();
    let slots: [u16; 20] = std::array::from_fn(|at| 20_000 + at as u16);
    slots.iter().for_each(|slot| index.insert(&[invented(1)], Slot(*slot)));
    assert_eq!(held(&mut index, &[invented(1)], slots), [1; 20]);
    assert_eq!(held(&mut index, &[invented(1)], [0, 19_999]), [0, 0]);
}
