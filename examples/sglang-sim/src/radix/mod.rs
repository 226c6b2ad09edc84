//! The prefix cache of one dp rank: a radix tree over pages of tokens, as the one of an SGLang server behaves.
//!
//! Lengths are always whole pages. A path is locked while a request runs on it; what is not locked is evicted leaf by leaf,
//! whole nodes, in the order of an [`Eviction`]. What is evicted from the device may live on in a [host tier](host). Time is a counter
//! of operations. What changes is told as [`CacheEvent`]s; a node that is split changes nothing that anyone could see.

mod eviction;
mod host;
mod leaves;
mod node;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::events::{CacheEvent, Tier};
use crate::hash::{self, Digest};
pub use eviction::Eviction;
use host::Host;
pub use host::{HostTier, WritePolicy};
use leaves::Leaves;
use node::Node;

/// Names a node. The root is no node of its own: a path that has matched nothing has no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(usize);

/// Keeps apart prompts that must not share a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// SGLang's `extra_key`; not part of the published hash.
    pub extra_key: String,
    /// SGLang's `cache_salt`; seeds the hash chain.
    pub cache_salt: String,
}

/// The longest cached prefix of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Match {
    /// Tokens on the device.
    pub(crate) tokens: usize,
    /// Tokens after those, on the host alone.
    pub(crate) host_tokens: usize,
    /// The end of both.
    pub(crate) last: Option<NodeId>,
}

/// The request that stores a sequence, as far as its nodes remember it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Storing {
    /// A node has the highest of the requests that store it.
    pub(crate) priority: i64,
    /// Leading tokens that the request had stored before: their nodes do not count it again.
    pub(crate) counted: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RadixCache {
    page_size: usize,
    eviction: Eviction,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    roots: HashMap<(Namespace, Vec<u32>), NodeId>,
    leaves: Leaves,
    host: Option<Host>,
    clock: u64,
    evictable_tokens: usize,
    protected_tokens: usize,
    events: Vec<CacheEvent>,
}

impl RadixCache {
    /// An empty cache, which says so.
    pub(crate) fn new(page_size: usize, eviction: Eviction, host: Option<HostTier>) -> Self {
        Self {
            page_size,
            eviction,
            nodes: Vec::new(),
            free: Vec::new(),
            roots: HashMap::new(),
            leaves: Leaves::default(),
            host: host.map(Host::new),
            clock: 0,
            evictable_tokens: 0,
            protected_tokens: 0,
            events: vec![CacheEvent::Cleared],
        }
    }

    /// Tokens that could be evicted from the device now.
    pub(crate) fn evictable_tokens(&self) -> usize {
        self.evictable_tokens
    }

    /// Tokens on the device that are locked.
    pub(crate) fn protected_tokens(&self) -> usize {
        self.protected_tokens
    }

    /// What changed since it was last asked.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.events)
    }

    /// The longest cached prefix, in whole pages; touches it. A match that ends inside a node splits the node.
    pub(crate) fn match_prefix(&mut self, namespace: &Namespace, tokens: &[u32]) -> Match {
        self.walk(namespace, tokens, None)
    }

    fn walk(&mut self, namespace: &Namespace, tokens: &[u32], storing: Option<Storing>) -> Match {
        self.clock += 1;
        let mut at = Match::default();
        let mut end = 0;
        while let Some(id) = self.child(namespace, at.last, &tokens[end..]) {
            let common = self.common(id, &tokens[end..]);
            let whole = common == self.node(id).tokens.len();
            let id = if whole { id } else { self.split(id, common) };
            end += common;
            self.touch(id);
            if let Some(storing) = storing {
                self.store_again(id, end, storing);
            }
            if self.node(id).on_device {
                at.tokens = end;
            }
            at.host_tokens = end - at.tokens;
            at.last = Some(id);
            if !whole {
                break;
            }
        }
        at
    }

    /// Stores the whole pages of a sequence; returns how many of its tokens had been there, and its last node.
    pub(crate) fn insert(&mut self, namespace: &Namespace, tokens: &[u32], storing: Storing) -> Match {
        let whole = tokens.len() / self.page_size * self.page_size;
        let found = self.walk(namespace, &tokens[..whole], Some(storing));
        let rest = &tokens[found.tokens..whole];
        if rest.is_empty() {
            return found;
        }
        let mut digest = match found.last {
            Some(last) => self.node(last).digests.last().copied(),
            None => hash::seed(&namespace.cache_salt),
        };
        let pages = rest.chunks_exact(self.page_size);
        let digests: Vec<Digest> =
            pages.map(|page| *digest.insert(hash::next(digest.as_ref(), page))).collect();
        let is_counted = whole > storing.counted;
        // Younger than whatever the walk has split off.
        self.clock += 1;
        let id = self.add(Node {
            parent: found.last,
            namespace: namespace.clone(),
            tokens: rest.to_vec(),
            digests,
            children: HashMap::new(),
            device_children: 0,
            on_device: true,
            on_host: false,
            backup: None,
            duplicate: None,
            locks: 0,
            last_access: self.clock,
            created: self.clock,
            hits: u64::from(is_counted && self.counts_hits()),
            priority: storing.priority,
            depth: whole,
            deepest: whole,
        });
        self.evictable_tokens += rest.len();
        self.record_store(id, Tier::Device);
        if is_counted {
            self.write_through(id);
        }
        Match { last: Some(id), ..found }
    }

    /// Forgets everything; nothing may be locked.
    pub(crate) fn clear(&mut self) {
        let events = std::mem::take(&mut self.events);
        let host = self.host.as_ref().map(|host| host.tier);
        *self = Self::new(self.page_size, self.eviction, host);
        self.events.splice(0..0, events);
    }

    /// The token sequence from the root to every leaf.
    pub(crate) fn paths(&self) -> Vec<(Namespace, Vec<u32>)> {
        let leaves = self.nodes.iter().flatten().filter(|node| node.children.is_empty());
        leaves
            .map(|leaf| {
                let mut parts = vec![&leaf.tokens[..]];
                let mut next = leaf.parent;
                while let Some(id) = next {
                    parts.push(&self.node(id).tokens);
                    next = self.node(id).parent;
                }
                parts.reverse();
                (leaf.namespace.clone(), parts.concat())
            })
            .collect()
    }

    fn child(&self, namespace: &Namespace, parent: Option<NodeId>, rest: &[u32]) -> Option<NodeId> {
        let page = rest.get(..self.page_size)?;
        match parent {
            Some(parent) => self.node(parent).children.get(page).copied(),
            None => self.roots.get(&(namespace.clone(), page.to_vec())).copied(),
        }
    }

    /// Leading tokens in common with a node, in whole pages.
    fn common(&self, id: NodeId, rest: &[u32]) -> usize {
        let own = &self.node(id).tokens;
        if rest.starts_with(own) {
            return own.len();
        }
        let pairs = own.iter().zip(rest);
        pairs.take_while(|(own, other)| own == other).count() / self.page_size * self.page_size
    }

    /// Cuts a node; returns the new upper half. The lower half keeps the id, so that locks held by id stay right.
    fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        let clock = self.clock;
        let page = self.page_size;
        self.withdraw(id);
        let node = self.node_mut(id);
        let first_page = node.tokens[..page].to_vec();
        let lower_tokens = node.tokens.split_off(at);
        let lower_digests = node.digests.split_off(at / page);
        let lower_page = lower_tokens[..page].to_vec();
        let depth = node.depth - lower_tokens.len();
        let upper = Node {
            parent: node.parent,
            namespace: node.namespace.clone(),
            tokens: std::mem::replace(&mut node.tokens, lower_tokens),
            digests: std::mem::replace(&mut node.digests, lower_digests),
            children: HashMap::from([(lower_page, id)]),
            device_children: usize::from(node.on_device),
            duplicate: None,
            depth,
            ..*node
        };
        let (parent, namespace) = (upper.parent, upper.namespace.clone());
        let upper_id = self.place(upper);
        match parent {
            Some(parent) => drop(self.node_mut(parent).children.insert(first_page, upper_id)),
            None => drop(self.roots.insert((namespace, first_page), upper_id)),
        }
        let node = self.node_mut(id);
        node.parent = Some(upper_id);
        // A split stamps the suffix anew.
        node.last_access = clock;
        if let Some((backup, host)) = node.backup.zip(self.host.as_mut()) {
            host.split(backup, upper_id, id);
        }
        self.offer(id);
        self.note_duplicate(upper_id);
        upper_id
    }

    /// Notes the use of a node.
    fn touch(&mut self, id: NodeId) {
        let clock = self.clock;
        self.withdraw(id);
        self.node_mut(id).last_access = clock;
        self.offer(id);
    }

    /// Notes that a request stores a node that is there, and that ends `end` tokens into its sequence.
    fn store_again(&mut self, id: NodeId, end: usize, storing: Storing) {
        let is_counted = end > storing.counted;
        let hits = u64::from(is_counted && self.counts_hits());
        self.withdraw(id);
        let node = self.node_mut(id);
        node.priority = node.priority.max(storing.priority);
        node.hits += hits;
        self.offer(id);
        if !self.node(id).on_device {
            self.restore(id);
            self.note_duplicate(id);
        }
        if is_counted {
            self.write_through(id);
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        let page = node.tokens[..self.page_size].to_vec();
        let (parent, namespace, depth) = (node.parent, node.namespace.clone(), node.depth);
        let id = self.place(node);
        match parent {
            Some(parent) => {
                self.withdraw(parent);
                let above = self.node_mut(parent);
                above.children.insert(page, id);
                above.device_children += 1;
                // No other policy looks at it.
                if matches!(self.eviction, Eviction::Tlru { .. }) {
                    self.deepen(parent, depth);
                }
            }
            None => drop(self.roots.insert((namespace, page), id)),
        }
        self.offer(id);
        id
    }

    /// A branch through these nodes has come to so many tokens.
    fn deepen(&mut self, last: NodeId, depth: usize) {
        let mut next = Some(last);
        while let Some(id) = next {
            let node = self.node_mut(id);
            if node.deepest >= depth {
                break;
            }
            node.deepest = depth;
            next = node.parent;
        }
    }

    fn record_store(&mut self, id: NodeId, tier: Tier) {
        let node = self.node(id);
        let parent = node.parent.and_then(|parent| self.node(parent).digests.last());
        self.record(CacheEvent::Stored {
            tier,
            hashes: node.digests.iter().map(hash::published).collect(),
            parent: parent.map(hash::published),
            tokens: node.tokens.clone(),
            cache_salt: node.namespace.cache_salt.clone(),
        });
    }

    /// Tells a change, in one event with the last one if that may be.
    fn record(&mut self, event: CacheEvent) {
        let rest = match self.events.last_mut() {
            Some(last) => last.merge(event),
            None => Some(event),
        };
        self.events.extend(rest);
    }

    fn place(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(index) => {
                self.nodes[index] = Some(node);
                NodeId(index)
            }
            None => {
                self.nodes.push(Some(node));
                NodeId(self.nodes.len() - 1)
            }
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0].as_ref().expect("an id in use names a node")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0].as_mut().expect("an id in use names a node")
    }
}
