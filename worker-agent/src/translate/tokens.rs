//! Cuts pages into blocks of tokens, or joins them to such blocks.

use router_core::key::{BlockHash, KeySpace, Unit};

use super::{Cut, TranslateError};
use crate::mirror::{Mirror, PageId};

/// Which blocks of tokens each page completes.
#[derive(Debug)]
pub(super) struct TokenCutter {
    fit: Fit,
    /// For each page of the mirror the hashes of the blocks it completes, zero for none.
    completed: Vec<u64>,
    /// Reused by every page.
    tokens: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Fit {
    /// A page has this many blocks.
    Split(usize),
    /// A block has this many pages.
    Join(u32),
}

impl TokenCutter {
    pub(super) fn new(space: &KeySpace, page_size: u32) -> Result<Self, TranslateError> {
        Ok(Self { fit: Fit::of(space, page_size)?, completed: Vec::new(), tokens: Vec::new() })
    }

    /// Hashes the blocks that `page` completes.
    pub(super) fn cut(
        &mut self,
        space: &KeySpace,
        mirror: &Mirror,
        page: PageId,
        hashes: &mut Vec<BlockHash>,
    ) -> Cut {
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
            return Cut::After(None);
        }
        let Some(parent) = self.hash(space, mirror, (page, pages, slots), hashes) else {
            return Cut::Untranslatable;
        };
        for (slot, hash) in self.completed[start..].iter_mut().zip(hashes.iter()) {
            *slot = hash.get();
        }
        Cut::After(parent)
    }

    /// Takes out the hashes of the blocks that `page` completed.
    pub(super) fn forget(&mut self, page: PageId, hashes: &mut Vec<u64>) {
        let slots = match self.fit {
            Fit::Split(blocks) => blocks,
            Fit::Join(_) => 1,
        };
        let start = page.index() * slots;
        let completed = self.completed.get_mut(start..start + slots).unwrap_or_default();
        hashes.extend(completed.iter_mut().map(std::mem::take).filter(|hash| *hash != 0));
    }

    pub(super) fn clear(&mut self) {
        self.completed.clear();
    }

    /// Answers the block before them.
    fn hash(
        &mut self,
        space: &KeySpace,
        mirror: &Mirror,
        (page, pages, slots): (PageId, u32, usize),
        hashes: &mut Vec<BlockHash>,
    ) -> Option<Option<BlockHash>> {
        self.tokens.clear();
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
        space.extend_with_tokens(mirror.salt(first), parent, &self.tokens, hashes);
        Some(parent)
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
