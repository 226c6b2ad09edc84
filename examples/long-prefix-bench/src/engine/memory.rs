//! The KV memory of an engine in blocks: what the cache holds, what live requests hold beside it, what is free.

use router_core::BlockRun;
use router_core::key::BlockHash;
use rustc_hash::FxHashSet;

use super::cache::{Change, NodeId, RadixCache};
use crate::sequence::{BLOCK_TOKENS, Sequence};

/// See the module.
#[derive(Debug)]
pub struct Memory {
    cache: RadixCache,
    capacity_blocks: usize,
    /// Held by live requests and not in the cache.
    private_blocks: usize,
    evicted_blocks: u64,
}

/// What one live request holds.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Tokens whose KV exists.
    computed: usize,
    /// Blocks there is memory for.
    allocated: usize,
    /// Blocks of it that stand in the cache, under `last`.
    cached: usize,
    last: Option<NodeId>,
}

impl Hold {
    /// Tokens whose KV exists.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Blocks that so many more tokens begin.
    pub(super) fn begins(&self, tokens: usize) -> usize {
        (self.computed + tokens).div_ceil(BLOCK_TOKENS) - self.allocated
    }
}

impl Memory {
    /// Memory for so many blocks, which says what changes in the cache if `tells`.
    pub fn new(capacity_blocks: usize, tells: bool) -> Self {
        Self { cache: RadixCache::new(tells), capacity_blocks, private_blocks: 0, evicted_blocks: 0 }
    }

    /// Blocks of a sequence's prompt that are cached.
    pub fn cached_of(&self, sequence: &Sequence) -> usize {
        self.cache.peek(sequence, sequence.matchable_blocks())
    }

    /// Blocks in the cache.
    pub fn cached_blocks(&self) -> usize {
        self.cache.evictable_blocks() + self.cache.protected_blocks()
    }

    /// Blocks that live requests hold, in the cache and beside it.
    pub fn held_blocks(&self) -> usize {
        self.cache.protected_blocks() + self.private_blocks
    }

    /// Blocks evicted since the start.
    pub fn evicted_blocks(&self) -> u64 {
        self.evicted_blocks
    }

    /// Changes of the cache since it was last asked.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.cache.take_changes()
    }

    /// All that is cached, parents before children, as an agent tells a router that it meets.
    pub fn stored(&self) -> Vec<BlockRun> {
        self.cache.stored()
    }

    /// Drops everything that is cached; no request may hold anything.
    pub(super) fn clear(&mut self) {
        self.cache.clear();
    }

    /// Adds every cached block to a set.
    pub fn collect(&self, all: &mut FxHashSet<BlockHash>) {
        self.cache.collect(all);
    }

    /// Blocks that can be had, by eviction if need be.
    pub(super) fn available(&self) -> usize {
        self.free() + self.cache.evictable_blocks()
    }

    /// Keeps what is cached of the first blocks of a sequence young.
    pub(super) fn touch(&mut self, sequence: &Sequence, most: usize) {
        self.cache.match_prefix(sequence, most);
    }

    /// Takes hold of what is cached of a sequence, and keeps it from being evicted.
    pub(super) fn hold(&mut self, sequence: &Sequence, most: usize) -> Hold {
        let found = self.cache.match_prefix(sequence, most);
        self.cache.lock(found.last);
        let tokens = found.blocks * BLOCK_TOKENS;
        Hold { computed: tokens, allocated: found.blocks, cached: found.blocks, last: found.last }
    }

    /// Evicts what is missing of so many free blocks, as far as it can be.
    pub(super) fn make_room(&mut self, blocks: usize) {
        let missing = blocks.saturating_sub(self.free());
        if missing > 0 {
            self.evicted_blocks += self.cache.evict(missing) as u64;
        }
    }

    /// Computes more tokens of a request, into free blocks where its last one is full.
    pub(super) fn grow(&mut self, hold: &mut Hold, tokens: usize) {
        let begun = hold.begins(tokens);
        hold.computed += tokens;
        hold.allocated += begun;
        self.private_blocks += begun;
    }

    /// Puts the whole blocks that a request has computed into the cache.
    pub(super) fn store(&mut self, hold: &mut Hold, sequence: &Sequence) {
        let whole = hold.computed / BLOCK_TOKENS;
        let stored = self.cache.insert(sequence, whole);
        // What another request had stored meanwhile is kept once; either way it is the cache's now.
        self.private_blocks -= whole - hold.cached;
        self.cache.lock(stored.last);
        self.cache.unlock(hold.last);
        hold.cached = whole;
        hold.last = stored.last;
    }

    /// Ends a hold; what was computed stays cached, up to its last whole block.
    pub(super) fn release(&mut self, mut hold: Hold, sequence: &Sequence) {
        if hold.computed > 0 {
            self.store(&mut hold, sequence);
        }
        self.give_up(&mut hold);
    }

    /// Ends a hold; what the cache does not have is lost.
    pub(super) fn give_up(&mut self, hold: &mut Hold) {
        self.private_blocks -= hold.allocated - hold.cached;
        self.cache.unlock(hold.last);
        *hold = Hold::default();
    }

    /// Blocks neither cached nor held.
    fn free(&self) -> usize {
        self.capacity_blocks.saturating_sub(self.cached_blocks() + self.private_blocks)
    }
}
