//! Lookups while one writer applies a million block operations a second.
//!
//! The storm is what engines tell while they serve: new prompts are stored below the prefix of their group, a batch of
//! sequences grows by single blocks, and the oldest sequence is dropped from its end in pieces of 32 blocks. It comes in
//! ticks of 500 µs, at the end of which ours publishes; the others change in place. Whatever it stores it removes again.
//! One thread reads without a pause on the other core and times every lookup.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cells::{Contest, Effort};
use crate::contest::{Contestant, Operation, Pace, Reader, TICK};
use crate::rows::{Better, Plan, Reference, Series, median};
use crate::timing::{Timed, Times, clock_ns, time_lookup};
use crate::work::{Cell, Held, Prompt, Work};

/// Blocks stored or removed in a second.
const BLOCKS_PER_SECOND: usize = 1_000_000;
/// Sequences alive at a time.
const SEQUENCES: usize = 64;
/// Blocks that one removal takes.
const REMOVED: usize = 32;
/// Lookups that one storm may time, far more than fit into it.
const MOST_LOOKUPS: usize = 8 << 20;

/// The operations of a storm, and how many of them at each tick.
pub(crate) struct Storm {
    pub(crate) operations: Vec<Operation>,
    pub(crate) ticks: Vec<usize>,
}

/// A sequence that is being served.
struct Sequence {
    held: Held,
    blocks: usize,
}

/// Ends what reads until told otherwise, also where the writer panics.
pub(crate) struct EndsReading<'a>(pub(crate) &'a AtomicBool);

/// The cells that are measured under a storm.
pub(crate) fn is_stormy(cell: &Cell) -> bool {
    cell.targets == 64 || (cell.prompt_blocks == 512 && cell.targets == 512)
}

/// Rows of a cell.
pub(crate) fn rows(cell: &Cell) -> [String; 2] {
    [format!("lookup p99 in a storm, {}", cell.name()), format!("storm over quiet p99, {}", cell.name())]
}

/// Measures the rows of one cell.
pub(crate) fn run(
    plan: &Plan,
    contest: &Contest,
    work: &mut Work,
    all: &mut [Box<dyn Contestant>],
    effort: Effort,
) {
    let [p99, calm] = rows(&work.cell);
    if !plan.wants(&p99) && !plan.wants(&calm) {
        return;
    }
    let (seconds, rounds) = if plan.quick { (0.3, 2) } else { (1.0, effort.rounds.min(5)) };
    let storm = Storm::new(work, (seconds * BLOCKS_PER_SECOND as f64) as usize);
    let quiet = vec![0; storm.ticks.len()];
    let mut stormy: Vec<Series> = Vec::new();
    let mut quiet_p99 = Vec::new();
    for round in 0..rounds {
        let shared = all.iter_mut().filter(|each| each.updates() && each.shared_reader().is_some());
        for (at, contestant) in shared.enumerate() {
            if round == 0 {
                stormy.push(Series { name: contestant.name(), rounds: Vec::new() });
            }
            if at == 0 {
                quiet_p99.push(lookups_during(contestant.as_mut(), &work.lookups, &quiet).p99());
            }
            contestant.stage(&storm.operations);
            let times = lookups_during(contestant.as_mut(), &work.lookups, &storm.ticks);
            stormy[at].rounds.push(times.p99());
        }
    }
    plan.versus(&p99, "ns", &stormy, contest.target(1.5));
    let own = Reference { name: "quiet", value: median(&quiet_p99) };
    plan.row(&calm, "ns", &stormy[0].rounds, own, Better::Less, Some(1.0 / 1.5));
}

/// Times lookups on another thread while the contestant goes through the ticks.
fn lookups_during(contestant: &mut dyn Contestant, prompts: &[Arc<Prompt>], ticks: &[usize]) -> Times {
    let mut reader = contestant.shared_reader().expect("only those who share are asked");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = EndsReading(&over);
        let reading = scope.spawn(|| read_until(reader.as_mut(), prompts, &over));
        // Let the reader warm up.
        Pace::start().wait((Duration::from_millis(20).as_micros() / TICK.as_micros()) as usize);
        contestant.storm(ticks, Pace::start());
        drop(ends);
        reading.join().expect("the reader does not panic")
    })
}

fn read_until(reader: &mut dyn Reader, prompts: &[Arc<Prompt>], over: &AtomicBool) -> Times {
    let clock_ns = clock_ns();
    let mut times = Vec::with_capacity(MOST_LOOKUPS);
    for prompt in prompts.iter().cycle() {
        if over.load(Ordering::Relaxed) || times.len() == MOST_LOOKUPS {
            break;
        }
        times.push(time_lookup(reader, prompt, Timed::Lookup));
    }
    let warm_up = times.len() / 50;
    Times::new(times.split_off(warm_up), clock_ns)
}

impl Drop for EndsReading<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Storm {
    /// About so many block operations.
    pub(crate) fn new(work: &mut Work, blocks: usize) -> Self {
        // As many blocks are removed as are stored.
        let mut stored = 0;
        let mut alive: VecDeque<Sequence> = VecDeque::new();
        let mut operations = Vec::new();
        let grown = work.cell.prompt_blocks / 16;
        while stored < blocks / 2 {
            let held = work.fresh(grown);
            let (from, to) = (held.prompt.shared, held.prompt.key.len() - grown);
            operations.push(Operation::Store { held: held.clone(), from, to });
            alive.push_back(Sequence { held, blocks: to });
            stored += to - from + grown;
            // Each of the newer ones grows by a block, so that all have grown to their end before they go.
            let newer = alive.len().saturating_sub(grown);
            for sequence in alive.iter_mut().skip(newer) {
                operations.push(sequence.grow());
            }
            if alive.len() > SEQUENCES.max(grown) {
                alive.pop_front().expect("some are alive").drop_into(&mut operations);
            }
        }
        alive.into_iter().for_each(|sequence| sequence.drop_into(&mut operations));
        let ticks = ticks(&operations);
        Self { operations, ticks }
    }
}

impl Sequence {
    /// The next block.
    fn grow(&mut self) -> Operation {
        let from = self.blocks;
        self.blocks += 1;
        Operation::Store { held: self.held.clone(), from, to: self.blocks }
    }

    /// Everything after the group's prefix goes, from the end, piece by piece.
    fn drop_into(self, operations: &mut Vec<Operation>) {
        let mut to = self.blocks;
        while to > self.held.prompt.shared {
            let from = to.saturating_sub(REMOVED).max(self.held.prompt.shared);
            operations.push(Operation::Remove { held: self.held.clone(), from, to });
            to = from;
        }
    }
}

/// How many operations are due at each tick.
fn ticks(operations: &[Operation]) -> Vec<usize> {
    let per_tick = BLOCKS_PER_SECOND as f64 * TICK.as_secs_f64();
    let mut ticks = Vec::new();
    let mut blocks = 0;
    for operation in operations {
        let tick = (blocks as f64 / per_tick) as usize;
        ticks.resize(ticks.len().max(tick + 1), 0);
        ticks[tick] += 1;
        blocks += operation.blocks();
    }
    ticks
}
