//! Pages in the trees that their prefixes make: places, links, tokens. What a page's copies mean is not decided here.

use router_core::key::Salt;
use rustc_hash::FxHashMap;

use super::{Medium, TokenIds};

/// No page: the parent of a page where a prompt begins, or the end of a list.
const NONE: u32 = u32::MAX;
const TIERS: usize = 5;

/// Place of a page in its mirror. It may name another page after the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageId(u32);

/// All pages of one rank. Every page has its parent here.
#[derive(Debug)]
pub(super) struct Forest {
    page_size: usize,
    pages: Vec<Page>,
    /// `page_size` ids for each element of `pages`.
    tokens: Vec<u32>,
    free: Vec<u32>,
    by_hash: FxHashMap<i64, u32>,
    first_root: u32,
}

/// One page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) hash: i64,
    pub(super) salt: Salt,
    /// Pages before this one.
    pub(super) depth: u32,
    /// Created in the present batch.
    pub(super) fresh: bool,
    live: bool,
    /// Its tokens are what a router can hash.
    translatable: bool,
    /// Copies on each tier.
    copies: [u16; TIERS],
    parent: u32,
    first_child: u32,
    next: u32,
    previous: u32,
}

/// A page to be created.
#[derive(Debug)]
pub(super) struct NewPage<'a> {
    pub(super) hash: i64,
    pub(super) salt: Salt,
    pub(super) parent: Option<PageId>,
    /// Ids of a run of pages, of which this is the `index`-th; `None` if they are not what a router would hash.
    pub(super) tokens: Option<&'a TokenIds>,
    pub(super) index: usize,
}

impl PageId {
    /// The place as an index; places are dense.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Forest {
    /// Most pages that can be told apart.
    pub(super) const MOST_PAGES: usize = NONE as usize - 1;

    pub(super) fn new(page_size: usize) -> Self {
        Self {
            page_size,
            pages: Vec::new(),
            tokens: Vec::new(),
            free: Vec::new(),
            by_hash: FxHashMap::default(),
            first_root: NONE,
        }
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
        self.tokens.clear();
        self.free.clear();
        self.by_hash.clear();
        self.first_root = NONE;
    }

    pub(super) fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub(super) fn find(&self, hash: i64) -> Option<PageId> {
        self.by_hash.get(&hash).copied().map(PageId)
    }

    pub(super) fn page(&self, id: PageId) -> &Page {
        &self.pages[id.index()]
    }

    pub(super) fn page_mut(&mut self, id: PageId) -> &mut Page {
        &mut self.pages[id.index()]
    }

    pub(super) fn parent(&self, id: PageId) -> Option<PageId> {
        some(self.pages[id.index()].parent)
    }

    /// The ids of a page, or `None` if no prompt can have them.
    pub(super) fn tokens(&self, id: PageId) -> Option<&[u32]> {
        let start = id.index() * self.page_size;
        self.pages[id.index()].translatable.then(|| &self.tokens[start..start + self.page_size])
    }

    /// All pages, parents before their children.
    pub(super) fn in_order(&self) -> Vec<PageId> {
        let mut order = Vec::with_capacity(self.len());
        let mut root = self.first_root;
        while root != NONE {
            self.collect(PageId(root), &mut order);
            root = self.pages[root as usize].next;
        }
        order
    }

    /// Adds a page without copies.
    pub(super) fn create(&mut self, new: NewPage<'_>) -> PageId {
        let size = self.page_size;
        let parent = new.parent.map_or(NONE, |parent| parent.0);
        let depth = if parent == NONE { 0 } else { self.pages[parent as usize].depth + 1 };
        let id = self.free.pop().unwrap_or_else(|| {
            self.tokens.resize(self.tokens.len() + size, 0);
            self.pages.len() as u32
        });
        let slot = &mut self.tokens[id as usize * size..(id as usize + 1) * size];
        let range = new.index * size..(new.index + 1) * size;
        let translatable = new.tokens.is_some_and(|tokens| copy_tokens(tokens, range, slot));
        let head =
            if parent == NONE { &mut self.first_root } else { &mut self.pages[parent as usize].first_child };
        let next = std::mem::replace(head, id);
        let page = Page {
            hash: new.hash,
            salt: new.salt,
            depth,
            fresh: true,
            live: true,
            translatable,
            copies: [0; TIERS],
            parent,
            first_child: NONE,
            next,
            previous: NONE,
        };
        if next != NONE {
            self.pages[next as usize].previous = id;
        }
        if (id as usize) < self.pages.len() {
            self.pages[id as usize] = page;
        } else {
            self.pages.push(page);
        }
        self.by_hash.insert(new.hash, id);
        PageId(id)
    }

    /// Takes out a page and all below it; returns them, children before their parents. Until the next page is created
    /// their places can still be read.
    pub(super) fn detach(&mut self, root: PageId) -> Vec<PageId> {
        let mut below = Vec::new();
        self.collect(root, &mut below);
        self.unlink(root);
        for id in &below {
            let page = &mut self.pages[id.index()];
            page.live = false;
            self.by_hash.remove(&page.hash);
            self.free.push(id.0);
        }
        below.reverse();
        below
    }

    /// Appends `page` and everything below it, parents before children.
    fn collect(&self, page: PageId, into: &mut Vec<PageId>) {
        let mut next = into.len();
        into.push(page);
        while next < into.len() {
            let mut child = self.pages[into[next].index()].first_child;
            while child != NONE {
                into.push(PageId(child));
                child = self.pages[child as usize].next;
            }
            next += 1;
        }
    }

    /// Takes `page` out of its parent's list of children.
    fn unlink(&mut self, page: PageId) {
        let Page { parent, next, previous, .. } = self.pages[page.index()];
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
        if previous != NONE {
            self.pages[previous as usize].next = next;
        } else if parent == NONE {
            self.first_root = next;
        } else {
            self.pages[parent as usize].first_child = next;
        }
    }
}

impl Page {
    /// Still in the forest.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// A copy is left on some tier.
    pub(super) fn held(&self) -> bool {
        self.copies.iter().any(|copies| *copies > 0)
    }

    /// Adds a copy; answers how many more copies the tier with the most has.
    pub(super) fn add_copy(&mut self, medium: Option<Medium>) -> u16 {
        let before = self.most_copies();
        let copies = &mut self.copies[tier(medium)];
        *copies = copies.saturating_add(1);
        self.most_copies() - before
    }

    /// Takes a copy away; answers how many fewer copies the tier with the most has, `None` if there is none on that tier.
    pub(super) fn take_copy(&mut self, medium: Option<Medium>) -> Option<u16> {
        let before = self.most_copies();
        let copies = &mut self.copies[tier(medium)];
        *copies = copies.checked_sub(1)?;
        Some(before - self.most_copies())
    }

    fn most_copies(&self) -> u16 {
        self.copies.iter().copied().max().unwrap_or(0)
    }
}

fn some(page: u32) -> Option<PageId> {
    (page != NONE).then_some(PageId(page))
}

/// Releases without tiers mean the device.
fn tier(medium: Option<Medium>) -> usize {
    match medium {
        None | Some(Medium::Gpu) => 0,
        Some(Medium::CpuPinned) => 1,
        Some(Medium::Disk) => 2,
        Some(Medium::External) => 3,
        Some(Medium::Other) => 4,
    }
}

/// Copies the ids of one page; answers whether a prompt can have them.
fn copy_tokens(tokens: &TokenIds, range: std::ops::Range<usize>, to: &mut [u32]) -> bool {
    let fill = |to: &mut [u32], ids: &mut dyn Iterator<Item = u64>| {
        to.iter_mut().zip(ids).all(|(to, id)| u32::try_from(id).map(|id| *to = id).is_ok())
    };
    match tokens {
        TokenIds::Narrow(ids) => {
            to.copy_from_slice(&ids[range]);
            true
        }
        TokenIds::Wide(ids) => fill(to, &mut ids[range].iter().copied()),
        // The KV of a bigram is that of its first token.
        TokenIds::Pairs(ids) => fill(to, &mut ids[range].iter().map(|pair| pair[0])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(forest: &mut Forest, hash: i64, parent: Option<PageId>) -> PageId {
        let tokens = TokenIds::Narrow(vec![hash as u32]);
        forest.create(NewPage { hash, salt: Salt::default(), parent, tokens: Some(&tokens), index: 0 })
    }

    #[test]
    fn a_detached_branch_leaves_its_siblings_and_its_places() {
        let mut forest = Forest::new(1);
        let root = add(&mut forest, 1, None);
        let branch = add(&mut forest, 2, Some(root));
        let leaf = add(&mut forest, 3, Some(branch));
        let sibling = add(&mut forest, 4, Some(root));
        assert_eq!(forest.detach(branch), [leaf, branch], "children first");
        assert_eq!((forest.in_order(), forest.find(3)), (vec![root, sibling], None));
        let again = add(&mut forest, 5, Some(sibling));
        assert!(again == leaf || again == branch, "places are used again");
        assert_eq!((forest.parent(again), forest.page(again).depth), (Some(sibling), 2));
        assert_eq!(forest.tokens(again), Some(&[5][..]));
    }
}
