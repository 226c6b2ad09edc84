//! Finds blocks by their hash alone, for those who name them so.

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;

use hashbrown::HashTable;

use super::words::{Address, Words};
use crate::key::BlockHash;

/// Where the hash of every block stands in the log, and which run it belongs to.
#[derive(Debug)]
pub(super) struct Locator {
    /// The hash itself stands at the address.
    blocks: HashTable<Address>,
    secret: Secret,
    /// Where runs begin, for each segment of the log, in order.
    starts: Vec<Vec<Start>>,
}

/// Spreads hashes over the table. Whoever reports hashes does not know it, and cannot crowd them.
#[derive(Clone, Copy, Debug)]
struct Secret([u64; 2]);

/// Places of one hash that are kept. More than one there is only if somebody reports hashes that he did not derive, and then
/// nobody shall have to look through them all.
const MOST_PLACES: usize = 8;

/// A run, and where its hashes begin.
#[derive(Clone, Copy, Debug)]
struct Start {
    at: Address,
    run: u32,
}

impl Locator {
    /// The run of a block and the block's place in it. Should it stand in several, which only happens when somebody reports
    /// hashes that he did not derive, one that is `preferred`.
    pub(super) fn find(
        &self,
        words: &Words,
        hash: BlockHash,
        preferred: impl Fn(u32) -> bool,
    ) -> Option<(u32, u32)> {
        let mut any = None;
        let places = self.blocks.iter_hash(self.secret.spread(hash.get()));
        for address in places.filter(|address| words.get(**address) == hash.get()) {
            let starts = &self.starts[Words::segment_of(*address)];
            let before = starts.partition_point(|start| start.at <= *address) - 1;
            any = Some((starts[before].run, address - starts[before].at));
            if preferred(starts[before].run) {
                break;
            }
        }
        any
    }

    /// A run stands at `start`, with so many blocks of which the first `known` stood there before.
    pub(super) fn insert(&mut self, words: &Words, run: u32, start: Address, known: u32, len: u32) {
        self.begin(start, run);
        for address in start + known..start + len {
            let spread = self.secret.spread(words.get(address));
            if self.blocks.iter_hash(spread).count() < MOST_PLACES {
                let spread_at = |address: &Address| self.secret.spread(words.get(*address));
                self.blocks.insert_unique(spread, address, spread_at);
            }
        }
    }

    /// A run that stood at `start` is now another one, and what followed its first `at` blocks is `lower`.
    pub(super) fn split(&mut self, start: Address, upper: u32, at: u32, lower: u32) {
        self.begin(start, upper);
        self.begin(start + at, lower);
    }

    /// A run goes on where another one, at `start`, begins: it is all `run` now, which begins at `upper`.
    pub(super) fn join(&mut self, upper: Address, start: Address, run: u32) {
        self.end(start);
        self.begin(upper, run);
    }

    /// A run and its blocks are no longer there.
    pub(super) fn remove(&mut self, words: &Words, start: Address, len: u32) {
        self.end(start);
        self.remove_blocks(words, start, len);
    }

    /// Blocks of a run are no longer there.
    pub(super) fn remove_blocks(&mut self, words: &Words, start: Address, len: u32) {
        // Each is a cache miss or two. Looked for first, they overlap; taken out, each would wait for the one before.
        let spread_at = |address: Address| self.secret.spread(words.get(address));
        let found =
            |address: &Address| self.blocks.find(spread_at(*address), |other| other == address).is_some();
        black_box((start..start + len).filter(found).count());
        for address in start..start + len {
            let spread = self.secret.spread(words.get(address));
            if let Ok(entry) = self.blocks.find_entry(spread, |other| *other == address) {
                entry.remove();
            }
        }
    }

    fn begin(&mut self, at: Address, run: u32) {
        let segment = Words::segment_of(at);
        if segment >= self.starts.len() {
            self.starts.resize_with(segment + 1, Vec::new);
        }
        let starts = &mut self.starts[segment];
        // The log grows at its end, and so does this, mostly.
        match starts.binary_search_by_key(&at, |start| start.at) {
            Ok(place) => starts[place].run = run,
            Err(place) => starts.insert(place, Start { at, run }),
        }
    }

    fn end(&mut self, at: Address) {
        if let Some(starts) = self.starts.get_mut(Words::segment_of(at))
            && let Ok(place) = starts.binary_search_by_key(&at, |start| start.at)
        {
            starts.remove(place);
        }
    }
}

impl Default for Locator {
    fn default() -> Self {
        let random = RandomState::new();
        let secret = Secret([0, 1].map(|word| random.hash_one(word)));
        Self { blocks: HashTable::new(), secret, starts: Vec::new() }
    }
}

impl Secret {
    /// A folded product, as in wyhash.
    #[inline]
    fn spread(self, hash: u64) -> u64 {
        let product = u128::from(hash ^ self.0[0]) * u128::from(self.0[1]);
        product as u64 ^ (product >> 64) as u64
    }
}
