//! Every interleaving of a writer that publishes, uses memory again and says so, with readers that hold and drop snapshots.
//!
//! ```console
//! RUSTFLAGS="--cfg loom" cargo test -p router-core --release --test loom
//! ```
//!
//! The files that the argument rests on are compiled here once more, with loom's atomics and counted pointers in the
//! place of the standard library's: words without an order of their own, and guards from which the writer learns that the
//! last holder has gone. The arena around them is the writer below, one line a page; the cell of the snapshot in force is a
//! lock, as what arc-swap does is arc-swap's to prove.
#![cfg(loom)]

#[allow(dead_code, reason = "only the guards are of interest")]
#[path = "../src/index/epochs.rs"]
mod epochs;
#[allow(dead_code, unreachable_pub, reason = "the bound is not of interest")]
#[path = "../src/writer/replaced.rs"]
mod replaced;
#[allow(dead_code, unreachable_pub, reason = "it does not pass")]
#[path = "../src/time.rs"]
mod time;
#[allow(dead_code, reason = "only single lines are of interest")]
#[path = "../src/index/words.rs"]
mod words;

mod sync {
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::AtomicU64;
    pub(crate) use loom::sync::atomic::Ordering::Relaxed;
}

use loom::sync::Mutex;
use loom::thread;

use self::epochs::{Epochs, Guard};
use self::replaced::Replaced;
use self::sync::Relaxed;
use self::time::Time;
use self::words::Line;

/// Publications. A page is used again from the fourth on, if nobody holds the first snapshot any more.
const PUBLICATIONS: u64 = 4;

/// As many as there are snapshots, so that none runs out however long a reader holds one.
const PAGES: usize = PUBLICATIONS as usize + 1;

/// A snapshot of an index that is one page.
#[derive(Clone)]
struct Snapshot {
    page: usize,
    /// What the page must say for as long as the guard lives.
    word: u64,
    guard: sync::Arc<Guard>,
}

/// What both sides share.
struct Shared {
    pages: Vec<Line>,
    in_force: Mutex<Option<Snapshot>>,
}

/// The writer's side, as the arena is for many pages.
struct Writer {
    epochs: Epochs<usize>,
    free: Vec<usize>,
    /// The page in use, and the snapshot that it was made for.
    current: (usize, u64),
}

impl Writer {
    /// Changes the page, which no snapshot may see: a copy of it, as the arena makes, is a page of other words.
    fn change(&mut self, shared: &Shared, word: u64) {
        let page = self.free.pop().expect("every snapshot sees one page, and few live");
        shared.pages[page].store([word; words::LINE_WORDS]);
        let (before, made) = std::mem::replace(&mut self.current, (page, self.epochs.now()));
        self.free.extend(self.epochs.give_up(made, before));
    }

    fn publish(&mut self, shared: &Shared, word: u64) {
        let free = &mut self.free;
        let guard = self.epochs.publish(|page| free.push(page));
        let next = Snapshot { page: self.current.0, word, guard };
        // The writer drops what it replaced, and not while it keeps readers from the cell.
        let replaced = shared.in_force.lock().expect("nobody panics with the lock held").replace(next);
        drop(replaced);
    }
}

/// Runs a writer beside readers in every order that can be told apart.
fn in_every_order(readers: usize, read: fn(&Shared)) {
    loom::model(move || {
        let pages = (0..PAGES).map(|_| Line::default()).collect::<Vec<_>>();
        let free = (1..pages.len()).collect();
        let shared = sync::Arc::new(Shared { pages, in_force: Mutex::new(None) });
        let mut writer = Writer { epochs: Epochs::default(), free, current: (0, 1) };
        writer.change(&shared, 1);
        writer.publish(&shared, 1);
        let readers: Vec<_> = (0..readers)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || read(&shared))
            })
            .collect();
        for word in 2..=PUBLICATIONS {
            writer.change(&shared, word);
            writer.publish(&shared, word);
        }
        readers.into_iter().for_each(|reader| reader.join().expect("it saw what was published"));
    });
}

fn in_force(shared: &Shared) -> Snapshot {
    shared.in_force.lock().expect("nobody panics with the lock held").clone().expect("one was published")
}

#[test]
fn a_reader_never_sees_a_word_of_a_later_use() {
    in_every_order(1, |shared| {
        let snapshot = in_force(shared);
        let later = in_force(shared);
        assert_eq!(shared.pages[later.page].get(7), later.word);
        drop(later);
        assert_eq!(shared.pages[snapshot.page].get(7), snapshot.word);
    });
}

#[test]
fn two_readers_of_one_snapshot_keep_it_together() {
    in_every_order(2, |shared| {
        let Snapshot { page, word, guard } = in_force(shared);
        assert_eq!(shared.pages[page].get(0), word);
        drop(guard);
    });
}

/// The models above can fail: pages are used again, and it is the guard that keeps a reader from seeing it.
#[test]
#[should_panic(expected = "a page was used again")]
fn without_its_guard_a_reader_does() {
    in_every_order(1, |shared| {
        let Snapshot { page, word, guard } = in_force(shared);
        drop(guard);
        assert_eq!(shared.pages[page].get(0), word, "a page was used again");
    });
}

/// One reader decides, on whatever is in force, beside a writer that begins a drain, `waits` for readers of what was there before, and looks
/// what is counted: that must be all that ever will be.
fn decide_beside_a_drain(waits: bool) {
    loom::model(move || {
        // A snapshot says whether the worker drains.
        let in_force = sync::Arc::new(Mutex::new(sync::Arc::new(false)));
        let in_flight = sync::Arc::new(sync::AtomicU64::new(0));
        let reader = {
            let (in_force, in_flight) = (in_force.clone(), in_flight.clone());
            thread::spawn(move || {
                let draining = in_force.lock().expect("nobody panics with the lock held").clone();
                if !*draining {
                    in_flight.fetch_add(1, Relaxed);
                }
            })
        };
        let mut replaced = Replaced::default();
        let mut locked = in_force.lock().expect("nobody panics with the lock held");
        let before = std::mem::replace(&mut *locked, sync::Arc::new(true));
        drop(locked);
        replaced.push(0, before);
        replaced.wait(1, Time::default(), ());
        while waits && replaced.due(Time::default()).is_empty() {
            thread::yield_now();
        }
        let told = in_flight.load(Relaxed);
        reader.join().expect("it decides and ends");
        assert_eq!(told, in_flight.load(Relaxed), "a request was counted later");
    });
}

#[test]
fn what_is_decided_on_a_replaced_snapshot_is_counted_before_a_drain_has_begun() {
    decide_beside_a_drain(true);
}

#[test]
#[should_panic(expected = "a request was counted later")]
fn without_waiting_it_is_not() {
    decide_beside_a_drain(false);
}
