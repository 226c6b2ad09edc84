//! Cuts the text that pages stand for into blocks.
//!
//! A block of text is held while all pages are that have a byte of it: since a mirror holds no page without its parent, that is
//! while the page is held with whose bytes it is full. What is left over after a page's last full block begins the first block
//! of the pages below it; it is not kept, but taken from the pages above when it is needed.

use std::sync::Arc;

use router_core::key::{BlockHash, KeySpace};

use super::Cut;
use crate::mirror::{Mirror, PageId};
use crate::tokenizer::Vocabulary;

/// Which blocks of text each page completes.
#[derive(Debug)]
pub(super) struct TextCutter {
    vocabulary: Arc<Vocabulary>,
    /// For each page of the mirror where its text ends.
    ends: Vec<End>,
    /// What is left over after the page that was cut last, which usually is the parent of the next one.
    recent: Option<PageId>,
    rest: Vec<u8>,
    /// Reused by every page.
    bytes: Vec<u8>,
}

/// Where the text of a path ends.
#[derive(Clone, Debug, Default)]
enum End {
    /// Its text is not known.
    #[default]
    Unknown,
    Known {
        /// The last full block; zero before the first one.
        last: u64,
        /// Bytes after it.
        rest: u32,
        /// The blocks that the page completes.
        completed: Box<[u64]>,
    },
}

impl TextCutter {
    pub(super) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, ends: Vec::new(), recent: None, rest: Vec::new(), bytes: Vec::new() }
    }

    /// Hashes the blocks that `page` completes.
    pub(super) fn cut(
        &mut self,
        space: &KeySpace,
        mirror: &Mirror,
        page: PageId,
        hashes: &mut Vec<BlockHash>,
    ) -> Cut {
        if self.ends.len() <= page.index() {
            self.ends.resize(page.index() + 1, End::Unknown);
        }
        self.ends[page.index()] = End::Unknown;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let cut = self.cut_after(space, mirror, page, &mut bytes, hashes);
        self.bytes = bytes;
        cut.unwrap_or(Cut::Untranslatable)
    }

    fn cut_after(
        &mut self,
        space: &KeySpace,
        mirror: &Mirror,
        page: PageId,
        bytes: &mut Vec<u8>,
        hashes: &mut Vec<BlockHash>,
    ) -> Option<Cut> {
        let before = match mirror.parent(page) {
            None => 0,
            Some(parent) => {
                let End::Known { last, rest, .. } = self.ends.get(parent.index())? else { return None };
                let (last, rest) = (*last, *rest as usize);
                if self.recent == Some(parent) {
                    bytes.extend_from_slice(&self.rest);
                } else {
                    self.text_before(mirror, parent, rest, bytes)?;
                }
                last
            }
        };
        self.spell(mirror, page, bytes)?;
        let parent = BlockHash::new(before);
        space.extend_with_text(mirror.salt(page), parent, bytes, hashes);
        let full = hashes.len() * space.block_size() as usize;
        self.recent = Some(page);
        self.rest.clear();
        self.rest.extend_from_slice(&bytes[full..]);
        self.ends[page.index()] = End::Known {
            last: hashes.last().map_or(before, |hash| hash.get()),
            rest: self.rest.len() as u32,
            completed: hashes.iter().map(|hash| hash.get()).collect(),
        };
        Some(Cut::After(parent))
    }

    /// Takes out the hashes of the blocks that `page` completed.
    pub(super) fn forget(&mut self, page: PageId, hashes: &mut Vec<u64>) {
        // Its place may get another page.
        self.recent = self.recent.filter(|recent| *recent != page);
        let end = self.ends.get_mut(page.index()).map(std::mem::take);
        if let Some(End::Known { completed, .. }) = end {
            hashes.extend_from_slice(&completed);
        }
    }

    pub(super) fn clear(&mut self) {
        self.ends.clear();
        self.recent = None;
    }

    /// The last `len` bytes of the text that ends with `page`.
    fn text_before(&self, mirror: &Mirror, page: PageId, len: usize, bytes: &mut Vec<u8>) -> Option<()> {
        let mut first = page;
        let mut path = Vec::new();
        let mut found = 0;
        while found < len {
            let mut text = Vec::new();
            self.spell(mirror, first, &mut text)?;
            found += text.len();
            path.push(text);
            if found < len {
                first = mirror.parent(first)?;
            }
        }
        bytes.extend(path.into_iter().rev().flatten().skip(found - len));
        Some(())
    }

    /// Appends the text of one page; `None` if its tokens have none.
    fn spell(&self, mirror: &Mirror, page: PageId, bytes: &mut Vec<u8>) -> Option<()> {
        let tokens = mirror.tokens(page)?;
        // What the tokenizer adds by itself is not in the prompt's text.
        let leading = match mirror.depth(page) {
            0 if tokens.starts_with(self.vocabulary.leading()) => self.vocabulary.leading().len(),
            _ => 0,
        };
        for token in &tokens[leading..] {
            bytes.extend_from_slice(self.vocabulary.bytes(*token)?);
        }
        Some(())
    }
}
