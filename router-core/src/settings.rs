//! What an embedder decides once.

use std::time::Duration;

use crate::admission::Limits;
use crate::health::EjectionSettings;
use crate::key::{KeySpace, Unit};
use crate::policy::PolicyConfig;

/// Bounds and habits of a router. Every queue and table has its bound here.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How prompts of token ids are keyed.
    pub token_space: KeySpace,
    /// How prompts of text are keyed.
    pub text_space: KeySpace,
    /// The policy to begin with.
    pub policy: PolicyConfig,
    /// Accept any model name, as SGLang itself does; otherwise a name that no worker serves is refused.
    pub accept_any_model: bool,
    /// A predicted claim that nothing has confirmed lapses after this.
    pub predicted_ttl: Duration,
    /// An agent's silence after which its worker's reported claims are no longer followed; after twice this they are
    /// dropped.
    pub stale_after: Duration,
    /// Tokens claimed at most for one target whose capacity is unknown.
    pub default_capacity_tokens: u64,
    /// Blocks in the whole index at most; beyond it the oldest leaves of all targets go. More than [`MAX_BLOCKS`] is taken for
    /// that.
    pub max_blocks: u64,
    /// Workers × dp ranks at most; at most 4,096.
    pub max_targets: u16,
    /// Updates that may wait for the writer; what comes beyond is refused and counted.
    pub queue_capacity: usize,
    /// Least time between two publications while updates keep coming.
    pub publish_interval: Duration,
    /// Claim the blocks of a prompt for its target when it is routed (channel 0 of `docs/routing.md`).
    pub predict: bool,
    /// Correct claims from `cached_tokens` in responses (channel 1).
    pub correct_from_responses: bool,
    /// Follow what engines count of their caches where no agent reports (channel 2).
    pub count_from_engines: bool,
    /// When targets that fail are left out, and how they come back.
    pub ejection: EjectionSettings,
    /// Most requests in flight.
    pub limits: Limits,
}

/// Most targets that a router can have: slots are dense and bitmaps stay small.
pub const MAX_TARGETS: u16 = 4096;

/// Most blocks that an index takes: usually somewhat more than one word a block, and words have 32-bit numbers. Where it comes
/// to many more (runs of one block each, snapshots that are held) fewer blocks are kept.
pub const MAX_BLOCKS: u64 = 200_000_000;

impl Settings {
    /// The defaults, keyed by `seed`: 64-token blocks, 256-byte blocks of text, `cache_aware`.
    pub fn new(seed: u64) -> Self {
        let space =
            |unit, size| KeySpace::new(unit, size, seed).expect("the default block sizes are in range");
        Self {
            token_space: space(Unit::Token, 64),
            text_space: space(Unit::Text, 256),
            policy: PolicyConfig::CacheAware(crate::policy::CacheAwareSettings::default()),
            accept_any_model: false,
            predicted_ttl: Duration::from_secs(600),
            stale_after: Duration::from_secs(15),
            default_capacity_tokens: 1 << 20,
            max_blocks: 8 << 20,
            max_targets: MAX_TARGETS,
            queue_capacity: 65_536,
            // A writer that is woken more often takes the core from requests (`cargo xtask bench proxy --only latency`).
            publish_interval: Duration::from_millis(2),
            predict: true,
            correct_from_responses: true,
            count_from_engines: true,
            ejection: EjectionSettings::default(),
            limits: Limits::NONE,
        }
    }

    /// The key space for a unit.
    pub fn space(&self, unit: Unit) -> &KeySpace {
        match unit {
            Unit::Token => &self.token_space,
            Unit::Text => &self.text_space,
        }
    }
}
