//! The symbols of a set, in order.

use super::mapping::Mapping;
use super::symbol::Symbol;
use crate::key::BlockHash;

/// Makes the symbols of a set, as many as are wanted.
///
/// It holds 12 bytes for each hash. The first symbols are the most work, since each hash is part of about `2 ln m` of the first `m`.
#[derive(Clone, Debug)]
pub struct Encoder {
    salt: u64,
    hashes: Vec<u64>,
    /// For each hash the next symbol that it is part of.
    next: Vec<u32>,
    made: u32,
}

/// Hashes that take their steps together.
const GROUP: usize = 256;

impl Encoder {
    /// Of a set, each hash once.
    pub fn new(salt: u64, set: impl IntoIterator<Item = BlockHash>) -> Self {
        let hashes: Vec<u64> = set.into_iter().map(BlockHash::get).collect();
        let next = vec![0; hashes.len()];
        Self { salt, hashes, next, made: 0 }
    }

    /// Hashes in the set.
    pub fn len(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// The set is empty.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Symbols made so far.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// The symbols from the first one that was not made yet to before `end`.
    pub fn symbols_to(&mut self, end: u32) -> Vec<Symbol> {
        let mut symbols = vec![Symbol::default(); end.saturating_sub(self.made) as usize];
        self.add_to(&mut symbols);
        symbols
    }

    /// Adds the set to what comes next of the symbols.
    ///
    /// A group of hashes takes one step each, and those that are not through another one: steps of different hashes overlap in the
    /// processor, those of one cannot, and no branch has to be guessed.
    fn add_to(&mut self, symbols: &mut [Symbol]) {
        let begin = self.made;
        let end = begin + symbols.len() as u32;
        let mut open = [0_u16; GROUP];
        let mut mappings = [Mapping::default(); GROUP];
        for (hashes, next) in self.hashes.chunks(GROUP).zip(self.next.chunks_mut(GROUP)) {
            let mut count = 0;
            for (at, (hash, next)) in hashes.iter().zip(next.iter()).enumerate() {
                mappings[at] = Mapping::new(self.salt, *hash);
                open[count] = at as u16;
                count += usize::from(*next < end);
            }
            while count > 0 {
                let mut kept = 0;
                for place in 0..count {
                    let at = usize::from(open[place]);
                    let index = next[at];
                    symbols[(index - begin) as usize].add(hashes[at], mappings[at]);
                    next[at] = mappings[at].after(index);
                    open[kept] = at as u16;
                    kept += usize::from(next[at] < end);
                }
                count = kept;
            }
        }
        self.made = end;
    }

    /// Hashes that are found out one after the other: what comes later is made with them.
    pub(super) fn include(&mut self, hash: u64, next: u32) {
        self.hashes.push(hash);
        self.next.push(next);
    }

    pub(super) fn into_hashes(self) -> Vec<BlockHash> {
        self.hashes.into_iter().filter_map(BlockHash::new).collect()
    }
}
