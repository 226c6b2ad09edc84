//! Sets of slots, small when there are few.

use std::fmt;
use std::sync::Arc;

use crate::fleet::Slot;

const WORD_BITS: usize = u64::BITS as usize;

/// A set of slots. Clones share their words until one of them changes.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) enum SlotSet {
    #[default]
    Empty,
    One(Slot),
    /// A bitmap whose last word is not zero; at least two bits are set.
    Many(Arc<[u64]>),
}

impl SlotSet {
    pub(crate) fn contains(&self, slot: Slot) -> bool {
        match self {
            Self::Empty => false,
            Self::One(one) => *one == slot,
            Self::Many(words) => {
                let (word, bit) = position(slot);
                words.get(word).is_some_and(|w| w & bit != 0)
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub(crate) fn insert(&mut self, slot: Slot) {
        let (word, bit) = position(slot);
        match self {
            Self::Empty => *self = Self::One(slot),
            Self::One(one) if *one == slot => {}
            Self::One(one) => {
                let (other_word, other_bit) = position(*one);
                let mut words = vec![0; word.max(other_word) + 1];
                words[word] |= bit;
                words[other_word] |= other_bit;
                *self = Self::Many(words.into());
            }
            Self::Many(words) if word < words.len() => {
                if words[word] & bit == 0 {
                    Arc::make_mut(words)[word] |= bit;
                }
            }
            Self::Many(words) => {
                let mut longer = words.to_vec();
                longer.resize(word + 1, 0);
                longer[word] |= bit;
                *words = longer.into();
            }
        }
    }

    pub(crate) fn remove(&mut self, slot: Slot) {
        if !self.contains(slot) {
            return;
        }
        let Self::Many(words) = self else {
            *self = Self::Empty;
            return;
        };
        let (word, bit) = position(slot);
        Arc::make_mut(words)[word] &= !bit;
        let left: [Option<Slot>; 2] = {
            let mut rest = self.iter();
            [rest.next(), rest.next()]
        };
        match left {
            [Some(one), None] => *self = Self::One(one),
            _ => self.trim(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        let (one, words) = match self {
            Self::Empty => (None, &[][..]),
            Self::One(slot) => (Some(*slot), &[][..]),
            Self::Many(words) => (None, &words[..]),
        };
        one.into_iter().chain(words.iter().enumerate().flat_map(|(index, &word)| bits(index, word)))
    }

    /// The set as words of a bitmap.
    pub(super) fn for_each_word(&self, mut each: impl FnMut(usize, u64)) {
        match self {
            Self::Empty => {}
            Self::One(slot) => {
                let (word, bit) = position(*slot);
                each(word, bit);
            }
            Self::Many(words) => words.iter().enumerate().for_each(|(index, &word)| each(index, word)),
        }
    }

    fn trim(&mut self) {
        if let Self::Many(words) = self {
            let used = words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
            if used < words.len() {
                *words = words[..used].into();
            }
        }
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|slot| slot.0)).finish()
    }
}

/// The slots whose bits are set in word number `index`.
pub(super) fn bits(index: usize, word: u64) -> impl Iterator<Item = Slot> {
    let mut left = word;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let bit = left.trailing_zeros() as usize;
        left &= left - 1;
        // A bitmap is made of positions of slots, which are 16 bits wide.
        Some(Slot((index * WORD_BITS + bit) as u16))
    })
}

fn position(slot: Slot) -> (usize, u64) {
    let index = usize::from(slot.0);
    (index / WORD_BITS, 1 << (index % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(operations in prop::collection::vec((any::<bool>(), 0_u16..200), 0..200)) {
            let (mut set, mut model) = (SlotSet::default(), BTreeSet::new());
            for (insert, slot) in operations {
                let before = set.clone();
                let before_model = model.clone();
                if insert {
                    set.insert(Slot(slot));
                    model.insert(slot);
                } else {
                    set.remove(Slot(slot));
                    model.remove(&slot);
                }
                prop_assert_eq!(set.iter().map(|s| s.0).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(before.iter().map(|s| s.0).collect::<BTreeSet<_>>(), before_model);
                prop_assert_eq!(set.is_empty(), model.is_empty());
                // Small sets are kept small, so that equal sets are equal values.
                prop_assert_eq!(matches!(set, SlotSet::Many(_)), model.len() > 1);
            }
        }
    }
}
