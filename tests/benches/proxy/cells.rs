//! What is measured, cell by cell, and the targets that issue 4 sets: they are relative to nginx and to sglang-router.
//!
//! *CPU* is user and system time of a contestant's processes per request or event. The load keeps 32 connections busy, so that
//! the machine is full; a stream's events come at a rate that it bears. *Resident memory* is looked at before the load, and
//! after each cell.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::Fault;
use crate::contestants::{BESIDE, Contestant, DIRECT, Log, OURS, installed};
use crate::latency;
use crate::link::{Drive, Job, Outcome, Reply, Role};
use crate::process::{Memory, cpu_seconds, family, memory};
use crate::rows::{Better, Plan, Reference, Series, median};
use crate::shape::{Shape, Unit};

/// Connections that are kept busy.
pub(crate) const CONNECTIONS: usize = 32;

/// Requests between the first numbers of two rounds: no two rounds send the same prompt.
const NUMBERS_PER_ROUND: u64 = 1 << 32;

/// Least share of the events that the workers send which must arrive: a contestant that falls behind passes several at once.
const LEAST_EVENTS: f64 = 0.95;

/// Tries of a contestant that has just been started, one each half second.
const TRIES: usize = 80;

/// At least so much less CPU than sglang-router.
const BELOW_SGLANG: f64 = 5.0;

/// Most resident memory before any load, in MB.
const MOST_IDLE_MB: f64 = 40.0;

/// The cell in which memory must not grow: the one that brings most new blocks to an index.
pub(crate) const CHURN: Shape = text(64 << 10);

/// Most that resident memory may differ between the first and the last round of that cell. What is above it is growth.
const MOST_GROWTH: f64 = 1.05;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
struct Cell {
    name: &'static str,
    shape: Shape,
    /// One stream on each connection, with this long between two events.
    step_ms: Option<u64>,
    connections: usize,
    /// What nginx takes relative to us, at least.
    target: Option<f64>,
    quick: bool,
}

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) load: Role,
    pub(crate) workers: Role,
    /// Failures so far: any makes the run fail in the end, and none hides another.
    failures: u64,
    round: u64,
}

/// Rounds of a cell, and how long a contestant's part of a round takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    pub(crate) count: usize,
    pub(crate) seconds: f64,
}

pub(crate) const SMALL: Shape = text(200);

pub(crate) const STREAM: Shape = Shape { unit: Unit::Text, prompt_bytes: 200, stream: true };

const fn text(prompt_bytes: usize) -> Shape {
    Shape { unit: Unit::Text, prompt_bytes, stream: false }
}

const fn ids(prompt_bytes: usize) -> Shape {
    Shape { unit: Unit::Ids, prompt_bytes, stream: false }
}

const fn requests(name: &'static str, shape: Shape, target: Option<f64>, quick: bool) -> Cell {
    Cell { name, shape, step_ms: None, connections: CONNECTIONS, target, quick }
}

const fn streams(name: &'static str, connections: usize, step_ms: u64, quick: bool) -> Cell {
    Cell { name, shape: STREAM, step_ms: Some(step_ms), connections, target: Some(1.0), quick }
}

const CELLS: [Cell; 9] = [
    requests("small request", SMALL, Some(1.0 / 1.25), true),
    requests("4 KB text", text(4 << 10), None, false),
    requests("4 KB input_ids", ids(4 << 10), None, false),
    requests("64 KB text", text(64 << 10), Some(1.0 / 1.5), true),
    requests("64 KB input_ids", ids(64 << 10), Some(1.0 / 1.5), false),
    requests("400 KB text", text(400 << 10), Some(1.0 / 2.0), false),
    requests("400 KB input_ids", ids(400 << 10), Some(1.0 / 2.0), false),
    streams("64 streams", 64, 10, true),
    streams("1,000 streams", 1000, 200, false),
];

/// Measures everything that is asked for.
pub(crate) fn run(plan: &Plan, router: &Path, beside: Option<&Path>) -> Result<(), Fault> {
    let mut workers = Role::start("workers")?;
    let addresses: Vec<SocketAddr> = workers.hear()?;
    let load = Role::start("load")?;
    let contestants = enter(plan, router, beside, &addresses)?;
    let mut field = Field::new(contestants, load, workers);
    field.admit(plan)?;
    field.idle(plan);
    let rounds =
        if plan.quick { Rounds { count: 3, seconds: 1.5 } } else { Rounds { count: 5, seconds: 1.8 } };
    let mut most_per_second = Vec::new();
    for cell in CELLS.into_iter().filter(|cell| cell.quick || !plan.quick) {
        let needed = cell.shape == SMALL && latency::wanted(plan);
        if needed || plan.wants(&cell.row()) {
            let rates = field.measure(plan, cell, rounds)?;
            if cell.shape == SMALL {
                most_per_second = rates;
            }
        }
    }
    field.peak(plan);
    latency::measure(plan, &mut field, &most_per_second, rounds)?;
    let logged = requests("small request, requests logged", SMALL, None, false);
    if !plan.quick && plan.wants(&logged.row()) {
        field.contestants = vec![
            Contestant::ours(OURS, router, &addresses, Log::Requests)?,
            Contestant::nginx(&addresses, Log::Requests)?,
        ];
        if let Some(beside) = beside {
            field.contestants.push(Contestant::ours(BESIDE, beside, &addresses, Log::Requests)?);
        }
        field.admit(plan)?;
        field.measure(plan, logged, rounds)?;
    }
    field.finish()
}

/// Starts everyone who is there. Ours is first, which rows are about.
fn enter(
    plan: &Plan,
    router: &Path,
    beside: Option<&Path>,
    workers: &[SocketAddr],
) -> Result<Vec<Contestant>, Fault> {
    let mut contestants =
        vec![Contestant::ours(OURS, router, workers, Log::Off)?, Contestant::direct(workers)];
    if let Some(beside) = beside {
        contestants.push(Contestant::ours(BESIDE, beside, workers, Log::Off)?);
    }
    let mut absent = Vec::new();
    if installed("nginx", &["-v"]) {
        contestants.push(Contestant::nginx(workers, Log::Off)?);
    } else {
        absent.push("nginx");
    }
    if !plan.quick {
        if installed("haproxy", &["-v"]) {
            contestants.push(Contestant::haproxy(workers)?);
        } else {
            absent.push("haproxy");
        }
        let routers = [("sglang-router", "sglang_router", "warn"), ("vllm-router", "vllm_router", "warning")];
        for (name, module, level) in routers {
            if installed("python3", &["-c", &format!("import {module}")]) {
                contestants.push(Contestant::python(name, module, level, workers)?);
            } else {
                absent.push(name);
            }
        }
    }
    for name in absent {
        plan.progress(&format!("{name} is not installed and is left out"));
    }
    Ok(contestants)
}

impl Cell {
    fn row(&self) -> String {
        format!("CPU, {}", self.name)
    }
}

impl Field {
    pub(crate) fn new(contestants: Vec<Contestant>, load: Role, workers: Role) -> Self {
        Self { contestants, load, workers, failures: 0, round: 0 }
    }

    /// A fault if anything failed.
    pub(crate) fn finish(&self) -> Result<(), Fault> {
        match self.failures {
            0 => Ok(()),
            failures => Err(format!("{failures} failures; see above").into()),
        }
    }

    /// The next round's job for the first contestant.
    pub(crate) fn next_job(&mut self, shape: Shape) -> Job {
        self.round += 1;
        job(&self.contestants[0], shape, self.round)
    }

    /// Waits until everyone answers.
    #[expect(clippy::disallowed_methods, reason = "other projects' programs do not say when they are ready")]
    pub(crate) fn admit(&mut self, plan: &Plan) -> Result<(), Fault> {
        for contestant in &self.contestants {
            let mut tries = 0;
            let job = job(contestant, SMALL, 0);
            while let Err(fault) = run_job(&mut self.load, &Job { seconds: 0.0, ..job.clone() }, || 0.0) {
                tries += 1;
                if tries == TRIES {
                    let said = contestant.said();
                    return Err(format!("{} does not serve: {fault}\n{said}", contestant.name).into());
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            plan.progress(&format!("{} serves", contestant.name));
        }
        Ok(())
    }

    /// The row of memory before the load.
    fn idle(&self, plan: &Plan) {
        let resident = self.memory(|memory| memory.resident);
        if let Some((_, ours)) = resident.first() {
            plan.bound("resident memory, idle", "MB", &[*ours], MOST_IDLE_MB);
        }
        against_each(plan, "resident memory, idle", "MB", &resident);
    }

    /// The row of memory after all load.
    fn peak(&self, plan: &Plan) {
        against_each(plan, "peak memory of all cells", "MB", &self.memory(|memory| memory.peak));
    }

    fn memory(&self, figure: impl Fn(Memory) -> f64) -> Vec<(&'static str, f64)> {
        let processes = self.contestants.iter().filter_map(|it| Some((it.name, it.process()?)));
        processes.map(|(name, process)| (name, figure(memory(process)))).collect()
    }

    /// One cell; returns how much each contestant did in a second.
    fn measure(&mut self, plan: &Plan, cell: Cell, rounds: Rounds) -> Result<Vec<Series>, Fault> {
        plan.progress(cell.name);
        if let Some(step_ms) = cell.step_ms {
            self.workers.say(&step_ms)?;
        }
        let series = |it: &Contestant| Series { name: it.name, rounds: Vec::new() };
        let mut cpu: Vec<Series> = self.contestants.iter().map(series).collect();
        let mut rates = cpu.clone();
        let mut resident = Vec::new();
        // One more than is counted: in the first, connections are made and memory is taken.
        for round in 0..=rounds.count {
            self.round += 1;
            for at in 0..self.contestants.len() {
                let process = self.contestants[at].process();
                if process.is_none() && cell.shape != SMALL {
                    continue;
                }
                let drive = if cell.step_ms.is_some() { Drive::Streams } else { Drive::Closed };
                let (connections, seconds) = (cell.connections, rounds.seconds);
                let job =
                    Job { connections, seconds, drive, ..job(&self.contestants[at], cell.shape, self.round) };
                let Some((outcome, cpu_s)) = self.round(plan, at, &job)? else { continue };
                if at == 0 {
                    resident.extend(process.map(|process| memory(process).resident));
                }
                if let Some(step_ms) = cell.step_ms {
                    self.keeps_pace(plan, at, &outcome, outcome.seconds * 1e3 / step_ms as f64, cell);
                }
                if round > 0 {
                    cpu[at].rounds.extend(process.map(|_| cpu_s * 1e6 / outcome.count as f64));
                    rates[at].rounds.push(outcome.count as f64 / outcome.seconds);
                }
            }
        }
        cell.rows(plan, &cpu);
        for (rate, cpu) in rates.iter().zip(&cpu).filter(|(rate, _)| !rate.rounds.is_empty()) {
            let (rate_name, per_second) = (rate.name, median(&rate.rounds));
            plan.progress(&format!("  {rate_name:<14}{per_second:>8.0}/s  {}", spread(&cpu.rounds)));
        }
        if let ([_, first, ..], Some(last), CHURN) = (&*resident, resident.last(), cell.shape) {
            plan.bound(&format!("growth of memory, {}", cell.name), "×", &[last / first], MOST_GROWTH);
        }
        Ok(rates)
    }

    /// One contestant's part of a round: what came of it, and the CPU it took in seconds.
    pub(crate) fn round(
        &mut self,
        plan: &Plan,
        at: usize,
        job: &Job,
    ) -> Result<Option<(Outcome, f64)>, Fault> {
        let contestant = &self.contestants[at];
        let family = contestant.process().map(family).unwrap_or_default();
        let done = run_job(&mut self.load, job, || cpu_seconds(&family));
        let (failures, failure) = match &done {
            Ok((outcome, _)) => (outcome.failures, outcome.failure.clone()),
            Err(fault) => (1, Some(fault.to_string())),
        };
        if let Some(failure) = failure {
            plan.progress(&format!("{}: {failures} failures, the first: {failure}", contestant.name));
            self.failures += failures;
        }
        Ok(done.ok().filter(|(outcome, _)| outcome.count > 0))
    }

    /// Counts it as a failure if events were kept back. One step more or less is a matter of when the count began.
    fn keeps_pace(&mut self, plan: &Plan, at: usize, outcome: &Outcome, steps: f64, cell: Cell) {
        let least = (steps - 1.0) * LEAST_EVENTS * cell.connections as f64;
        if (outcome.count as f64) < least {
            let (name, came) = (self.contestants[at].name, outcome.count);
            plan.progress(&format!("{name}: only {came} events came, where at least {least:.0} should have"));
            self.failures += 1;
        }
    }
}

impl Cell {
    fn rows(&self, plan: &Plan, cpu: &[Series]) {
        let Some((ours, others)) = cpu.split_first().filter(|(ours, _)| !ours.rounds.is_empty()) else {
            return;
        };
        for other in others.iter().filter(|other| !other.rounds.is_empty()) {
            let target = match other.name {
                "nginx" => self.target,
                "sglang-router" if self.step_ms.is_none() => Some(BELOW_SGLANG),
                _ => None,
            };
            let reference = Reference { name: other.name, value: median(&other.rounds) };
            plan.row(&self.row(), "µs", &ours.rounds, reference, Better::Less, target);
        }
    }
}

/// What the clients do for a contestant unless something else is said.
pub(crate) fn job(contestant: &Contestant, shape: Shape, round: u64) -> Job {
    Job {
        targets: contestant.targets.clone(),
        shape,
        first: round * NUMBERS_PER_ROUND,
        connections: CONNECTIONS,
        drive: Drive::Closed,
        seconds: 0.0,
    }
}

/// Has the clients do a job. What `cpu` says is taken when it begins and when it has been done, before its connections end.
fn run_job(load: &mut Role, job: &Job, cpu: impl Fn() -> f64) -> Result<(Outcome, f64), Fault> {
    load.say(job)?;
    heard(load, |reply| matches!(reply, Reply::Ready).then_some(()))?;
    let before = cpu();
    load.say(&())?;
    let outcome = heard(load, |reply| if let Reply::Done(outcome) = reply { Some(outcome) } else { None })?;
    let took = cpu() - before;
    load.say(&())?;
    heard(load, |reply| matches!(reply, Reply::Closed).then_some(()))?;
    Ok((outcome, took))
}

/// What the clients say next, where that is what it should be.
fn heard<T>(load: &mut Role, expected: impl FnOnce(Reply) -> Option<T>) -> Result<T, Fault> {
    match load.hear()? {
        Reply::Failed(what) => Err(what.into()),
        reply => {
            let said = format!("{reply:?}");
            expected(reply).ok_or_else(|| format!("the clients said {said} out of turn").into())
        }
    }
}

/// A contestant's figures, for the reader of the rows who wonders about the reference's.
fn spread(cpu_us: &[f64]) -> String {
    if cpu_us.is_empty() {
        return String::new();
    }
    let least = cpu_us.iter().copied().fold(f64::INFINITY, f64::min);
    let most = cpu_us.iter().copied().fold(0.0, f64::max);
    format!("CPU {:.1} µs ({least:.1} to {most:.1})", median(cpu_us))
}

/// One row for each of the others, of figures that there is one of.
fn against_each(plan: &Plan, row: &str, unit: &str, figures: &[(&'static str, f64)]) {
    let Some(((OURS, ours), others)) = figures.split_first() else { return };
    for (name, value) in others.iter().filter(|(name, _)| *name != DIRECT) {
        plan.row(row, unit, &[*ours], Reference { name, value: *value }, Better::Less, None);
    }
}
