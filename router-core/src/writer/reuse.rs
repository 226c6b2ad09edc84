//! What a request finds in the tail of an engine's cache: see [`pressure`](super::pressure).

use super::claims::ClaimTable;
use crate::fleet::Slot;
use crate::key::BlockHash;
use crate::time::Time;

impl ClaimTable {
    /// Tokens of a prompt that a slot holds and has not used for more than half as long as its oldest leaf.
    pub(crate) fn tail_tokens(&self, slot: Slot, hashes: &[BlockHash], now: Time) -> u64 {
        if hashes.is_empty() {
            return 0;
        }
        let Some(oldest) = self.oldest(slot) else { return 0 };
        let half = now.since(oldest) / 2;
        let tokens = self.path(slot, hashes).into_iter().filter_map(|step| {
            let claim = self.claim_of(slot, step.run)?;
            let is_old = now.since(claim.last_access) > half;
            is_old.then(|| u64::from(step.covered) * self.block_tokens.of(claim.kind))
        });
        tokens.sum()
    }
}
