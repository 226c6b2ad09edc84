//! What every decision reads: one immutable value.

mod cell;

use std::sync::Arc;

pub(crate) use cell::SnapshotCell;

use crate::fleet::{Fleet, Target};
use crate::index::{Matches, Tree};
use crate::key::{KeySpace, PrefixKey, Unit};
use crate::policy::Policy;
use crate::time::Time;

/// One published version of fleet, index and policy. Whoever holds it sees the same state for as long as it likes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its number; counts up by one with every publication.
    pub epoch: u64,
    /// When it was published.
    pub published: Time,
    /// Workers and targets. Snapshots share it while only figures change that candidates are compared by; of more than some
    /// hundred targets these are up to 2 µs a target old.
    pub fleet: Arc<Fleet>,
    /// The policy in force.
    pub policy: Arc<dyn Policy>,
    /// Mean length of a token in bytes of text, learned from responses.
    pub text_bytes_per_token: f64,
    /// Size of the index.
    pub size: IndexSize,
    pub(crate) tree: Tree,
}

/// Size of the prefix index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IndexSize {
    /// Distinct blocks.
    pub blocks: u64,
    /// Runs of blocks: nodes of the tree.
    pub runs: u64,
}

impl Snapshot {
    /// The targets that are believed to hold the beginning of a prompt, those that hold most first, and how many blocks each
    /// holds. `matches` is a buffer to use again.
    pub fn holders<'s>(
        &'s self,
        key: &PrefixKey,
        matches: &'s mut Matches,
    ) -> impl Iterator<Item = (&'s Target, u32)> {
        self.tree.match_prefix(key.hashes(), matches);
        let matches = &*matches;
        matches.holders().iter().filter_map(move |slot| {
            let target = &self.fleet.targets[self.fleet.index_of(*slot)?];
            (!target.doubtful).then(|| (target, matches.blocks(*slot)))
        })
    }

    /// Tokens that `blocks` blocks of this key space stand for; an estimate for text.
    pub fn tokens_of_blocks(&self, space: &KeySpace, blocks: u64) -> u64 {
        self.tokens_of_units(space.unit(), blocks * u64::from(space.block_size()))
    }

    /// Length of a prompt in tokens; an estimate for text.
    pub fn prompt_tokens(&self, key: &PrefixKey) -> u64 {
        self.tokens_of_units(key.unit(), key.units())
    }

    fn tokens_of_units(&self, unit: Unit, units: u64) -> u64 {
        match unit {
            Unit::Token => units,
            Unit::Text => (units as f64 / self.text_bytes_per_token) as u64,
        }
    }
}
