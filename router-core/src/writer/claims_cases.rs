//! The claim table in cases that random operations seldom meet.

use super::claim::{Scope, Source};
use super::claims::{BlockTokens, ClaimTable};
use crate::fleet::Slot;
use crate::index::{Matches, Origin};
use crate::key::{BlockHash, BlockKind, KeySpace, Salt, Unit};
use crate::time::Time;

fn hashes(prompt: &[u32]) -> Vec<BlockHash> {
    let space = KeySpace::new(Unit::Token, 1, 9).unwrap();
    space.key_of_tokens(Salt::default(), prompt).hashes().to_vec()
}

fn key(first: u32, blocks: usize) -> Vec<BlockHash> {
    hashes(&(0..blocks as u32).map(|at| first << 16 | at).collect::<Vec<_>>())
}

fn confirm(table: &mut ClaimTable, slot: u16, key: &[BlockHash], at: u64) {
    let at = Time::from_micros(at);
    table.claim(Slot(slot), BlockKind::Tokens, (key, Origin::Derived), at, Source::Confirmed { at });
}

fn held(table: &mut ClaimTable, slot: u16, key: &[BlockHash]) -> u32 {
    let mut matches = Matches::default();
    table.tree().match_prefix(key, &mut matches);
    matches.blocks(Slot(slot))
}

/// Segments of the log have 256 words in these tests, and runs at most 64 blocks.
#[test]
fn runs_that_meet_at_the_border_of_a_segment_are_not_taken_for_one_extent() {
    for filler in 0..64 {
        let mut table = ClaimTable::new(BlockTokens { token: 1, text: 1 });
        table.locate_blocks();
        let stays = key(1, 40);
        confirm(&mut table, 1, &stays, 1);
        confirm(&mut table, 0, &key(2, 32 + filler), 2);
        confirm(&mut table, 0, &key(3, 64), 3);
        confirm(&mut table, 0, &key(4, 30), 4);
        let long = key(5, 60);
        confirm(&mut table, 0, &long[..30], 5);
        confirm(&mut table, 0, &long, 6);
        assert_eq!(held(&mut table, 0, &long), 60);
        for at in [0, 29, 30, 59] {
            assert!(table.key_to(Slot(0), long[at]).is_some_and(|path| path == long[..=at]), "block {at}");
        }
        table.evict_to(Slot(0), Scope::ALL, 0);
        for first in 10..30 {
            confirm(&mut table, 2, &key(first, 60), 7);
        }
        for blocks in [1, 20, 39, 40] {
            assert_eq!(held(&mut table, 1, &stays[..blocks]), blocks as u32, "of {blocks}, {filler}");
        }
    }
}

/// Dropping one run frees its number, which cutting another uses again.
#[test]
fn a_removal_of_many_blocks_takes_each_where_it_stands() {
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..200_u32 {
        let mut table = ClaimTable::new(BlockTokens { token: 1, text: 1 });
        table.locate_blocks();
        let mut order: Vec<u32> = (0..6).collect();
        rng.shuffle(&mut order);
        let mut removed = Vec::new();
        for &part in &order {
            let trunk = key(round * 8 + part, 8);
            confirm(&mut table, 0, &trunk, u64::from(part) + 1);
            if part < 4 {
                let mut tokens: Vec<u32> = (0..4).map(|at| (round * 8 + part) << 16 | at).collect();
                tokens.extend([1, 2, 3]);
                let branch = hashes(&tokens);
                confirm(&mut table, 0, &branch, u64::from(part) + 10);
                removed.extend([trunk[0], trunk[4], branch[4]]);
            } else {
                confirm(&mut table, 1, &trunk, 50);
                removed.push(trunk[4]);
            }
        }
        rng.shuffle(&mut removed);
        table.remove(Slot(0), &removed);
        for part in 0..6 {
            let trunk = key(round * 8 + part, 8);
            let (own, other) = if part < 4 { (0, 0) } else { (4, 8) };
            assert_eq!([0, 1].map(|slot| held(&mut table, slot, &trunk)), [own, other], "{round}, {part}");
        }
    }
}

/// Two prompts, one the beginning of the other, by turns: the run is cut and joined each time.
#[test]
fn cutting_and_joining_for_ever_takes_no_memory() {
    let mut table = ClaimTable::new(BlockTokens { token: 1, text: 1 });
    let long = key(1, 60);
    for round in 0..20_000_u64 {
        confirm(&mut table, 0, &long[..30], 2 * round + 1);
        confirm(&mut table, 0, &long, 2 * round + 2);
        table.tree();
        // A few segments, each of 256 words.
        assert!(table.owners() < 4 * 2 * 256, "{} owners in round {round}", table.owners());
    }
}

#[test]
fn blocks_of_another_unit_on_a_path_are_counted_as_theirs() {
    let mut table = ClaimTable::new(BlockTokens { token: 1, text: 3 });
    let path = key(1, 6);
    confirm(&mut table, 0, &path[..2], 1);
    let at = Time::from_micros(2);
    table.claim(Slot(0), BlockKind::Text, (&path, Origin::Derived), at, Source::Confirmed { at });
    assert_eq!(table.tokens(Slot(0), Scope::named(Unit::Token)), 2);
    assert_eq!(table.tokens(Slot(0), Scope::named(Unit::Text)), 4 * 3);
    table.evict_to(Slot(0), Scope::ALL, 0);
    assert_eq!(table.tokens(Slot(0), Scope::ALL), 0);
}
