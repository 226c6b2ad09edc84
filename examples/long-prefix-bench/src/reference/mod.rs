//! What a cache could have held: requests replayed in order, without time.
//!
//! One pooled cache for the whole fleet, with an infinite capacity, evicting the least recently used block, or the block whose next use
//! is farthest (Belady 1966; best effort in that requests under way pin nothing). A request finds what is cached, then all its
//! blocks are, prompt and answer, as far as there is room. Leaves go before what is above them.

use std::collections::BinaryHeap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::sequence::{BLOCK_TOKENS, Sequence};

/// The blocks that each request uses, by dense numbers in order of first use.
#[derive(Debug)]
pub struct Accesses {
    blocks: Vec<u32>,
    requests: Vec<Uses>,
    /// Different blocks.
    distinct: usize,
}

/// One request's blocks.
#[derive(Clone, Copy, Debug)]
struct Uses {
    begin: usize,
    end: usize,
    /// Leading blocks that may be found.
    matchable: usize,
    /// Blocks that were numbered before it.
    known: u32,
}

/// No block.
const NONE: u32 = u32::MAX;

impl Accesses {
    /// Numbers the blocks of requests in order.
    pub fn new(requests: &[Arc<Sequence>]) -> Self {
        let mut numbers = FxHashMap::default();
        let mut all = Self { blocks: Vec::new(), requests: Vec::with_capacity(requests.len()), distinct: 0 };
        for sequence in requests {
            let (begin, known) = (all.blocks.len(), numbers.len() as u32);
            for hash in sequence.blocks().take(sequence.cached_blocks()) {
                let next = numbers.len() as u32;
                all.blocks.push(*numbers.entry(hash).or_insert(next));
            }
            let end = all.blocks.len();
            all.requests.push(Uses { begin, end, matchable: sequence.matchable_blocks(), known });
        }
        all.distinct = numbers.len();
        all
    }

    /// Different blocks.
    pub fn distinct(&self) -> usize {
        self.distinct
    }

    /// Tokens of each prompt that an infinite cache holds.
    pub fn infinite(&self) -> Vec<usize> {
        let found = |uses: &Uses| {
            let blocks = &self.blocks[uses.begin..uses.end];
            let leading = blocks.iter().take(uses.matchable).take_while(|block| **block < uses.known);
            leading.count() * BLOCK_TOKENS
        };
        self.requests.iter().map(found).collect()
    }

    /// Prompt tokens that a cache of so many blocks holds which evicts the least recently used.
    pub fn lru(&self, capacity: usize) -> u64 {
        let mut list = Recency::new(self.distinct);
        let mut hits = 0;
        for uses in &self.requests {
            let blocks = &self.blocks[uses.begin..uses.end];
            hits += blocks.iter().take(uses.matchable).take_while(|block| list.contains(**block)).count();
            // What stands above is younger, so that leaves go first.
            blocks.iter().rev().for_each(|block| list.touch(*block));
            list.shrink_to(capacity);
        }
        hits as u64 * BLOCK_TOKENS as u64
    }

    /// Prompt tokens that a cache of so many blocks holds which knows what will be used.
    pub fn belady(&self, capacity: usize) -> u64 {
        let never = self.requests.len() as u32;
        let next = self.next_uses();
        let mut expected = vec![NONE; self.distinct];
        // Blocks by the request that uses them next, deepest first. What was used meanwhile is passed over.
        let mut by_next: Vec<BinaryHeap<(u32, u32)>> = vec![BinaryHeap::new(); never as usize + 1];
        let (mut held, mut farthest, mut hits) = (0, 0, 0);
        for uses in &self.requests {
            let blocks = &self.blocks[uses.begin..uses.end];
            hits += blocks
                .iter()
                .take(uses.matchable)
                .take_while(|block| expected[**block as usize] != NONE)
                .count();
            for (depth, (block, next)) in blocks.iter().zip(&next[uses.begin..uses.end]).enumerate() {
                held += usize::from(expected[*block as usize] == NONE);
                expected[*block as usize] = *next;
                by_next[*next as usize].push((depth as u32, *block));
                farthest = farthest.max(*next as usize);
            }
            while held > capacity {
                match by_next[farthest].pop() {
                    Some((_, block)) if expected[block as usize] == farthest as u32 => {
                        expected[block as usize] = NONE;
                        held -= 1;
                    }
                    Some(_) => {}
                    None => farthest -= 1,
                }
            }
        }
        hits as u64 * BLOCK_TOKENS as u64
    }

    /// The least capacity in blocks with which a pooled LRU cache finds this share of what an infinite one does.
    pub fn lru_capacity_for(&self, share: f64) -> usize {
        let wanted = self.infinite().iter().sum::<usize>() as f64 * share;
        let (mut few, mut enough) = (0, self.distinct);
        // One part in a thousand of what is looked for is exact enough.
        while enough - few > 1 + enough / 1_000 {
            let middle = few.midpoint(enough);
            if self.lru(middle) as f64 >= wanted { enough = middle } else { few = middle }
        }
        enough
    }

    /// For each access, the request that uses the block next; the number of requests if none does.
    fn next_uses(&self) -> Vec<u32> {
        let mut following = vec![self.requests.len() as u32; self.distinct];
        let mut next = vec![0; self.blocks.len()];
        for (number, uses) in self.requests.iter().enumerate().rev() {
            let blocks = &self.blocks[uses.begin..uses.end];
            for (block, next) in blocks.iter().zip(&mut next[uses.begin..uses.end]) {
                *next = std::mem::replace(&mut following[*block as usize], number as u32);
            }
        }
        next
    }
}

/// Blocks from the most to the least recently used, as a list in arrays.
#[derive(Debug)]
struct Recency {
    newer: Vec<u32>,
    older: Vec<u32>,
    held: Vec<bool>,
    newest: u32,
    oldest: u32,
    len: usize,
}

impl Recency {
    fn new(distinct: usize) -> Self {
        let none = || vec![NONE; distinct];
        Self { newer: none(), older: none(), held: vec![false; distinct], newest: NONE, oldest: NONE, len: 0 }
    }

    fn contains(&self, block: u32) -> bool {
        self.held[block as usize]
    }

    fn touch(&mut self, block: u32) {
        if std::mem::replace(&mut self.held[block as usize], true) {
            self.unlink(block);
        } else {
            self.len += 1;
        }
        self.newer[block as usize] = NONE;
        self.older[block as usize] = self.newest;
        match self.newest {
            NONE => self.oldest = block,
            newest => self.newer[newest as usize] = block,
        }
        self.newest = block;
    }

    fn shrink_to(&mut self, capacity: usize) {
        while self.len > capacity {
            let block = self.oldest;
            self.unlink(block);
            self.held[block as usize] = false;
            self.len -= 1;
        }
    }

    fn unlink(&mut self, block: u32) {
        let (newer, older) = (self.newer[block as usize], self.older[block as usize]);
        match newer {
            NONE => self.newest = older,
            newer => self.older[newer as usize] = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sequence::Hasher;

    /// Sequences of whole blocks by their letters, and one token more, which is computed in any case.
    fn requests(prompts: &[&str]) -> Vec<Arc<Sequence>> {
        let sequence = |prompt: &&str| {
            let letters = prompt.bytes().map(u32::from);
            let mut tokens: Vec<u32> = letters.flat_map(|letter| [letter; BLOCK_TOKENS]).collect();
            tokens.push(0);
            Arc::new(Hasher::new().sequence(&tokens, &[0]))
        };
        prompts.iter().map(sequence).collect()
    }

    fn blocks(tokens: u64) -> u64 {
        tokens / BLOCK_TOKENS as u64
    }

    #[test]
    fn hits_are_those_of_the_textbook() {
        // Of the last three, LRU with two blocks has lost each before it comes; knowing the future keeps `a`.
        let all = Accesses::new(&requests(&["a", "b", "c", "a", "b", "c"]));
        assert_eq!(all.infinite().iter().sum::<usize>() / BLOCK_TOKENS, 3);
        assert_eq!((blocks(all.lru(2)), blocks(all.belady(2))), (0, 2));
        assert_eq!((blocks(all.lru(3)), blocks(all.belady(3))), (3, 3));
        assert_eq!(all.lru_capacity_for(0.9), 3);
    }

    #[test]
    fn a_prefix_is_found_as_far_as_it_is_whole() {
        let all = Accesses::new(&requests(&["abcd", "abxy", "abcd"]));
        assert_eq!(all.infinite(), [0, 2 * BLOCK_TOKENS, 4 * BLOCK_TOKENS]);
        // `cd` is older than `ab` and `xy`, and goes leaf first.
        assert_eq!((blocks(all.lru(5)), blocks(all.lru(4)), blocks(all.belady(4))), (5, 4, 6));
    }

    proptest! {
        #[test]
        fn nothing_beats_the_future_and_nothing_beats_infinity(
            prompts in proptest::collection::vec("[ab]{1,5}", 1..60), capacity in 1..40_usize
        ) {
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            let all = Accesses::new(&requests(&prompts));
            let infinite = all.infinite().iter().sum::<usize>() as u64;
            prop_assert!(all.lru(capacity) <= all.belady(capacity));
            prop_assert!(all.belady(capacity) <= infinite);
            prop_assert!(all.lru(capacity) <= all.lru(capacity + 1));
            prop_assert_eq!(all.lru(all.distinct()), infinite);
            prop_assert_eq!(all.belady(all.distinct()), infinite);
        }
    }
}
