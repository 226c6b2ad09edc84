//! Pages of an engine as blocks of one coordinator's key space, and what that coordinator has been told of them.
//!
//! Page and block sizes differ; one must be a multiple of the other. A block is held while all pages that cover it are:
//! since a mirror holds no page without its parent, that is while the page that completes the block is held. Pages with
//! equal blocks but different engine hashes give one block, which is held until the last of them goes.
//!
//! A [`BlockView`] compares what is held with what has been told, so that a block removed and stored again between two reports
//! costs nothing, and an absent coordinator bounded memory. One stored and removed is told to have gone: who sent the prompt there
//! believes that it is held.

mod absence;
mod run;
mod text;
mod tokens;
mod unpredicted;

use std::sync::Arc;

use router_core::key::{BlockHash, KeySpace, Unit};
use rustc_hash::{FxHashMap, FxHashSet};

use self::run::push_block;
use self::text::TextCutter;
use self::tokens::TokenCutter;
use self::unpredicted::Unpredicted;
use crate::mirror::{Change, Mirror, PageId};
use crate::tokenizer::Vocabulary;

pub use self::run::{Run, runs};

/// Which changes a coordinator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Removals only: every block that was ever held counts as known to the coordinator.
    Removals,
    /// Removals, and stores that the coordinator has not [named](BlockView::predicted).
    Unpredicted,
    /// Stores and removals.
    All,
}

/// Deltas after one that tells of a clear in which stores are told, too. Whoever hears of a clear forgets what has been computed by then,
/// of which the engine may tell a moment later.
const TELLING_AFTER_CLEAR: u32 = 40;

/// A key space that an engine's pages cannot be translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// Its blocks are cut from text.
    #[error("blocks of text need the model's tokenizer")]
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
    cutter: Cutter,
    tell: Tell,
    blocks: FxHashMap<u64, Block>,
    held: usize,
    told: usize,
    /// Blocks of which something may have to be told, in the order in which they first changed.
    queue: Vec<u64>,
    unpredicted: Unpredicted,
    cleared: bool,
    /// More was to be told than a baseline says.
    needs_baseline: bool,
    /// Deltas that tell of stores still, whatever else is told.
    telling: u32,
    buckets: Box<[u16; BUCKETS]>,
    untranslatable_pages: u64,
    /// Reused by every translation.
    hashes: Vec<BlockHash>,
    gone: Vec<u64>,
}

/// Number of buckets of a set's digest.
pub const BUCKETS: usize = 256;

/// How pages become blocks.
#[derive(Debug)]
enum Cutter {
    Tokens(TokenCutter),
    Text(TextCutter),
}

/// What cutting a page came to.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The blocks that the page completes follow this one; there may be none.
    After(Option<BlockHash>),
    /// No prompt can have its tokens.
    Untranslatable,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    parent: u64,
    /// Pages that complete it.
    pages: u32,
    told: bool,
    queued: bool,
}

impl Block {
    /// It is held, and nobody has told of it or is about to.
    fn is_untold(&self) -> bool {
        self.pages > 0 && !self.told && !self.queued
    }
}

impl BlockView {
    /// The view of `mirror` in a key space of tokens. Nothing of it has been told yet.
    pub fn new(space: KeySpace, tell: Tell, mirror: &Mirror) -> Result<Self, TranslateError> {
        let cutter = TokenCutter::new(&space, mirror.page_size())?;
        Ok(Self::with(space, Cutter::Tokens(cutter), tell, mirror))
    }

    /// The view of `mirror` in a key space of text. Nothing of it has been told yet.
    ///
    /// # Panics
    /// If `space` is of tokens.
    pub fn of_text(space: KeySpace, vocabulary: Arc<Vocabulary>, tell: Tell, mirror: &Mirror) -> Self {
        assert_eq!(space.unit(), Unit::Text, "tokens need no vocabulary");
        Self::with(space, Cutter::Text(TextCutter::new(vocabulary)), tell, mirror)
    }

    fn with(space: KeySpace, cutter: Cutter, tell: Tell, mirror: &Mirror) -> Self {
        let mut view = Self {
            space,
            cutter,
            tell,
            blocks: FxHashMap::default(),
            held: 0,
            told: 0,
            queue: Vec::new(),
            unpredicted: Unpredicted::default(),
            cleared: false,
            needs_baseline: false,
            telling: 0,
            buckets: Box::new([0; BUCKETS]),
            untranslatable_pages: 0,
            hashes: Vec::new(),
            gone: Vec::new(),
        };
        for page in mirror.in_order() {
            view.store(mirror, page);
        }
        view
    }

    /// Whether pages of `page_size` tokens can be translated to `space` without a tokenizer.
    pub fn check(space: &KeySpace, page_size: u32) -> Result<(), TranslateError> {
        TokenCutter::new(space, page_size).map(|_| ())
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

    /// All blocks held, in no order.
    pub fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().filter(|(_, block)| block.pages > 0).map(|(hash, _)| *hash)
    }

    /// The block before one that is held, zero where a prompt begins; `None` if it is not held.
    pub fn parent_of_held(&self, hash: u64) -> Option<u64> {
        self.blocks.get(&hash).filter(|block| block.pages > 0).map(|block| block.parent)
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
        self.cleared || self.needs_baseline || !self.queue.is_empty()
    }

    /// Changes that are kept until they are told; of each block at most one.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Takes what is to be told; from now on it counts as told. Of blocks that went only the topmost are named: what hangs below
    /// went with them.
    pub fn take_delta(&mut self) -> ViewDelta {
        // What is not to be told has not been queued.
        let tells_stores = self.tells_stores() || self.tell == Tell::Unpredicted;
        let mut delta = ViewDelta { cleared: std::mem::take(&mut self.cleared), ..ViewDelta::default() };
        self.telling = if delta.cleared { TELLING_AFTER_CLEAR } else { self.telling.saturating_sub(1) };
        let mut removed: Vec<(u64, u64)> = Vec::new();
        for hash in std::mem::take(&mut self.queue) {
            let Some(block) = self.blocks.get_mut(&hash) else { continue };
            block.queued = false;
            match (block.pages > 0, block.told) {
                (true, false) => {
                    // Its parent may still wait to be named.
                    for (parent, hash) in self.know(hash) {
                        if tells_stores {
                            push_block(&mut delta.stored, parent, hash);
                        }
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

    /// All blocks held count as told, and nothing else.
    pub fn count_as_told(&mut self) {
        (self.cleared, self.needs_baseline) = (false, false);
        self.queue.clear();
        self.unpredicted.clear();
        self.blocks.retain(|_, block| {
            block.told = true;
            block.queued = false;
            block.pages > 0
        });
        self.told = self.held;
    }

    /// Takes all blocks held, each with its parent, in no order; from now on they and nothing else count as told.
    pub fn take_baseline(&mut self) -> Vec<(u64, u64)> {
        self.count_as_told();
        self.blocks.iter().map(|(hash, block)| (block.parent, *hash)).collect()
    }

    fn clear(&mut self) {
        match &mut self.cutter {
            Cutter::Tokens(cutter) => cutter.clear(),
            Cutter::Text(cutter) => cutter.clear(),
        }
        self.blocks.clear();
        self.queue.clear();
        self.unpredicted.clear();
        self.held = 0;
        self.told = 0;
        self.buckets.fill(0);
        (self.cleared, self.needs_baseline) = (true, false);
    }

    fn store(&mut self, mirror: &Mirror, page: PageId) {
        let mut hashes = std::mem::take(&mut self.hashes);
        hashes.clear();
        let cut = match &mut self.cutter {
            Cutter::Tokens(cutter) => cutter.cut(&self.space, mirror, page, &mut hashes),
            Cutter::Text(cutter) => cutter.cut(&self.space, mirror, page, &mut hashes),
        };
        match cut {
            Cut::Untranslatable => self.untranslatable_pages += 1,
            Cut::After(parent) => {
                let mut parent = parent.map_or(0, BlockHash::get);
                for hash in &hashes {
                    self.hold(hash.get(), parent);
                    parent = hash.get();
                }
            }
        }
        self.hashes = hashes;
    }

    fn remove(&mut self, page: PageId) {
        let mut gone = std::mem::take(&mut self.gone);
        match &mut self.cutter {
            Cutter::Tokens(cutter) => cutter.forget(page, &mut gone),
            Cutter::Text(cutter) => cutter.forget(page, &mut gone),
        }
        gone.drain(..).for_each(|hash| self.release(hash));
        self.gone = gone;
    }

    fn tells_stores(&self) -> bool {
        self.tell == Tell::All || self.cleared || self.telling > 0
    }

    fn hold(&mut self, hash: u64, parent: u64) {
        let tells_stores = self.tells_stores();
        let block = self.blocks.entry(hash).or_insert(Block { parent, pages: 0, told: false, queued: false });
        block.pages += 1;
        if block.pages > 1 {
            return;
        }
        self.held += 1;
        let bucket = &mut self.buckets[(hash >> 56) as usize];
        *bucket = bucket.wrapping_add(hash as u16);
        // Whatever is told of it, a name is good for one store.
        let named = self.unpredicted.take_name(hash);
        if !block.is_untold() {
            return;
        }
        if tells_stores {
            block.queued = true;
            self.queue.push(hash);
        } else if self.tell == Tell::Removals {
            block.told = true;
            self.told += 1;
        } else if named {
            self.know(hash);
        } else {
            self.await_name(hash);
        }
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
        self.bound_queue();
    }
}
