//! One cell of the tables after the other: load every contestant alike, compare, measure in turns.

use crate::contest::{Contestant, compare, load};
use crate::rows::{Plan, Series};
use crate::timing::{Timed, Times, time_lookups};
use crate::work::{Cell, PeerHashes, Work};
use crate::{predictions, storm, updates};

/// Who takes part, and how they are told of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contest {
    /// Makes the contestants, empty: ours first.
    pub(crate) enter: fn(&Work) -> Vec<Box<dyn Contestant>>,
    /// Derives the hashes that the references ask for.
    pub(crate) peer_hashes: PeerHashes,
    /// Bytes allocated while it was counting, if this program counts.
    pub(crate) allocated_by: Option<AllocatedBy>,
    /// Whether the references are the ones that the targets name.
    pub(crate) judged: bool,
}

/// Runs some work and counts the bytes that are allocated after it and were not before.
pub(crate) type AllocatedBy = fn(&mut dyn FnMut()) -> i64;

/// How much is measured of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Distinct blocks in the index.
    pub(crate) blocks: usize,
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// Lookups timed in one round.
    pub(crate) lookups: usize,
}

/// Lookups of a cell in which the contestants are compared.
const COMPARED: usize = 500;
const PROMPT_BLOCKS: [(usize, &str); 2] = [(64, "1k"), (512, "8k")];
const TARGETS: [u16; 3] = [8, 64, 512];

impl Effort {
    /// For a quick or a full run.
    pub(crate) fn of(plan: &Plan) -> Self {
        match plan.quick {
            true => Self { blocks: 100_000, rounds: 3, lookups: 1_000 },
            false => Self { blocks: 1_000_000, rounds: 9, lookups: 4_000 },
        }
    }
}

impl Contest {
    /// A target, if the references are the ones it names.
    pub(crate) fn target(&self, target: f64) -> Option<f64> {
        self.judged.then_some(target)
    }
}

/// Measures every cell.
pub(crate) fn run(plan: &Plan, contest: &Contest) {
    agree(contest);
    for (prompt_blocks, _) in PROMPT_BLOCKS {
        for targets in TARGETS {
            let effort = Effort::of(plan);
            let cell = Cell { prompt_blocks, targets, blocks: effort.blocks };
            if rows_of(&cell).iter().any(|row| plan.wants(row)) {
                run_cell(plan, contest, cell, effort);
            }
        }
    }
}

/// A small workload that everyone bears whole, compared in every lookup.
fn agree(contest: &Contest) {
    let cell = Cell { prompt_blocks: 64, targets: 8, blocks: 1_000 };
    let work = Work::new(cell, 32, contest.peer_hashes, true);
    let mut contestants = (contest.enter)(&work);
    assert!(work.stored.len() <= contestants.iter().map(|each| each.patience()).min().unwrap_or(0));
    contestants.iter_mut().for_each(|contestant| load(contestant.as_mut(), &work));
    compare(&contestants, &work.lookups, cell.targets);
}

/// Rows that a cell comes to.
fn rows_of(cell: &Cell) -> Vec<String> {
    let name = cell.name();
    let mut rows = vec![lookup_row("p50", cell), lookup_row("p99", cell)];
    if is_middle(cell) {
        rows.push(hash_row(cell));
        rows.extend(memory_rows(cell));
        rows.extend(predictions::ROWS.iter().map(|row| format!("{row}, {name}")));
        rows.extend(updates::ROWS.iter().map(|(row, ..)| format!("{row}, {name}")));
    }
    if storm::is_stormy(cell) {
        rows.extend(storm::rows(cell));
    }
    rows
}

/// The fleet for which updates are measured too.
fn is_middle(cell: &Cell) -> bool {
    cell.targets == 64
}

fn lookup_row(which: &str, cell: &Cell) -> String {
    format!("lookup {which}, {}", cell.name())
}

fn hash_row(cell: &Cell) -> String {
    format!("hash + lookup p50, {}", cell.name())
}

/// Memory of an index that can follow events, and of one that only predicts.
fn memory_rows(cell: &Cell) -> [String; 2] {
    let name = cell.name();
    [format!("memory per block, {name}"), format!("memory per block, predictions only, {name}")]
}

fn run_cell(plan: &Plan, contest: &Contest, cell: Cell, effort: Effort) {
    plan.progress(&format!("{}: loading {} blocks", cell.name(), cell.blocks));
    // Short prompts touch less memory each: more of them, so that no cell is measured from the cache alone.
    let lookups = effort.lookups * 512 / cell.prompt_blocks.max(128);
    let mut work = Work::new(cell, lookups, contest.peer_hashes, true);
    let mut contestants = enter_loaded(plan, contest, &work);
    let (mut all, some): (Vec<_>, Vec<_>) =
        contestants.drain(..).partition(|contestant| contestant.patience() == usize::MAX);
    compare(&all, work.sample(COMPARED), cell.targets);
    all.extend(some);
    measure_lookups(plan, contest, &work, &all, effort);
    if storm::is_stormy(&cell) {
        storm::run(plan, contest, &mut work, &mut all, effort);
    }
    if is_middle(&cell) {
        updates::run(plan, contest, &mut work, &mut all, effort);
        predictions::run(plan, contest, &mut work, &mut all, effort);
    }
    // Whoever followed the events is still of one mind.
    all.retain(|each| each.updates() && each.patience() == usize::MAX);
    compare(&all, work.sample(COMPARED), cell.targets);
}

/// Everyone, loaded; the bytes that took are rows.
fn enter_loaded(plan: &Plan, contest: &Contest, work: &Work) -> Vec<Box<dyn Contestant>> {
    let mut contestants = (contest.enter)(work);
    let mut loaded = Vec::new();
    let mut prepared = Vec::new();
    for contestant in &mut contestants {
        let mut per_block = |work_on: &mut dyn FnMut(&mut dyn Contestant)| {
            let mut run = || work_on(contestant.as_mut());
            let Some(allocated_by) = contest.allocated_by else {
                run();
                return f64::NAN;
            };
            allocated_by(&mut run) as f64 / work.distinct_blocks as f64
        };
        loaded.push(per_block(&mut |contestant| load(contestant, work)));
        prepared.push(per_block(&mut |contestant| contestant.prepare_for_events()));
    }
    if is_middle(&work.cell) && contest.allocated_by.is_some() {
        let [following, predicting] = memory_rows(&work.cell);
        let bytes = loaded.iter().zip(&prepared).map(|(loaded, prepared)| vec![loaded + prepared]);
        let names = contestants.iter().map(|each| each.name());
        let series: Vec<_> = names.zip(bytes).map(|(name, rounds)| Series { name, rounds }).collect();
        plan.versus(&following, "bytes", &series, None);
        plan.bound(&predicting, "bytes", &loaded[..1], 12.0);
    }
    contestants
}

fn measure_lookups(
    plan: &Plan,
    contest: &Contest,
    work: &Work,
    contestants: &[Box<dyn Contestant>],
    effort: Effort,
) {
    let cell = &work.cell;
    let (p50, p99) = (lookup_row("p50", cell), lookup_row("p99", cell));
    if plan.wants(&p50) || plan.wants(&p99) {
        let times = times(work, contestants, effort.rounds, Timed::Lookup);
        let medians = figures(contestants, &times, Times::p50);
        plan.versus(&p50, "ns", &medians, contest.target(2.0));
        if cell.targets == 512 && !contest.judged {
            plan.bound(&p50, "ns", &medians[0].rounds, 2_500.0);
        }
        plan.versus(&p99, "ns", &figures(contestants, &times, Times::p99), None);
    }
    let hash = hash_row(cell);
    if is_middle(cell) && plan.wants(&hash) {
        let times = times(work, contestants, effort.rounds, Timed::HashAndLookup);
        plan.versus(&hash, "ns", &figures(contestants, &times, Times::p50), contest.target(2.3));
    }
}

/// Times of every contestant, round by round.
fn times(work: &Work, contestants: &[Box<dyn Contestant>], rounds: usize, timed: Timed) -> Vec<Vec<Times>> {
    let mut times = vec![Vec::new(); contestants.len()];
    for round in 0..=rounds {
        for (contestant, times) in contestants.iter().zip(&mut times) {
            let prompts = work.lookups_for(contestant.patience());
            let measured = time_lookups(contestant.reader().as_mut(), &prompts, timed);
            // The first round warms up.
            if round > 0 {
                times.push(measured);
            }
        }
    }
    times
}

fn figures(
    contestants: &[Box<dyn Contestant>],
    times: &[Vec<Times>],
    figure: fn(&Times) -> f64,
) -> Vec<Series> {
    let names = contestants.iter().map(|contestant| contestant.name());
    let rounds = times.iter().map(|times| times.iter().map(figure).collect());
    names.zip(rounds).map(|(name, rounds)| Series { name, rounds }).collect()
}
