//! What the index knows of one run, in one line.
//!
//! ```text
//! word 0  hash of the first block
//! word 1  hash of the last block
//! word 2  number of blocks, and where their hashes stand
//! word 3  form of the holders: how many, or from which on, or where
//! 4 to 7  up to 16 slots, or a bitmap of 256
//! ```

use super::words::{Address, LINE_WORDS, Line, Words};
use crate::fleet::Slot;
use crate::key::BlockHash;

/// One run, as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) head: u64,
    pub(super) last: u64,
    pub(super) len: u32,
    /// Where the hashes of all its blocks stand.
    pub(super) hashes: Address,
    pub(super) holders: Holders,
}

/// Who holds a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holders {
    /// So many slots, in no order.
    Few { count: u8, packed: [u64; 4] },
    /// A bitmap of the 256 slots from 64 times `first_word` on.
    Near { first_word: u16, bits: [u64; 4] },
    /// A bitmap of all slots, elsewhere.
    Far { words: u16, bitmap: Address },
}

/// Slots that fit into a record.
pub(super) const FEW: usize = 16;

/// Words of a bitmap in a record.
const NEAR_WORDS: usize = 4;

impl Record {
    /// Reads a record.
    #[inline]
    pub(super) fn of(line: &Line) -> Self {
        Self::from_words(line.load())
    }

    #[inline]
    fn from_words(words: [u64; LINE_WORDS]) -> Self {
        let [head, last, place, form, rest @ ..] = words;
        let number = (form >> 16) as u16;
        let holders = match form as u8 {
            0 => Holders::Few { count: number as u8, packed: rest },
            1 => Holders::Near { first_word: number, bits: rest },
            _ => Holders::Far { words: number, bitmap: (form >> 32) as Address },
        };
        Self { head, last, len: place as u32, hashes: (place >> 32) as Address, holders }
    }

    pub(super) fn to_words(self) -> [u64; LINE_WORDS] {
        let (form, rest) = match self.holders {
            Holders::Few { count, packed } => (u64::from(count) << 16, packed),
            Holders::Near { first_word, bits } => (1 | u64::from(first_word) << 16, bits),
            Holders::Far { words, bitmap } => (2 | u64::from(words) << 16 | u64::from(bitmap) << 32, [0; 4]),
        };
        let place = u64::from(self.len) | u64::from(self.hashes) << 32;
        let [a, b, c, d] = rest;
        [self.head, self.last, place, form, a, b, c, d]
    }

    /// The hash of block `at`.
    pub(super) fn hash(&self, words: &Words, at: u32) -> BlockHash {
        hash_of(words.get(self.hashes + at))
    }

    /// The hashes of all its blocks.
    #[inline]
    pub(super) fn all_hashes(self, words: &Words) -> impl Iterator<Item = BlockHash> {
        words.range(self.hashes, self.len).map(hash_of)
    }

    /// Leading blocks in common with `key`, whose first one is equal.
    ///
    /// A chained hash commits to all before it, so the last one decides; where it differs, equality is monotone and is
    /// bisected.
    #[inline]
    pub(super) fn common(&self, words: &Words, key: &[BlockHash]) -> u32 {
        let len = self.len as usize;
        if key.len() >= len && key[len - 1].get() == self.last {
            return self.len;
        }
        let mut equal = 1;
        let mut unequal = len.min(key.len() + 1);
        while equal + 1 < unequal {
            let middle = usize::midpoint(equal, unequal);
            if words.get(self.hashes + middle as u32 - 1) == key[middle - 1].get() {
                equal = middle;
            } else {
                unequal = middle;
            }
        }
        equal as u32
    }
}

impl Record {
    /// The same, hash by hash: where somebody may have reported hashes that commit to nothing.
    pub(super) fn common_exactly(&self, words: &Words, key: &[BlockHash]) -> u32 {
        words.count_equal(self.hashes, &key[..key.len().min(self.len as usize)], BlockHash::get) as u32
    }
}

impl Holders {
    pub(super) fn one(slot: Slot) -> Self {
        Self::few(&[slot])
    }

    fn few(slots: &[Slot]) -> Self {
        let mut packed = [0; 4];
        for (at, slot) in slots.iter().enumerate() {
            packed[at / 4] |= u64::from(slot.0) << (at % 4 * 16);
        }
        Self::Few { count: slots.len() as u8, packed }
    }

    pub(super) fn contains(&self, words: &Words, slot: Slot) -> bool {
        let (word, bit) = (usize::from(slot.0) / 64, 1 << (slot.0 % 64));
        match *self {
            Self::Few { count, packed } => few_of(count, &packed).any(|other| other == slot),
            Self::Near { first_word, bits } => {
                word.checked_sub(first_word.into()).and_then(|at| bits.get(at)).is_some_and(|w| w & bit != 0)
            }
            Self::Far { words: count, bitmap } => {
                word < usize::from(count) && words.get(bitmap + word as u32) & bit != 0
            }
        }
    }

    /// Calls `each` with every word of the set as a bitmap: its number, and its bits.
    #[inline]
    pub(super) fn for_each_word(&self, words: &Words, mut each: impl FnMut(usize, u64)) {
        match *self {
            Self::Few { count, packed } => {
                few_of(count, &packed).for_each(|slot| each(usize::from(slot.0) / 64, 1 << (slot.0 % 64)));
            }
            Self::Near { first_word, bits } => {
                bits.into_iter().enumerate().for_each(|(at, bits)| each(usize::from(first_word) + at, bits));
            }
            Self::Far { words: count, bitmap } => {
                (0..u32::from(count)).for_each(|at| each(at as usize, words.get(bitmap + at)));
            }
        }
    }

    /// All of them, in order.
    pub(super) fn slots(&self, words: &Words) -> Vec<Slot> {
        let mut slots = Vec::new();
        self.for_each_word(words, |number, bits| slots.extend(slots_of(number, bits)));
        slots.sort_unstable();
        slots
    }

    /// The same set with a slot that is not in it.
    pub(super) fn with(&self, words: &Words, slot: Slot) -> Changed {
        match *self {
            Self::Few { count, mut packed } if usize::from(count) < FEW => {
                let at = usize::from(count);
                packed[at / 4] |= u64::from(slot.0) << (at % 4 * 16);
                Changed::Here(Self::Few { count: count + 1, packed })
            }
            Self::Near { first_word, mut bits } => {
                let word = usize::from(slot.0) / 64;
                match word.checked_sub(first_word.into()).filter(|at| *at < NEAR_WORDS) {
                    Some(at) => {
                        bits[at] |= 1 << (slot.0 % 64);
                        Changed::Here(Self::Near { first_word, bits })
                    }
                    None => self.rebuilt(words, |slots| slots.push(slot)),
                }
            }
            _ => self.rebuilt(words, |slots| slots.push(slot)),
        }
    }

    /// The same set without a slot that is in it.
    pub(super) fn without(&self, words: &Words, slot: Slot) -> Changed {
        self.rebuilt(words, |slots| slots.retain(|other| *other != slot))
    }

    fn rebuilt(&self, words: &Words, change: impl FnOnce(&mut Vec<Slot>)) -> Changed {
        let mut slots = self.slots(words);
        change(&mut slots);
        slots.sort_unstable();
        Self::of(&slots)
    }

    /// The form for these slots, which are in order.
    fn of(slots: &[Slot]) -> Changed {
        let (Some(first), Some(last)) = (slots.first(), slots.last()) else {
            return Changed::Here(Self::few(&[]));
        };
        if slots.len() <= FEW {
            return Changed::Here(Self::few(slots));
        }
        let (first, last) = (usize::from(first.0) / 64, usize::from(last.0) / 64);
        let mut bits = vec![0; last + 1];
        slots.iter().for_each(|slot| bits[usize::from(slot.0) / 64] |= 1 << (slot.0 % 64));
        if last - first >= NEAR_WORDS {
            return Changed::Elsewhere(bits);
        }
        let mut near = [0; NEAR_WORDS];
        near[..=last - first].copy_from_slice(&bits[first..]);
        Changed::Here(Self::Near { first_word: first as u16, bits: near })
    }
}

fn hash_of(word: u64) -> BlockHash {
    BlockHash::new(word).expect("the log holds hashes, which are not zero")
}

/// What became of a set.
#[derive(Debug)]
pub(super) enum Changed {
    /// It fits into the record.
    Here(Holders),
    /// These words of a bitmap have to be put elsewhere.
    Elsewhere(Vec<u64>),
}

#[inline]
fn few_of(count: u8, packed: &[u64; 4]) -> impl Iterator<Item = Slot> {
    let packed = *packed;
    (0..usize::from(count)).map(move |at| Slot((packed[at / 4 % 4] >> (at % 4 * 16)) as u16))
}

/// The slots whose bits are set in word `number` of a bitmap.
#[inline]
pub(super) fn slots_of(number: usize, bits: u64) -> impl Iterator<Item = Slot> {
    let mut left = bits;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let bit = left.trailing_zeros() as usize;
        left &= left - 1;
        // A bitmap is made of positions of slots, which are 16 bits wide.
        Some(Slot((number * 64 + bit) as u16))
    })
}
