//! The shared-prefix workload, the same for every contestant, from one seed.
//!
//! A prompt is the prefix of its group and a suffix of its own. The prefix is 30–70 % of the prompt, by group; groups are
//! drawn by a Zipf-like law. A prompt is held by one target drawn evenly, so that the prefix of a group comes to be held
//! by several targets, by nearly all for the most popular groups. What is looked up follows the same law: half of it is
//! stored, half has a suffix that nobody has seen.

use std::borrow::Cow;
use std::sync::Arc;

use router_core::key::{BlockHash, KeySpace, Salt, Unit};

/// Tokens in a block: the page size the peers' crates are built around.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// Groups of prompts that share a prefix, for every million blocks: a larger index has more groups of the same sizes.
const GROUPS: usize = 128;
/// Exponent of the groups' popularity by rank.
const ZIPF_EXPONENT: f64 = 0.8;
/// Token ids are below this.
const VOCABULARY: u32 = 128_000;

/// One table cell: the size of prompts, of the fleet and of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Blocks of one prompt.
    pub(crate) prompt_blocks: usize,
    /// Targets that hold prompts.
    pub(crate) targets: u16,
    /// Distinct blocks in the index, about.
    pub(crate) blocks: usize,
}

/// A prompt and all its keys, so that deriving them is never part of what is timed.
#[allow(dead_code, reason = "the peers' package shares this file")]
#[derive(Debug)]
pub(crate) struct Prompt {
    /// The prompt itself; empty where nothing hashes it again.
    pub(crate) tokens: Vec<u32>,
    /// Our chained hash of every block.
    pub(crate) key: Vec<BlockHash>,
    /// The peers' hash of every block by itself.
    pub(crate) content: Vec<u64>,
    /// The peers' chained hash of every block, as an engine would name it.
    pub(crate) chain: Vec<u64>,
    /// Leading blocks that belong to the group.
    pub(crate) shared: usize,
    group: usize,
}

/// A prompt on the target that holds it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// The prompt.
    pub(crate) prompt: Arc<Prompt>,
    /// Its holder.
    pub(crate) target: u16,
}

/// Derives the peers' hashes of a prompt: of every block by itself, and chained.
pub(crate) type PeerHashes = fn(&[u32]) -> (Vec<u64>, Vec<u64>);

/// Everything one cell stores and looks up, and a source of more of the same.
#[derive(Debug)]
pub(crate) struct Work {
    /// What it was made for.
    pub(crate) cell: Cell,
    /// Hashes our keys.
    pub(crate) space: KeySpace,
    /// Held before anything is measured.
    pub(crate) stored: Vec<Held>,
    /// Looked up.
    pub(crate) lookups: Vec<Arc<Prompt>>,
    /// Distinct blocks of what is stored.
    pub(crate) distinct_blocks: usize,
    groups: Vec<Group>,
    rng: fastrand::Rng,
    peer_hashes: PeerHashes,
    keep_tokens: bool,
}

#[derive(Debug)]
struct Group {
    prefix: Vec<u32>,
    /// Popularity of this and all before it, of 1.
    cumulative: f64,
    holders: Vec<u16>,
}

impl Cell {
    /// Name of the cell as rows print it.
    pub(crate) fn name(&self) -> String {
        format!("{}k, {} targets", self.prompt_blocks * BLOCK_TOKENS / 1024, self.targets)
    }
}

impl Work {
    /// Makes the stored prompts and `lookups` prompts to look up.
    pub(crate) fn new(cell: Cell, lookups: usize, peer_hashes: PeerHashes, keep_tokens: bool) -> Self {
        let space = KeySpace::new(Unit::Token, BLOCK_TOKENS as u32, 7).expect("16 tokens make a block");
        let mut work = Self {
            cell,
            space,
            stored: Vec::new(),
            lookups: Vec::new(),
            distinct_blocks: 0,
            groups: Vec::new(),
            rng: fastrand::Rng::with_seed(1),
            peer_hashes,
            keep_tokens,
        };
        work.add_groups();
        while work.distinct_blocks < cell.blocks {
            let group = work.any_group();
            let target = work.rng.u16(..cell.targets);
            let prompt = work.prompt_of(group, 0);
            let first = work.groups[group].holders.is_empty();
            work.distinct_blocks += prompt.key.len() - if first { 0 } else { prompt.shared };
            if !work.groups[group].holders.contains(&target) {
                work.groups[group].holders.push(target);
            }
            work.stored.push(Held { prompt, target });
        }
        work.lookups = (0..lookups).map(|number| work.looked_up(number % 2 == 0)).collect();
        work
    }

    /// A prompt that nobody holds, and a target that holds the prefix of its group. `more` blocks follow the prompt: what
    /// the engine will have generated.
    pub(crate) fn fresh(&mut self, more: usize) -> Held {
        loop {
            let group = self.any_group();
            if let Some(&target) = self.rng.choice(&self.groups[group].holders) {
                return Held { prompt: self.prompt_of(group, more), target };
            }
        }
    }

    /// Prompts that are in the index, each with a target that holds its prefix only.
    pub(crate) fn known_elsewhere(&mut self, count: usize) -> Vec<Held> {
        let mut picked = Vec::with_capacity(count);
        let mut order: Vec<usize> = (0..self.stored.len()).collect();
        self.rng.shuffle(&mut order);
        for index in order {
            let Held { prompt, target: holder } = self.stored[index].clone();
            let others = self.groups[prompt.group].holders.iter().filter(|&&other| other != holder);
            if let Some(&target) = self.rng.choice(others.collect::<Vec<_>>()) {
                picked.push(Held { prompt, target });
            }
            if picked.len() == count {
                break;
            }
        }
        picked
    }

    /// The first of the lookups, at most so many.
    pub(crate) fn sample(&self, most: usize) -> &[Arc<Prompt>] {
        &self.lookups[..most.min(self.lookups.len())]
    }

    /// What to look up in an index that was loaded with the first `loaded` prompts: for less than all, just these.
    pub(crate) fn lookups_for(&self, loaded: usize) -> Cow<'_, [Arc<Prompt>]> {
        match self.stored.get(..loaded) {
            Some(stored) => stored.iter().map(|held| held.prompt.clone()).collect(),
            None => Cow::Borrowed(&self.lookups),
        }
    }

    /// Some of what is stored, each with its holder.
    pub(crate) fn some_stored(&mut self, count: usize) -> Vec<Held> {
        (0..count).map(|_| self.stored[self.rng.usize(..self.stored.len())].clone()).collect()
    }

    fn add_groups(&mut self) {
        let alike = self.cell.blocks.div_ceil(1_000_000);
        let weight = |index: usize| ((index / alike + 1) as f64).powf(-ZIPF_EXPONENT);
        let weights: Vec<f64> = (0..GROUPS * alike).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut cumulative = 0.0;
        for weight in weights {
            cumulative += weight / total;
            let share = 0.3 + 0.4 * self.rng.f64();
            let blocks = ((self.cell.prompt_blocks as f64 * share) as usize).max(1);
            let prefix = (0..blocks * BLOCK_TOKENS).map(|_| self.rng.u32(..VOCABULARY)).collect();
            self.groups.push(Group { prefix, cumulative, holders: Vec::new() });
        }
    }

    fn looked_up(&mut self, stored: bool) -> Arc<Prompt> {
        if stored {
            let index = self.rng.usize(..self.stored.len());
            return self.stored[index].prompt.clone();
        }
        let group = self.any_group();
        self.prompt_of(group, 0)
    }

    fn any_group(&mut self) -> usize {
        let at = self.rng.f64();
        self.groups.partition_point(|group| group.cumulative < at).min(self.groups.len() - 1)
    }

    fn prompt_of(&mut self, group: usize, more: usize) -> Arc<Prompt> {
        let blocks = self.cell.prompt_blocks + more;
        let mut tokens = Vec::with_capacity(blocks * BLOCK_TOKENS);
        tokens.extend_from_slice(&self.groups[group].prefix);
        let shared = tokens.len() / BLOCK_TOKENS;
        while tokens.len() < blocks * BLOCK_TOKENS {
            tokens.push(self.rng.u32(..VOCABULARY));
        }
        self.keyed(tokens, shared, group)
    }

    fn keyed(&self, tokens: Vec<u32>, shared: usize, group: usize) -> Arc<Prompt> {
        let mut key = Vec::with_capacity(tokens.len() / BLOCK_TOKENS);
        self.space.extend_with_tokens(Salt::default(), None, &tokens, &mut key);
        let (content, chain) = (self.peer_hashes)(&tokens);
        let tokens = if self.keep_tokens { tokens } else { Vec::new() };
        Arc::new(Prompt { tokens, key, content, chain, shared, group })
    }
}
