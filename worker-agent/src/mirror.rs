//! The prefix cache of one rank, page by page, as its events tell it.
//!
//! A page is known by the engine's hash. The engine publishes one hash twice when equal tokens are cached under two
//! `extra_key`s, and a page may be on several tiers at once, so every page counts its copies on each tier; it is held
//! while any copy is left. Every page here has its parent here: when a page goes, what hangs below it goes too, because
//! a prefix with a hole cannot be matched.
//!
//! Events are applied a batch at a time, and what a batch did is told as its net effect: a page that the batch removed
//! and stored again did not change. The engine removes a run of pages first page first, so that parents are without
//! copies before their children are; only the end of a batch is consistent.
//!
//! A mirror may know less than the engine holds, never more: events that were missed empty it ([`Mirror::lose`]), and
//! pages whose parent is unknown are counted and left out. [`Mirror::doubt`] says why it is incomplete until the engine
//! clears its cache or is replayed from its beginning.

use router_core::key::Salt;
use rustc_hash::FxHashMap;

use crate::events::{Event, Medium, Removed, Stored, TokenIds};

/// No page: the parent of a page where a prompt begins, or the end of a list.
const NONE: u32 = u32::MAX;
const TIERS: usize = 5;

/// Place of a page in its mirror. It may name another page after the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageId(u32);

/// A change of the set of pages held, in the order in which it must be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// All pages went.
    Cleared,
    /// A page went, after all pages below it.
    Gone(PageId),
    /// A page came, after all pages above it.
    Stored(PageId),
}

/// Why a mirror may lack pages that the engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// Events were missed and cannot be replayed.
    #[error("events were missed that the engine can no longer replay")]
    Hole,
    /// A page was stored below one that is not known.
    #[error("pages were stored below a page that is not known")]
    UnknownParent,
    /// An event contradicts itself or could not be decoded.
    #[error("an event could not be used")]
    Malformed,
    /// There were more pages than the mirror may hold.
    #[error("the cache has more pages than the agent may track")]
    Full,
}

/// What a mirror has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorStats {
    /// Tokens on the device tier, duplicates included.
    pub cached_tokens: u64,
    /// Tokens that were removed from the device tier.
    pub evicted_tokens_total: u64,
    /// Pages left out because their parent was not known.
    pub unknown_parent_pages: u64,
    /// Removals of pages or copies that were not known.
    pub unknown_removals: u64,
    /// Pages dropped although copies were left, because a page above them went.
    pub cut_off_pages: u64,
    /// Stores of a known hash below another parent than before.
    pub conflicting_pages: u64,
    /// Events that contradict themselves.
    pub malformed_events: u64,
    /// Events of kinds not known here.
    pub unknown_events: u64,
}

/// The pages one rank holds.
#[derive(Debug)]
pub struct Mirror {
    page_size: u32,
    max_pages: usize,
    pages: Vec<Page>,
    /// `page_size` ids for each element of `pages`.
    tokens: Vec<u32>,
    free: Vec<u32>,
    by_hash: FxHashMap<i64, u32>,
    first_root: u32,
    /// Pages that the current batch created, in order.
    fresh: Vec<u32>,
    /// Pages that lost their last copy in the current batch.
    emptied: Vec<u32>,
    cleared: bool,
    doubt: Option<Doubt>,
    stats: MirrorStats,
}

#[derive(Debug)]
struct Page {
    hash: i64,
    salt: Salt,
    parent: u32,
    first_child: u32,
    next: u32,
    previous: u32,
    /// Pages before this one.
    depth: u32,
    /// Copies on each tier.
    copies: [u16; TIERS],
    /// Its tokens are what a router can hash.
    translatable: bool,
    fresh: bool,
    live: bool,
}

impl PageId {
    /// The place as an index; places are dense.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Mirror {
    /// An empty mirror of an engine with `page_size` tokens a page, which may track `max_pages`.
    pub fn new(page_size: u32, max_pages: usize) -> Self {
        Self {
            page_size: page_size.max(1),
            max_pages: max_pages.min(NONE as usize - 1),
            pages: Vec::new(),
            tokens: Vec::new(),
            free: Vec::new(),
            by_hash: FxHashMap::default(),
            first_root: NONE,
            fresh: Vec::new(),
            emptied: Vec::new(),
            cleared: false,
            doubt: None,
            stats: MirrorStats::default(),
        }
    }

    /// Applies the events of one batch and says what changed.
    pub fn apply(&mut self, events: &[Event]) -> Vec<Change> {
        for event in events {
            match event {
                Event::Stored(stored) => self.store(stored),
                Event::Removed(removed) => self.remove(removed),
                Event::Cleared => {
                    self.empty();
                    self.stats.cached_tokens = 0;
                    self.doubt = None;
                }
                Event::Unknown => self.stats.unknown_events += 1,
            }
        }
        self.settle()
    }

    /// Forgets every page: something was missed, and nothing vouches for what was known before it.
    pub fn lose(&mut self, doubt: Doubt) -> Vec<Change> {
        self.empty();
        self.stats.cached_tokens = 0;
        self.doubt = Some(doubt);
        self.settle()
    }

    /// Why pages may be missing; `None` while the mirror is exact.
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// Pages held.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// No page is held.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Tokens in one page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// What was counted.
    pub fn stats(&self) -> MirrorStats {
        self.stats
    }

    /// The page before `page` on its path.
    pub fn parent(&self, page: PageId) -> Option<PageId> {
        let parent = self.pages[page.index()].parent;
        (parent != NONE).then_some(PageId(parent))
    }

    /// Number of pages before `page` on its path.
    pub fn depth(&self, page: PageId) -> u32 {
        self.pages[page.index()].depth
    }

    /// The salt under which `page` was stored; it matters where a prompt begins.
    pub fn salt(&self, page: PageId) -> Salt {
        self.pages[page.index()].salt
    }

    /// The token ids of `page`, or `None` if no prompt can have them: stand-ins for multimodal content, or tokens under
    /// a LoRA adapter whose name is not known.
    pub fn tokens(&self, page: PageId) -> Option<&[u32]> {
        let start = page.index() * self.page_size as usize;
        self.pages[page.index()].translatable.then(|| &self.tokens[start..start + self.page_size as usize])
    }

    /// All pages, parents before their children.
    pub fn in_order(&self) -> Vec<PageId> {
        let mut order = Vec::with_capacity(self.len());
        let mut root = self.first_root;
        while root != NONE {
            self.collect(root, &mut order);
            root = self.pages[root as usize].next;
        }
        order.into_iter().map(PageId).collect()
    }

    fn store(&mut self, stored: &Stored) {
        let pages = stored.hashes.len();
        if stored.page_size != self.page_size
            || Some(stored.tokens.len()) != pages.checked_mul(self.page_size as usize)
        {
            self.stats.malformed_events += 1;
            self.doubt.get_or_insert(Doubt::Malformed);
            return;
        }
        let tier = tier(stored.medium);
        if tier == 0 {
            self.stats.cached_tokens += pages as u64 * u64::from(self.page_size);
        }
        if self.doubt == Some(Doubt::Full) {
            return;
        }
        let mut parent = match stored.parent.map(|hash| self.by_hash.get(&hash).copied()) {
            None => NONE,
            Some(Some(known)) => known,
            Some(None) => {
                self.stats.unknown_parent_pages += pages as u64;
                self.doubt.get_or_insert(Doubt::UnknownParent);
                return;
            }
        };
        let salt = Salt::new(
            stored.lora_name.as_deref().unwrap_or_default(),
            stored.cache_salt.as_deref().unwrap_or_default(),
            "",
        );
        for (index, hash) in stored.hashes.iter().enumerate() {
            let page = match self.by_hash.get(hash) {
                Some(known) => {
                    self.stats.conflicting_pages += u64::from(self.pages[*known as usize].parent != parent);
                    *known
                }
                None => self.create(*hash, salt, parent, stored, index),
            };
            let copies = &mut self.pages[page as usize].copies[tier];
            *copies = copies.saturating_add(1);
            parent = page;
        }
    }

    fn remove(&mut self, removed: &Removed) {
        let tier = tier(removed.medium);
        if tier == 0 {
            let tokens = removed.hashes.len() as u64 * u64::from(self.page_size);
            self.stats.evicted_tokens_total += tokens;
            self.stats.cached_tokens = self.stats.cached_tokens.saturating_sub(tokens);
        }
        for hash in &removed.hashes {
            let page = self.by_hash.get(hash).copied();
            let Some((id, page)) = page.map(|id| (id, &mut self.pages[id as usize])) else {
                self.stats.unknown_removals += 1;
                continue;
            };
            if page.copies[tier] == 0 {
                self.stats.unknown_removals += 1;
                continue;
            }
            page.copies[tier] -= 1;
            if !page.held() {
                self.emptied.push(id);
            }
        }
    }

    /// Forgets every page; what was counted stays.
    fn empty(&mut self) {
        self.pages.clear();
        self.tokens.clear();
        self.free.clear();
        self.by_hash.clear();
        self.first_root = NONE;
        self.fresh.clear();
        self.emptied.clear();
        self.cleared = true;
    }

    /// Ends a batch: drops pages without copies and tells the net effect.
    fn settle(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let emptied = std::mem::take(&mut self.emptied);
        let mut below = Vec::new();
        for page in emptied {
            if !self.pages[page as usize].live || self.pages[page as usize].held() {
                continue;
            }
            self.collect(page, &mut below);
            self.unlink(page);
            // Parents come before children in `below`.
            for page in below.drain(..).rev() {
                if !self.drop_page(page) {
                    changes.push(Change::Gone(PageId(page)));
                }
            }
        }
        for page in std::mem::take(&mut self.fresh) {
            let entry = &mut self.pages[page as usize];
            if entry.live && entry.fresh {
                entry.fresh = false;
                changes.push(Change::Stored(PageId(page)));
            }
        }
        if self.len() > self.max_pages {
            self.empty();
            self.doubt = Some(Doubt::Full);
            changes.clear();
        }
        if std::mem::take(&mut self.cleared) {
            changes.insert(0, Change::Cleared);
        }
        changes
    }

    fn create(&mut self, hash: i64, salt: Salt, parent: u32, stored: &Stored, index: usize) -> u32 {
        let size = self.page_size as usize;
        let range = index * size..(index + 1) * size;
        let depth = if parent == NONE { 0 } else { self.pages[parent as usize].depth + 1 };
        let id = self.free.pop().unwrap_or_else(|| {
            self.tokens.resize(self.tokens.len() + size, 0);
            self.pages.len() as u32
        });
        let slot = &mut self.tokens[id as usize * size..(id as usize + 1) * size];
        let named = stored.lora_id.is_none() || stored.lora_name.is_some();
        let translatable = named && copy_tokens(&stored.tokens, range, slot);
        let head =
            if parent == NONE { &mut self.first_root } else { &mut self.pages[parent as usize].first_child };
        let next = std::mem::replace(head, id);
        let page = Page {
            hash,
            salt,
            parent,
            first_child: NONE,
            next,
            previous: NONE,
            depth,
            copies: [0; TIERS],
            translatable,
            fresh: true,
            live: true,
        };
        if next != NONE {
            self.pages[next as usize].previous = id;
        }
        if (id as usize) < self.pages.len() {
            self.pages[id as usize] = page;
        } else {
            self.pages.push(page);
        }
        self.by_hash.insert(hash, id);
        self.fresh.push(id);
        id
    }

    /// Appends `page` and everything below it, parents before children.
    fn collect(&self, page: u32, into: &mut Vec<u32>) {
        let mut next = into.len();
        into.push(page);
        while next < into.len() {
            let mut child = self.pages[into[next] as usize].first_child;
            while child != NONE {
                into.push(child);
                child = self.pages[child as usize].next;
            }
            next += 1;
        }
    }

    /// Takes `page` out of its parent's list of children.
    fn unlink(&mut self, page: u32) {
        let Page { parent, next, previous, .. } = self.pages[page as usize];
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

    /// Frees a page's place; answers whether the current batch had created it.
    fn drop_page(&mut self, page: u32) -> bool {
        let entry = &mut self.pages[page as usize];
        entry.live = false;
        self.stats.cut_off_pages += u64::from(entry.held());
        self.by_hash.remove(&entry.hash);
        self.free.push(page);
        entry.fresh
    }
}

impl Page {
    fn held(&self) -> bool {
        self.copies.iter().any(|copies| *copies > 0)
    }
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

    /// A store of pages of two tokens; the tokens follow from the hash.
    fn stored(parent: Option<i64>, hashes: &[i64]) -> Event {
        let tokens = hashes.iter().flat_map(|hash| [*hash as u32 * 2, *hash as u32 * 2 + 1]).collect();
        Event::Stored(Stored {
            hashes: hashes.to_vec(),
            parent,
            tokens: TokenIds::Narrow(tokens),
            page_size: 2,
            lora_id: None,
            lora_name: None,
            cache_salt: None,
            medium: Some(Medium::Gpu),
        })
    }

    fn removed(hashes: &[i64]) -> Event {
        Event::Removed(Removed { hashes: hashes.to_vec(), medium: Some(Medium::Gpu) })
    }

    fn on(medium: Medium, event: Event) -> Event {
        match event {
            Event::Stored(stored) => Event::Stored(Stored { medium: Some(medium), ..stored }),
            Event::Removed(removed) => Event::Removed(Removed { medium: Some(medium), ..removed }),
            other => other,
        }
    }

    fn hashes(mirror: &Mirror) -> Vec<i64> {
        let mut hashes: Vec<i64> = mirror.by_hash.keys().copied().collect();
        hashes.sort_unstable();
        hashes
    }

    #[test]
    fn a_batch_tells_its_net_effect() {
        let mut mirror = Mirror::new(2, 100);
        assert_eq!(mirror.apply(&[stored(None, &[1, 2, 3])]).len(), 3);
        // Removed first page first, as the engine does, and stored again.
        assert_eq!(mirror.apply(&[removed(&[2, 3]), stored(Some(1), &[2, 3])]), []);
        assert_eq!(mirror.apply(&[stored(Some(3), &[4]), removed(&[4])]), []);
        let changes = mirror.apply(&[removed(&[2, 3])]);
        let three = mirror.pages.iter().position(|page| page.hash == 3).unwrap() as u32;
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[0], Change::Gone(PageId(three)), "children go first");
        assert_eq!((hashes(&mirror), mirror.stats().unknown_removals), (vec![1], 0));
        assert_eq!((mirror.stats().cached_tokens, mirror.stats().evicted_tokens_total), (2, 10));
    }

    #[test]
    fn a_page_published_twice_is_held_until_removed_twice() {
        let mut mirror = Mirror::new(2, 100);
        mirror.apply(&[stored(None, &[1]), stored(None, &[1])]);
        assert_eq!(mirror.apply(&[removed(&[1])]), []);
        assert_eq!(mirror.apply(&[removed(&[1])]).len(), 1);
        assert_eq!(mirror.apply(&[removed(&[1])]), []);
        assert_eq!(mirror.stats().unknown_removals, 1);
    }

    #[test]
    fn a_page_is_held_while_any_tier_holds_it() {
        let mut mirror = Mirror::new(2, 100);
        mirror.apply(&[stored(None, &[1]), on(Medium::CpuPinned, stored(None, &[1]))]);
        assert_eq!(mirror.apply(&[removed(&[1])]), []);
        assert_eq!(mirror.apply(&[on(Medium::CpuPinned, removed(&[1]))]).len(), 1);
    }

    #[test]
    fn what_hangs_below_a_page_goes_with_it() {
        let mut mirror = Mirror::new(2, 100);
        mirror.apply(&[stored(None, &[1, 2]), stored(Some(1), &[3])]);
        assert_eq!(mirror.apply(&[removed(&[1])]).len(), 3);
        assert_eq!((mirror.len(), mirror.stats().cut_off_pages), (0, 2));
        assert_eq!(mirror.apply(&[stored(Some(1), &[2])]), []);
        assert_eq!(mirror.doubt(), Some(Doubt::UnknownParent));
        assert_eq!(mirror.apply(&[Event::Cleared, stored(None, &[7])])[0], Change::Cleared);
        assert_eq!((mirror.doubt(), hashes(&mirror)), (None, vec![7]));
    }

    #[test]
    fn losing_and_overflowing_empty_it() {
        let mut mirror = Mirror::new(2, 2);
        mirror.apply(&[stored(None, &[1, 2])]);
        assert_eq!(mirror.lose(Doubt::Hole), [Change::Cleared]);
        assert_eq!(mirror.doubt(), Some(Doubt::Hole));
        mirror.apply(&[stored(None, &[1, 2])]);
        assert_eq!(mirror.apply(&[stored(Some(2), &[3])]), [Change::Cleared]);
        assert_eq!((mirror.doubt(), mirror.stats().cached_tokens), (Some(Doubt::Full), 6), "sums go on");
        assert_eq!(
            mirror.apply(&[stored(None, &[1])]),
            [],
            "a full mirror tracks nothing until it is cleared"
        );
        mirror.apply(&[Event::Cleared, stored(None, &[1])]);
        assert_eq!((mirror.doubt(), mirror.len()), (None, 1));
    }

    #[test]
    fn tokens_no_prompt_can_have_are_not_given() {
        let mut mirror = Mirror::new(2, 100);
        let Event::Stored(base) = stored(None, &[1]) else { unreachable!() };
        let wide = Stored { tokens: TokenIds::Wide(vec![1, 1 << 33]), ..base.clone() };
        let lora = Stored { hashes: vec![2], lora_id: Some(1), ..base.clone() };
        let pairs = Stored { hashes: vec![3], tokens: TokenIds::Pairs(vec![[5, 6], [6, 7]]), ..base.clone() };
        let short = Stored { tokens: TokenIds::Narrow(vec![1]), ..base };
        mirror.apply(&[wide, lora, pairs, short].map(Event::Stored));
        let mut tokens: Vec<_> = mirror.in_order().iter().map(|page| mirror.tokens(*page)).collect();
        tokens.sort();
        assert_eq!(tokens, [None, None, Some(&[5, 6][..])]);
        assert_eq!((mirror.stats().malformed_events, mirror.doubt()), (1, Some(Doubt::Malformed)));
    }
}
