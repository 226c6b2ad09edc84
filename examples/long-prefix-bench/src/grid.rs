//! Which cells are run: workloads × cache pressure κ × load ρ × fleet size.

mod published;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sglang_sim::Timing;

use crate::lab::{Clients, Fault};
use crate::workload::{Draft, EQUAL_PROMPT_TOKENS, EQUAL_PROMPTS, Pattern, Trace, TraceError, draft, load};

/// Requests of P1: 16 for each prompt, SGLang's default. Its ρ may exceed 1: batches are larger than those that ρ is defined with.
const EQUAL_REQUESTS: usize = 16 * EQUAL_PROMPTS;

/// KV tokens of an engine in A8, which hold minutes of what poisons it,
const POISONED_ENGINE_TOKENS: usize = 1 << 19;

/// and blocks in its routers' indices: less than three of its long prompts and the others' chats come to.
const POISONED_INDEX_BLOCKS: u64 = 4_096;

/// A client's patience,
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// and that of one who knows that it will take long: 400,000 tokens take three minutes.
const PATIENT: Duration = Duration::from_secs(600);

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// A handful of small cells, for tests.
    Smoke,
    /// Every workload but P2 to P4 at one point, two of them along both axes, one with each fault, four with two routers: three and
    /// a half minutes.
    Quick,
    /// A few cells that take some minutes each in real time: for runs over HTTP, and for the lab beside them.
    EndToEnd,
    /// The surface κ × ρ of the workloads that tell most, fleets of 4 to 32, every fault, several routers: some minutes.
    Full,
}

/// Where requests come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Generated.
    Generated(Pattern),
    /// From a trace.
    Real(Trace),
    /// The same, every request at the time at which it was recorded, whatever became of the one before: as Dynamo replays it.
    Replayed(Trace),
}

/// How fast requests come where ρ does not say it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many a second.
    PerSecond(f64),
    /// So many times as fast as they were recorded.
    TimesRecorded(f64),
}

/// How large the engines' caches are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Capacity {
    /// The fleet's relative to what a pooled LRU needs for 90 % of the ideal hits.
    Kappa(f64),
    /// So that all sessions at their longest come to this share of the fleet's.
    LiveContext(f64),
    /// So many tokens an engine.
    Tokens(usize),
}

/// One cell to run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The workload.
    pub workload: Workload,
    /// The caches.
    pub capacity: Capacity,
    /// The load; zero where there is a pace.
    pub rho: f64,
    /// The pace, instead of a load.
    pub pace: Option<Pace>,
    /// Blocks in a router's index at most, if that is to matter.
    pub most_blocks: Option<u64>,
    /// Without the sessions that are there to disturb the others, whose times stay.
    pub quiet: bool,
    /// Engines.
    pub workers: usize,
    /// About so many requests.
    pub requests: usize,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// Routers in front of all engines.
    pub routers: usize,
    /// Which of several a request goes to.
    pub clients: Clients,
}

impl Suite {
    /// As results name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Quick => "quick",
            Self::EndToEnd => "end-to-end",
            Self::Full => "full",
        }
    }

    /// Seeds unless told otherwise.
    pub fn seeds(self) -> u64 {
        match self {
            Self::Smoke | Self::EndToEnd => 2,
            Self::Quick => 5,
            Self::Full => 5,
        }
    }

    /// Its cells; those of real traces in a directory only if there is one.
    pub fn cells(self, traces: Option<&Path>) -> Vec<Plan> {
        let mut cells = match self {
            Self::Smoke => smoke(),
            Self::Quick => quick(),
            Self::EndToEnd => end_to_end(),
            Self::Full => full(),
        };
        if traces.is_some() && !matches!(self, Self::Smoke | Self::EndToEnd) {
            let points: &[(f64, f64)] = match self {
                Self::Full => &[(0.25, 0.5), (0.5, 0.5), (1.0, 0.3), (1.0, 0.5), (1.0, 0.7), (2.0, 0.5)],
                Self::Smoke | Self::Quick | Self::EndToEnd => &[(0.5, 0.5), (1.0, 0.5)],
            };
            let requests = if self == Self::Full { 6_000 } else { 2_000 };
            for trace in Trace::ALL.into_iter().filter(|trace| *trace != Trace::Sample) {
                cells.extend(
                    points
                        .iter()
                        .map(|(kappa, rho)| Plan::new(Workload::Real(trace), *kappa, *rho, 8, requests)),
                );
            }
            if self == Self::Full {
                cells.extend(published::replayed());
            }
        }
        cells
    }
}

fn smoke() -> Vec<Plan> {
    let generated = [Pattern::SystemPrompts, Pattern::Chat, Pattern::OnePrompt, Pattern::Herd];
    generated.into_iter().map(|pattern| Plan::new(Workload::Generated(pattern), 1.0, 0.5, 4, 150)).collect()
}

fn quick() -> Vec<Plan> {
    let mut cells: Vec<Plan> =
        by_load().map(|pattern| Plan::generated(pattern, 1.0, 0.5, 8, 3_000)).collect();
    cells.push(Plan::generated(Pattern::Poisoned, 1.0, 0.5, 8, 3_000).quiet());
    cells.extend(equal_prompts(&[0.8, 1.2, 1.6, 2.0, 2.4]));
    // An engine that holds two of these sessions is at κ 0.78.
    for (kappa, rho) in [(0.75, 0.5), (2.0, 0.5), (1.0, 0.3), (1.0, 0.8)] {
        cells.push(Plan::new(Workload::Generated(Pattern::Agents), kappa, rho, 8, 3_000));
    }
    let sample = Workload::Real(Trace::Sample);
    for (kappa, rho) in [(0.5, 0.5), (1.0, 0.5), (2.0, 0.5), (1.0, 0.3), (1.0, 0.8)] {
        cells.push(Plan::new(sample, kappa, rho, 4, 1_214));
    }
    let agents = Plan::new(Workload::Generated(Pattern::Agents), 2.0, 0.5, 8, 3_000);
    cells.extend(Fault::ALL.map(|fault| agents.with(fault)));
    for pattern in [Pattern::SystemPrompts, Pattern::Chat, Pattern::Herd] {
        cells.push(Plan { routers: 2, ..Plan::generated(pattern, 1.0, 0.5, 8, 3_000) });
    }
    cells.push(Plan { routers: 2, ..agents });
    cells
}

fn end_to_end() -> Vec<Plan> {
    let generated = [
        (Pattern::SystemPrompts, 600),
        (Pattern::Agents, 300),
        (Pattern::Documents, 200),
        (Pattern::NoSharing, 200),
    ];
    let cell = |(pattern, requests)| Plan::new(Workload::Generated(pattern), 1.0, 0.5, 4, requests);
    let mut cells: Vec<Plan> = generated.into_iter().map(cell).collect();
    cells.push(Plan::new(Workload::Real(Trace::Sample), 1.0, 0.5, 4, 300));
    cells
}

fn full() -> Vec<Plan> {
    let mut cells: Vec<Plan> =
        by_load().map(|pattern| Plan::generated(pattern, 1.0, 0.5, 8, 4_000)).collect();
    let disturbed =
        [Pattern::HeadOfLine, Pattern::Poisoned].map(|of| Plan::generated(of, 1.0, 0.5, 8, 4_000));
    cells.extend(disturbed.map(Plan::quiet));
    let unbounded = Plan { most_blocks: None, ..disturbed[1] };
    cells.extend([unbounded, unbounded.quiet()]);
    cells.extend(published::generated());
    let surfaces = [Pattern::Chat, Pattern::Agents, Pattern::Documents].map(Workload::Generated);
    for workload in surfaces.into_iter().chain([Workload::Real(Trace::Sample)]) {
        // Downwards: where engines cannot be smaller, the cell that comes first is the one that is kept.
        for kappa in [4.0, 2.0, 1.0, 0.5, 0.25] {
            for rho in [0.15, 0.3, 0.5, 0.7, 0.9] {
                cells.push(Plan::new(workload, kappa, rho, 8, 3_000));
            }
        }
        for workers in [4, 16, 32] {
            cells.push(Plan::new(workload, 1.0, 0.5, workers, 400 * workers));
        }
    }
    for live in [0.8, 0.9, 1.1, 1.2] {
        let cliff = Plan::generated(Pattern::Cliff, 1.0, 0.5, 8, 4_000);
        cells.push(Plan { capacity: Capacity::LiveContext(live), ..cliff });
    }
    cells.extend(equal_prompts(&[0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6]));
    let plain = surfaces.into_iter().chain([Workload::Real(Trace::Sample)]);
    for plain in plain.map(|workload| Plan::new(workload, 2.0, 0.5, 8, 3_000)) {
        cells.extend(Fault::ALL.map(|fault| plain.with(fault)));
        cells.extend([2, 4].map(|routers| Plan { routers, ..plain }));
        cells.push(Plan { routers: 4, ..plain }.with(Fault::Takeover));
    }
    // Any request may go to any router: the replicas have to find what the others have sent.
    for pattern in [Pattern::Chat, Pattern::Agents] {
        for routers in [2, 4] {
            let plain = Plan::generated(pattern, 2.0, 0.5, 8, 3_000);
            let plain = Plan { routers, clients: Clients::AtRandom, ..plain };
            cells.extend([plain, plain.with(Fault::Takeover)]);
        }
    }
    for pattern in [Pattern::SystemPrompts, Pattern::Herd, Pattern::Sliding] {
        cells.push(Plan { routers: 2, ..Plan::generated(pattern, 1.0, 0.5, 8, 4_000) });
    }
    // The middle of a surface has been named before.
    let mut seen = HashSet::new();
    cells.retain(|plan| seen.insert(plan.id()));
    cells
}

/// Patterns whose load is ρ.
fn by_load() -> impl Iterator<Item = Pattern> {
    Pattern::ALL.into_iter().filter(|pattern| !matches!(pattern, Pattern::B2b | Pattern::Gateways))
}

fn equal_prompts(loads: &[f64]) -> impl Iterator<Item = Plan> {
    loads.iter().map(|rho| Plan::generated(Pattern::Equal, 1.0, *rho, 8, EQUAL_REQUESTS))
}

impl Plan {
    fn new(workload: Workload, kappa: f64, rho: f64, workers: usize, requests: usize) -> Self {
        let (capacity, fault, routers) = (Capacity::Kappa(kappa), None, 1);
        let (pace, most_blocks, quiet, clients) = (None, None, false, Clients::default());
        Self { workload, capacity, rho, pace, workers, requests, fault, routers, clients, most_blocks, quiet }
    }

    /// The same with a fault. It takes two routers for one to take over.
    fn with(self, fault: Fault) -> Self {
        let routers = if fault == Fault::Takeover { self.routers.max(2) } else { self.routers };
        Self { fault: Some(fault), routers, ..self }
    }

    /// The cliff's capacity follows from its sessions, the sliding set's is short of what it uses, an engine holds a quarter of P1's prompts.
    /// A8's engines hold all that is used again, and its routers' indices do while nobody disturbs.
    fn generated(pattern: Pattern, kappa: f64, rho: f64, workers: usize, requests: usize) -> Self {
        let capacity = match pattern {
            Pattern::Cliff => Capacity::LiveContext(1.0),
            Pattern::Sliding => Capacity::Kappa(0.5 * kappa),
            Pattern::Equal => Capacity::Tokens(EQUAL_PROMPTS * EQUAL_PROMPT_TOKENS / 4),
            Pattern::Poisoned => Capacity::Tokens(POISONED_ENGINE_TOKENS),
            _ => Capacity::Kappa(kappa),
        };
        let requests = if pattern == Pattern::Equal { EQUAL_REQUESTS } else { requests };
        let most_blocks = (pattern == Pattern::Poisoned).then_some(POISONED_INDEX_BLOCKS);
        let plan = Self::new(Workload::Generated(pattern), kappa, rho, workers, requests);
        Self { capacity, most_blocks, ..plan }
    }

    /// The same without those who disturb.
    pub fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// How long clients wait for a first token: two minutes, but longer than A6's long prompts take, and as long as published runs went
    /// on, whose clients did not leave.
    pub fn patience(&self) -> Duration {
        let is_patient = self.pace.is_some() || self.workload == Workload::Generated(Pattern::HeadOfLine);
        if is_patient { PATIENT } else { TIMEOUT }
    }

    /// The span in which its sessions start.
    pub fn span(&self, draft: &Draft, timing: &Timing) -> Duration {
        match self.pace {
            None => draft.span_at(self.rho, self.workers, timing),
            Some(Pace::PerSecond(rate)) => Duration::from_secs_f64(draft.measured() as f64 / rate),
            Some(Pace::TimesRecorded(times)) => draft.recorded.unwrap_or_default().div_f64(times),
        }
    }

    /// What it is compared with: the same with nothing wrong, or, where nothing is, with one router.
    pub fn undisturbed(&self) -> Self {
        match self.fault {
            Some(_) => Self { fault: None, ..*self },
            None => Self { routers: 1, clients: Clients::default(), ..*self },
        }
    }

    /// Names the cell within its suite.
    pub fn id(&self) -> String {
        let capacity = match self.capacity {
            Capacity::Kappa(kappa) => format!("κ {kappa}"),
            Capacity::LiveContext(live) => format!("live {live}"),
            Capacity::Tokens(tokens) => format!("{tokens} tokens"),
        };
        let fault = self.fault.map_or_else(String::new, |fault| format!(", {}", fault.name()));
        let routers = if self.routers == 1 { String::new() } else { format!(", {} routers", self.routers) };
        let clients = if self.clients == Clients::AtRandom { ", clients at random" } else { "" };
        let load = match self.pace {
            None => format!("ρ {}", self.rho),
            Some(Pace::PerSecond(rate)) => format!("{rate}/s"),
            Some(Pace::TimesRecorded(times)) => format!("{times} × recorded"),
        };
        let index = self.most_blocks.map_or_else(String::new, |most| format!(", index {most}"));
        let quiet = if self.quiet { ", quiet" } else { "" };
        let (name, workers) = (self.workload.name(), self.workers);
        format!("{name}, {capacity}, {load}, N {workers}{index}{quiet}{fault}{routers}{clients}")
    }

    /// Its requests.
    pub fn draft(&self, traces: Option<&Path>, seed: u64) -> Result<Draft, TraceError> {
        match self.workload {
            Workload::Generated(pattern) => Ok(draft(pattern, self.requests, seed)),
            Workload::Real(trace) | Workload::Replayed(trace) => {
                let dir = traces.map_or_else(PathBuf::new, Path::to_owned);
                let draft = load(trace, &dir, self.requests, seed)?;
                let is_replayed = matches!(self.workload, Workload::Replayed(_));
                Ok(if is_replayed { draft.open_loop() } else { draft })
            }
        }
    }
}

impl Workload {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generated(pattern) => pattern.name(),
            Self::Real(trace) => trace.name(),
            Self::Replayed(_) => "P3 Dynamo tool-agent",
        }
    }

    /// From a trace, at a load of ours: a published set-up is judged beside what was published.
    pub fn is_real(self) -> bool {
        matches!(self, Self::Real(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_names_of_their_own() {
        for suite in [Suite::Smoke, Suite::Quick, Suite::EndToEnd, Suite::Full] {
            let cells = suite.cells(Some(Path::new("traces")));
            let ids: HashSet<_> = cells.iter().map(Plan::id).collect();
            assert_eq!(ids.len(), cells.len(), "{}", suite.name());
        }
    }
}
