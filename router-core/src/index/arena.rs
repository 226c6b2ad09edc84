//! The writer's side of the memory: pages that are copied before they are changed, and a log of hashes.

use std::sync::Arc;

use super::epochs::{Epochs, Guard};
use super::words::{Address, LINE_WORDS, SLAB_WORDS, Words};

/// Words in a page: what is copied before the first change after a publication.
pub(super) const PAGE_WORDS: usize = 128;

/// Lines in a page.
pub(super) const PAGE_LINES: usize = PAGE_WORDS / LINE_WORDS;

/// Slabs of the log from which on its dead words are worth cleaning up.
const LEAST_CLEANED_SLABS: usize = 4;

/// Share of the log that may be dead.
const MOST_DEAD: f64 = 0.4;

/// Allocates pages and extents of the log, and uses them again when no snapshot sees them.
#[derive(Debug, Default)]
pub(super) struct Arena {
    words: Words,
    epochs: Epochs<Unused>,
    free_slabs: Vec<usize>,
    free_pages: Vec<Address>,
    /// When each page was made, by its number among all words.
    page_made: Vec<u64>,
    log: Log,
}

/// What can be used again.
#[derive(Clone, Copy, Debug)]
enum Unused {
    Page(Address),
    Slab(usize),
}

/// Extents are laid end to end, never written again, and moved out of a slab that is mostly dead.
#[derive(Debug, Default)]
struct Log {
    /// The slab that is being filled, and how much of it is.
    current: Option<(usize, usize)>,
    /// For each slab of the arena, if the log uses it.
    slabs: Vec<Option<LogSlab>>,
    used_slabs: usize,
    live_words: u64,
}

#[derive(Debug)]
struct LogSlab {
    made: u64,
    live: u32,
    /// Who has put something here; what is no longer here has gone.
    owners: Vec<u32>,
}

impl Arena {
    pub(super) fn words(&self) -> &Words {
        &self.words
    }

    /// A page of anything.
    pub(super) fn new_page(&mut self) -> Address {
        if self.free_pages.is_empty() {
            let start = Words::start_of(self.new_slab());
            self.free_pages
                .extend((0..SLAB_WORDS / PAGE_WORDS).rev().map(|n| start + (n * PAGE_WORDS) as u32));
        }
        let page = self.free_pages.pop().expect("a slab has pages");
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
        for line in (0..PAGE_WORDS as u32).step_by(LINE_WORDS) {
            self.words.line(copy + line).store(self.words.line(page + line).load());
        }
        self.drop_page(page);
        copy
    }

    /// So many words of the log in a row, at most a slab's, for `owner`.
    pub(super) fn new_extent(&mut self, words: u32, owner: u32) -> Address {
        debug_assert!(words > 0 && words as usize <= SLAB_WORDS, "an extent fits into a slab");
        let (slab, filled) = match self.log.current {
            Some((slab, filled)) if filled + words as usize <= SLAB_WORDS => (slab, filled),
            _ => (self.new_log_slab(), 0),
        };
        self.log.current = Some((slab, filled + words as usize));
        let log_slab = self.log.slabs[slab].as_mut().expect("the current slab is the log's");
        log_slab.live += words;
        log_slab.owners.push(owner);
        self.log.live_words += u64::from(words);
        Words::start_of(slab) + filled as u32
    }

    /// From now on a part of `owner`'s stands where an extent is already.
    pub(super) fn add_owner(&mut self, address: Address, owner: u32) {
        if let Some(slab) = &mut self.log.slabs[Words::slab_of(address)] {
            slab.owners.push(owner);
        }
    }

    /// Words of the log are not needed any more.
    pub(super) fn drop_extent(&mut self, address: Address, words: u32) {
        let number = Words::slab_of(address);
        let slab = self.log.slabs[number].as_mut().expect("extents are in slabs of the log");
        slab.live -= words;
        self.log.live_words -= u64::from(words);
        let is_current = self.log.current.is_some_and(|(current, _)| current == number);
        if slab.live > 0 || is_current {
            return;
        }
        let made = slab.made;
        self.log.slabs[number] = None;
        self.log.used_slabs -= 1;
        let unused = self.epochs.give_up(made, Unused::Slab(number));
        self.reuse(unused);
    }

    /// If too much of the log is dead: the slab with the least alive, and who may have something in it.
    pub(super) fn slab_to_clean(&self) -> Option<(usize, Vec<u32>)> {
        let capacity = (self.log.used_slabs * SLAB_WORDS) as f64;
        let dead = capacity - self.log.live_words as f64;
        if self.log.used_slabs < LEAST_CLEANED_SLABS || dead < MOST_DEAD * capacity {
            return None;
        }
        let current = self.log.current.map(|(slab, _)| slab);
        let slabs = self.log.slabs.iter().enumerate().filter(|(number, _)| Some(*number) != current);
        let used = slabs.filter_map(|(number, slab)| Some((number, slab.as_ref()?)));
        let (number, slab) = used.min_by_key(|(_, slab)| slab.live)?;
        Some((number, slab.owners.clone()))
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
            Some(Unused::Slab(slab)) => self.free_slabs.push(slab),
        }
    }

    fn new_slab(&mut self) -> usize {
        self.free_slabs.pop().unwrap_or_else(|| {
            self.words = self.words.with_new_slab();
            self.words.slabs() - 1
        })
    }

    fn new_log_slab(&mut self) -> usize {
        let slab = self.new_slab();
        if slab >= self.log.slabs.len() {
            self.log.slabs.resize_with(slab + 1, || None);
        }
        let made = self.epochs.now();
        let before = self.log.current.map(|(before, _)| before);
        self.log.slabs[slab] = Some(LogSlab { made, live: 0, owners: Vec::new() });
        self.log.used_slabs += 1;
        self.log.current = Some((slab, 0));
        // The one that was filled until now may have died meanwhile.
        if let Some(before) = before
            && self.log.slabs[before].as_ref().is_some_and(|slab| slab.live == 0)
        {
            self.drop_extent(Words::start_of(before), 0);
        }
        slab
    }
}
