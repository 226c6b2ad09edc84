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

mod forest;

use router_core::key::Salt;

use crate::events::{Event, Medium, Removed, Stored, TokenIds};
pub use forest::PageId;
use forest::{Forest, NewPage};

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
    /// Tokens on whichever tier, duplicates on one tier included; of pages that are not known, those on the device.
    pub cached_tokens: u64,
    /// Tokens that were removed from the last tier that had them.
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
    forest: Forest,
    /// Pages that the current batch created, in order.
    fresh: Vec<PageId>,
    /// Pages that lost their last copy in the current batch.
    emptied: Vec<PageId>,
    cleared: bool,
    /// Tokens on the device tier, duplicates included.
    device_tokens: u64,
    doubt: Option<Doubt>,
    stats: MirrorStats,
}

impl Mirror {
    /// An empty mirror of an engine with `page_size` tokens a page, which may track `max_pages`.
    pub fn new(page_size: u32, max_pages: usize) -> Self {
        let page_size = page_size.max(1);
        Self {
            page_size,
            max_pages: max_pages.min(Forest::MOST_PAGES),
            forest: Forest::new(page_size as usize),
            fresh: Vec::new(),
            emptied: Vec::new(),
            cleared: false,
            device_tokens: 0,
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
                    self.count_nothing();
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
        self.count_nothing();
        self.doubt = Some(doubt);
        self.settle()
    }

    /// Why pages may be missing; `None` while the mirror is exact.
    pub fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// Pages held.
    pub fn len(&self) -> usize {
        self.forest.len()
    }

    /// No page is held.
    pub fn is_empty(&self) -> bool {
        self.forest.len() == 0
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
        self.forest.parent(page)
    }

    /// Number of pages before `page` on its path.
    pub fn depth(&self, page: PageId) -> u32 {
        self.forest.page(page).depth
    }

    /// The salt under which `page` was stored; it matters where a prompt begins.
    pub fn salt(&self, page: PageId) -> Salt {
        self.forest.page(page).salt
    }

    /// The token ids of `page`, or `None` if no prompt can have them: stand-ins for multimodal content, or tokens under
    /// a LoRA adapter whose name is not known.
    pub fn tokens(&self, page: PageId) -> Option<&[u32]> {
        self.forest.tokens(page)
    }

    /// All pages, parents before their children.
    pub fn in_order(&self) -> Vec<PageId> {
        self.forest.in_order()
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
        let page_tokens = u64::from(self.page_size);
        let on_device = if on_device(stored.medium) { pages as u64 * page_tokens } else { 0 };
        self.device_tokens += on_device;
        if self.doubt == Some(Doubt::Full) {
            self.stats.cached_tokens += on_device;
            return;
        }
        let mut parent = match stored.parent.map(|hash| self.forest.find(hash)) {
            None => None,
            Some(Some(known)) => Some(known),
            Some(None) => {
                self.stats.unknown_parent_pages += pages as u64;
                self.stats.cached_tokens += on_device;
                self.doubt.get_or_insert(Doubt::UnknownParent);
                return;
            }
        };
        let salt = Salt::new(
            stored.lora_name.as_deref().unwrap_or_default(),
            stored.cache_salt.as_deref().unwrap_or_default(),
            "",
        );
        let named = stored.lora_id.is_none() || stored.lora_name.is_some();
        let tokens = named.then_some(&stored.tokens);
        for (index, hash) in stored.hashes.iter().enumerate() {
            let page = match self.forest.find(*hash) {
                Some(known) => {
                    self.stats.conflicting_pages += u64::from(self.forest.parent(known) != parent);
                    known
                }
                None => {
                    let created = self.forest.create(NewPage { hash: *hash, salt, parent, tokens, index });
                    self.fresh.push(created);
                    created
                }
            };
            let gained = self.forest.page_mut(page).add_copy(stored.medium);
            self.stats.cached_tokens += u64::from(gained) * page_tokens;
            parent = Some(page);
        }
    }

    fn remove(&mut self, removed: &Removed) {
        let page_tokens = u64::from(self.page_size);
        let on_device = if on_device(removed.medium) { page_tokens } else { 0 };
        self.device_tokens = self.device_tokens.saturating_sub(on_device * removed.hashes.len() as u64);
        for hash in &removed.hashes {
            let known = self.forest.find(*hash);
            let taken = known.and_then(|id| Some((id, self.forest.page_mut(id).take_copy(removed.medium)?)));
            let lost = taken.map_or(on_device, |(_, lost)| u64::from(lost) * page_tokens);
            self.stats.evicted_tokens_total += lost;
            self.stats.cached_tokens = self.stats.cached_tokens.saturating_sub(lost);
            let Some((id, _)) = taken else {
                self.stats.unknown_removals += 1;
                continue;
            };
            if !self.forest.page(id).held() {
                self.emptied.push(id);
            }
        }
    }

    /// Nothing is cached; what was evicted stays counted.
    fn count_nothing(&mut self) {
        self.stats.cached_tokens = 0;
        self.device_tokens = 0;
    }

    /// Forgets every page; what was counted stays.
    fn empty(&mut self) {
        self.forest.clear();
        self.fresh.clear();
        self.emptied.clear();
        self.cleared = true;
    }

    /// Ends a batch: drops pages without copies and tells the net effect.
    fn settle(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for page in std::mem::take(&mut self.emptied) {
            let entry = self.forest.page(page);
            if !entry.is_live() || entry.held() {
                continue;
            }
            for page in self.forest.detach(page) {
                let entry = self.forest.page(page);
                self.stats.cut_off_pages += u64::from(entry.held());
                // What this batch created nobody has heard of.
                if !entry.fresh {
                    changes.push(Change::Gone(page));
                }
            }
        }
        for page in std::mem::take(&mut self.fresh) {
            let entry = self.forest.page_mut(page);
            if entry.is_live() && std::mem::take(&mut entry.fresh) {
                changes.push(Change::Stored(page));
            }
        }
        if self.len() > self.max_pages {
            self.empty();
            // Of what lies below the device nothing is known any more.
            self.stats.cached_tokens = self.device_tokens;
            self.doubt = Some(Doubt::Full);
            changes.clear();
        }
        if std::mem::take(&mut self.cleared) {
            changes.insert(0, Change::Cleared);
        }
        changes
    }
}

/// Releases without tiers mean the device.
fn on_device(medium: Option<Medium>) -> bool {
    matches!(medium, None | Some(Medium::Gpu))
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
        let mut hashes: Vec<i64> =
            mirror.in_order().iter().map(|page| mirror.forest.page(*page).hash).collect();
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
        let three = mirror.forest.find(3).unwrap();
        let changes = mirror.apply(&[removed(&[2, 3])]);
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[0], Change::Gone(three), "children go first");
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
    fn a_page_on_several_tiers_is_counted_once_and_evicted_from_the_last() {
        let mut mirror = Mirror::new(2, 4);
        let below = |event| on(Medium::CpuPinned, event);
        mirror.apply(&[stored(None, &[1, 2, 3]), below(stored(None, &[1, 2]))]);
        let counted = |mirror: &Mirror| (mirror.stats().cached_tokens, mirror.stats().evicted_tokens_total);
        assert_eq!(counted(&mirror), (6, 0));
        mirror.apply(&[removed(&[3]), removed(&[2])]);
        assert_eq!(counted(&mirror), (4, 2), "the host has the second");
        mirror.apply(&[below(removed(&[2]))]);
        assert_eq!(counted(&mirror), (2, 4));
        mirror.apply(&[below(stored(None, &[5, 6, 7, 8]))]);
        assert_eq!((counted(&mirror), mirror.doubt()), ((2, 4), Some(Doubt::Full)), "what the device has");
        mirror.apply(&[below(removed(&[5])), removed(&[1])]);
        assert_eq!(counted(&mirror), (0, 6));
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
