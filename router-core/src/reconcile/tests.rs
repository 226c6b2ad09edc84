//! Any two sets: what is found is what differs.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::key::BlockHash;

/// Hashes as good as those of prompts.
fn hash(name: u64) -> BlockHash {
    BlockHash::new(xxhash_rust::xxh3::xxh3_64(&name.to_le_bytes())).unwrap()
}

fn set(names: impl IntoIterator<Item = u64>) -> BTreeSet<BlockHash> {
    names.into_iter().map(hash).collect()
}

/// What goes over the wire.
fn sent(symbols: &[Symbol]) -> Vec<Symbol> {
    let mut bytes = Vec::new();
    symbols.iter().for_each(|symbol| symbol.write(&mut bytes));
    assert_eq!(bytes.len(), symbols.len() * SYMBOL_BYTES);
    Symbol::read(&bytes).unwrap()
}

/// The difference, and the symbols it took.
fn reconcile(salt: u64, theirs: &BTreeSet<BlockHash>, ours: &BTreeSet<BlockHash>) -> (Difference, u32) {
    let mut encoder = Encoder::new(salt, theirs.iter().copied());
    let mut decoder = Decoder::new(salt, encoder.len(), ours.iter().copied());
    let mut wanted = 16;
    loop {
        match decoder.take(&sent(&encoder.symbols_to(wanted))).unwrap() {
            Progress::More { symbols } => {
                assert!(symbols > wanted, "every step is one forward");
                wanted = symbols;
            }
            Progress::Complete(difference) => return (difference, wanted),
        }
    }
}

fn holds(difference: Difference, theirs: &BTreeSet<BlockHash>, ours: &BTreeSet<BlockHash>) -> bool {
    let Difference { theirs: only_theirs, ours: only_ours } = difference;
    let sizes = (only_theirs.len(), only_ours.len());
    let [only_theirs, only_ours] = [only_theirs, only_ours].map(BTreeSet::from_iter);
    // Nothing is found twice.
    sizes == (only_theirs.len(), only_ours.len())
        && only_theirs == theirs.difference(ours).copied().collect()
        && only_ours == ours.difference(theirs).copied().collect()
}

proptest! {
    #[test]
    fn the_difference_of_any_two_sets_is_found(
        theirs in prop::collection::btree_set(0_u64..400, 0..300),
        ours in prop::collection::btree_set(0_u64..400, 0..300),
        salt: u64,
    ) {
        let [theirs, ours] = [theirs, ours].map(set);
        let (difference, _) = reconcile(salt, &theirs, &ours);
        prop_assert!(holds(difference, &theirs, &ours));
    }

    #[test]
    fn hashes_that_nothing_has_scrambled_do_too(
        theirs in prop::collection::btree_set(1_u64..300, 0..200),
        ours in prop::collection::btree_set(1_u64..300, 0..200),
    ) {
        let plain = |names: BTreeSet<u64>| names.into_iter().filter_map(BlockHash::new).collect();
        let (theirs, ours): (BTreeSet<_>, BTreeSet<_>) = (plain(theirs), plain(ours));
        let (difference, _) = reconcile(1, &theirs, &ours);
        prop_assert!(holds(difference, &theirs, &ours));
    }

    /// Whatever is damaged: no difference is made up.
    #[test]
    fn damaged_symbols_never_lead_to_a_wrong_difference(
        salt: u64,
        common in 0_u64..200,
        differing in 1_u64..40,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let theirs = set(0..common + differing);
        let ours = set(differing..common + differing);
        let mut encoder = Encoder::new(salt, theirs.iter().copied());
        let mut bytes = Vec::new();
        encoder.symbols_to(200).into_iter().for_each(|symbol| symbol.write(&mut bytes));
        let mut damaged = bytes.clone();
        for (at, mask) in damage {
            damaged[at.index(bytes.len())] ^= mask;
        }
        prop_assume!(damaged != bytes);
        let mut decoder = Decoder::new(salt, encoder.len(), ours);
        let outcome = decoder.take(&Symbol::read(&damaged).unwrap());
        prop_assert!(!matches!(outcome, Ok(Progress::Complete(_))), "{:?}", outcome);
    }
}

#[test]
fn a_thousand_differences_take_few_symbols_however_large_the_sets_are() {
    for (common, bound) in [(0, 1_600), (20_000, 1_600)] {
        for salt in 0..8 {
            let theirs = set(0..common + 500);
            let ours = set(500..common + 1_000);
            let (difference, symbols) = reconcile(salt, &theirs, &ours);
            assert!(holds(difference, &theirs, &ours));
            assert!(symbols < bound, "{symbols} of {common}");
        }
    }
}

#[test]
fn one_side_may_have_nothing() {
    let (some, none) = (set(0..3_000), set([]));
    for (theirs, ours) in [(&some, &none), (&none, &some), (&none, &none)] {
        let (difference, symbols) = reconcile(3, theirs, ours);
        assert!(holds(difference, theirs, ours));
        assert!(symbols < 6_000, "{symbols}");
    }
}

#[test]
fn symbols_that_cannot_be_are_refused() {
    assert_eq!(Symbol::read(&[0; 13]), Err(SketchError::Length { bytes: 13 }));
    let mut decoder = Decoder::new(1, 0, []);
    let too_many = vec![Symbol::default(); MOST_SYMBOLS as usize + 1];
    assert_eq!(decoder.take(&too_many), Err(SketchError::TooMany));
    // The first symbol is the sum of all, and says that there is nothing.
    let mut symbols = Encoder::new(1, set(0..9)).symbols_to(20);
    symbols[0] = Symbol::default();
    assert_eq!(Decoder::new(1, 0, []).take(&symbols[..1]), Ok(Progress::Complete(Difference::default())));
    assert!(!matches!(Decoder::new(1, 0, []).take(&symbols), Ok(Progress::Complete(_))));
    // Sides with two salts.
    let mut theirs = Encoder::new(1, set(0..500));
    assert!(!matches!(
        Decoder::new(2, 500, set(0..499)).take(&theirs.symbols_to(400)),
        Ok(Progress::Complete(_))
    ));
}
