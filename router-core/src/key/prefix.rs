//! The key of one prompt.

use std::sync::Arc;

use super::{BlockHash, BlockKind, Unit};

/// The block hashes of one prompt, in order, and the prompt's length. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct PrefixKey {
    kind: BlockKind,
    hashes: Arc<[BlockHash]>,
    units: u64,
}

impl PrefixKey {
    pub(super) fn new(kind: BlockKind, hashes: Vec<BlockHash>, units: u64) -> Self {
        Self { kind, hashes: hashes.into(), units }
    }

    /// A longer prompt's key, of which `rest` units follow the blocks of this one.
    pub(super) fn followed(&self, hashes: Vec<BlockHash>, rest: u64, block_size: u32) -> Self {
        let units = self.hashes.len() as u64 * u64::from(block_size) + rest;
        Self { kind: self.kind, hashes: hashes.into(), units }
    }

    /// What its blocks are of.
    pub fn kind(&self) -> BlockKind {
        self.kind
    }

    /// The same blocks as ones that agents cannot name: the engine sees the prompt in another form.
    #[must_use]
    pub fn unnamed(self) -> Self {
        Self { kind: BlockKind::of(self.kind.unit(), true), ..self }
    }

    /// What the prompt was cut from.
    pub fn unit(&self) -> Unit {
        self.kind.unit()
    }

    /// One hash for every full block of the prompt.
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// Length of the whole prompt in units: tokens or bytes.
    pub fn units(&self) -> u64 {
        self.units
    }
}
