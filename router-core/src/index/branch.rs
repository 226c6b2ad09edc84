//! The children of a run, found by the first hash of each.
//!
//! Most runs have none or one. More hang from a hash array mapped trie (Bagwell 2001): 16 ways a level, by successive
//! nibbles of the hash, with a bitmap for the ways that are taken.

use std::sync::Arc;

use super::run::Run;
use crate::key::BlockHash;

const NIBBLE_BITS: u32 = 4;

#[derive(Clone, Debug, Default)]
pub(super) enum Children {
    #[default]
    None,
    One(Arc<Run>),
    Many(Arc<Branch>),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Branch {
    taken: u16,
    ways: Vec<Way>,
}

#[derive(Clone, Debug)]
enum Way {
    Run(Arc<Run>),
    Branch(Arc<Branch>),
}

impl Children {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The child that begins with this hash.
    pub(super) fn get(&self, head: BlockHash) -> Option<&Run> {
        match self {
            Self::None => None,
            Self::One(run) => (run.hashes.head() == head).then_some(run),
            Self::Many(branch) => branch.get(head),
        }
    }

    /// The same, to change: copies what a snapshot shares.
    pub(super) fn get_mut(&mut self, head: BlockHash) -> Option<&mut Run> {
        match self {
            Self::None => None,
            Self::One(run) => (run.hashes.head() == head).then(|| Arc::make_mut(run)),
            Self::Many(branch) => {
                branch.get(head)?;
                Arc::make_mut(branch).get_mut(head)
            }
        }
    }

    /// Adds a child; none may begin with the same hash.
    pub(super) fn insert(&mut self, run: Run) {
        match self {
            Self::None => *self = Self::One(Arc::new(run)),
            Self::One(one) => {
                let mut branch = Branch::default();
                branch.insert(one.clone(), 0);
                branch.insert(Arc::new(run), 0);
                *self = Self::Many(Arc::new(branch));
            }
            Self::Many(branch) => Arc::make_mut(branch).insert(Arc::new(run), 0),
        }
    }

    /// Takes a child out.
    pub(super) fn remove(&mut self, head: BlockHash) {
        if self.get(head).is_none() {
            return;
        }
        match self {
            Self::None => {}
            Self::One(_) => *self = Self::None,
            Self::Many(branch) => {
                Arc::make_mut(branch).remove(head, 0);
                if let Some(run) = branch.only() {
                    *self = Self::One(run.clone());
                }
            }
        }
    }

    /// Calls `each` with every child.
    pub(super) fn for_each(&self, each: &mut dyn FnMut(&Run)) {
        match self {
            Self::None => {}
            Self::One(run) => each(run),
            Self::Many(branch) => branch.for_each(each),
        }
    }
}

impl Branch {
    fn get(&self, head: BlockHash) -> Option<&Run> {
        let mut branch = self;
        for level in 0.. {
            match &branch.ways[branch.index_of(head, level)?] {
                Way::Run(run) => return (run.hashes.head() == head).then_some(run),
                Way::Branch(next) => branch = next,
            }
        }
        None
    }

    /// Like `get`, for a hash that is there.
    fn get_mut(&mut self, head: BlockHash) -> Option<&mut Run> {
        let mut branch = self;
        for level in 0.. {
            let index = branch.index_of(head, level)?;
            match &mut branch.ways[index] {
                Way::Run(run) => return (run.hashes.head() == head).then(|| Arc::make_mut(run)),
                Way::Branch(next) => branch = Arc::make_mut(next),
            }
        }
        None
    }

    fn insert(&mut self, run: Arc<Run>, level: u32) {
        let head = run.hashes.head();
        let bit = 1 << nibble(head, level);
        let index = (self.taken & (bit - 1)).count_ones() as usize;
        if self.taken & bit == 0 {
            self.taken |= bit;
            self.ways.insert(index, Way::Run(run));
            return;
        }
        match &mut self.ways[index] {
            Way::Branch(next) => Arc::make_mut(next).insert(run, level + 1),
            Way::Run(other) => {
                debug_assert_ne!(other.hashes.head(), head, "children differ in their first hash");
                let mut next = Self::default();
                next.insert(other.clone(), level + 1);
                next.insert(run, level + 1);
                self.ways[index] = Way::Branch(Arc::new(next));
            }
        }
    }

    fn remove(&mut self, head: BlockHash, level: u32) {
        let Some(index) = self.index_of(head, level) else { return };
        if let Way::Branch(next) = &mut self.ways[index] {
            let next = Arc::make_mut(next);
            next.remove(head, level + 1);
            if let Some(run) = next.only() {
                self.ways[index] = Way::Run(run.clone());
            }
            return;
        }
        self.ways.remove(index);
        self.taken &= !(1 << nibble(head, level));
    }

    /// The run that is left, if only one is.
    fn only(&self) -> Option<&Arc<Run>> {
        match &self.ways[..] {
            [Way::Run(run)] => Some(run),
            _ => None,
        }
    }

    fn for_each(&self, each: &mut dyn FnMut(&Run)) {
        for way in &self.ways {
            match way {
                Way::Run(run) => each(run),
                Way::Branch(next) => next.for_each(each),
            }
        }
    }

    fn index_of(&self, head: BlockHash, level: u32) -> Option<usize> {
        let bit = 1 << nibble(head, level);
        (self.taken & bit != 0).then(|| (self.taken & (bit - 1)).count_ones() as usize)
    }
}

/// The way of a hash at a level. Different hashes differ in one of the 16 levels, so no deeper one is ever asked for.
fn nibble(head: BlockHash, level: u32) -> u32 {
    debug_assert!(level < u64::BITS / NIBBLE_BITS, "different hashes part within their 16 nibbles");
    ((head.get() >> (NIBBLE_BITS * level)) & 0xF) as u32
}
