//! How much of what was claimed to be cached the engine's responses found there.

/// What was expected lately, and what of it was found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Retention {
    expected: u64,
    found: u64,
}

/// Expected tokens after which older history counts half.
const WINDOW_TOKENS: u64 = 1 << 18;

impl Retention {
    /// A response said how much of what was expected there was.
    pub(super) fn observed(&mut self, expected: u64, found: u64) {
        self.expected = self.expected.saturating_add(expected);
        self.found = self.found.saturating_add(found.min(expected));
        if self.expected > WINDOW_TOKENS {
            self.expected /= 2;
            self.found /= 2;
        }
    }

    /// Found tokens per expected token: 1 of nothing.
    pub(super) fn share(self) -> f32 {
        if self.expected == 0 { 1.0 } else { self.found as f32 / self.expected as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_follows_what_is_found() {
        let mut retention = Retention::default();
        assert_eq!(retention.share(), 1.0);
        retention.observed(40_000, 10_000);
        assert_eq!(retention.share(), 0.25);
        for _ in 0..40 {
            retention.observed(40_000, 90_000);
        }
        assert!(retention.share() > 0.95 && retention.share() <= 1.0, "{}", retention.share());
    }
}
