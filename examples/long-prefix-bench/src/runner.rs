//! Runs the cells of a suite on a few threads.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use router_core::policy::CacheAwareSettings;
use sglang_sim::Timing;

use crate::aftermath::{self, Aftermath, Course};
use crate::engine::Limits;
use crate::grid::{Capacity, Plan, TIMEOUT};
use crate::lab::{
    Clients, Contestant, Kind, LabError, MOST_BLOCKS, Outcome, Request, Setting, contestants, replay, run,
};
use crate::metrics::{Detail, Metrics, detail, metrics};
use crate::recording::{Choices, Recording, Replay};
use crate::reference::Accesses;
use crate::result::{Cell, EngineProfile, Entry, Report, Run, SCHEMA, Seed};
use crate::sequence::BLOCK_TOKENS;
use crate::workload::{TraceError, Traffic};

/// What is run, and on what.
#[derive(Debug)]
pub struct Job<'a> {
    /// Name of the suite.
    pub suite: &'a str,
    /// Its cells.
    pub cells: &'a [Plan],
    /// Where traces are.
    pub traces: Option<&'a Path>,
    /// So many seeds, from 1.
    pub seeds: u64,
    /// Threads.
    pub threads: usize,
    /// Settings of `cache_aware`.
    pub cache_aware: CacheAwareSettings,
}

/// A benchmark that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A run failed.
    #[error("{contestant} in {cell}: {source}")]
    Lab {
        /// Whose run.
        contestant: &'static str,
        /// The cell.
        cell: String,
        /// Why.
        source: LabError,
    },
}

/// Hits of the ideal that define the working set.
const W90_SHARE: f64 = 0.9;

/// An engine holds at least this many of the longest sequence,
const LEAST_SEQUENCES: f64 = 1.5;

/// and so many tokens: with less it is memory for what runs that is short, not cache.
const LEAST_TOKENS: f64 = 131_072.0;

/// One cell with one seed.
struct Measured {
    seed: Seed,
    runs: Vec<(Metrics, Detail, Option<Course>)>,
}

/// Of everybody in one cell with one seed, by the places of both.
type Courses = HashMap<(usize, u64), Vec<Course>>;

/// A cell with one seed, before anybody has run it.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) traffic: Traffic,
    /// Tokens of each prompt that an infinite cache holds.
    pub(crate) ideal: Vec<usize>,
    pub(crate) setting: Setting,
    pub(crate) seed: Seed,
}

impl BenchError {
    fn lab(plan: &Plan, contestant: &Contestant, source: LabError) -> Self {
        Self::Lab { contestant: contestant.name, cell: plan.id(), source }
    }
}

impl Job<'_> {
    /// Runs of single contestants that it comes to.
    pub fn runs(&self) -> usize {
        self.cells.len() * self.seeds as usize * contestants(self.cache_aware).len()
    }

    /// Runs all of it; `done` is called after each run. The result does not depend on the number of threads.
    pub fn run(&self, done: &(impl Fn() + Sync)) -> Result<Report, BenchError> {
        let contestants = contestants(self.cache_aware);
        let tasks: Vec<(usize, u64)> =
            (0..self.cells.len()).flat_map(|cell| (1..=self.seeds).map(move |seed| (cell, seed))).collect();
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(tasks.len()));
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while let Some((cell, seed)) = tasks.get(next.fetch_add(1, Relaxed)) {
                        let measured = self.measure(&self.cells[*cell], *seed, &contestants, done);
                        let failed = measured.is_err();
                        let mut results = results.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        results.push((*cell, *seed, measured));
                        if failed {
                            // Nobody begins anything more.
                            next.store(tasks.len(), Relaxed);
                        }
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        results.sort_by_key(|(cell, seed, _)| (*cell, *seed));
        let mut cells: Vec<Cell> =
            self.cells.iter().map(|plan| empty(plan, contestants.iter().map(|of| of.name))).collect();
        let mut courses = Courses::new();
        for (cell, seed, measured) in results {
            let measured = measured?;
            cells[cell].seeds.push(measured.seed);
            let mut kept = Vec::new();
            for (run, (metrics, detail, course)) in cells[cell].runs.iter_mut().zip(measured.runs) {
                run.seeds.push(metrics);
                kept.extend(course);
                if seed == 1 {
                    run.detail = detail;
                }
            }
            courses.insert((cell, seed), kept);
        }
        self.add_aftermaths(&mut cells, &courses);
        leave_out_repetitions(&mut cells);
        Ok(Report {
            schema: SCHEMA.to_owned(),
            suite: self.suite.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: profile(&Timing::default(), &Limits::default()),
            contestants: contestants.iter().map(entry).collect(),
            cells,
            end_to_end: None,
        })
    }

    fn measure(
        &self,
        plan: &Plan,
        seed: u64,
        contestants: &[Contestant],
        done: &(impl Fn() + Sync),
    ) -> Result<Measured, BenchError> {
        let prepared = Prepared::new(plan, self.traces, seed)?;
        let keeps = aftermath::concerns(plan, self.cells);
        let runs = contestants.iter().map(|contestant| {
            let outcome = prepared.outcome(plan, contestant);
            done();
            let outcome = outcome?;
            let course = || Course::of(&prepared.setting, &prepared.traffic, &outcome);
            let (metrics, detail) = prepared.figures(&outcome);
            Ok((metrics, detail, keeps.then(course)))
        });
        let runs = runs.collect::<Result<Vec<_>, BenchError>>()?;
        Ok(Measured { seed: prepared.seed, runs })
    }

    /// Where something goes wrong at one moment, and the grid has the same without.
    fn add_aftermaths(&self, cells: &mut [Cell], courses: &Courses) {
        for (place, plan) in self.cells.iter().enumerate() {
            let plain = self.cells.iter().position(|other| *other == plan.undisturbed());
            let Some((fault, plain)) = plan.fault.filter(|fault| fault.has_moments()).zip(plain) else {
                continue;
            };
            let Cell { seeds, runs, .. } = &mut cells[place];
            for seed in seeds {
                let span = Duration::from_secs_f64(seed.span_s);
                let moments = fault.moments(plan.workers, plan.routers, span);
                let both = courses.get(&(place, seed.seed)).zip(courses.get(&(plain, seed.seed)));
                let both = both.into_iter().flat_map(|(with, without)| with.iter().zip(without));
                for (run, (with, without)) in runs.iter_mut().zip(both) {
                    run.aftermaths.push(Aftermath::of(fault, &moments, with, without));
                }
            }
        }
    }
}

impl Prepared {
    /// Draws the traffic of a cell and sizes its engines.
    pub(crate) fn new(plan: &Plan, traces: Option<&Path>, seed: u64) -> Result<Self, TraceError> {
        let timing = Timing::default();
        let draft = plan.draft(traces, seed)?;
        let span = plan.span(&draft, &timing);
        let traffic = if plan.quiet { draft.without_intruders() } else { draft }.schedule(span);
        let accesses = Accesses::new(&traffic.requests);
        let ideal = accesses.infinite();
        let w90_tokens = accesses.lru_capacity_for(W90_SHARE) * BLOCK_TOKENS;
        let capacity_tokens = capacity_tokens(plan, &traffic, w90_tokens);
        let setting = Setting {
            workers: plan.workers,
            capacity_tokens,
            most_blocks: plan.most_blocks.unwrap_or(MOST_BLOCKS),
            limits: Limits::default(),
            timing,
            timeout: plan.patience(),
            seed,
            routers: plan.routers,
            clients: plan.clients,
            fault: plan.fault,
        };
        let fleet_blocks = capacity_tokens * plan.workers / BLOCK_TOKENS;
        let share = |tokens: u64| tokens as f64 / traffic.prompt_tokens().max(1) as f64;
        let seed = Seed {
            seed,
            hash: format!("{:016x}", traffic.hash),
            requests: traffic.requests.len(),
            prompt_tokens: traffic.prompt_tokens(),
            span_s: traffic.span.as_secs_f64(),
            capacity_tokens,
            kappa: (capacity_tokens * plan.workers) as f64 / w90_tokens.max(1) as f64,
            w90_tokens,
            infinite_hit_rate: share(ideal.iter().sum::<usize>() as u64),
            belady_hit_rate: share(accesses.belady(fleet_blocks)),
            lru_hit_rate: share(accesses.lru(fleet_blocks)),
        };
        Ok(Self { traffic, ideal, setting, seed })
    }

    /// A contestant's run in virtual time; its detail is of the first seed alone.
    pub(crate) fn in_the_lab(
        &self,
        plan: &Plan,
        contestant: &Contestant,
    ) -> Result<(Metrics, Detail), BenchError> {
        Ok(self.figures(&self.outcome(plan, contestant)?))
    }

    /// The same on the arrivals of a run over HTTP, beside what came of its requests.
    pub(crate) fn replay(
        &self,
        plan: &Plan,
        contestant: &Contestant,
        choices: Choices,
        recording: &Recording,
        http: &[Request],
    ) -> Result<Replay, BenchError> {
        let traffic = self.traffic.sent_at(&recording.times());
        let outcome = replay(&self.setting, &traffic, contestant, &recording.engines(choices))
            .map_err(|source| BenchError::lab(plan, contestant, source))?;
        let (figures, _) = self.figures(&outcome);
        Ok(recording.beside(http, &outcome, choices, figures))
    }

    fn outcome(&self, plan: &Plan, contestant: &Contestant) -> Result<Outcome, BenchError> {
        run(&self.setting, &self.traffic, contestant)
            .map_err(|source| BenchError::lab(plan, contestant, source))
    }

    /// What became of a run, in figures.
    pub(crate) fn figures(&self, outcome: &Outcome) -> (Metrics, Detail) {
        let Self { traffic, ideal, setting, seed } = self;
        let is_first = seed.seed == 1;
        let detail = if is_first { detail(setting, traffic, ideal, outcome) } else { Detail::default() };
        (metrics(setting, traffic, ideal, outcome), detail)
    }
}

/// Engines have a least size: cells that ask for less have the same traffic and caches as one before them, and would count twice.
fn leave_out_repetitions(cells: &mut Vec<Cell>) {
    let mut seen = HashSet::new();
    cells.retain(|cell| {
        let of = |seed: &Seed| (seed.hash.clone(), seed.capacity_tokens);
        let traffic: Vec<_> = cell.seeds.iter().map(of).collect();
        let disturbed = (cell.fault.clone(), cell.routers, cell.clients_at_random);
        seen.insert((cell.workers, cell.most_blocks, disturbed, traffic))
    });
}

/// In whole pages, and never less than an engine needs to run anything.
fn capacity_tokens(plan: &Plan, traffic: &Traffic, w90_tokens: usize) -> usize {
    let workers = plan.workers as f64;
    let wanted = match plan.capacity {
        Capacity::Kappa(kappa) => kappa * w90_tokens as f64 / workers,
        Capacity::Tokens(tokens) => tokens as f64,
        Capacity::LiveContext(share) => {
            let longest = |turns: &[crate::workload::Turn]| {
                let requests = turns.iter().flat_map(|turn| &turn.requests);
                let sequences = requests.map(|at| &traffic.requests[*at as usize]);
                let tokens = sequences.map(|sequence| sequence.prompt_tokens() + sequence.output_tokens());
                tokens.max().unwrap_or(0)
            };
            let live: usize = traffic.sessions.iter().map(|session| longest(&session.turns)).sum();
            live as f64 / (share * workers)
        }
    };
    let least = LEAST_TOKENS.max(LEAST_SEQUENCES * traffic.longest_tokens() as f64);
    (wanted.max(least) as usize).next_multiple_of(BLOCK_TOKENS)
}

pub(crate) fn empty<'a>(plan: &Plan, contestants: impl Iterator<Item = &'a str>) -> Cell {
    let run = |contestant: &str| Run {
        contestant: contestant.to_owned(),
        seeds: Vec::new(),
        detail: Detail::default(),
        checks: Vec::new(),
        recordings: Vec::new(),
        aftermaths: Vec::new(),
    };
    Cell {
        id: plan.id(),
        workload: plan.workload.name().to_owned(),
        is_real: plan.workload.is_real(),
        workers: plan.workers,
        kappa: match plan.capacity {
            Capacity::Kappa(kappa) => Some(kappa),
            Capacity::LiveContext(_) | Capacity::Tokens(_) => None,
        },
        rho: plan.rho,
        most_blocks: plan.most_blocks,
        patience_s: plan.patience().as_secs_f64(),
        quiet: (!plan.quiet).then(|| plan.quiet().id()),
        fault: plan.fault.map(|fault| fault.name().to_owned()),
        routers: plan.routers,
        clients_at_random: plan.clients == Clients::AtRandom,
        undisturbed: plan.undisturbed().id(),
        seeds: Vec::new(),
        runs: contestants.map(run).collect(),
    }
}

pub(crate) fn entry(contestant: &Contestant) -> Entry {
    Entry {
        name: contestant.name.to_owned(),
        what: contestant.what.to_owned(),
        is_reference: contestant.kind == Kind::Reference,
        settings: contestant.settings(),
    }
}

pub(crate) fn profile(timing: &Timing, limits: &Limits) -> EngineProfile {
    EngineProfile {
        prefill_tokens_per_s: timing.prefill_tokens_per_s,
        half_context_tokens: timing.half_context_tokens,
        decode_base_us: timing.decode_base.as_secs_f64() * 1e6,
        decode_per_request_us: timing.decode_per_request.as_secs_f64() * 1e6,
        decode_per_token_ns: timing.decode_per_token_ns,
        chunk_tokens: limits.chunk_tokens,
        max_running: limits.max_running,
        page_tokens: BLOCK_TOKENS,
        timeout_s: TIMEOUT.as_secs_f64(),
    }
}
