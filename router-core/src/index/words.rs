//! Memory that one writer fills and any number of readers see: words in slabs.
//!
//! Every word is an atomic that is read and written without ordering of its own. What orders them is the publication of the
//! snapshot that leads to them: the writer fills words before it publishes, and does not touch a word again while a snapshot
//! that can see it lives ([`epochs`](super::epochs)). Should that ever fail, a reader sees a wrong number, not a wild pointer.

use std::fmt;
use std::sync::Arc;

use crate::sync::{AtomicU64, Relaxed};

/// Words in a line: a line is 64 bytes, as a cache line is.
pub(super) const LINE_WORDS: usize = 8;

/// Words in a segment: what the arena hands out.
pub(super) const SEGMENT_WORDS: usize = 1 << SEGMENT_BITS;

/// Small in unit tests, so that they reach borders and cleaning.
const SEGMENT_BITS: u32 = if cfg!(test) { 8 } else { 14 };

/// Words in a slab: what is allocated at once, half a megabyte. More would be memory that a small index does not use; less, a
/// longer list.
const SLAB_WORDS: usize = 1 << SLAB_BITS;

const SLAB_BITS: u32 = SEGMENT_BITS + 2;

/// Place of a word.
pub(super) type Address = u32;

/// Eight words that share a cache line.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Line([AtomicU64; LINE_WORDS]);

/// All slabs. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Words(Arc<[Arc<[Line]>]>);

impl Line {
    #[inline]
    pub(super) fn get(&self, at: usize) -> u64 {
        self.0[at].load(Relaxed)
    }

    #[inline]
    pub(super) fn load(&self) -> [u64; LINE_WORDS] {
        std::array::from_fn(|at| self.get(at))
    }

    #[inline]
    pub(super) fn store(&self, words: [u64; LINE_WORDS]) {
        self.0.iter().zip(words).for_each(|(own, word)| own.store(word, Relaxed));
    }
}

impl Words {
    /// The segment of a word.
    pub(super) fn segment_of(address: Address) -> usize {
        (address >> SEGMENT_BITS) as usize
    }

    /// The first word of a segment.
    pub(super) fn start_of(segment: usize) -> Address {
        Address::try_from(segment << SEGMENT_BITS).expect("blocks are bounded far below 2^32 words")
    }

    /// Segments of all slabs.
    pub(super) fn segments(&self) -> usize {
        self.0.len() * (SLAB_WORDS / SEGMENT_WORDS)
    }

    /// The same slabs and one more, of zeros.
    pub(super) fn with_new_slab(&self) -> Self {
        let fresh = (0..SLAB_WORDS / LINE_WORDS).map(|_| Line::default()).collect();
        Self(self.0.iter().cloned().chain([fresh]).collect())
    }

    #[inline]
    pub(super) fn get(&self, address: Address) -> u64 {
        self.line(address).get(address as usize % LINE_WORDS)
    }

    #[inline]
    pub(super) fn set(&self, address: Address, word: u64) {
        self.line(address).0[address as usize % LINE_WORDS].store(word, Relaxed);
    }

    /// The line that a word stands in.
    #[inline]
    pub(super) fn line(&self, address: Address) -> &Line {
        &self.0[(address >> SLAB_BITS) as usize][address as usize % SLAB_WORDS / LINE_WORDS]
    }

    /// Leading values whose numbers (`number`) are the words from `address` on, as far as these are in one segment.
    #[inline]
    pub(super) fn count_equal<T: Copy>(
        &self,
        address: Address,
        values: &[T],
        number: impl Fn(T) -> u64,
    ) -> usize {
        let mut first = address as usize % LINE_WORDS;
        let mut equal = 0;
        for line in self.lines(address) {
            for word in &line.0[first..] {
                match values.get(equal) {
                    Some(&value) if number(value) == word.load(Relaxed) => equal += 1,
                    _ => return equal,
                }
            }
            first = 0;
        }
        equal
    }

    /// The line that a word stands in, and those after it in the same slab.
    #[inline]
    pub(super) fn lines(&self, address: Address) -> &[Line] {
        &self.0[(address >> SLAB_BITS) as usize][address as usize % SLAB_WORDS / LINE_WORDS..]
    }

    /// Writes words from `address` on, which are in one segment.
    #[inline]
    pub(super) fn fill(&self, address: Address, words: impl Iterator<Item = u64>) {
        let lines = self.lines(address);
        for (place, word) in (address as usize % LINE_WORDS..).zip(words) {
            lines[place / LINE_WORDS].0[place % LINE_WORDS].store(word, Relaxed);
        }
    }

    /// So many words from `address` on, which are in one segment.
    #[inline]
    pub(super) fn range(&self, address: Address, words: u32) -> impl Iterator<Item = u64> {
        let (lines, first) = (self.lines(address), address as usize % LINE_WORDS);
        (first..first + words as usize).map(|place| lines[place / LINE_WORDS].get(place % LINE_WORDS))
    }

    /// Copies `words` words.
    pub(super) fn copy(&self, from: Address, to: Address, words: u32) {
        self.fill(to, self.range(from, words));
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words").field("segments", &self.segments()).finish_non_exhaustive()
    }
}
