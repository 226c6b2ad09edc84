//! What an index must be able to do to be measured, and the proof that all of them do the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::work::{Held, Prompt, Work};

/// Time between two publications of the paced storm, and of the index that publishes.
pub(crate) const TICK: Duration = Duration::from_micros(500);

/// One event of a target, as its engine tells it.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Holds the blocks `from..to` of a prompt, below block `from - 1` if there is one, which the target holds.
    Store { held: Held, from: usize, to: usize },
    /// Has dropped the blocks `from..to` of a prompt, after which it holds none.
    Remove { held: Held, from: usize, to: usize },
    /// Holds nothing any more.
    Clear { target: u16 },
}

/// An index under measurement.
pub(crate) trait Contestant {
    /// Name as rows print it.
    fn name(&self) -> &'static str;

    /// Translates operations into what the index eats, in order. Not timed.
    fn stage(&mut self, operations: &[Operation]);

    /// Applies the next `count` staged operations, makes them visible to readers, and says how long that took.
    fn apply(&mut self, count: usize) -> Duration;

    /// Applies staged operations, so many at each tick.
    fn storm(&mut self, ticks: &[usize], pace: Pace) {
        for (tick, &count) in ticks.iter().enumerate() {
            pace.wait(tick);
            self.apply(count);
        }
    }

    /// Looks up on this thread, while nothing changes.
    fn reader(&self) -> Box<dyn Reader + '_>;

    /// Looks up on another thread while the index changes, if it can.
    fn shared_reader(&self) -> Option<Box<dyn Reader + Send>> {
        None
    }

    /// Operations of one kind that end in bearable time. Who bears only some is measured on some, and not compared.
    fn patience(&self) -> usize {
        usize::MAX
    }

    /// Builds what events need and predictions alone do not, after loading.
    fn prepare_for_events(&mut self) {}

    /// Whether events are understood at all; otherwise it is only looked up in.
    fn updates(&self) -> bool {
        true
    }
}

/// A thread's way to look up.
pub(crate) trait Reader {
    /// Brings the prompt's keys into the cache, as hashing would have, and whatever owned form the index asks for.
    fn warm(&mut self, prompt: &Prompt);

    /// Brings the prompt's tokens into the cache, as parsing would have.
    fn warm_tokens(&mut self, prompt: &Prompt) {
        std::hint::black_box(prompt.tokens.iter().fold(0, |all, token| all ^ token));
    }

    /// Finds the match of every target.
    fn lookup(&mut self, prompt: &Prompt);

    /// The same from tokens.
    fn hash_and_lookup(&mut self, prompt: &Prompt);

    /// What was found by the last lookup.
    fn matched(&mut self, targets: u16) -> Matched;
}

/// The result of a lookup, to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Matched {
    /// Leading blocks held, by target.
    Every(Vec<u32>),
    /// Only the longest of all is told.
    #[allow(dead_code, reason = "the peers' package shares this file")]
    Longest(u32),
}

/// The clock of a paced storm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    began: Instant,
}

impl Operation {
    /// Blocks stored or removed.
    pub(crate) fn blocks(&self) -> usize {
        match self {
            Self::Store { from, to, .. } | Self::Remove { from, to, .. } => to - from,
            Self::Clear { .. } => 0,
        }
    }

    /// The whole of a prompt, told from its first block on.
    pub(crate) fn whole(held: &Held) -> Self {
        Self::Store { held: held.clone(), from: 0, to: held.prompt.key.len() }
    }
}

impl Matched {
    fn longest(&self) -> u32 {
        match self {
            Self::Every(blocks) => blocks.iter().copied().max().unwrap_or(0),
            Self::Longest(blocks) => *blocks,
        }
    }
}

impl Pace {
    /// The clock starts now.
    pub(crate) fn start() -> Self {
        Self { began: Instant::now() }
    }

    /// Sleeps until a tick is due.
    #[expect(clippy::disallowed_methods, reason = "a pace is made of times")]
    pub(crate) fn wait(&self, tick: usize) {
        let due = self.began + TICK * tick as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Loads what a workload stores, as far as the contestant bears it.
pub(crate) fn load(contestant: &mut dyn Contestant, work: &Work) {
    let prompts = work.stored.len().min(contestant.patience());
    // Staged piece by piece: some keep every event in a form of their own.
    for piece in work.stored[..prompts].chunks(256) {
        let operations: Vec<_> = piece.iter().map(Operation::whole).collect();
        contestant.stage(&operations);
        contestant.apply(operations.len());
    }
}

/// Asserts that the contestants, all loaded alike, find the same match of every target in a sample of the lookups.
///
/// # Panics
/// If two of them differ.
pub(crate) fn compare(contestants: &[Box<dyn Contestant>], prompts: &[Arc<Prompt>], targets: u16) {
    let mut readers: Vec<_> =
        contestants.iter().map(|contestant| (contestant.name(), contestant.reader())).collect();
    let mut found = 0;
    for prompt in prompts {
        let mut matched = readers.iter_mut().map(|(name, reader)| {
            reader.warm(prompt);
            reader.lookup(prompt);
            (*name, reader.matched(targets))
        });
        let (first_name, first) = matched.next().expect("there are contestants");
        for (name, other) in matched {
            match other {
                Matched::Every(_) => assert_eq!(other, first, "{name} and {first_name} differ"),
                Matched::Longest(_) => {
                    assert_eq!(other.longest(), first.longest(), "{name} and {first_name} differ");
                }
            }
        }
        found += usize::from(first.longest() > 0);
    }
    assert!(found > prompts.len() / 2, "most prompts share a prefix with what is stored");
}
