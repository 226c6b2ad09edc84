//! The prefix cache of one dp rank: a radix tree over pages of tokens, as SGLang's `RadixCache` behaves.
//!
//! Lengths are always whole pages. A path is locked while a request runs on it; what is not locked is evicted leaf by leaf,
//! whole nodes, least recently used first. Time is a counter of operations. What changes is told as [`CacheEvent`]s; a node
//! that is split changes nothing that anyone could see.

use std::collections::{BTreeSet, HashMap};

use crate::events::CacheEvent;
use crate::hash::{self, Digest};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) tokens: usize,
    pub(crate) last: Option<NodeId>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RadixCache {
    page_size: usize,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    roots: HashMap<(Namespace, Vec<u32>), NodeId>,
    /// Leaves that nothing locks, least recently used first.
    evictable: BTreeSet<(u64, NodeId)>,
    clock: u64,
    evictable_tokens: usize,
    protected_tokens: usize,
    events: Vec<CacheEvent>,
}

#[derive(Debug)]
struct Node {
    parent: Option<NodeId>,
    namespace: Namespace,
    tokens: Vec<u32>,
    /// One digest a page.
    digests: Vec<Digest>,
    children: HashMap<Vec<u32>, NodeId>,
    locks: usize,
    last_access: u64,
}

impl RadixCache {
    /// An empty cache, which says so.
    pub(crate) fn new(page_size: usize) -> Self {
        Self {
            page_size,
            nodes: Vec::new(),
            free: Vec::new(),
            roots: HashMap::new(),
            evictable: BTreeSet::new(),
            clock: 0,
            evictable_tokens: 0,
            protected_tokens: 0,
            events: vec![CacheEvent::Cleared],
        }
    }

    /// Tokens that could be evicted now.
    pub(crate) fn evictable_tokens(&self) -> usize {
        self.evictable_tokens
    }

    /// Tokens that running requests lock.
    pub(crate) fn protected_tokens(&self) -> usize {
        self.protected_tokens
    }

    /// What changed since it was last asked.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        std::mem::take(&mut self.events)
    }

    /// The longest cached prefix, in whole pages; touches it. A match that ends inside a node splits the node.
    pub(crate) fn match_prefix(&mut self, namespace: &Namespace, tokens: &[u32]) -> Match {
        self.clock += 1;
        let mut at = Match { tokens: 0, last: None };
        while let Some(id) = self.child(namespace, at.last, &tokens[at.tokens..]) {
            let common = self.common(id, &tokens[at.tokens..]);
            let whole = common == self.node(id).tokens.len();
            let id = if whole { id } else { self.split(id, common) };
            self.touch(id);
            at = Match { tokens: at.tokens + common, last: Some(id) };
            if !whole {
                break;
            }
        }
        at
    }

    /// Stores the whole pages of a sequence; returns how many of its tokens had been there, and its last node.
    pub(crate) fn insert(&mut self, namespace: &Namespace, tokens: &[u32]) -> Match {
        let whole = tokens.len() / self.page_size * self.page_size;
        let found = self.match_prefix(namespace, &tokens[..whole]);
        let rest = &tokens[found.tokens..whole];
        if rest.is_empty() {
            return found;
        }
        let mut digest = match found.last {
            Some(last) => self.node(last).digests.last().copied(),
            None => hash::seed(&namespace.cache_salt),
        };
        let parent_hash = found.last.and(digest.as_ref()).map(hash::published);
        let pages = rest.chunks_exact(self.page_size);
        let digests: Vec<Digest> =
            pages.map(|page| *digest.insert(hash::next(digest.as_ref(), page))).collect();
        self.events.push(CacheEvent::Stored {
            hashes: digests.iter().map(hash::published).collect(),
            parent: parent_hash,
            tokens: rest.to_vec(),
            cache_salt: namespace.cache_salt.clone(),
        });
        let id = self.add(Node {
            parent: found.last,
            namespace: namespace.clone(),
            tokens: rest.to_vec(),
            digests,
            children: HashMap::new(),
            locks: 0,
            last_access: self.clock,
        });
        self.evictable_tokens += rest.len();
        Match { tokens: found.tokens, last: Some(id) }
    }

    /// Keeps the path to a node from being evicted.
    pub(crate) fn lock(&mut self, last: Option<NodeId>) {
        let mut next = last;
        while let Some(id) = next {
            let node = self.node_mut(id);
            node.locks += 1;
            let (first, len, access) = (node.locks == 1, node.tokens.len(), node.last_access);
            next = node.parent;
            if first {
                self.evictable_tokens -= len;
                self.protected_tokens += len;
                self.evictable.remove(&(access, id));
            }
        }
    }

    /// Takes back one [`lock`](Self::lock).
    pub(crate) fn unlock(&mut self, last: Option<NodeId>) {
        let mut next = last;
        while let Some(id) = next {
            let node = self.node_mut(id);
            node.locks -= 1;
            let (last_lock, len) = (node.locks == 0, node.tokens.len());
            next = node.parent;
            if last_lock {
                self.protected_tokens -= len;
                self.evictable_tokens += len;
                self.offer(id);
            }
        }
    }

    /// Evicts whole leaves until at least `tokens` are free or nothing is left to evict; returns the tokens freed.
    pub(crate) fn evict(&mut self, tokens: usize) -> usize {
        let mut freed = 0;
        let mut removed = Vec::new();
        while freed < tokens {
            let Some((_, id)) = self.evictable.pop_first() else { break };
            let Some(node) = self.nodes[id.0].take() else { continue };
            self.free.push(id.0);
            freed += node.tokens.len();
            removed.extend(node.digests.iter().map(hash::published));
            let page = node.tokens[..self.page_size].to_vec();
            match node.parent {
                Some(parent) => {
                    self.node_mut(parent).children.remove(&page);
                    self.offer(parent);
                }
                None => drop(self.roots.remove(&(node.namespace, page))),
            }
        }
        self.evictable_tokens -= freed;
        if !removed.is_empty() {
            self.events.push(CacheEvent::Removed { hashes: removed });
        }
        freed
    }

    /// Forgets everything; nothing may be locked.
    pub(crate) fn clear(&mut self) {
        let events = std::mem::take(&mut self.events);
        *self = Self::new(self.page_size);
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
        let pairs = self.node(id).tokens.iter().zip(rest);
        pairs.take_while(|(own, other)| own == other).count() / self.page_size * self.page_size
    }

    /// Cuts a node; returns the new upper half. The lower half keeps the id, so that locks held by id stay right.
    fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        let clock = self.clock;
        let page = self.page_size;
        let node = self.node_mut(id);
        let first_page = node.tokens[..page].to_vec();
        let lower_tokens = node.tokens.split_off(at);
        let lower_digests = node.digests.split_off(at / page);
        let lower_page = lower_tokens[..page].to_vec();
        let upper = Node {
            parent: node.parent,
            namespace: node.namespace.clone(),
            tokens: std::mem::replace(&mut node.tokens, lower_tokens),
            digests: std::mem::replace(&mut node.digests, lower_digests),
            children: HashMap::from([(lower_page, id)]),
            locks: node.locks,
            last_access: node.last_access,
        };
        let (parent, namespace, access) = (upper.parent, upper.namespace.clone(), node.last_access);
        let upper_id = self.place(upper);
        match parent {
            Some(parent) => drop(self.node_mut(parent).children.insert(first_page, upper_id)),
            None => drop(self.roots.insert((namespace, first_page), upper_id)),
        }
        let was_offered = self.evictable.remove(&(access, id));
        let node = self.node_mut(id);
        node.parent = Some(upper_id);
        // A split stamps the suffix anew.
        node.last_access = clock;
        if was_offered {
            self.evictable.insert((clock, id));
        }
        upper_id
    }

    fn touch(&mut self, id: NodeId) {
        let clock = self.clock;
        let node = self.node_mut(id);
        let before = std::mem::replace(&mut node.last_access, clock);
        if self.evictable.remove(&(before, id)) {
            self.evictable.insert((clock, id));
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        let page = node.tokens[..self.page_size].to_vec();
        let (parent, namespace) = (node.parent, node.namespace.clone());
        let id = self.place(node);
        match parent {
            Some(parent) => {
                let node = self.node_mut(parent);
                node.children.insert(page, id);
                let access = node.last_access;
                self.evictable.remove(&(access, parent));
            }
            None => drop(self.roots.insert((namespace, page), id)),
        }
        self.offer(id);
        id
    }

    /// Makes a node evictable if it is a leaf that nothing locks.
    fn offer(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.locks == 0 && node.children.is_empty() {
            self.evictable.insert((node.last_access, id));
        }
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::events::{EventEncoding, encode_batch};

    fn tokens(value: &Value) -> Vec<u32> {
        value["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
    }

    fn namespace(value: &Value) -> Namespace {
        let text = |name: &str| value[name].as_str().unwrap_or("").to_owned();
        Namespace { extra_key: text("extra_key"), cache_salt: text("cache_salt") }
    }

    /// The time stamp of a captured batch.
    fn time_stamp(payload: &[u8]) -> f64 {
        f64::from_be_bytes(payload[2..10].try_into().unwrap())
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digit).collect()
    }

    /// The real cache, step by step: results, sizes, and every byte of its events.
    #[test]
    fn it_does_what_the_real_cache_did() {
        let runs: Value = serde_json::from_str(include_str!("../tests/fixtures/radix_cache.json")).unwrap();
        let mut steps = 0;
        for run in runs.as_array().unwrap() {
            let page_size = run["page_size"].as_u64().unwrap() as usize;
            let mut cache = RadixCache::new(page_size);
            for (number, step) in run["steps"].as_array().unwrap().iter().enumerate() {
                replay(&mut cache, step, page_size, number);
                steps += 1;
            }
        }
        assert_eq!(steps, 54);
    }

    fn replay(cache: &mut RadixCache, step: &Value, page_size: usize, number: usize) {
        let (arguments, result) = (&step["args"], &step["result"]);
        let at = format!("page size {page_size}, step {number}: {}", step["op"]);
        match step["op"].as_str().unwrap() {
            "construct" => {}
            "insert" => {
                let found = cache.insert(&namespace(arguments), &tokens(arguments)).tokens;
                assert_eq!(found as u64, result["prefix_len"].as_u64().unwrap(), "{at}");
            }
            "match_prefix" => {
                let found = cache.match_prefix(&namespace(arguments), &tokens(arguments)).tokens;
                assert_eq!(found as u64, result["device_prefix_len"].as_u64().unwrap(), "{at}");
            }
            "lock" => {
                let last = cache.match_prefix(&namespace(arguments), &tokens(arguments)).last;
                cache.lock(last);
            }
            "unlock" => {
                let last = cache.match_prefix(&namespace(arguments), &tokens(arguments)).last;
                cache.unlock(last);
            }
            "evict" => {
                let freed = cache.evict(arguments["num_tokens"].as_u64().unwrap() as usize);
                assert_eq!(freed as u64, result["num_tokens_evicted"].as_u64().unwrap(), "{at}");
            }
            "reset" => cache.clear(),
            other => panic!("the fixture has an operation the test does not know: {other}"),
        }
        let events = cache.take_events();
        match step["batch_payload_hex"].as_str() {
            None => assert_eq!(events, [], "{at}"),
            Some(captured) => {
                let captured = unhex(captured);
                let ours = encode_batch(time_stamp(&captured), &events, page_size, 0, EventEncoding::Map);
                assert_eq!(ours, captured, "{at}");
            }
        }
        assert_eq!(cache.evictable_tokens() as u64, step["evictable_tokens"].as_u64().unwrap(), "{at}");
        assert_eq!(cache.protected_tokens() as u64, step["protected_tokens"].as_u64().unwrap(), "{at}");
    }

    #[test]
    fn paths_are_what_is_cached() {
        let mut cache = RadixCache::new(2);
        let namespace = Namespace::default();
        cache.insert(&namespace, &[1, 2, 3, 4, 5]);
        cache.insert(&namespace, &[1, 2, 9, 9]);
        let mut paths: Vec<_> = cache.paths().into_iter().map(|(_, tokens)| tokens).collect();
        paths.sort();
        assert_eq!(paths, [vec![1, 2, 3, 4], vec![1, 2, 9, 9]]);
    }
}
