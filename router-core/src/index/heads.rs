//! Finds runs by where they begin: extendible hashing (Fagin, Nievergelt, Pippenger and Strong 1979) over pages.
//!
//! Bits of the tag, 32 bits made of the run above, the first hash and a secret, choose a line of a page and the page. An entry is
//! a word: tag and run. A line that is full overflows into the next ones of its page; a lookup ends at the first line with room.
//! A page in which an entry would stand too far from its line is split in two: the index grows by one page at a time, and by a
//! second list of the same chunks of page numbers where the list of pages has to double.
//!
//! A hash commits to all before it, so that the run above says nothing more, unless somebody reports hashes that he did not derive.
//! Then a run that hangs elsewhere is not found here, and no two entries are for the same place. Nor can he crowd one page,
//! since he does not know the secret.

use std::hash::{BuildHasher, RandomState};

use super::arena::{Arena, PAGE_LINES, PAGE_WORDS};
use super::numbers::Numbers;
use super::words::{Address, LINE_WORDS, Line, Words};
use crate::key::BlockHash;

/// What readers see. Clones share what has not been changed since.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    /// Pages by the bits of the tag above the line's; a page may stand in several places.
    pages: Numbers,
    /// Number of these bits.
    depth: u32,
    secret: [u64; 2],
}

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The run above; `None` where a prompt begins.
    pub(super) above: Option<u32>,
    /// The first hash.
    pub(super) hash: BlockHash,
}

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct HeadsUnderEdit {
    heads: Heads,
    /// Bits that all tags of a page have in common, by the page's place among all pages of its arena.
    depths: Vec<u8>,
}

const LINE_BITS: u32 = (PAGE_LINES as u32).trailing_zeros();

/// Lines that an entry is tried in before its page is split.
const MOST_PROBES: usize = 4;

/// A word whose entry is gone; the next line may still hold what did not find room here.
const GONE: u64 = u32::MAX as u64;

impl Default for Heads {
    fn default() -> Self {
        let random = RandomState::new();
        Self { pages: Numbers::default(), depth: 0, secret: [0, 1].map(|word| random.hash_one(word)) }
    }
}

impl Heads {
    /// The run that begins there: of those whose tag is the same the first that `is_it`.
    #[inline]
    pub(super) fn find(&self, words: &Words, head: Head, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.pages.len() == 0 {
            return None;
        }
        let tag = self.tag(head);
        for line in probed_lines(self.page(tag), tag) {
            let line = words.line(line);
            let mut alike = places(line, |entry| (entry >> 32) as u32 == tag);
            while alike != 0 {
                if let Some(run) = run_of(line.get(alike.trailing_zeros() as usize % LINE_WORDS))
                    && is_it(run)
                {
                    return Some(run);
                }
                alike &= alike - 1;
            }
            if has_room(line) {
                return None;
            }
        }
        None
    }

    #[inline]
    fn tag(&self, head: Head) -> u32 {
        // A folded product, as in wyhash: every bit of it depends on every bit of both.
        let above = head.above.map_or(0, |run| u64::from(run) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let product = u128::from(head.hash.get() ^ self.secret[0]) * u128::from(above ^ self.secret[1]);
        (product as u64 ^ (product >> 64) as u64) as u32
    }

    #[inline]
    fn page(&self, tag: u32) -> Address {
        self.pages.get((tag >> LINE_BITS) as usize & ((1 << self.depth) - 1))
    }
}

impl HeadsUnderEdit {
    /// The heads as they are now; what is published of the arena with them must be as old.
    pub(super) fn heads(&self) -> &Heads {
        &self.heads
    }

    /// Enters a run.
    pub(super) fn insert(&mut self, arena: &mut Arena, head: Head, run: u32) {
        let tag = self.heads.tag(head);
        if self.heads.pages.len() == 0 {
            let page = self.page_of(arena, 0, &[]);
            self.heads.pages.push(page);
        }
        loop {
            let page = self.own_page(arena, tag);
            if put(arena.words(), page, entry_of(tag, run), MOST_PROBES) {
                return;
            }
            self.make_room(arena, page, tag);
        }
    }

    /// Takes a run out.
    pub(super) fn remove(&mut self, arena: &mut Arena, head: Head, run: u32) {
        self.change(arena, head, run, |line| if has_room(line) { 0 } else { GONE });
    }

    /// Another run begins there now.
    pub(super) fn replace(&mut self, arena: &mut Arena, head: Head, run: u32, by: u32) {
        let entry = entry_of(self.heads.tag(head), by);
        self.change(arena, head, run, |_| entry);
    }

    /// Puts something else in the place of an entry.
    fn change(&mut self, arena: &mut Arena, head: Head, run: u32, by: impl FnOnce(&Line) -> u64) {
        if self.heads.pages.len() == 0 {
            return;
        }
        let tag = self.heads.tag(head);
        let entry = entry_of(tag, run);
        let page = self.heads.page(tag);
        for line in probed_lines(page, tag) {
            let entries = arena.words().line(line);
            let own = places(entries, |other| other == entry);
            if own != 0 {
                let by = by(entries);
                let word = line + own.trailing_zeros() - page;
                let page = self.own_page(arena, tag);
                arena.words().set(page + word, by);
                return;
            }
            if has_room(entries) {
                break;
            }
        }
        debug_assert!(false, "what is changed has been entered");
    }

    /// The page of this tag, as one that no snapshot sees.
    fn own_page(&mut self, arena: &mut Arena, tag: u32) -> Address {
        let page = self.heads.page(tag);
        let own = arena.page_to_change(page);
        if own != page {
            let depth = *self.depth_of(page);
            *self.depth_of(own) = depth;
            self.point(tag >> LINE_BITS, depth, own);
        }
        own
    }

    /// Cleans a page of what is gone, or splits one that has nothing to clean.
    fn make_room(&mut self, arena: &mut Arena, page: Address, tag: u32) {
        let depth = *self.depth_of(page);
        let words = arena.words();
        let all = (page..page + PAGE_WORDS as u32).map(|word| words.get(word));
        let entries: Vec<u64> = all.clone().filter(|entry| run_of(*entry).is_some()).collect();
        let gone = all.filter(|entry| *entry == GONE).count();
        arena.drop_page(page);
        let bits = tag >> LINE_BITS;
        if gone > 0 {
            let clean = self.page_of(arena, depth, &entries);
            self.point(bits, depth, clean);
            return;
        }
        if u32::from(depth) == self.heads.depth {
            self.heads.pages.double();
            self.heads.depth += 1;
            debug_assert!(
                self.heads.depth + LINE_BITS < u32::BITS,
                "tags tell more runs apart than there can be"
            );
        }
        let split_bit = 1 << (u32::from(depth) + LINE_BITS);
        let (high, low): (Vec<u64>, Vec<u64>) =
            entries.into_iter().partition(|entry| (entry >> 32) as u32 & split_bit != 0);
        for (half, entries) in [(0, low), (1, high)] {
            let page = self.page_of(arena, depth + 1, &entries);
            let common = bits & ((1 << depth) - 1);
            self.point(common | half << depth, depth + 1, page);
        }
    }

    /// A new page with these entries.
    fn page_of(&mut self, arena: &mut Arena, depth: u8, entries: &[u64]) -> Address {
        let page = arena.new_page();
        for line in (0..PAGE_WORDS as u32).step_by(LINE_WORDS) {
            arena.words().line(page + line).store([0; LINE_WORDS]);
        }
        *self.depth_of(page) = depth;
        for entry in entries {
            let found_room = put(arena.words(), page, *entry, PAGE_LINES);
            debug_assert!(found_room, "they come from one page");
        }
        page
    }

    fn depth_of(&mut self, page: Address) -> &mut u8 {
        let place = page as usize / PAGE_WORDS;
        if place >= self.depths.len() {
            self.depths.resize(place + 1, 0);
        }
        &mut self.depths[place]
    }

    /// Lets every place whose low `depth` bits are those of `bits` lead to a page.
    fn point(&mut self, bits: u32, depth: u8, page: Address) {
        let first = bits as usize & ((1 << depth) - 1);
        for place in (first..1 << self.heads.depth).step_by(1 << depth) {
            self.heads.pages.set(place, page);
        }
    }
}

/// Writes an entry into the first room from its line on; `false` if so many lines have none.
fn put(words: &Words, page: Address, entry: u64, lines: usize) -> bool {
    for line in probed_lines(page, (entry >> 32) as u32).take(lines) {
        let free = places(words.line(line), |other| run_of(other).is_none());
        if free != 0 {
            words.set(line + free.trailing_zeros(), entry);
            return true;
        }
    }
    false
}

/// The lines of a page in which an entry with this tag may stand, in the order in which they are tried.
#[inline]
fn probed_lines(page: Address, tag: u32) -> impl Iterator<Item = Address> {
    (0..PAGE_LINES as u32).map(move |probe| line_of(page, tag.wrapping_add(probe)))
}

#[inline]
fn line_of(page: Address, tag: u32) -> Address {
    page + tag % PAGE_LINES as u32 * LINE_WORDS as u32
}

/// Where in a line such words stand, as a bitmap: without a branch, which would mostly be guessed wrong.
#[inline]
fn places(line: &Line, wanted: impl Fn(u64) -> bool) -> u32 {
    (0..LINE_WORDS).fold(0, |all, at| all | u32::from(wanted(line.get(at))) << at)
}

/// There is a word in the line that never held anything: nothing has overflowed from here.
#[inline]
fn has_room(line: &Line) -> bool {
    places(line, |entry| entry == 0) != 0
}

fn entry_of(tag: u32, run: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(run + 1)
}

#[inline]
fn run_of(entry: u64) -> Option<u32> {
    match entry as u32 {
        0 | u32::MAX => None,
        run => Some(run - 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustc_hash::FxHashMap;

    use super::*;

    /// Hashes that differ in their highest bits alone, below runs that differ in a few: what somebody might invent.
    fn head(value: u64) -> Head {
        let above = (value % 7).checked_sub(1).map(|run| run as u32);
        Head { above, hash: BlockHash::new((value / 7 + 1) << 50).unwrap() }
    }

    /// `begins`: where each run begins. Two heads in four thousand million have the same tag, and whoever looks must tell them apart.
    fn found(heads: &Heads, words: &Words, head: u64, begins: &[u64]) -> Option<u32> {
        heads.find(words, self::head(head), |run| begins[run as usize] == head)
    }

    /// Under every secret; by chance there is one such pair in nearly a thousand secrets.
    #[test]
    fn heads_that_hardly_differ_have_tags_of_their_own() {
        let mut alike = 0;
        for _ in 0..200 {
            let heads = Heads::default();
            let mut tags: Vec<u32> = (0..3_000).map(|value| heads.tag(head(value))).collect();
            tags.sort_unstable();
            tags.dedup();
            alike += 3_000 - tags.len();
        }
        assert!(alike < 10, "{alike} tags were not their own");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        /// It is a map, and what has been published does not change.
        #[test]
        fn it_is_a_map_and_snapshots_keep(
            operations in prop::collection::vec((0_u8..5, 0_u64..3_000), 0..6_000),
        ) {
            let (mut arena, mut edit) = (Arena::default(), HeadsUnderEdit::default());
            let mut model: FxHashMap<u64, u32> = FxHashMap::default();
            let mut taken = Vec::new();
            let begins: Vec<u64> = operations.iter().map(|(_, head)| *head).collect();
            for (step, (operation, head)) in operations.into_iter().enumerate() {
                match (operation, model.get(&head).copied()) {
                    (0..3, None) => {
                        edit.insert(&mut arena, self::head(head), step as u32);
                        model.insert(head, step as u32);
                    }
                    (0..3, Some(run)) => {
                        prop_assert_eq!(found(edit.heads(), arena.words(), head, &begins), Some(run));
                    }
                    (3.., Some(run)) => {
                        edit.remove(&mut arena, self::head(head), run);
                        model.remove(&head);
                    }
                    (3.., None) => prop_assert_eq!(found(edit.heads(), arena.words(), head, &begins), None),
                }
                if step % 500 == 0 {
                    taken.push((edit.heads().clone(), arena.publish(), model.clone()));
                }
            }
            taken.push((edit.heads().clone(), arena.publish(), model));
            for (heads, (words, _guard), model) in &taken {
                for head in 0..3_000 {
                    prop_assert_eq!(found(heads, words, head, &begins), model.get(&head).copied());
                }
            }
        }
    }
}
