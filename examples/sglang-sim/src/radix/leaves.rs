//! Which leaves may go from which tier, what keeps them there, and letting them go.

use std::collections::BTreeSet;

use super::eviction::Rank;
use super::node::Node;
use super::{NodeId, RadixCache};
use crate::events::{CacheEvent, Tier};
use crate::hash;

/// Leaves that nothing locks, the first to go first.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    device: BTreeSet<(Rank, NodeId)>,
    host: BTreeSet<(Rank, NodeId)>,
}

impl Leaves {
    fn of(&mut self, tier: Tier) -> &mut BTreeSet<(Rank, NodeId)> {
        match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
        }
    }

    /// Takes out the first to go.
    pub(super) fn pop(&mut self, tier: Tier) -> Option<NodeId> {
        self.of(tier).pop_first().map(|(_, id)| id)
    }
}

impl RadixCache {
    /// Keeps the path to a node from being evicted from any tier.
    pub(crate) fn lock(&mut self, last: Option<NodeId>) {
        let mut next = last;
        while let Some(id) = next {
            self.withdraw(id);
            let node = self.node_mut(id);
            next = node.parent;
            node.locks += 1;
            if node.locks == 1 && node.on_device {
                let len = node.tokens.len();
                self.evictable_tokens -= len;
                self.protected_tokens += len;
            }
        }
    }

    /// Takes back one [`lock`](Self::lock).
    pub(crate) fn unlock(&mut self, last: Option<NodeId>) {
        let mut next = last;
        while let Some(id) = next {
            let node = self.node_mut(id);
            next = node.parent;
            node.locks -= 1;
            if node.locks == 0 && node.on_device {
                let len = node.tokens.len();
                self.protected_tokens -= len;
                self.evictable_tokens += len;
            }
            self.offer(id);
        }
    }

    /// Evicts whole leaves from the device until at least `tokens` are free there or nothing is left to evict; returns the tokens
    /// freed. What the host has, or gets now, stays cached.
    pub(crate) fn evict(&mut self, tokens: usize) -> usize {
        let mut freed = 0;
        while freed < tokens {
            let Some(id) = self.leaves.pop(Tier::Device) else { break };
            freed += self.node(id).tokens.len();
            self.write_back(id);
            if self.node(id).on_host {
                self.demote(id);
            } else {
                self.drop_branch(id);
            }
        }
        freed
    }

    /// Takes a node from the device that the host has, too.
    fn demote(&mut self, id: NodeId) {
        // Room on the host may have been made below it.
        self.withdraw(id);
        let node = self.node_mut(id);
        node.on_device = false;
        let (parent, len) = (node.parent, node.tokens.len());
        self.evictable_tokens -= len;
        self.record_removal(id, Tier::Device);
        self.offer(id);
        self.lose_device_child(parent);
    }

    /// Drops a leaf of the device that the host has no room for, with all below it: the host has only whole paths.
    fn drop_branch(&mut self, top: NodeId) {
        let mut below = Vec::new();
        let mut stack = self.children_by_age(top);
        while let Some(id) = stack.pop() {
            below.push(id);
            stack.extend(self.children_by_age(id));
        }
        for id in below.into_iter().rev() {
            self.record_removal(id, Tier::Host);
            self.remove(id);
        }
        self.record_removal(top, Tier::Device);
        self.remove(top);
    }

    fn children_by_age(&self, id: NodeId) -> Vec<NodeId> {
        let mut children: Vec<_> = self.node(id).children.values().copied().collect();
        children.sort_by_key(|id| self.node(*id).created);
        children
    }

    /// Forgets a leaf.
    pub(super) fn remove(&mut self, id: NodeId) {
        self.withdraw(id);
        let Some(node) = self.nodes[id.0].take() else { return };
        self.free.push(id.0);
        let Node { parent, namespace, tokens, on_device, on_host, duplicate, .. } = node;
        if on_device {
            self.evictable_tokens -= tokens.len();
        }
        if let Some(host) = &mut self.host {
            host.forget(if on_host { tokens.len() } else { 0 }, duplicate);
        }
        let page = tokens[..self.page_size].to_vec();
        let Some(parent) = parent else {
            self.roots.remove(&(namespace, page));
            return;
        };
        self.withdraw(parent);
        let above = self.node_mut(parent);
        above.children.remove(&page);
        above.device_children -= usize::from(on_device);
        self.offer(parent);
    }

    fn lose_device_child(&mut self, parent: Option<NodeId>) {
        let Some(parent) = parent else { return };
        self.node_mut(parent).device_children -= 1;
        self.offer(parent);
    }

    pub(super) fn record_removal(&mut self, id: NodeId, tier: Tier) {
        let hashes = self.node(id).digests.iter().map(hash::published).collect();
        self.record(CacheEvent::Removed { tier, hashes });
    }

    /// Makes a node evictable if it is a leaf that nothing locks.
    pub(super) fn offer(&mut self, id: NodeId) {
        let node = self.node(id);
        if let Some(tier) = node.leaf_of() {
            let rank = self.eviction.rank(node);
            self.leaves.of(tier).insert((rank, id));
        }
    }

    /// Takes back an [`offer`](Self::offer), before anything that its rank or its tier is made of changes.
    pub(super) fn withdraw(&mut self, id: NodeId) {
        let node = self.node(id);
        if let Some(tier) = node.leaf_of() {
            let rank = self.eviction.rank(node);
            self.leaves.of(tier).remove(&(rank, id));
        }
    }
}
