//! The writer's side of the memory: pages that are copied before they are changed, and a log of hashes.

use std::sync::Arc;

use super::epochs::{Epochs, Guard};
use super::words::{Address, LINE_WORDS, SEGMENT_WORDS, Words};

/// Words in a page: what is copied before the first change after a publication.
pub(super) const PAGE_WORDS: usize = 128;

/// Lines in a page.
pub(super) const PAGE_LINES: usize = PAGE_WORDS / LINE_WORDS;

/// Segments of the log from which on its dead words are worth cleaning up.
const LEAST_CLEANED_SEGMENTS: usize = 4;

/// Owners that a segment's list may have: every word of it may be another run's.
const MOST_OWNERS: usize = 2 * SEGMENT_WORDS;

/// Share of the log that may be dead.
const MOST_DEAD: f64 = 0.4;

/// Allocates pages and extents of the log, and uses them again when no snapshot sees them.
#[derive(Debug, Default)]
pub(super) struct Arena {
    words: Words,
    epochs: Epochs<Unused>,
    free_segments: Vec<usize>,
    free_pages: Vec<Address>,
    /// When each page was made, by its number among all words.
    page_made: Vec<u64>,
    log: Log,
}

/// What can be used again.
#[derive(Clone, Copy, Debug)]
enum Unused {
    Page(Address),
    Segment(usize),
}

/// Extents are laid end to end, never written again, and moved out of a segment that is mostly dead.
#[derive(Debug, Default)]
struct Log {
    /// The segment that is being filled, and how much of it is.
    current: Option<(usize, usize)>,
    /// For each segment of the arena, if the log uses it.
    segments: Vec<Option<LogSegment>>,
    used_segments: usize,
    live_words: u64,
}

#[derive(Debug)]
struct LogSegment {
    made: u64,
    live: u32,
    /// Who has put something here; what is no longer here has gone.
    owners: Vec<u32>,
}

impl Arena {
    pub(super) fn words(&self) -> &Words {
        &self.words
    }

    #[cfg(test)]
    pub(super) fn owners(&self) -> usize {
        self.log.segments.iter().flatten().map(|segment| segment.owners.len()).sum()
    }

    /// Words of the segments that something stands in, or stood in while a snapshot lives that sees it.
    pub(super) fn used_words(&self) -> u64 {
        ((self.words.segments() - self.free_segments.len()) * SEGMENT_WORDS) as u64
    }

    /// A page of anything.
    pub(super) fn new_page(&mut self) -> Address {
        if self.free_pages.is_empty() {
            let start = Words::start_of(self.new_segment());
            self.free_pages
                .extend((0..SEGMENT_WORDS / PAGE_WORDS).rev().map(|n| start + (n * PAGE_WORDS) as u32));
        }
        let page = self.free_pages.pop().expect("a segment has pages");
        let number = page as usize / PAGE_WORDS;
        if number >= self.page_made.len() {
            self.page_made.resize(number + 1, 0);
        }
        self.page_made[number] = self.epochs.now();
        page
    }

    pub(super) fn drop_page(&mut self, page: Address) {
        let made = self.page_made[page as usize / PAGE_WORDS];
        let unused = self.epochs.give_up(made, Unused::Page(page));
        self.reuse(unused);
    }

    /// The page itself if no snapshot has seen it, or a copy in its place.
    pub(super) fn page_to_change(&mut self, page: Address) -> Address {
        if self.page_made[page as usize / PAGE_WORDS] == self.epochs.now() {
            return page;
        }
        let copy = self.new_page();
        let lines = |page| &self.words.lines(page)[..PAGE_LINES];
        lines(copy).iter().zip(lines(page)).for_each(|(copy, line)| copy.store(line.load()));
        self.drop_page(page);
        copy
    }

    /// So many words of the log in a row, at most a segment's, for `owner`.
    pub(super) fn new_extent(&mut self, words: u32, owner: u32) -> Address {
        debug_assert!(words > 0 && words as usize <= SEGMENT_WORDS, "an extent fits into a segment");
        let (segment, filled) = match self.log.current {
            Some((segment, filled)) if filled + words as usize <= SEGMENT_WORDS => (segment, filled),
            _ => (self.new_log_segment(), 0),
        };
        self.log.current = Some((segment, filled + words as usize));
        let log_segment = self.log.segments[segment].as_mut().expect("the current segment is the log's");
        log_segment.live += words;
        log_segment.owners.push(owner);
        self.log.live_words += u64::from(words);
        Words::start_of(segment) + filled as u32
    }

    /// From now on a part of `owner`'s stands where an extent is already. `true`: the segment's list of owners has become longer
    /// than there can be owners, and those that have gone should be taken out.
    pub(super) fn add_owner(&mut self, address: Address, owner: u32) -> bool {
        let Some(segment) = &mut self.log.segments[Words::segment_of(address)] else { return false };
        segment.owners.push(owner);
        segment.owners.len() > MOST_OWNERS
    }

    /// The owners of a segment, each once, to be given back without those that have gone.
    pub(super) fn take_owners(&mut self, segment: usize) -> Vec<u32> {
        let segment = self.log.segments[segment].as_mut();
        let mut owners = segment.map_or_else(Vec::new, |segment| std::mem::take(&mut segment.owners));
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    pub(super) fn give_owners(&mut self, segment: usize, owners: Vec<u32>) {
        if let Some(segment) = &mut self.log.segments[segment] {
            segment.owners = owners;
        }
    }

    /// Words of the log are not needed any more.
    pub(super) fn drop_extent(&mut self, address: Address, words: u32) {
        let number = Words::segment_of(address);
        let segment = self.log.segments[number].as_mut().expect("extents are in segments of the log");
        segment.live -= words;
        self.log.live_words -= u64::from(words);
        let is_current = self.log.current.is_some_and(|(current, _)| current == number);
        if segment.live > 0 || is_current {
            return;
        }
        let made = segment.made;
        self.log.segments[number] = None;
        self.log.used_segments -= 1;
        let unused = self.epochs.give_up(made, Unused::Segment(number));
        self.reuse(unused);
    }

    /// If too much of the log is dead: the segment with the least alive, and who may have something in it.
    pub(super) fn segment_to_clean(&self) -> Option<(usize, Vec<u32>)> {
        let capacity = (self.log.used_segments * SEGMENT_WORDS) as f64;
        let dead = capacity - self.log.live_words as f64;
        if self.log.used_segments < LEAST_CLEANED_SEGMENTS || dead < MOST_DEAD * capacity {
            return None;
        }
        let current = self.log.current.map(|(segment, _)| segment);
        let segments = self.log.segments.iter().enumerate().filter(|(number, _)| Some(*number) != current);
        let used = segments.filter_map(|(number, segment)| Some((number, segment.as_ref()?)));
        let (number, segment) = used.min_by_key(|(_, segment)| segment.live)?;
        Some((number, segment.owners.clone()))
    }

    /// Publishes what has been written: all of it stays as it is while the guard lives.
    pub(super) fn publish(&mut self) -> (Words, Arc<Guard>) {
        let mut unused = Vec::new();
        let guard = self.epochs.publish(|what| unused.push(what));
        unused.into_iter().for_each(|what| self.reuse(Some(what)));
        (self.words.clone(), guard)
    }

    fn reuse(&mut self, unused: Option<Unused>) {
        match unused {
            None => {}
            Some(Unused::Page(page)) => self.free_pages.push(page),
            Some(Unused::Segment(segment)) => self.free_segments.push(segment),
        }
    }

    fn new_segment(&mut self) -> usize {
        if self.free_segments.is_empty() {
            let known = self.words.segments();
            self.words = self.words.with_new_slab();
            self.free_segments.extend((known..self.words.segments()).rev());
        }
        self.free_segments.pop().expect("a slab has segments")
    }

    fn new_log_segment(&mut self) -> usize {
        let segment = self.new_segment();
        if segment >= self.log.segments.len() {
            self.log.segments.resize_with(segment + 1, || None);
        }
        let made = self.epochs.now();
        let before = self.log.current.map(|(before, _)| before);
        self.log.segments[segment] = Some(LogSegment { made, live: 0, owners: Vec::new() });
        self.log.used_segments += 1;
        self.log.current = Some((segment, 0));
        // The one that was filled until now may have died meanwhile.
        if let Some(before) = before
            && self.log.segments[before].as_ref().is_some_and(|segment| segment.live == 0)
        {
            self.drop_extent(Words::start_of(before), 0);
        }
        segment
    }
}
