//! How much an engine evicts for what it stores, and how much of what it is about to evict is asked for again.
//!
//! What has not been used for half as long as the least recently used leaf is the *tail*. A token leaves it in one of two ways: a
//! request finds it there, or it is evicted. The proportion of the two says what it costs others when something is stored that
//! nobody needed: whether the room is full of what will be missed, or of what nobody asks for again.

/// What was stored, evicted and found in the tail, lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pressure {
    stored: u64,
    evicted: u64,
    tail: Tail,
}

/// How tokens left the tail.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    reused: u64,
    evicted: u64,
}

/// Stored tokens after which older history counts half.
const PRESSURE_WINDOW_TOKENS: u64 = 1 << 18;

/// Tokens that have left the tail after which older history counts half: some turns of a cache, since few leave it by being used.
const TAIL_WINDOW_TOKENS: u64 = 1 << 20;

impl Pressure {
    pub(super) fn stored(&mut self, tokens: u64) {
        self.stored = self.stored.saturating_add(tokens);
        if self.stored > PRESSURE_WINDOW_TOKENS {
            self.stored /= 2;
            self.evicted /= 2;
        }
    }

    pub(super) fn evicted(&mut self, tokens: u64) {
        self.evicted = self.evicted.saturating_add(tokens);
        self.tail.leaves(0, tokens);
    }

    /// A request has found so many tokens in the tail.
    pub(super) fn reused(&mut self, tokens: u64) {
        self.tail.leaves(tokens, 0);
    }

    /// The cache is empty: what was found in it says nothing about what it will hold.
    pub(super) fn empty(&mut self) {
        self.tail = Tail::default();
    }

    /// Tokens evicted per token stored, at most 1.
    pub(super) fn share(self) -> f32 {
        if self.stored == 0 { 0.0 } else { (self.evicted as f32 / self.stored as f32).min(1.0) }
    }

    /// Tokens found in the tail per token evicted: many where nothing is evicted.
    pub(super) fn tail_reuse(self) -> f32 {
        self.tail.reused as f32 / self.tail.evicted.max(1) as f32
    }
}

impl Tail {
    fn leaves(&mut self, reused: u64, evicted: u64) {
        self.reused = self.reused.saturating_add(reused);
        self.evicted = self.evicted.saturating_add(evicted);
        if self.reused.saturating_add(self.evicted) > TAIL_WINDOW_TOKENS {
            self.reused /= 2;
            self.evicted /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_tells_room_that_is_missed_from_room_that_is_not() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.tail_reuse(), 0.0, "nothing is pushed out of a cache that has room");
        pressure.reused(500);
        assert_eq!(pressure.tail_reuse(), 500.0, "all of it was asked for again so far");
        pressure.evicted(2_000);
        assert_eq!(pressure.tail_reuse(), 0.25);
        for _ in 0..4_000 {
            pressure.evicted(1_000);
        }
        assert!(pressure.tail_reuse() < 0.001, "{}", pressure.tail_reuse());
        for _ in 0..4_000 {
            pressure.reused(1_000);
        }
        assert!(pressure.tail_reuse() > 3.0, "{}", pressure.tail_reuse());
    }
}
