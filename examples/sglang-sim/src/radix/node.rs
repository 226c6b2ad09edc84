//! A stretch of tokens that are cached together, and what is remembered of it.

use std::collections::HashMap;

use super::{Namespace, NodeId};
use crate::hash::Digest;

/// See the module.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: Option<NodeId>,
    pub(super) namespace: Namespace,
    pub(super) tokens: Vec<u32>,
    /// One digest a page.
    pub(super) digests: Vec<Digest>,
    pub(super) children: HashMap<Vec<u32>, NodeId>,
    pub(super) locks: usize,
    pub(super) last_access: u64,
    pub(super) created: u64,
    /// Requests that have stored it.
    pub(super) hits: u64,
    /// The highest of theirs.
    pub(super) priority: i64,
    /// Tokens from the root to its end.
    pub(super) depth: usize,
    /// The most tokens that a branch through it ever had, where [`Eviction::Tlru`](super::Eviction::Tlru) asks.
    pub(super) deepest: usize,
}

impl Node {
    /// A leaf that nothing locks.
    pub(super) fn is_evictable(&self) -> bool {
        self.locks == 0 && self.children.is_empty()
    }
}
