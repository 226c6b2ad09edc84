//! A stretch of tokens that are cached together, and what is remembered of it.

use std::collections::HashMap;

use super::{Namespace, NodeId};
use crate::events::Tier;
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
    /// Of these, those on the device.
    pub(super) device_children: usize,
    /// Where it is: on one tier at least.
    pub(super) on_device: bool,
    pub(super) on_host: bool,
    /// The copy to the host that it is part of.
    pub(super) backup: Option<NodeId>,
    /// Its place among the nodes that came to be on both tiers.
    pub(super) duplicate: Option<u64>,
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
    /// The tier that it may be evicted from. The device keeps whole paths from the root, and the host the rest of them.
    pub(super) fn leaf_of(&self) -> Option<Tier> {
        match () {
            () if self.locks > 0 => None,
            () if self.on_device => (self.device_children == 0).then_some(Tier::Device),
            () => self.children.is_empty().then_some(Tier::Host),
        }
    }
}
