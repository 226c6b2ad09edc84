//! A target's claims at one moment, to be read away from the writer.

use std::fmt;
use std::sync::Arc;

use crate::index::RunId;
use crate::key::BlockHash;
use crate::snapshot::Snapshot;
use crate::time::Time;

/// The blocks that something vouches for at a target, as they were at one moment.
///
/// It holds a snapshot: take the hashes out soon.
#[derive(Clone)]
pub struct VouchedClaims {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) runs: Vec<RunId>,
    /// Blocks.
    pub blocks: u64,
    /// The moment.
    pub as_of: Time,
    /// The target's agent has said that it may miss stores: what it does not hold may be held.
    pub incomplete: bool,
}

impl VouchedClaims {
    /// The hashes, in no order.
    pub fn hashes(&self) -> impl Iterator<Item = BlockHash> + '_ {
        self.runs.iter().flat_map(|run| self.snapshot.tree.hashes(*run))
    }
}

impl fmt::Debug for VouchedClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VouchedClaims")
            .field("blocks", &self.blocks)
            .field("as_of", &self.as_of)
            .finish_non_exhaustive()
    }
}
