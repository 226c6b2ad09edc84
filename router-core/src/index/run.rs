//! A node of the tree: consecutive blocks that nothing has told apart.

use std::sync::Arc;

use super::branch::Children;
use super::holders::Holders;
use crate::key::BlockHash;

/// Names a run for the writer's tables. Ids of runs that are gone are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub(super) u32);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(super) id: RunId,
    pub(super) hashes: RunHashes,
    pub(super) holders: Holders,
    pub(super) children: Children,
}

/// A slice of hashes that both halves of a split run share.
#[derive(Clone, Debug)]
pub(super) struct RunHashes {
    all: Arc<[BlockHash]>,
    start: u32,
    len: u32,
}

impl RunHashes {
    /// Hashes of a new run; not empty.
    pub(super) fn new(hashes: &[BlockHash]) -> Self {
        debug_assert!(!hashes.is_empty(), "a run has at least one block");
        let len = u32::try_from(hashes.len()).expect("a prompt has fewer than 2^32 blocks");
        Self { all: hashes.into(), start: 0, len }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn as_slice(&self) -> &[BlockHash] {
        &self.all[self.start as usize..(self.start + self.len) as usize]
    }

    pub(super) fn head(&self) -> BlockHash {
        self.all[self.start as usize]
    }

    /// The first `at` hashes and the rest; neither is empty.
    pub(super) fn split(&self, at: u32) -> (Self, Self) {
        debug_assert!(0 < at && at < self.len, "both halves of a split have blocks");
        let upper = Self { all: self.all.clone(), start: self.start, len: at };
        let lower = Self { all: self.all.clone(), start: self.start + at, len: self.len - at };
        (upper, lower)
    }

    /// Leading hashes in common with `key`, whose first one is equal.
    ///
    /// A chained hash commits to all before it, so the last one decides; where it differs, equality is monotone and is
    /// bisected.
    pub(super) fn common(&self, key: &[BlockHash]) -> u32 {
        let own = self.as_slice();
        let most = own.len().min(key.len());
        if own[most - 1] == key[most - 1] {
            return most as u32;
        }
        let mut equal = 1;
        let mut unequal = most;
        while equal + 1 < unequal {
            let middle = usize::midpoint(equal, unequal);
            if own[middle - 1] == key[middle - 1] {
                equal = middle;
            } else {
                unequal = middle;
            }
        }
        equal as u32
    }
}

impl Run {
    pub(super) fn len(&self) -> u32 {
        self.hashes.len()
    }
}
