//! The prefix cache of an engine: the radix tree of `sglang-sim`, over block hashes instead of pages of tokens.
//!
//! Same rules: whole leaves are evicted, least recently used first; a path is locked while a request runs on it; time is a counter
//! of operations. A hash names a block and all before it, so that a whole run is compared by its last hash. Lengths are blocks.

use std::collections::BTreeSet;

use router_core::BlockRun;
use router_core::key::BlockHash;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::sequence::Sequence;

/// Names a node; a path that has matched nothing has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(u32);

/// The longest cached prefix of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) blocks: usize,
    pub(super) last: Option<NodeId>,
}

/// What changed, in order: all that was there went, removals, stores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Everything went.
    pub cleared: bool,
    /// The first block of each run that was evicted; all below it went before or with it.
    pub removed: Vec<BlockHash>,
    /// Runs that were stored.
    pub stored: Vec<BlockRun>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RadixCache {
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    /// The node that begins with a block.
    heads: FxHashMap<BlockHash, NodeId>,
    /// Leaves that nothing locks, least recently used first.
    evictable: BTreeSet<(u64, NodeId)>,
    clock: u64,
    evictable_blocks: usize,
    protected_blocks: usize,
    /// Kept where somebody asks for them.
    changes: Option<Vec<Change>>,
}

#[derive(Debug)]
struct Node {
    parent: Option<NodeId>,
    blocks: Vec<BlockHash>,
    children: u32,
    locks: u32,
    last_access: u64,
}

impl RadixCache {
    /// An empty cache; says what changes if asked to.
    pub(super) fn new(tells: bool) -> Self {
        Self { changes: tells.then(Vec::new), ..Self::default() }
    }

    pub(super) fn evictable_blocks(&self) -> usize {
        self.evictable_blocks
    }

    pub(super) fn protected_blocks(&self) -> usize {
        self.protected_blocks
    }

    /// What changed since it was last asked.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Blocks of the sequence that are cached, of the first `most`; touches nothing.
    pub(super) fn peek(&self, sequence: &Sequence, most: usize) -> usize {
        let mut at = 0;
        while let Some(id) = self.child(sequence, at, most) {
            let common = self.common(id, sequence, at, most);
            at += common;
            if common < self.node(id).blocks.len() {
                break;
            }
        }
        at
    }

    /// The longest cached prefix of the first `most` blocks; touches it. A match that ends inside a node splits the node.
    pub(super) fn match_prefix(&mut self, sequence: &Sequence, most: usize) -> Match {
        self.clock += 1;
        let mut at = Match { blocks: 0, last: None };
        while let Some(id) = self.child(sequence, at.blocks, most) {
            let common = self.common(id, sequence, at.blocks, most);
            let whole = common == self.node(id).blocks.len();
            let id = if whole { id } else { self.split(id, common) };
            self.touch(id);
            at = Match { blocks: at.blocks + common, last: Some(id) };
            if !whole {
                break;
            }
        }
        at
    }

    /// Stores the first `whole` blocks of a sequence; returns how many had been there, and the last node.
    pub(super) fn insert(&mut self, sequence: &Sequence, whole: usize) -> Match {
        let found = self.match_prefix(sequence, whole);
        let rest: Vec<BlockHash> = (found.blocks..whole).filter_map(|index| sequence.block(index)).collect();
        if rest.is_empty() {
            return found;
        }
        if let Some(changes) = &mut self.changes {
            let parent = found.blocks.checked_sub(1).and_then(|index| sequence.block(index));
            if changes.is_empty() {
                changes.push(Change::default());
            }
            let run = BlockRun { parent, hashes: rest.clone() };
            changes.last_mut().expect("there is one now").stored.push(run);
        }
        self.evictable_blocks += rest.len();
        let node = Node { parent: found.last, blocks: rest, children: 0, locks: 0, last_access: self.clock };
        let id = self.add(node);
        Match { blocks: found.blocks, last: Some(id) }
    }

    /// Keeps the path to a node from being evicted.
    pub(super) fn lock(&mut self, last: Option<NodeId>) {
        let mut next = last;
        while let Some(id) = next {
            let node = self.node_mut(id);
            node.locks += 1;
            let (first, len, access) = (node.locks == 1, node.blocks.len(), node.last_access);
            next = node.parent;
            if first {
                self.evictable_blocks -= len;
                self.protected_blocks += len;
                self.evictable.remove(&(access, id));
            }
        }
    }

    /// Takes back one [`lock`](Self::lock).
    pub(super) fn unlock(&mut self, last: Option<NodeId>) {
        let mut next = last;
        while let Some(id) = next {
            let node = self.node_mut(id);
            node.locks -= 1;
            let (last_lock, len) = (node.locks == 0, node.blocks.len());
            next = node.parent;
            if last_lock {
                self.protected_blocks -= len;
                self.evictable_blocks += len;
                self.offer(id);
            }
        }
    }

    /// Evicts whole leaves until at least `blocks` are free or nothing is left to evict; returns the blocks freed.
    pub(super) fn evict(&mut self, blocks: usize) -> usize {
        let mut freed = 0;
        let mut removed = Vec::new();
        while freed < blocks {
            let Some((_, id)) = self.evictable.pop_first() else { break };
            let node = self.nodes[id.0 as usize].take().expect("what can be evicted is there");
            self.free.push(id);
            freed += node.blocks.len();
            removed.push(node.blocks[0]);
            self.heads.remove(&node.blocks[0]);
            if let Some(parent) = node.parent {
                self.node_mut(parent).children -= 1;
                self.offer(parent);
            }
        }
        self.evictable_blocks -= freed;
        if let Some(changes) = self.changes.as_mut().filter(|_| !removed.is_empty()) {
            match changes.last_mut().filter(|change| change.stored.is_empty()) {
                Some(change) => change.removed.append(&mut removed),
                None => changes.push(Change { removed, ..Change::default() }),
            }
        }
        freed
    }

    /// Drops everything; nothing may be locked.
    pub(super) fn clear(&mut self) {
        debug_assert_eq!(self.protected_blocks, 0, "whoever runs has let go");
        let mut changes = self.changes.take();
        if let Some(changes) = &mut changes {
            changes.clear();
            changes.push(Change { cleared: true, ..Change::default() });
        }
        *self = Self { changes, ..Self::default() };
    }

    /// Adds every block to a set.
    pub(super) fn collect(&self, all: &mut FxHashSet<BlockHash>) {
        all.extend(self.nodes.iter().flatten().flat_map(|node| node.blocks.iter().copied()));
    }

    /// All that is stored, parents before children.
    pub(super) fn stored(&self) -> Vec<BlockRun> {
        let mut nodes: Vec<(usize, &Node)> =
            self.nodes.iter().flatten().map(|node| (self.depth(node), node)).collect();
        nodes.sort_by_key(|(depth, _)| *depth);
        let last_of = |id: NodeId| self.node(id).blocks.last().copied();
        let run =
            |node: &Node| BlockRun { parent: node.parent.and_then(last_of), hashes: node.blocks.clone() };
        nodes.into_iter().map(|(_, node)| run(node)).collect()
    }

    /// Nodes above.
    fn depth(&self, node: &Node) -> usize {
        std::iter::successors(node.parent, |id| self.node(*id).parent).count()
    }

    fn child(&self, sequence: &Sequence, at: usize, most: usize) -> Option<NodeId> {
        let first = sequence.block(at).filter(|_| at < most)?;
        self.heads.get(&first).copied()
    }

    /// Leading blocks in common with a node that begins with the sequence's block `at`.
    fn common(&self, id: NodeId, sequence: &Sequence, at: usize, most: usize) -> usize {
        let own = &self.node(id).blocks;
        let len = own.len().min(most - at);
        let equal = |index: usize| sequence.block(at + index) == Some(own[index]);
        if equal(len - 1) {
            return len;
        }
        // Equal up to a block and different from there on; the first is equal.
        let (mut same, mut other) = (0, len - 1);
        while other - same > 1 {
            let middle = same.midpoint(other);
            if equal(middle) { same = middle } else { other = middle }
        }
        other
    }

    /// Cuts a node; returns the new upper half. The lower half keeps the id, so that locks held by id stay right.
    fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        let clock = self.clock;
        let node = self.node_mut(id);
        let access = node.last_access;
        let lower = node.blocks.split_off(at);
        let (head, lower_head) = (node.blocks[0], lower[0]);
        let upper = Node {
            parent: node.parent,
            blocks: std::mem::replace(&mut node.blocks, lower),
            children: 1,
            locks: node.locks,
            last_access: access,
        };
        let upper_id = self.place(upper);
        self.heads.insert(head, upper_id);
        self.heads.insert(lower_head, id);
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
        let before = std::mem::replace(&mut self.node_mut(id).last_access, clock);
        if self.evictable.remove(&(before, id)) {
            self.evictable.insert((clock, id));
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        let (head, parent) = (node.blocks[0], node.parent);
        let id = self.place(node);
        self.heads.insert(head, id);
        if let Some(parent) = parent {
            let node = self.node_mut(parent);
            node.children += 1;
            let access = node.last_access;
            self.evictable.remove(&(access, parent));
        }
        self.offer(id);
        id
    }

    /// Makes a node evictable if it is a leaf that nothing locks.
    fn offer(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.locks == 0 && node.children == 0 {
            self.evictable.insert((node.last_access, id));
        }
    }

    fn place(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.free.pop() {
            self.nodes[id.0 as usize] = Some(node);
            return id;
        }
        self.nodes.push(Some(node));
        NodeId(u32::try_from(self.nodes.len() - 1).expect("nodes are fewer than blocks, and those fit"))
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("an id in use names a node")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("an id in use names a node")
    }
}
