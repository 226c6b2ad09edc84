//! Which leaf of a full cache goes first: SGLang's eviction policies, as its `evict_policy.py` orders nodes.

use super::node::Node;

/// What a policy makes of a leaf; the least goes first. A class, then a time within it.
pub(super) type Rank = (i64, i64);

/// A policy and what it is tuned with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// The least recently used.
    #[default]
    Lru,
    /// What the fewest requests have stored; the least recently used of these.
    Lfu,
    /// The oldest.
    Fifo,
    /// The most recently used.
    Mru,
    /// The youngest.
    Filo,
    /// Of the requests with the lowest priority; the least recently used of these.
    Priority,
    /// What fewer than `protected_hits` requests have stored, then the rest; the least recently used of these.
    Slru {
        /// Requests that make a node protected.
        protected_hits: u64,
    },
    /// Whatever lies within the last `tail_tokens` that its branch ever had, then the rest; the least recently used of these.
    Tlru {
        /// Tokens at the end of a branch that are free to go.
        tail_tokens: usize,
    },
}

impl Eviction {
    pub(super) fn rank(self, node: &Node) -> Rank {
        let (used, created) = (node.last_access as i64, node.created as i64);
        match self {
            Self::Lru => (0, used),
            Self::Lfu => (node.hits as i64, used),
            Self::Fifo => (0, created),
            Self::Mru => (0, -used),
            Self::Filo => (0, -created),
            Self::Priority => (node.priority, used),
            Self::Slru { protected_hits } => (i64::from(node.hits >= protected_hits), used),
            Self::Tlru { tail_tokens } => {
                let before = node.depth - node.tokens.len();
                let spared = before < node.deepest.saturating_sub(tail_tokens);
                (i64::from(spared), used)
            }
        }
    }
}
