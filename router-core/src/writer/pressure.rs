//! How much an engine evicts for what it stores.

/// How much is evicted for what is stored, lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pressure {
    stored: u64,
    evicted: u64,
}

/// Stored tokens after which older history counts half.
const PRESSURE_WINDOW_TOKENS: u64 = 1 << 18;

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
    }

    /// Tokens evicted per token stored, at most 1.
    pub(super) fn share(self) -> f32 {
        if self.stored == 0 { 0.0 } else { (self.evicted as f32 / self.stored as f32).min(1.0) }
    }
}
