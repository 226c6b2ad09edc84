//! Where KV stays cached that has left an engine's device.

/// Memory below an engine's device (of its host, or storage) that keeps what leaves the device, and from which it is used again.
///
/// What was evicted from the device says nothing then of what is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LowerTier {
    /// Tokens that one rank may have there and not on its device; zero when unknown.
    pub capacity_tokens: u64,
}

/// Host memory as an engine with a hierarchical cache describes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostPool {
    /// KV tokens of one rank's device.
    pub device_tokens: u64,
    /// Its size in multiples of the device's, where it is not given in bytes.
    pub ratio: Option<f64>,
    /// Its size in gigabytes of 10⁹ bytes; zero where it is not given in these.
    pub gigabytes: u64,
    /// Gibibytes of the device's KV, and the tokens that these hold, where both are known.
    pub kv_cache: Option<(f64, f64)>,
    /// Whatever is stored on the device is copied to it at once.
    pub has_all: bool,
}

const GIGABYTE: f64 = 1e9;
const GIBIBYTE: f64 = (1_u64 << 30) as f64;

impl HostPool {
    /// What may be in it and not on the device.
    pub fn tier(self) -> LowerTier {
        let tokens = match (self.gigabytes, self.kv_cache, self.ratio) {
            (0, _, Some(ratio)) => self.device_tokens as f64 * ratio,
            (0, _, None) => 0.0,
            (gigabytes, Some((gibibytes, tokens)), _) if gibibytes > 0.0 => {
                gigabytes as f64 * GIGABYTE / (gibibytes * GIBIBYTE / tokens)
            }
            _ => 0.0,
        };
        let tokens = tokens as u64;
        // What leaves it first has left the device before.
        let both = if self.has_all { self.device_tokens } else { 0 };
        LowerTier { capacity_tokens: tokens.saturating_sub(both) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_what_the_device_has_adds_nothing() {
        let pool =
            HostPool { device_tokens: 1_000, ratio: Some(2.5), gigabytes: 0, kv_cache: None, has_all: false };
        let tokens = |pool: HostPool| pool.tier().capacity_tokens;
        assert_eq!(tokens(pool), 2_500);
        assert_eq!(tokens(HostPool { has_all: true, ..pool }), 1_500);
        // 2 MB a token.
        let sized = HostPool { gigabytes: 8, kv_cache: Some((2e9 / GIBIBYTE, 1_000.0)), ..pool };
        assert_eq!(tokens(sized), 4_000, "bytes go before the ratio");
        assert_eq!(tokens(HostPool { has_all: true, ..sized }), 3_000);
        for unknown in [None, Some((0.0, 1_000.0)), Some((f64::NAN, 1_000.0)), Some((0.25, 0.0))] {
            assert_eq!(tokens(HostPool { kv_cache: unknown, ..sized }), 0);
        }
        assert_eq!(tokens(HostPool { ratio: None, ..pool }), 0);
        assert_eq!(tokens(HostPool { ratio: Some(f64::NAN), ..pool }), 0);
    }
}
