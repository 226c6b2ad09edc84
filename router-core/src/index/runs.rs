//! The runs as the writer has them: records, the hashes they lead to, and how they hang together.

mod family;
mod upkeep;

use super::arena::{Arena, PAGE_LINES};
use super::heads::{Head, HeadsUnderEdit};
use super::locator::Locator;
use super::record::{Changed, Holders, Record};
use super::tree::{Records, Tree};
use super::words::{Address, LINE_WORDS, Words};
use crate::fleet::Slot;
use crate::key::BlockHash;
use crate::snapshot::IndexSize;

/// Blocks in a run at most: what a join or a move has to copy is bounded by it.
pub(super) const MOST_BLOCKS: u32 = if cfg!(test) { 64 } else { 4096 };

/// No run.
const NONE: u32 = u32::MAX;

/// Everything about runs; slots come in only as sets.
#[derive(Debug, Default)]
pub(super) struct Runs {
    arena: Arena,
    /// Runs by their first hashes.
    heads: HeadsUnderEdit,
    records: Records,
    links: Vec<Links>,
    free: Vec<u32>,
    size: IndexSize,
    locator: Option<Locator>,
}

/// What only the writer knows of a run.
#[derive(Clone, Copy, Debug)]
struct Links {
    parent: u32,
    first_child: u32,
    next: u32,
    previous: u32,
    /// Words of the log that belong to it; zero for a run that is no more. Less than two full runs'.
    capacity: u16,
    /// All its hashes were derived from one prompt by a router's own keys, so that each commits to those before it.
    derived: bool,
}

/// Who made hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A router's own keys, from a prompt.
    Derived,
    /// Somebody who reports them: they may commit to nothing.
    Reported,
}

impl Links {
    const GONE: Self =
        Self { parent: NONE, first_child: NONE, next: NONE, previous: NONE, capacity: 0, derived: false };
}

impl Runs {
    pub(super) fn size(&self) -> IndexSize {
        self.size
    }

    pub(super) fn words(&self) -> &Words {
        self.arena.words()
    }

    #[cfg(test)]
    pub(super) fn owners(&self) -> usize {
        self.arena.owners()
    }

    pub(super) fn used_words(&self) -> u64 {
        self.arena.used_words()
    }

    pub(super) fn record(&self, run: u32) -> Record {
        self.records.get(self.words(), run)
    }

    /// The run that begins with this hash below another, or where a prompt begins.
    pub(super) fn find(&self, above: Option<u32>, hash: BlockHash) -> Option<u32> {
        self.heads.heads().find(self.words(), Head { above, hash }, |run| {
            self.words().line(self.records.address(run)).get(0) == hash.get() && self.parent(run) == above
        })
    }

    /// Leading blocks that a run has in common with `key`, whose first one is equal.
    ///
    /// The last hash of a run vouches for those before it only if they were derived. What is claimed must not end up in a run
    /// that merely ends alike: any other is compared hash by hash, until somebody has derived the same.
    pub(super) fn common(&self, run: u32, record: &Record, key: &[BlockHash]) -> u32 {
        if self.links[run as usize].derived {
            record.common(self.words(), key)
        } else {
            record.common_exactly(self.words(), key)
        }
    }

    /// All hashes of a run were found to be those that somebody has derived.
    pub(super) fn vouch(&mut self, run: u32) {
        self.links[run as usize].derived = true;
    }

    fn capacity(&self, run: u32) -> u32 {
        self.links[run as usize].capacity.into()
    }

    fn set_capacity(&mut self, run: u32, capacity: u32) {
        let capacity = u16::try_from(capacity).expect("a run's words are fewer than those of two full ones");
        self.links[run as usize].capacity = capacity;
    }

    pub(super) fn hashes(&self, run: u32) -> impl Iterator<Item = BlockHash> + '_ {
        self.record(run).all_hashes(self.words())
    }

    /// The run of a block and the block's place in it: if there are several, one that the slot holds.
    pub(super) fn locate(&self, hash: BlockHash, slot: Slot) -> Option<(u32, u32)> {
        let is_own = |run| self.record(run).holders.contains(self.words(), slot);
        self.locator.as_ref()?.find(self.words(), hash, is_own)
    }

    /// From now on blocks can be found by their hash alone.
    pub(super) fn locate_blocks(&mut self) {
        if self.locator.is_some() {
            return;
        }
        let mut locator = Locator::default();
        for run in (0..self.links.len() as u32).filter(|run| self.links[*run as usize].capacity > 0) {
            let record = self.record(run);
            locator.insert(self.arena.words(), run, record.hashes, 0, record.len);
        }
        self.locator = Some(locator);
    }

    /// The tree as it is now.
    pub(super) fn publish(&mut self) -> Tree {
        self.clean();
        let (words, guard) = self.arena.publish();
        Tree { words, heads: self.heads.heads().clone(), records: self.records.clone(), _guard: guard }
    }

    /// Adds a run of at most [`MOST_BLOCKS`], with room for `more` blocks.
    pub(super) fn add(
        &mut self,
        parent: Option<u32>,
        hashes: &[BlockHash],
        origin: Origin,
        slot: Slot,
        more: u32,
    ) -> u32 {
        let run = self.new_number();
        let len = hashes.len() as u32;
        let capacity = (len + more).min(MOST_BLOCKS);
        let at = self.arena.new_extent(capacity, run);
        self.fill(at, hashes);
        let [head, last] = [hashes[0], hashes[hashes.len() - 1]].map(BlockHash::get);
        self.write(run, Record { head, last, len, hashes: at, holders: Holders::one(slot) });
        self.links[run as usize] = Links { derived: origin == Origin::Derived, ..Links::GONE };
        self.set_capacity(run, capacity);
        if let Some(parent) = parent {
            self.hang(run, parent);
        }
        self.heads.insert(&mut self.arena, Head { above: parent, hash: hashes[0] }, run);
        if let Some(locator) = &mut self.locator {
            locator.insert(self.arena.words(), run, at, 0, len);
        }
        self.size.blocks += u64::from(len);
        self.size.runs += 1;
        run
    }

    /// Takes out a run without children.
    pub(super) fn remove(&mut self, run: u32) {
        let record = self.record(run);
        let links = self.links[run as usize];
        debug_assert_eq!(links.first_child, NONE, "whoever holds a child holds its parent");
        if let Some(locator) = &mut self.locator {
            locator.remove(self.arena.words(), record.hashes, record.len);
        }
        let head = Head { above: self.parent(run), hash: record.hash(self.arena.words(), 0) };
        self.heads.remove(&mut self.arena, head, run);
        self.arena.drop_extent(record.hashes, links.capacity.into());
        if let Holders::Far { words, bitmap } = record.holders {
            self.arena.drop_extent(bitmap, words.into());
        }
        self.replace_in_family(run, links.next);
        self.forget(run);
        self.size.blocks -= u64::from(record.len);
        self.size.runs -= 1;
    }

    /// Gives a run another set of holders.
    pub(super) fn set_holders(&mut self, run: u32, mut record: Record, changed: Changed) {
        let before = record.holders;
        record.holders = self.place_holders(run, changed);
        if let Holders::Far { words, bitmap } = before {
            self.arena.drop_extent(bitmap, words.into());
        }
        self.write(run, record);
    }

    /// Cuts a run after its first `at` blocks, which are neither none nor all. The lower half keeps the number, and with it the
    /// children; returns the upper one's.
    pub(super) fn split(&mut self, lower: u32, at: u32) -> u32 {
        let whole = self.record(lower);
        let upper = self.new_number();
        let middle = whole.hash(self.words(), at - 1);
        let below = whole.hash(self.words(), at);
        let head = whole.hash(self.words(), 0);
        let holders = match whole.holders {
            Holders::Far { words, bitmap } => {
                let bits = (0..u32::from(words)).map(|word| self.words().get(bitmap + word)).collect();
                self.place_holders(upper, Changed::Elsewhere(bits))
            }
            here => here,
        };
        self.add_owner(whole.hashes, upper);
        self.write(upper, Record { last: middle.get(), len: at, holders, ..whole });
        let rest = Record { head: below.get(), len: whole.len - at, hashes: whole.hashes + at, ..whole };
        self.write(lower, rest);
        let above = self.parent(lower);
        self.heads.replace(&mut self.arena, Head { above, hash: head }, lower, upper);
        self.heads.insert(&mut self.arena, Head { above: Some(upper), hash: below }, lower);
        let below = self.capacity(lower) - at;
        self.links[upper as usize] = Links { first_child: lower, ..self.links[lower as usize] };
        self.set_capacity(upper, at);
        self.replace_in_family(lower, upper);
        let links = &mut self.links[lower as usize];
        *links = Links { parent: upper, next: NONE, previous: NONE, ..*links };
        self.set_capacity(lower, below);
        if let Some(locator) = &mut self.locator {
            locator.split(whole.hashes, upper, at, lower);
        }
        self.size.runs += 1;
        upper
    }

    /// Makes one run of a run and its only child, which has the same holders; it has the child's number.
    pub(super) fn join(&mut self, upper: u32, lower: u32) {
        let (above, below) = (self.record(upper), self.record(lower));
        let (room, tail) = (self.capacity(upper), self.capacity(lower));
        let derived = self.links[upper as usize].derived && self.links[lower as usize].derived;
        let len = above.len + below.len;
        let heads = [above, below].map(|record| record.hash(self.words(), 0));
        // Two extents are one only within a segment: each segment is used again by itself.
        let one_segment = Words::segment_of(above.hashes) == Words::segment_of(below.hashes);
        if one_segment && above.hashes + above.len == below.hashes {
            self.set_capacity(lower, room + tail);
            self.add_owner(above.hashes, lower);
            self.write(lower, Record { holders: below.holders, last: below.last, len, ..above });
            if let Some(locator) = &mut self.locator {
                locator.join(above.hashes, below.hashes, lower);
            }
        } else {
            let hashes: Vec<BlockHash> = self.hashes(upper).chain(self.hashes(lower)).collect();
            if let Some(locator) = &mut self.locator {
                locator.remove(self.arena.words(), above.hashes, above.len);
                locator.remove(self.arena.words(), below.hashes, below.len);
            }
            self.put_elsewhere(lower, Record { holders: below.holders, ..above }, &hashes);
            self.arena.drop_extent(above.hashes, room);
            self.arena.drop_extent(below.hashes, tail);
        }
        // First what stands below the upper one, lest the same number be there twice.
        self.heads.remove(&mut self.arena, Head { above: Some(upper), hash: heads[1] }, lower);
        let head = Head { above: self.parent(upper), hash: heads[0] };
        self.heads.replace(&mut self.arena, head, upper, lower);
        if let Holders::Far { words, bitmap } = above.holders {
            self.arena.drop_extent(bitmap, words.into());
        }
        let Links { parent, next, previous, .. } = self.links[upper as usize];
        self.replace_in_family(upper, lower);
        self.links[lower as usize] = Links { parent, next, previous, derived, ..self.links[lower as usize] };
        self.forget(upper);
        self.size.runs -= 1;
    }

    /// Blocks for which a run has room.
    pub(super) fn room(&self, run: u32) -> u32 {
        self.capacity(run) - self.record(run).len
    }

    /// Appends blocks to a run without children that has room for them.
    pub(super) fn grow(&mut self, run: u32, more: &[BlockHash], origin: Origin) {
        self.links[run as usize].derived &= origin == Origin::Derived;
        let record = self.record(run);
        let len = record.len + more.len() as u32;
        // No snapshot sees more of the extent than the blocks that the run had when it was published.
        self.fill(record.hashes + record.len, more);
        let last = more.last().map_or(record.last, |hash| hash.get());
        self.write(run, Record { len, last, ..record });
        if let Some(locator) = &mut self.locator {
            locator.insert(self.arena.words(), run, record.hashes, record.len, len);
        }
        self.size.blocks += more.len() as u64;
    }

    /// Cuts a run without children to its first `at` blocks, which are neither none nor all, for everybody.
    pub(super) fn shorten(&mut self, run: u32, at: u32) {
        let record = self.record(run);
        let capacity = self.capacity(run);
        self.set_capacity(run, at);
        if let Some(locator) = &mut self.locator {
            locator.remove_blocks(self.arena.words(), record.hashes + at, record.len - at);
        }
        self.size.blocks -= u64::from(record.len - at);
        let last = record.hash(self.words(), at - 1).get();
        self.arena.drop_extent(record.hashes + at, capacity - at);
        self.write(run, Record { len: at, last, ..record });
    }

    /// Writes a run's hashes to a new extent, with room to grow. Its old extent is the caller's to drop.
    fn put_elsewhere(&mut self, run: u32, record: Record, hashes: &[BlockHash]) {
        let len = hashes.len() as u32;
        let capacity = (len + len / 4 + 8).min(MOST_BLOCKS).max(len);
        let at = self.arena.new_extent(capacity, run);
        self.fill(at, hashes);
        self.set_capacity(run, capacity);
        let [head, last] = [hashes[0], hashes[hashes.len() - 1]].map(BlockHash::get);
        self.write(run, Record { head, last, len, hashes: at, ..record });
        if let Some(locator) = &mut self.locator {
            locator.insert(self.arena.words(), run, at, 0, len);
        }
    }

    /// From now on a part of an extent is another run's.
    fn add_owner(&mut self, address: Address, run: u32) {
        if self.arena.add_owner(address, run) {
            let segment = Words::segment_of(address);
            let owners = self.arena.take_owners(segment);
            let has = |run: &u32| {
                let bitmap = match self.record(*run).holders {
                    Holders::Far { bitmap, .. } => Some(bitmap),
                    _ => None,
                };
                let extents = [Some(self.record(*run).hashes), bitmap];
                let here = extents.into_iter().flatten().any(|extent| Words::segment_of(extent) == segment);
                self.links[*run as usize].capacity > 0 && here
            };
            // The run itself may not have been written yet.
            let owners = owners.into_iter().filter(|owner| *owner == run || has(owner)).collect();
            self.arena.give_owners(segment, owners);
        }
    }

    fn place_holders(&mut self, run: u32, changed: Changed) -> Holders {
        match changed {
            Changed::Here(holders) => holders,
            Changed::Elsewhere(bits) => {
                let bitmap = self.arena.new_extent(bits.len() as u32, run);
                for (at, word) in (bitmap..).zip(&bits) {
                    self.words().set(at, *word);
                }
                Holders::Far { words: bits.len() as u16, bitmap }
            }
        }
    }

    fn fill(&self, at: Address, hashes: &[BlockHash]) {
        self.words().fill(at, hashes.iter().map(|hash| hash.get()));
    }

    fn write(&mut self, run: u32, record: Record) {
        let number = run as usize / PAGE_LINES;
        let page = self.records.pages.get(number);
        let own = self.arena.page_to_change(page);
        if own != page {
            self.records.pages.set(number, own);
        }
        let line = own + (run as usize % PAGE_LINES * LINE_WORDS) as u32;
        self.arena.words().line(line).store(record.to_words());
    }

    fn new_number(&mut self) -> u32 {
        if let Some(run) = self.free.pop() {
            return run;
        }
        let run = u32::try_from(self.links.len()).expect("blocks are bounded far below 2^32");
        self.links.push(Links::GONE);
        if run as usize == self.records.pages.len() * PAGE_LINES {
            let page = self.arena.new_page();
            self.records.pages.push(page);
        }
        run
    }

    fn forget(&mut self, run: u32) {
        self.links[run as usize].capacity = 0;
        self.free.push(run);
    }
}
