//! Runs the cells of a suite over HTTP, contestant after contestant, seed after seed.

use std::path::Path;

use sglang_sim::Timing;
use tokio::sync::watch;

use super::client::Client;
use super::contestant::{Contestant, Programs, RouterError, probe};
use super::run::{Manner, Ran, Recorded, running, started};
use super::workers::WorkersError;
use super::{Api, Checks, Scale};
use crate::engine::Limits;
use crate::grid::Plan;
use crate::lab::{self, Kind, LabError};
use crate::metrics::{Detail, Metrics};
use crate::recording::{Choices, Replay};
use crate::result::{Cell, EndToEnd, Entry, Report, SCHEMA};
use crate::runner::{BenchError, Prepared, empty, entry, profile};
use crate::workload::TraceError;

/// What is run, and how.
#[derive(Clone, Debug)]
pub struct HttpJob<'a> {
    /// Name of the suite.
    pub suite: &'a str,
    /// Its cells.
    pub cells: &'a [Plan],
    /// Where traces are.
    pub traces: Option<&'a Path>,
    /// So many seeds, from 1.
    pub seeds: u64,
    /// Tokens of the workload that one token stands for.
    pub scale: Scale,
    /// The route that requests are sent to.
    pub api: Api,
    /// The model's name, for routes that want one.
    pub model: &'a str,
    /// Against whom.
    pub against: Against,
}

/// Who is measured.
#[derive(Clone, Debug)]
pub enum Against {
    /// Routers that we start, each with fresh simulated workers.
    Started {
        /// In this order.
        contestants: Vec<Contestant>,
        /// Where the programs are.
        programs: Programs,
    },
    /// A router that is there, with its workers.
    Running {
        /// As tables name it.
        name: String,
        /// Its address.
        url: String,
        /// The workers' own addresses, if they are known: their caches are emptied before every run, and their counters read.
        workers: Vec<String>,
    },
}

/// Who wants to know how far it is.
pub trait Progress {
    /// A run of so many requests begins.
    fn begin(&self, what: &str, requests: usize);
    /// What is called when a request is over.
    fn over(&self) -> Box<dyn Fn() + Send + Sync>;
    /// Something that people should know.
    fn note(&self, text: &str);
}

/// A benchmark that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A reference cannot be had.
    #[error(transparent)]
    Lab(#[from] BenchError),
    /// The driver's own rule cannot be had.
    #[error("session_sticky: {0}")]
    Rule(#[from] LabError),
    /// The workers cannot be had.
    #[error(transparent)]
    Workers(#[from] WorkersError),
    /// The router cannot be had.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// A program cannot be run.
    #[error("cannot run {program} --version; {hint}")]
    Program {
        /// The program.
        program: String,
        /// What to try.
        hint: &'static str,
    },
    /// Caches cannot be emptied.
    #[error(
        "not every worker empties its cache (POST /flush_cache): {workers}; an engine that has requests does not"
    )]
    NotFlushed {
        /// The workers.
        workers: String,
    },
}

impl HttpJob<'_> {
    /// Runs all of it, or up to where `stop` turns true or a router that is not ours is gone: what there is by then is kept.
    pub async fn run(
        &self,
        progress: &dyn Progress,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Report, HttpError> {
        self.check().await?;
        let references = self.references();
        let names: Vec<String> = self.names().chain(references.iter().map(|of| of.name.to_owned())).collect();
        let mut report = self.report(&references);
        for plan in self.cells {
            let mut cell = empty(plan, names.iter().map(String::as_str));
            let ended = self.cell(plan, &mut cell, &references, progress, &mut stop).await;
            report.cells.push(cell);
            match ended {
                Ok(None) => {}
                Ok(Some(reason)) => return Ok(ended_early(report, reason)),
                Err(error) if !has_any(&report) => return Err(error),
                Err(error) => return Ok(ended_early(report, error.to_string())),
            }
        }
        Ok(report)
    }

    /// Runs a cell; says why it is the last one, if it is.
    async fn cell(
        &self,
        plan: &Plan,
        cell: &mut Cell,
        references: &[lab::Contestant],
        progress: &dyn Progress,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<String>, HttpError> {
        let manner = Manner {
            scale: self.scale,
            api: self.api,
            model: self.model.to_owned(),
            most_blocks: plan.most_blocks,
        };
        for seed in 1..=self.seeds {
            let prepared = Prepared::new(plan, self.traces, seed)?;
            cell.seeds.push(prepared.seed.clone());
            for (place, name) in self.names().enumerate() {
                let what = format!("{name}, {}, seed {seed}", plan.id());
                progress.begin(&what, prepared.traffic.requests.len());
                let mut ran = self.one(place, &prepared, &manner, stop, progress).await?;
                if let Some(recorded) = &mut ran.recorded {
                    recorded.recording.replays = self.replays(place, plan, &prepared, recorded)?;
                }
                let ended = ran.checks.ended_early.clone();
                tell(progress, &name, &ran.checks);
                keep(cell, place, seed, ran);
                if let Some(reason) = ended.filter(|_| *stop.borrow() || !self.can_go_on()) {
                    return Ok(Some(reason));
                }
            }
            for (place, reference) in references.iter().enumerate() {
                let ran = prepared.in_the_lab(plan, reference)?;
                keep_reference(cell, self.names().count() + place, seed, ran);
            }
        }
        Ok(None)
    }

    async fn one(
        &self,
        place: usize,
        prepared: &Prepared,
        manner: &Manner,
        stop: &mut watch::Receiver<bool>,
        progress: &dyn Progress,
    ) -> Result<Ran, HttpError> {
        let over = progress.over();
        match &self.against {
            Against::Started { contestants, programs } => {
                match started(contestants[place], programs, prepared, manner, stop, over).await {
                    // The others go on.
                    Err(HttpError::Router(error)) => {
                        let void = Some(error.to_string());
                        Ok(Ran::without(Checks { void, ..Checks::default() }))
                    }
                    ran => ran,
                }
            }
            Against::Running { url, workers, .. } => {
                running(url, workers, prepared, manner, stop, over).await
            }
        }
    }

    /// The lab on the same arrivals, where it has the engines and the router.
    fn replays(
        &self,
        place: usize,
        plan: &Plan,
        prepared: &Prepared,
        of: &Recorded,
    ) -> Result<Vec<Replay>, HttpError> {
        let Against::Started { contestants, .. } = &self.against else { return Ok(Vec::new()) };
        let (over_http, all) = (contestants[place], lab::contestants(Default::default()));
        let Some(own) = all.iter().find(|own| own.name == over_http.name()) else { return Ok(Vec::new()) };
        let replay = |choices: &Choices| prepared.replay(plan, own, *choices, &of.recording, &of.requests);
        Ok(over_http.choices_of_replays().iter().map(replay).collect::<Result<_, _>>()?)
    }

    /// What is missing is said before anything is run.
    async fn check(&self) -> Result<(), HttpError> {
        match &self.against {
            Against::Started { contestants, programs } => {
                for contestant in contestants {
                    contestant.version(programs).map_err(|program| HttpError::Program {
                        program: program.display().to_string(),
                        hint: "build ours with `cargo build --release -p router-grpc`, install others with pip, or name the program",
                    })?;
                }
                Ok(())
            }
            Against::Running { url, .. } => Ok(probe(&Client::new(), url, self.api, self.model).await?),
        }
    }

    /// Another router may still be there when one has ended.
    fn can_go_on(&self) -> bool {
        matches!(self.against, Against::Started { .. })
    }

    fn names(&self) -> impl Iterator<Item = String> + '_ {
        let (started, running) = match &self.against {
            Against::Started { contestants, .. } => (contestants.as_slice(), None),
            Against::Running { name, .. } => (&[] as &[Contestant], Some(name.clone())),
        };
        started.iter().map(|contestant| contestant.name().to_owned()).chain(running)
    }

    /// What no router can be, from the lab; nothing where the engines are not the lab's.
    fn references(&self) -> Vec<lab::Contestant> {
        let all = lab::contestants(Default::default()).into_iter();
        all.filter(|of| of.kind == Kind::Reference && self.can_go_on()).collect()
    }

    /// What the record of a command does not say.
    fn bound_of_index(&self, contestant: Contestant) -> &'static str {
        let is_bounded = self.cells.iter().any(|plan| plan.most_blocks.is_some());
        if is_bounded && contestant.is_ours() {
            "; in cells that name an index, --max-blocks as they say"
        } else {
            ""
        }
    }

    fn report(&self, references: &[lab::Contestant]) -> Report {
        let own = match &self.against {
            Against::Started { contestants, programs } => {
                let entry = |contestant: &Contestant| Entry {
                    name: contestant.name().to_owned(),
                    what: contestant.what().to_owned(),
                    is_reference: false,
                    settings: contestant.settings(programs, self.scale) + self.bound_of_index(*contestant),
                };
                contestants.iter().map(entry).collect()
            }
            Against::Running { name, url, .. } => vec![Entry {
                name: name.clone(),
                what: format!("was running at {url}"),
                is_reference: false,
                settings: "its own".to_owned(),
            }],
        };
        let references = references.iter().map(|of| {
            let entry = entry(of);
            Entry { what: format!("in the lab: {}", entry.what), ..entry }
        });
        Report {
            schema: SCHEMA.to_owned(),
            suite: self.suite.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: profile(&Timing::default(), &Limits::default()),
            contestants: own.into_iter().chain(references).collect(),
            cells: Vec::new(),
            end_to_end: Some(EndToEnd {
                scale: self.scale.get(),
                route: self.api.path().to_owned(),
                cores: std::thread::available_parallelism().map_or(1, usize::from),
                own_workers: !self.can_go_on(),
                ended_early: None,
            }),
        }
    }
}

fn tell(progress: &dyn Progress, name: &str, checks: &Checks) {
    for reason in checks.void.iter().chain(&checks.ended_early) {
        progress.note(&format!("{name}: {reason}"));
    }
}

fn keep(cell: &mut Cell, place: usize, seed: u64, ran: Ran) {
    let run = &mut cell.runs[place];
    run.seeds.push(ran.metrics);
    run.checks.push(ran.checks);
    run.recordings.extend(ran.recorded.map(|recorded| recorded.recording));
    if seed == 1 {
        run.detail = ran.detail;
    }
}

fn keep_reference(cell: &mut Cell, place: usize, seed: u64, (metrics, detail): (Metrics, Detail)) {
    let run = &mut cell.runs[place];
    run.seeds.push(metrics);
    if seed == 1 {
        run.detail = detail;
    }
}

/// Something has been measured.
fn has_any(report: &Report) -> bool {
    report.cells.iter().flat_map(|cell| &cell.runs).any(|run| !run.seeds.is_empty())
}

/// Whoever was not run has no place in it.
fn ended_early(mut report: Report, reason: String) -> Report {
    report.cells.iter_mut().for_each(|cell| cell.runs.retain(|run| !run.seeds.is_empty()));
    if let Some(end_to_end) = &mut report.end_to_end {
        end_to_end.ended_early = Some(reason);
    }
    report
}
