//! Finds runs by the hash they begin with: extendible hashing (Fagin, Nievergelt, Pippenger and Strong 1979) over pages.
//!
//! The low bits of a hash choose a line of a page, the bits above them the page. An entry is a word: the low half of the hash
//! as a tag, and a run's number. A line that is full overflows into the next one of its page; a lookup ends at the first line
//! with room. A page that is too full is split in two, so that growing never means more than one page at a time.

use rustc_hash::FxHashMap;

use super::arena::{Arena, PAGE_LINES, PAGE_WORDS};
use super::numbers::Numbers;
use super::words::{Address, LINE_WORDS, Words};
use crate::key::BlockHash;

/// What readers see. Clones share what has not been changed since.
#[derive(Clone, Debug, Default)]
pub(super) struct Heads {
    /// Pages by the bits of the tag above the line's; a page may stand in several places.
    pages: Numbers,
    /// Number of these bits.
    depth: u32,
}

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct HeadsUnderEdit {
    heads: Heads,
    fill: FxHashMap<Address, Fill>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fill {
    /// Bits that all tags of the page have in common.
    depth: u32,
    entries: u32,
    /// Words that once held an entry, those of `entries` included.
    used: u32,
}

const LINE_BITS: u32 = (PAGE_LINES as u32).trailing_zeros();

/// Words of a page in use from which on it is split, or cleaned of what is gone.
const MOST_USED: u32 = (PAGE_WORDS * 3 / 4) as u32;

/// A word whose entry is gone; the next line may still hold what did not find room here.
const GONE: u64 = u32::MAX as u64;

impl Heads {
    /// The run that begins with `head`, of those whose tag is the same the first that `is_it`.
    #[inline]
    pub(super) fn find(
        &self,
        words: &Words,
        head: BlockHash,
        mut is_it: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        if self.pages.len() == 0 {
            return None;
        }
        let tag = tag(head);
        let page = self.pages.get(self.place(tag));
        for line in probed_lines(page, tag) {
            let entries = words.line(line).load();
            for entry in entries {
                if (entry >> 32) as u32 == tag
                    && let Some(run) = run_of(entry)
                    && is_it(run)
                {
                    return Some(run);
                }
            }
            if entries.contains(&0) {
                return None;
            }
        }
        None
    }

    fn place(&self, tag: u32) -> usize {
        (tag >> LINE_BITS) as usize & ((1 << self.depth) - 1)
    }
}

impl HeadsUnderEdit {
    /// The heads as they are now; what is published of the arena with them must be as old.
    pub(super) fn heads(&self) -> &Heads {
        &self.heads
    }

    /// Enters a run.
    pub(super) fn insert(&mut self, arena: &mut Arena, head: BlockHash, run: u32) {
        let tag = tag(head);
        if self.heads.pages.len() == 0 {
            let page = self.page_of(arena, 0, &[]);
            self.heads.pages.push(page);
        }
        let mut page = self.heads.pages.get(self.heads.place(tag));
        while self.fill[&page].used >= MOST_USED {
            self.make_room(arena, page, tag);
            page = self.heads.pages.get(self.heads.place(tag));
        }
        let page = self.own_page(arena, page, tag);
        let fill = self.fill.get_mut(&page).expect("every page has its fill");
        put(arena.words(), page, entry_of(tag, run), fill);
    }

    /// Takes a run out.
    pub(super) fn remove(&mut self, arena: &mut Arena, head: BlockHash, run: u32) {
        let tag = tag(head);
        let entry = entry_of(tag, run);
        let page = self.heads.pages.get(self.heads.place(tag));
        let words = arena.words();
        let line = probed_lines(page, tag).find(|line| words.line(*line).load().contains(&entry));
        let Some(offset) = line.map(|line| line - page) else { return };
        let page = self.own_page(arena, page, tag);
        let fill = self.fill.get_mut(&page).expect("every page has its fill");
        let mut entries = arena.words().line(page + offset).load();
        let has_room = entries.contains(&0);
        let own = entries.iter().position(|other| *other == entry).expect("it was in this line");
        entries[own] = if has_room { 0 } else { GONE };
        arena.words().line(page + offset).store(entries);
        fill.entries -= 1;
        fill.used -= u32::from(has_room);
    }

    /// The page with this tag, as one that no snapshot sees.
    fn own_page(&mut self, arena: &mut Arena, page: Address, tag: u32) -> Address {
        let own = arena.page_to_change(page);
        if own != page {
            let fill = self.fill.remove(&page).expect("every page has its fill");
            self.fill.insert(own, fill);
            self.point(tag >> LINE_BITS, fill.depth, own);
        }
        own
    }

    /// Splits a page that is full of entries, or cleans one that is full of what is gone.
    fn make_room(&mut self, arena: &mut Arena, page: Address, tag: u32) {
        let fill = self.fill.remove(&page).expect("every page has its fill");
        let words = arena.words();
        let lines =
            (0..PAGE_LINES as u32).flat_map(|line| words.line(page + line * LINE_WORDS as u32).load());
        let entries: Vec<u64> = lines.filter(|entry| run_of(*entry).is_some()).collect();
        arena.drop_page(page);
        let bits = tag >> LINE_BITS;
        if fill.entries < MOST_USED / 2 {
            let clean = self.page_of(arena, fill.depth, &entries);
            self.point(bits, fill.depth, clean);
            return;
        }
        if fill.depth == self.heads.depth {
            self.heads.pages.double();
            self.heads.depth += 1;
            debug_assert!(
                self.heads.depth + LINE_BITS < u32::BITS,
                "tags tell more runs apart than there can be"
            );
        }
        let split_bit = 1 << (fill.depth + LINE_BITS);
        let (high, low): (Vec<u64>, Vec<u64>) =
            entries.into_iter().partition(|entry| (entry >> 32) as u32 & split_bit != 0);
        for (half, entries) in [(0, low), (1, high)] {
            let page = self.page_of(arena, fill.depth + 1, &entries);
            let common = bits & ((1 << fill.depth) - 1);
            self.point(common | half << fill.depth, fill.depth + 1, page);
        }
    }

    /// A new page with these entries.
    fn page_of(&mut self, arena: &mut Arena, depth: u32, entries: &[u64]) -> Address {
        let page = arena.new_page();
        for line in (0..PAGE_WORDS as u32).step_by(LINE_WORDS) {
            arena.words().line(page + line).store([0; LINE_WORDS]);
        }
        let mut fill = Fill { depth, ..Fill::default() };
        entries.iter().for_each(|entry| put(arena.words(), page, *entry, &mut fill));
        self.fill.insert(page, fill);
        page
    }

    /// Lets every place whose low `depth` bits are those of `bits` lead to a page.
    fn point(&mut self, bits: u32, depth: u32, page: Address) {
        let first = bits as usize & ((1 << depth) - 1);
        for place in (first..1 << self.heads.depth).step_by(1 << depth) {
            self.heads.pages.set(place, page);
        }
    }
}

/// Writes an entry into the first room from its line on. The page has some.
fn put(words: &Words, page: Address, entry: u64, fill: &mut Fill) {
    for line in probed_lines(page, (entry >> 32) as u32) {
        let mut entries = words.line(line).load();
        if let Some(room) = entries.iter().position(|other| run_of(*other).is_none()) {
            fill.entries += 1;
            fill.used += u32::from(entries[room] == 0);
            entries[room] = entry;
            words.line(line).store(entries);
            return;
        }
    }
    unreachable!("a page is split before it is full");
}

/// The lines of a page in which an entry with this tag may stand, in the order in which they are tried.
fn probed_lines(page: Address, tag: u32) -> impl Iterator<Item = Address> {
    let lines = PAGE_LINES as u32;
    (0..lines).map(move |probe| page + (tag + probe) % lines * LINE_WORDS as u32)
}

fn tag(head: BlockHash) -> u32 {
    head.get() as u32
}

fn entry_of(tag: u32, run: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(run + 1)
}

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

    fn hash(value: u64) -> BlockHash {
        BlockHash::new(value.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).unwrap()
    }

    fn found(heads: &Heads, words: &Words, head: u64) -> Option<u32> {
        heads.find(words, hash(head), |_| true)
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
            for (step, (operation, head)) in operations.into_iter().enumerate() {
                match (operation, model.get(&head).copied()) {
                    (0..3, None) => {
                        edit.insert(&mut arena, hash(head), step as u32);
                        model.insert(head, step as u32);
                    }
                    (0..3, Some(run)) => prop_assert_eq!(found(edit.heads(), arena.words(), head), Some(run)),
                    (3.., Some(run)) => {
                        edit.remove(&mut arena, hash(head), run);
                        model.remove(&head);
                    }
                    (3.., None) => prop_assert_eq!(found(edit.heads(), arena.words(), head), None),
                }
                if step % 500 == 0 {
                    taken.push((edit.heads().clone(), arena.publish(), model.clone()));
                }
            }
            taken.push((edit.heads().clone(), arena.publish(), model));
            for (heads, (words, _guard), model) in &taken {
                for head in 0..3_000 {
                    prop_assert_eq!(found(heads, words, head), model.get(&head).copied());
                }
            }
        }
    }
}
