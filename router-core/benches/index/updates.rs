//! What events cost: stores, appended blocks, removals, a target that goes.
//!
//! Every figure includes making the change visible to readers: ours publishes at least every 500 block operations and at
//! the end of a batch. A figure is the time of a batch over what was in it. Whatever a batch stores is removed again
//! before the next one, so that every round meets the same index; what is stored is new in every round.

use std::time::Duration;

use crate::cells::{Contest, Effort};
use crate::contest::{Contestant, Operation};
use crate::rows::{Plan, Series};
use crate::work::{Held, Work};

/// Rows of this part without the cell's name, with unit and target.
pub(crate) const ROWS: [(&str, &str, Option<f64>); 6] = [
    ("store suffix", "ns/block", Some(5.0)),
    ("remove 32 blocks", "ns/block", Some(2.0)),
    ("store known prompt", "ns", Some(10.0)),
    ("store held prompt", "ns", None),
    ("append one block", "ns", Some(1.0)),
    ("target gone", "ns", None),
];

/// Prompts in a batch.
pub(crate) const BATCH: usize = 64;
/// Sequences that grow at the same time.
const SEQUENCES: usize = 256;
/// Blocks appended to each in one round.
const APPENDED: usize = 8;
/// Blocks that one removal takes.
const REMOVED: usize = 32;

/// The batches of one round, made once and given to everyone.
struct Round<'a> {
    work: &'a Work,
    fresh: Vec<Held>,
    known: Vec<Held>,
    held: Vec<Held>,
    growing: Vec<Held>,
    gone: u16,
}

/// Measures the rows of one cell.
pub(crate) fn run(
    plan: &Plan,
    contest: &Contest,
    work: &mut Work,
    all: &mut [Box<dyn Contestant>],
    effort: Effort,
) {
    let rows = ROWS.map(|(row, ..)| format!("{row}, {}", work.cell.name()));
    if !rows.iter().any(|row| plan.wants(row)) {
        return;
    }
    let mut updating: Vec<_> = all.iter_mut().filter(|contestant| contestant.updates()).collect();
    let mut table: Vec<Vec<Series>> = rows
        .iter()
        .map(|_| updating.iter().map(|each| Series { name: each.name(), rounds: Vec::new() }).collect())
        .collect();
    for number in 0..=effort.rounds {
        let fresh = (0..BATCH).map(|_| work.fresh(0)).collect();
        let growing = (0..SEQUENCES).map(|_| work.fresh(APPENDED)).collect();
        let known = work.known_elsewhere(BATCH);
        let held = work.some_stored(BATCH);
        let gone = (number % usize::from(work.cell.targets)) as u16;
        let round = Round { work, fresh, known, held, growing, gone };
        for (at, contestant) in updating.iter_mut().enumerate() {
            let figures = round.measure(contestant.as_mut());
            // The first round warms up.
            for (row, figure) in table.iter_mut().zip(figures).filter(|_| number > 0) {
                row[at].rounds.push(figure);
            }
        }
    }
    for ((row, series), (_, unit, target)) in rows.iter().zip(&table).zip(ROWS) {
        plan.versus(row, unit, series, target.and_then(|target| contest.target(target)));
    }
}

impl Round<'_> {
    /// One figure a row, in the order of [`ROWS`].
    fn measure(&self, contestant: &mut dyn Contestant) -> [f64; ROWS.len()] {
        let (store, remove) = self.suffixes(contestant);
        let known = per(apply(contestant, self.known.iter().map(Operation::whole)).prompts);
        apply(contestant, self.known.iter().map(|held| removal(held, held.prompt.shared)));
        let again = per(apply(contestant, self.held.iter().map(Operation::whole)).prompts);
        let append = self.appends(contestant);
        let gone = self.clear(contestant);
        [store, remove, known, again, append, gone]
    }

    /// Stores the suffixes of new prompts, whose prefix the target holds; removes the ends of them, then the rest.
    fn suffixes(&self, contestant: &mut dyn Contestant) -> (f64, f64) {
        let tail = |held: &Held| held.prompt.shared.max(held.prompt.key.len() - REMOVED);
        let stored = apply(contestant, self.fresh.iter().map(|held| suffix(held, held.prompt.key.len())));
        let removed = apply(contestant, self.fresh.iter().map(|held| removal(held, tail(held))));
        apply(
            contestant,
            self.fresh.iter().map(|held| removal_between(held, held.prompt.shared, tail(held))),
        );
        (per(stored.blocks), per(removed.blocks))
    }

    /// Appends to all growing sequences by turns, one block at a time.
    fn appends(&self, contestant: &mut dyn Contestant) -> f64 {
        let growing = &self.growing[..self.growing.len().min(contestant.patience())];
        let prompt_blocks = |held: &Held| held.prompt.key.len() - APPENDED;
        apply(contestant, growing.iter().map(|held| suffix(held, prompt_blocks(held))));
        let turns = if contestant.patience() == usize::MAX { APPENDED } else { 1 };
        let appended = (0..turns).flat_map(|turn| {
            growing.iter().map(move |held| {
                let from = prompt_blocks(held) + turn;
                Operation::Store { held: held.clone(), from, to: from + 1 }
            })
        });
        let appended = per(apply(contestant, appended).blocks);
        apply(
            contestant,
            growing.iter().map(|held| removal_between(held, held.prompt.shared, prompt_blocks(held) + turns)),
        );
        appended
    }

    /// Clears a target, and stores what it held again.
    fn clear(&self, contestant: &mut dyn Contestant) -> f64 {
        contestant.stage(&[Operation::Clear { target: self.gone }]);
        let gone = contestant.apply(1);
        let stored = self.work.stored.iter().take(contestant.patience());
        apply(contestant, stored.filter(|held| held.target == self.gone).map(Operation::whole));
        gone.as_nanos() as f64
    }
}

/// A batch that has been applied: its time, with the number of its operations and of its blocks.
pub(crate) struct Applied {
    pub(crate) prompts: (Duration, usize),
    pub(crate) blocks: (Duration, usize),
}

/// Stages and applies a batch, or what of it the contestant bears.
pub(crate) fn apply(contestant: &mut dyn Contestant, operations: impl Iterator<Item = Operation>) -> Applied {
    let operations: Vec<_> =
        operations.filter(|operation| operation.blocks() > 0).take(contestant.patience()).collect();
    contestant.stage(&operations);
    let took = contestant.apply(operations.len());
    Applied {
        prompts: (took, operations.len()),
        blocks: (took, operations.iter().map(Operation::blocks).sum()),
    }
}

/// Nanoseconds for each of so many.
pub(crate) fn per((took, count): (Duration, usize)) -> f64 {
    took.as_nanos() as f64 / count.max(1) as f64
}

/// Stores what follows the prefix of the group, up to a block.
fn suffix(held: &Held, to: usize) -> Operation {
    Operation::Store { held: held.clone(), from: held.prompt.shared, to }
}

/// Removes the rest of a prompt.
pub(crate) fn removal(held: &Held, from: usize) -> Operation {
    removal_between(held, from, held.prompt.key.len())
}

fn removal_between(held: &Held, from: usize, to: usize) -> Operation {
    Operation::Remove { held: held.clone(), from, to }
}
