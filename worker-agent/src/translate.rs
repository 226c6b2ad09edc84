//! Pages of an engine as blocks of one coordinator's key space, and what that coordinator has been told of them.
//!
//! Page and block sizes differ; one must be a multiple of the other. A block is held while all pages that cover it are:
//! since a mirror holds no page without its parent, that is while the page that completes the block is held. Pages with
//! equal tokens but different engine hashes give one block, which is held until the last of them goes.
//!
//! A [`BlockView`] compares what is held with what has been told, so that a block removed and stored again between two reports
//! costs nothing, and an absent coordinator bounded memory. One stored and removed is told to have gone: who sent the prompt there
//! believes that it is held.

mod run;

use router_core::key::{BlockHash, KeySpace, Unit};
use rustc_hash::{FxHashMap, FxHashSet};

use self::run::push_block;
use crate::mirror::{Change, Mirror, PageId};

pub use self::run::{Run, runs};

/// Which changes a coordinator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Removals only: every block that was ever held counts as known to the coordinator.
    Removals,
    /// Stores and removals.
    All,
}

/// A key space that an engine's pages cannot be translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// Its blocks are cut from text.
    #[error("blocks of text need the model's tokenizer, which this agent does not have")]
    Text,
    /// Pages and blocks overlap in part.
    #[error("blocks of {block_size} tokens and pages of {page_size} do not fit into each other")]
    Sizes {
        /// Tokens in a block.
        block_size: u32,
        /// Tokens in a page.
        page_size: u32,
    },
}

/// What changed since the last report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewDelta {
    /// All blocks went before the rest happened.
    pub cleared: bool,
    /// Blocks that went, each with all below it.
    pub removed: Vec<u64>,
    /// Blocks that came, parents before their children.
    pub stored: Vec<Run>,
}

/// The blocks one rank holds, in one key space.
#[derive(Debug)]
pub struct BlockView {
    space: KeySpace,
    fit: Fit,
    tell: Tell,
    /// For each page of the mirror the hashes of the blocks it completes, zero for none.
    completed: Vec<u64>,
    blocks: FxHashMap<u64, Block>,
    held: usize,
    told: usize,
    /// Blocks of which something may have to be told, in the order in which they first changed.
    queue: Vec<u64>,
    cleared: bool,
    buckets: Box<[u16; BUCKETS]>,
    untranslatable_pages: u64,
    /// Reused by every translation.
    tokens: Vec<u32>,
    hashes: Vec<BlockHash>,
}

/// Number of buckets of a set's digest.
pub const BUCKETS: usize = 256;

#[derive(Clone, Copy, Debug)]
enum Fit {
    /// A page has this many blocks.
    Split(usize),
    /// A block has this many pages.
    Join(u32),
}

#[derive(Clone, Copy, Debug)]
struct Block {
    parent: u64,
    /// Pages that complete it.
    pages: u32,
    told: bool,
    queued: bool,
}

impl BlockView {
    /// The view of `mirror` in `space`. Nothing of it has been told yet.
    pub fn new(space: KeySpace, tell: Tell, mirror: &Mirror) -> Result<Self, TranslateError> {
        let fit = Fit::of(&space, mirror.page_size())?;
        let mut view = Self {
            space,
            fit,
            tell,
            completed: Vec::new(),
            blocks: FxHashMap::default(),
            held: 0,
            told: 0,
            queue: Vec::new(),
            cleared: false,
            buckets: Box::new([0; BUCKETS]),
            untranslatable_pages: 0,
            tokens: Vec::new(),
            hashes: Vec::new(),
        };
        for page in mirror.in_order() {
            view.store(mirror, page);
        }
        Ok(view)
    }

    /// Whether pages of `page_size` tokens can be translated to `space`.
    pub fn check(space: &KeySpace, page_size: u32) -> Result<(), TranslateError> {
        Fit::of(space, page_size).map(|_| ())
    }

    /// The key space.
    pub fn space(&self) -> &KeySpace {
        &self.space
    }

    /// Follows the changes of the mirror.
    pub fn follow(&mut self, mirror: &Mirror, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Cleared => self.clear(),
                Change::Gone(page) => self.remove(*page),
                Change::Stored(page) => self.store(mirror, *page),
            }
        }
    }

    /// Changes which changes are told. After raising it, tell what [`take_baseline`](Self::take_baseline) takes.
    pub fn set_tell(&mut self, tell: Tell) {
        self.tell = tell;
    }

    /// Blocks held.
    pub fn len(&self) -> usize {
        self.held
    }

    /// No block is held.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// The wrapping sums of the low 16 bits of all hashes held, by their top 8 bits.
    pub fn buckets(&self) -> &[u16; BUCKETS] {
        &self.buckets
    }

    /// Pages that no prompt of this key space can match.
    pub fn untranslatable_pages(&self) -> u64 {
        self.untranslatable_pages
    }

    /// There may be something to tell.
    pub fn has_changes(&self) -> bool {
        self.cleared || !self.queue.is_empty()
    }

    /// Changes that are kept until they are told; of each block at most one.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Takes what is to be told; from now on it counts as told. Of blocks that went only the topmost are named: what hangs below
    /// went with them.
    pub fn take_delta(&mut self) -> ViewDelta {
        let mut delta = ViewDelta { cleared: std::mem::take(&mut self.cleared), ..ViewDelta::default() };
        let mut removed: Vec<(u64, u64)> = Vec::new();
        for hash in std::mem::take(&mut self.queue) {
            let Some(block) = self.blocks.get_mut(&hash) else { continue };
            block.queued = false;
            match (block.pages > 0, block.told) {
                (true, false) => {
                    block.told = true;
                    self.told += 1;
                    if self.tell == Tell::All {
                        push_block(&mut delta.stored, block.parent, hash);
                    }
                }
                (false, told) => {
                    self.told -= usize::from(told);
                    removed.push((block.parent, hash));
                    self.blocks.remove(&hash);
                }
                (true, true) => {}
            }
        }
        let gone: FxHashSet<u64> = removed.iter().map(|(_, hash)| *hash).collect();
        removed.retain(|(parent, _)| !gone.contains(parent));
        delta.removed = removed.into_iter().map(|(_, hash)| hash).collect();
        delta
    }

    /// Takes all blocks held, each with its parent, in no order; from now on they and nothing else count as told.
    pub fn take_baseline(&mut self) -> Vec<(u64, u64)> {
        self.cleared = false;
        self.queue.clear();
        self.blocks.retain(|_, block| {
            block.told = true;
            block.queued = false;
            block.pages > 0
        });
        self.told = self.held;
        self.blocks.iter().map(|(hash, block)| (block.parent, *hash)).collect()
    }

    fn clear(&mut self) {
        self.completed.clear();
        self.blocks.clear();
        self.queue.clear();
        self.held = 0;
        self.told = 0;
        self.buckets.fill(0);
        self.cleared = true;
    }

    fn store(&mut self, mirror: &Mirror, page: PageId) {
        let (slots, pages) = match self.fit {
            Fit::Split(blocks) => (blocks, 1),
            Fit::Join(pages) => (1, pages),
        };
        let start = page.index() * slots;
        if self.completed.len() < start + slots {
            self.completed.resize(start + slots, 0);
        }
        self.completed[start..start + slots].fill(0);
        if !(mirror.depth(page) + 1).is_multiple_of(pages) {
            return;
        }
        let Some(parent) = self.translate(mirror, page, pages, slots) else {
            self.untranslatable_pages += 1;
            return;
        };
        let mut parent = parent.map_or(0, BlockHash::get);
        let hashes = std::mem::take(&mut self.hashes);
        for (index, hash) in hashes.iter().enumerate() {
            self.completed[start + index] = hash.get();
            self.hold(hash.get(), parent);
            parent = hash.get();
        }
        self.hashes = hashes;
    }

    /// Hashes the blocks that `page` completes into `self.hashes` and answers the block before them.
    fn translate(
        &mut self,
        mirror: &Mirror,
        page: PageId,
        pages: u32,
        slots: usize,
    ) -> Option<Option<BlockHash>> {
        self.tokens.clear();
        self.hashes.clear();
        let mut first = page;
        let size = mirror.page_size() as usize;
        self.tokens.resize(size * pages as usize, 0);
        for index in (0..pages as usize).rev() {
            self.tokens[index * size..(index + 1) * size].copy_from_slice(mirror.tokens(first)?);
            if index > 0 {
                first = mirror.parent(first)?;
            }
        }
        let parent = match mirror.parent(first) {
            None => None,
            Some(before) => Some(BlockHash::new(self.completed[before.index() * slots + slots - 1])?),
        };
        self.space.extend_with_tokens(mirror.salt(first), parent, &self.tokens, &mut self.hashes);
        Some(parent)
    }

    fn remove(&mut self, page: PageId) {
        let slots = match self.fit {
            Fit::Split(blocks) => blocks,
            Fit::Join(_) => 1,
        };
        let start = page.index() * slots;
        for slot in start..start + slots {
            let hash = std::mem::take(&mut self.completed[slot]);
            if hash != 0 {
                self.release(hash);
            }
        }
    }

    fn hold(&mut self, hash: u64, parent: u64) {
        let block = self.blocks.entry(hash).or_insert(Block { parent, pages: 0, told: false, queued: false });
        block.pages += 1;
        if block.pages > 1 {
            return;
        }
        self.held += 1;
        if self.tell == Tell::Removals && !block.told {
            block.told = true;
            self.told += 1;
        }
        if !block.told && !std::mem::replace(&mut block.queued, true) {
            self.queue.push(hash);
        }
        let bucket = &mut self.buckets[(hash >> 56) as usize];
        *bucket = bucket.wrapping_add(hash as u16);
    }

    fn release(&mut self, hash: u64) {
        let Some(block) = self.blocks.get_mut(&hash) else { return };
        block.pages = block.pages.saturating_sub(1);
        if block.pages > 0 {
            return;
        }
        self.held -= 1;
        let bucket = &mut self.buckets[(hash >> 56) as usize];
        *bucket = bucket.wrapping_sub(hash as u16);
        if !std::mem::replace(&mut block.queued, true) {
            self.queue.push(hash);
        }
        // Blocks that came and went unreported must not pile up while nobody takes deltas.
        if self.queue.len() > 2 * (self.held + self.told) + 1024 {
            self.compact();
        }
    }

    fn compact(&mut self) {
        let blocks = &mut self.blocks;
        self.queue.retain(|hash| {
            let Some(block) = blocks.get_mut(hash) else { return false };
            let pending = (block.pages > 0) != block.told;
            block.queued = pending;
            if block.pages == 0 && !block.told {
                blocks.remove(hash);
            }
            pending
        });
    }
}

impl Fit {
    fn of(space: &KeySpace, page_size: u32) -> Result<Self, TranslateError> {
        if space.unit() != Unit::Token {
            return Err(TranslateError::Text);
        }
        let block_size = space.block_size();
        if page_size > 0 && page_size.is_multiple_of(block_size) {
            Ok(Self::Split((page_size / block_size) as usize))
        } else if page_size > 0 && block_size.is_multiple_of(page_size) {
            Ok(Self::Join(block_size / page_size))
        } else {
            Err(TranslateError::Sizes { block_size, page_size })
        }
    }
}
