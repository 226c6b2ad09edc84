//! The KV memory of one rank, in whole pages: what the cache holds, what live requests hold beside it, what is free.

use crate::events::CacheEvent;
use crate::radix::{Eviction, HostTier, Match, Namespace, NodeId, RadixCache, Storing};

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    cache: RadixCache,
    eviction: Eviction,
    page_size: usize,
    capacity: usize,
    /// Held by live requests and not in the cache.
    private: usize,
    evicted: u64,
    /// Tokens that came from the host since they were last asked for.
    loaded: usize,
}

/// Whose KV it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Owner {
    pub(super) namespace: Namespace,
    /// Tokens of its prompt; what follows it produced.
    pub(super) prompt_len: usize,
    pub(super) priority: i64,
}

/// What one live request holds.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Tokens whose KV exists.
    computed: usize,
    /// Tokens there is memory for.
    allocated: usize,
    /// Tokens of it that stand in the cache, under `last`.
    cached: usize,
    last: Option<NodeId>,
    /// Tokens that follow in the cache, on the host alone.
    on_host: usize,
    /// Tokens that came from there.
    loaded: usize,
    /// Tokens that the request has stored itself.
    stored: usize,
}

impl Hold {
    /// Tokens whose KV exists.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Tokens of it that were on the host alone when it was taken.
    pub(super) fn loaded(&self) -> usize {
        self.loaded
    }

    /// The next token needs a page of its own.
    pub(super) fn is_full(&self) -> bool {
        self.computed == self.allocated
    }
}

impl Memory {
    pub(super) fn new(page_size: usize, capacity: usize, eviction: Eviction, host: Option<HostTier>) -> Self {
        Self {
            cache: RadixCache::new(page_size, eviction, host),
            eviction,
            page_size,
            capacity,
            private: 0,
            evicted: 0,
            loaded: 0,
        }
    }

    /// Tokens rounded up to whole pages.
    pub(super) fn whole_pages(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(self.page_size)
    }

    /// Tokens rounded down to whole pages.
    fn cut(&self, tokens: usize) -> usize {
        tokens / self.page_size * self.page_size
    }

    /// Tokens that can be had, by eviction if need be.
    pub(super) fn available(&self) -> usize {
        self.free() + self.cache.evictable_tokens()
    }

    /// Tokens in the cache, on the device.
    pub(super) fn cached(&self) -> usize {
        self.cache.evictable_tokens() + self.cache.protected_tokens()
    }

    /// Tokens in the cache that no live request holds.
    pub(super) fn evictable(&self) -> usize {
        self.cache.evictable_tokens()
    }

    /// Tokens that live requests hold, in the cache and beside it.
    pub(super) fn held(&self) -> usize {
        self.cache.protected_tokens() + self.private
    }

    /// Tokens on the host.
    pub(super) fn on_host(&self) -> usize {
        self.cache.host_tokens()
    }

    /// Tokens evicted from the device since the start.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn take_events(&mut self) -> Vec<CacheEvent> {
        self.cache.take_events()
    }

    pub(super) fn paths(&self) -> Vec<(Namespace, Vec<u32>)> {
        self.cache.paths()
    }

    /// Empties the cache; nothing may be held.
    pub(super) fn clear(&mut self) {
        self.cache.clear();
    }

    /// Keeps what is cached of a sequence young.
    pub(super) fn touch(&mut self, namespace: &Namespace, tokens: &[u32]) {
        self.cache.match_prefix(namespace, tokens);
    }

    /// Takes hold of what is cached of a sequence, and keeps it from being evicted.
    pub(super) fn hold(&mut self, namespace: &Namespace, tokens: &[u32]) -> Hold {
        let Match { tokens, host_tokens: on_host, last } = self.cache.match_prefix(namespace, tokens);
        self.cache.lock(last);
        Hold { computed: tokens, allocated: tokens, cached: tokens, last, on_host, ..Hold::default() }
    }

    /// Brings what a hold has on the host alone to the device, if there is room for it, and lets go of it otherwise.
    pub(super) fn load_back(&mut self, hold: &mut Hold) {
        if hold.on_host == 0 {
            return;
        }
        let has_room = hold.on_host <= self.available();
        let mut loaded = 0;
        if has_room {
            self.make_room(hold.on_host);
            loaded = self.cache.load_back(hold.last);
        }
        if loaded == 0 {
            let end = self.cache.on_device(hold.last);
            self.cache.lock(end);
            self.cache.unlock(std::mem::replace(&mut hold.last, end));
        }
        hold.on_host = 0;
        hold.loaded = loaded;
        for tokens in [&mut hold.computed, &mut hold.allocated, &mut hold.cached, &mut self.loaded] {
            *tokens += loaded;
        }
    }

    /// Tokens that came from the host since this was last asked.
    pub(super) fn take_loaded(&mut self) -> usize {
        std::mem::take(&mut self.loaded)
    }

    /// What was being copied to the host is there.
    pub(super) fn acknowledge_copies(&mut self) {
        self.cache.acknowledge();
    }

    /// Evicts what is missing of so many free tokens, as far as it can be.
    pub(super) fn make_room(&mut self, tokens: usize) {
        let missing = tokens.saturating_sub(self.free());
        if missing > 0 {
            self.evicted += self.cache.evict(missing) as u64;
        }
    }

    /// Computes more tokens of a request, into free pages where its last one is full.
    pub(super) fn grow(&mut self, hold: &mut Hold, tokens: usize) {
        hold.computed += tokens;
        let allocated = self.whole_pages(hold.computed);
        self.private += allocated - hold.allocated;
        hold.allocated = allocated;
        debug_assert!(self.cached() + self.private <= self.capacity, "there was room for it");
    }

    /// The cache has the whole pages among so many tokens of a request.
    pub(super) fn has_stored(&self, hold: &Hold, computed: usize) -> bool {
        self.cut(computed) <= hold.cached
    }

    /// Puts the whole pages that a request has computed into the cache, if it does not have them.
    pub(super) fn store_new(&mut self, hold: &mut Hold, owner: &Owner, tokens: &[u32]) {
        if !self.has_stored(hold, hold.computed) {
            self.store(hold, owner, tokens, hold.computed);
        }
    }

    /// Puts the whole pages among the first `computed` tokens of a request into the cache, and makes them its youngest.
    pub(super) fn store(&mut self, hold: &mut Hold, owner: &Owner, tokens: &[u32], computed: usize) {
        let whole = self.cut(computed);
        let stored = self.insert(owner, &tokens[..whole], hold.stored);
        hold.stored = hold.stored.max(whole);
        // What another request had stored meanwhile is kept once; either way it is the cache's now.
        self.private -= whole - hold.cached;
        self.cache.lock(stored.last);
        self.cache.unlock(hold.last);
        hold.cached = whole;
        hold.last = stored.last;
    }

    /// Stores whole pages of a request that had stored `counted` of these tokens before.
    fn insert(&mut self, owner: &Owner, tokens: &[u32], counted: usize) -> Match {
        let storing = Storing { priority: owner.priority, counted };
        let stored = self.cache.insert(&owner.namespace, tokens, storing);
        let prompt = self.cut(owner.prompt_len);
        if self.eviction == Eviction::Priority && (1..tokens.len()).contains(&prompt) {
            // A prompt outlives what was produced after it. Other policies need not be told: its end was stored before.
            let storing = Storing { priority: owner.priority.saturating_add(1), counted: prompt };
            self.cache.insert(&owner.namespace, &tokens[..prompt], storing);
        }
        stored
    }

    /// Ends a hold; what was computed stays cached, up to its last whole page.
    pub(super) fn release(&mut self, mut hold: Hold, owner: &Owner, tokens: &[u32]) {
        if hold.computed > 0 {
            let computed = hold.computed;
            self.store(&mut hold, owner, tokens, computed);
        }
        self.give_up(&mut hold);
    }

    /// Ends a hold; what the cache does not have is lost.
    pub(super) fn give_up(&mut self, hold: &mut Hold) {
        self.private -= hold.allocated - hold.cached;
        self.cache.unlock(hold.last);
        *hold = Hold::default();
    }

    /// Tokens neither cached nor held.
    fn free(&self) -> usize {
        self.capacity.saturating_sub(self.cached() + self.private)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::radix::WritePolicy;

    fn prompt(first: u32, len: u32) -> Vec<u32> {
        (0..len).map(|i| first * 1_000 + i).collect()
    }

    #[test]
    fn memory_is_handed_out_by_the_page() {
        let (mut memory, owner) = (Memory::new(16, 64, Eviction::Lru, None), Owner::default());
        let tokens = prompt(1, 40);
        let mut hold = memory.hold(&owner.namespace, &tokens);
        memory.grow(&mut hold, 33);
        assert_eq!((memory.held(), memory.available(), hold.is_full()), (48, 16, false));
        memory.grow(&mut hold, 7);
        assert_eq!(memory.held(), 48, "the page had room");
        memory.store(&mut hold, &owner, &tokens, 40);
        assert_eq!((memory.cached(), memory.held(), memory.evictable()), (32, 48, 0));
        memory.release(hold, &owner, &tokens);
        assert_eq!((memory.cached(), memory.held(), memory.evictable()), (32, 0, 32));
    }

    #[test]
    fn what_is_missing_is_evicted_and_no_more_than_a_leaf_beyond() {
        let (mut memory, owner) = (Memory::new(16, 64, Eviction::Lru, None), Owner::default());
        for first in [1, 2] {
            let tokens = prompt(first, 32);
            let mut hold = memory.hold(&owner.namespace, &tokens);
            memory.grow(&mut hold, 32);
            memory.release(hold, &owner, &tokens);
        }
        memory.make_room(0);
        assert_eq!(memory.evicted(), 0);
        memory.make_room(1);
        assert_eq!((memory.evicted(), memory.cached()), (32, 32), "the older leaf, whole");
        let mut held = memory.hold(&owner.namespace, &prompt(2, 32));
        memory.make_room(64);
        assert_eq!(memory.evicted(), 32, "what is held stays");
        memory.give_up(&mut held);
        assert_eq!((memory.held(), memory.evictable()), (0, 32));
    }

    #[test]
    fn what_the_host_has_comes_back_where_there_is_room_for_it() {
        let host = HostTier { capacity_tokens: 128, write_policy: WritePolicy::WriteThrough };
        let (mut memory, owner) = (Memory::new(16, 64, Eviction::Lru, Some(host)), Owner::default());
        for first in [1, 2] {
            let tokens = prompt(first, 32);
            let mut hold = memory.hold(&owner.namespace, &tokens);
            memory.grow(&mut hold, 32);
            memory.release(hold, &owner, &tokens);
        }
        memory.make_room(64);
        assert_eq!(
            (memory.cached(), memory.on_host()),
            (64, 64),
            "copies keep it until they are acknowledged"
        );
        memory.acknowledge_copies();
        memory.make_room(64);
        assert_eq!((memory.cached(), memory.on_host(), memory.evicted()), (0, 64, 64));
        let mut first = memory.hold(&owner.namespace, &prompt(1, 48));
        memory.load_back(&mut first);
        assert_eq!((first.computed(), first.loaded(), memory.held()), (32, 32, 32));
        let mut third = Hold::default();
        memory.grow(&mut third, 16);
        let mut second = memory.hold(&owner.namespace, &prompt(2, 32));
        memory.load_back(&mut second);
        assert_eq!((second.computed(), memory.held(), memory.take_loaded()), (0, 48, 32));
        for hold in [&mut first, &mut second, &mut third] {
            memory.give_up(hold);
        }
        assert_eq!((memory.held(), memory.evictable(), memory.on_host()), (0, 32, 64));
    }

    /// What was produced after the prompt with priority 1 goes before the prompt with priority 0.
    #[test]
    fn a_prompt_has_a_higher_priority_than_what_was_produced_after_it() {
        let mut memory = Memory::new(16, 128, Eviction::Priority, None);
        for (first, priority) in [(1, 1), (2, 0)] {
            let tokens = prompt(first, 48);
            let owner = Owner { prompt_len: 32, priority, ..Owner::default() };
            let mut hold = memory.hold(&owner.namespace, &tokens);
            memory.grow(&mut hold, 48);
            memory.release(hold, &owner, &tokens);
        }
        let mut left = Vec::new();
        for _ in 0..4 {
            memory.cache.evict(1);
            let mut paths: Vec<_> =
                memory.paths().into_iter().map(|(_, path)| (path[0] / 1_000, path.len())).collect();
            paths.sort_unstable();
            left.push(paths);
        }
        assert_eq!(left, [vec![(1, 48), (2, 32)], vec![(1, 32), (2, 32)], vec![(1, 32)], vec![]]);
    }
}
