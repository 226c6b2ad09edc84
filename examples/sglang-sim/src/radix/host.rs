//! The host tier, as SGLang's hierarchical cache has it: what is copied to it when, what comes back, and what leaves it.
//!
//! A copy to the host takes its place there at once, and keeps its path from being evicted until it is acknowledged; only then it is
//! told. What leaves the device stays a node of the tree as long as the host has it. The host's leaves go in the order of the
//! device's. Under [`WritePolicy::WriteBack`] what is on both tiers leaves the host first.

use std::collections::BTreeMap;

use super::{NodeId, RadixCache};
use crate::events::Tier;

/// When blocks are copied to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum WritePolicy {
    /// When they are stored.
    #[default]
    WriteThrough,
    /// When a second request has stored them.
    WriteThroughSelective,
    /// When they are evicted from the device.
    WriteBack,
}

/// A host tier and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTier {
    /// Tokens that it has room for, in whole pages.
    pub capacity_tokens: usize,
    /// When blocks are copied to it.
    pub write_policy: WritePolicy,
}

/// What there is of a host tier.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) tier: HostTier,
    used: usize,
    /// Copies under way, in their order.
    backups: Vec<Backup>,
    /// Nodes that came to be on both tiers, in the order in which they did. They may have left one of them since.
    duplicates: BTreeMap<u64, NodeId>,
    next_duplicate: u64,
}

/// A copy under way.
#[derive(Debug)]
struct Backup {
    /// The end of the path that it keeps from being evicted.
    last: NodeId,
    /// What it copies: more than one node once it was split.
    parts: Vec<NodeId>,
}

/// Fewer tokens than this are computed rather than loaded, as in SGLang.
const LEAST_LOADED: usize = 10;

impl HostTier {
    /// Requests that have stored a node when it is copied.
    fn hits_to_copy(self) -> Option<u64> {
        match self.write_policy {
            WritePolicy::WriteThrough => Some(1),
            WritePolicy::WriteThroughSelective => Some(2),
            WritePolicy::WriteBack => None,
        }
    }
}

impl Host {
    pub(super) fn new(tier: HostTier) -> Self {
        Self { tier, used: 0, backups: Vec::new(), duplicates: BTreeMap::new(), next_duplicate: 0 }
    }

    /// A node is gone.
    pub(super) fn forget(&mut self, tokens: usize, duplicate: Option<u64>) {
        self.used -= tokens;
        if let Some(place) = duplicate {
            self.duplicates.remove(&place);
        }
    }

    /// A node that is being copied was cut.
    pub(super) fn split(&mut self, backup: NodeId, upper: NodeId, lower: NodeId) {
        let under_way = self.backups.iter_mut().filter(|under_way| under_way.last == backup);
        for under_way in under_way {
            if let Some(at) = under_way.parts.iter().position(|part| *part == lower) {
                under_way.parts.insert(at, upper);
            }
        }
    }
}

impl RadixCache {
    /// Tokens on the host.
    pub(crate) fn host_tokens(&self) -> usize {
        self.host.as_ref().map_or(0, |host| host.used)
    }

    /// Whether it is counted who stores a node.
    pub(super) fn counts_hits(&self) -> bool {
        self.host.as_ref().is_none_or(|host| host.tier.hits_to_copy().is_some())
    }

    /// Copies a node to the host that enough requests have stored, after what is missing above it.
    pub(super) fn write_through(&mut self, id: NodeId) {
        let Some(due) = self.host.as_ref().and_then(|host| host.tier.hits_to_copy()) else { return };
        let node = self.node(id);
        if node.on_host || node.hits < due {
            return;
        }
        let mut missing = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|id| !self.node(*id).on_host) {
            missing.push(id);
            next = self.node(id).parent;
        }
        for id in missing.into_iter().rev() {
            if !self.copy_to_host(id) {
                break;
            }
            self.lock(Some(id));
            self.node_mut(id).backup = Some(id);
            if let Some(host) = &mut self.host {
                host.backups.push(Backup { last: id, parts: vec![id] });
            }
        }
    }

    /// The copies under way have come to their end.
    pub(crate) fn acknowledge(&mut self) {
        let Some(host) = &mut self.host else { return };
        for Backup { last, parts } in std::mem::take(&mut host.backups) {
            for part in parts {
                self.node_mut(part).backup = None;
                self.record_store(part, Tier::Host);
            }
            self.unlock(Some(last));
        }
    }

    /// Copies a node to the host before it leaves the device, where that is what the policy says and there is room.
    pub(super) fn write_back(&mut self, id: NodeId) {
        let writes_back = self.host.as_ref().is_some_and(|host| host.tier.hits_to_copy().is_none());
        if writes_back && !self.node(id).on_host && self.copy_to_host(id) {
            self.record_store(id, Tier::Host);
            self.note_duplicate(id);
        }
    }

    /// Takes the place of a node on the host; `false` if there is none.
    fn copy_to_host(&mut self, id: NodeId) -> bool {
        let len = self.node(id).tokens.len();
        let has_room = self.make_host_room(len);
        if let Some(host) = self.host.as_mut().filter(|_| has_room) {
            host.used += len;
            self.node_mut(id).on_host = true;
        }
        has_room
    }

    /// Evicts from the host what is missing of so many free tokens; whether that was enough.
    fn make_host_room(&mut self, tokens: usize) -> bool {
        let Some(host) = &self.host else { return false };
        let missing = tokens.saturating_sub(host.tier.capacity_tokens - host.used);
        let mut freed = if host.tier.hits_to_copy().is_none() { self.drop_duplicates(missing) } else { 0 };
        while freed < missing {
            let Some(id) = self.leaves.pop(Tier::Host) else { break };
            freed += self.node(id).tokens.len();
            self.record_removal(id, Tier::Host);
            self.remove(id);
        }
        freed >= missing
    }

    /// Takes from the host what the device has, too, until so many tokens are free: first what is not about to leave the device.
    fn drop_duplicates(&mut self, tokens: usize) -> usize {
        let mut freed = 0;
        for spares_leaves in [true, false] {
            let places: Vec<_> = match &self.host {
                Some(host) if freed < tokens => host.duplicates.iter().map(|(at, id)| (*at, *id)).collect(),
                _ => break,
            };
            for (place, id) in places {
                if freed >= tokens {
                    break;
                }
                let node = self.node(id);
                let is_duplicate = node.on_device && node.on_host;
                if is_duplicate && spares_leaves && node.leaf_of() == Some(Tier::Device) {
                    continue;
                }
                let len = if is_duplicate { node.tokens.len() } else { 0 };
                if is_duplicate {
                    self.record_removal(id, Tier::Host);
                    self.node_mut(id).on_host = false;
                }
                freed += len;
                self.node_mut(id).duplicate = None;
                if let Some(host) = &mut self.host {
                    host.forget(len, Some(place));
                }
            }
        }
        freed
    }

    /// Notes that a node is on both tiers, if it is.
    pub(super) fn note_duplicate(&mut self, id: NodeId) {
        let node = self.node(id);
        let (is_duplicate, noted) = (node.on_device && node.on_host, node.duplicate);
        match (&mut self.host, is_duplicate, noted) {
            (Some(host), true, None) if host.tier.hits_to_copy().is_none() => {
                let place = host.next_duplicate;
                host.next_duplicate += 1;
                host.duplicates.insert(place, id);
                self.node_mut(id).duplicate = Some(place);
            }
            (Some(host), false, Some(place)) => {
                host.duplicates.remove(&place);
                self.node_mut(id).duplicate = None;
            }
            _ => {}
        }
    }

    /// Brings the end of a path back to the device, which must have room for it; returns its tokens. Short ends are left where they are.
    pub(crate) fn load_back(&mut self, last: Option<NodeId>) -> usize {
        let mut absent = Vec::new();
        let mut next = last;
        while let Some(id) = next.filter(|id| !self.node(*id).on_device) {
            absent.push(id);
            next = self.node(id).parent;
        }
        let tokens: usize = absent.iter().map(|id| self.node(*id).tokens.len()).sum();
        if tokens < LEAST_LOADED {
            return 0;
        }
        for id in absent.iter().rev() {
            self.restore(*id);
        }
        for id in absent {
            self.note_duplicate(id);
        }
        tokens
    }

    /// The end of what the device has of a path.
    pub(crate) fn on_device(&self, last: Option<NodeId>) -> Option<NodeId> {
        let mut next = last;
        while let Some(id) = next.filter(|id| !self.node(*id).on_device) {
            next = self.node(id).parent;
        }
        next
    }

    /// Puts a node on the device again, below what is there.
    pub(super) fn restore(&mut self, id: NodeId) {
        self.withdraw(id);
        let node = self.node_mut(id);
        node.on_device = true;
        let (parent, len, is_locked) = (node.parent, node.tokens.len(), node.locks > 0);
        if is_locked {
            self.protected_tokens += len;
        } else {
            self.evictable_tokens += len;
        }
        if let Some(parent) = parent {
            self.withdraw(parent);
            self.node_mut(parent).device_children += 1;
        }
        self.record_store(id, Tier::Device);
        self.offer(id);
    }
}
