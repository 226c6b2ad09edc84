//! What a server is told about a host tier, by SGLang's names, and what it says of it.

use clap::ValueEnum as _;
use serde_json::{Map, Value, json};

use crate::radix::{HostTier, WritePolicy};

/// Options of a hierarchical cache.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct HicacheArgs {
    /// Keep on the host what is evicted from the device, and load it from there.
    #[arg(long, alias = "enable-hicache")]
    pub enable_hierarchical_cache: bool,
    /// Size of the host's pool, as a multiple of the device's.
    #[arg(long, default_value_t = 2.0)]
    pub hicache_ratio: f64,
    /// Size of the host's pool of each rank, in gigabytes; 0 goes by --hicache-ratio.
    #[arg(long, default_value_t = 0)]
    pub hicache_size: u64,
    /// When blocks are copied to the host.
    #[arg(long, value_enum, default_value_t)]
    pub hicache_write_policy: WritePolicy,
}

/// Bytes that SGLang counts as a gigabyte of host memory.
const GIGABYTE: u64 = 1_000_000_000;

impl HicacheArgs {
    /// The tier, beside a device with so many tokens; SGLang rounds it up to a page more.
    pub(crate) fn host_tier(
        &self,
        device_tokens: usize,
        page_size: usize,
        bytes_per_token: u64,
    ) -> Option<HostTier> {
        let tokens = match self.hicache_size {
            0 => (device_tokens as f64 * self.hicache_ratio) as usize,
            size => usize::try_from(size.saturating_mul(GIGABYTE) / bytes_per_token).unwrap_or(usize::MAX),
        };
        let capacity_tokens = (tokens.min(usize::MAX / 2) / page_size + 1) * page_size;
        self.enable_hierarchical_cache
            .then_some(HostTier { capacity_tokens, write_policy: self.hicache_write_policy })
    }

    /// What `/server_info` says of it.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let policy = self.hicache_write_policy.to_possible_value();
        let fields = [
            ("enable_hierarchical_cache", json!(self.enable_hierarchical_cache)),
            ("hicache_ratio", json!(self.hicache_ratio)),
            ("hicache_size", json!(self.hicache_size)),
            ("hicache_write_policy", json!(policy.as_ref().map(clap::builder::PossibleValue::get_name))),
            ("hicache_host_memory_mode", json!("cache")),
            ("hicache_storage_backend", Value::Null),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_in_gigabytes_goes_before_the_ratio() {
        let args = HicacheArgs {
            enable_hierarchical_cache: true,
            hicache_ratio: 1.5,
            hicache_size: 0,
            hicache_write_policy: WritePolicy::WriteBack,
        };
        let tokens = |args: HicacheArgs| {
            args.host_tier(1_600, 16, 1_000_000).map(|tier| (tier.capacity_tokens, tier.write_policy))
        };
        assert_eq!(tokens(args), Some((2_416, WritePolicy::WriteBack)));
        assert_eq!(tokens(HicacheArgs { hicache_size: 8, ..args }), Some((8_016, WritePolicy::WriteBack)));
        assert_eq!(tokens(HicacheArgs { enable_hierarchical_cache: false, ..args }), None);
        for vast in
            [HicacheArgs { hicache_ratio: f64::MAX, ..args }, HicacheArgs { hicache_size: u64::MAX, ..args }]
        {
            assert!(tokens(vast).is_some_and(|(tokens, _)| tokens > 1 << 40), "{vast:?}");
        }
    }
}
