//! What a run of the benchmark leaves behind: one JSON document with a versioned schema.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::aftermath::Aftermath;
use crate::http::Checks;
use crate::metrics::{Detail, Metrics};
use crate::recording::Recording;

/// Name and version of the schema. A new version reads no old files.
pub const SCHEMA: &str = "espalier.long-prefix-bench/2";

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The grid that was run.
    pub suite: String,
    /// Version of the benchmark.
    pub version: String,
    /// How long the engines take.
    pub engine: EngineProfile,
    /// Who was compared, in the order of the tables.
    pub contestants: Vec<Entry>,
    /// Every point of the grid.
    pub cells: Vec<Cell>,
    /// It was run over HTTP, in real time; absent of a run in the lab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<EndToEnd>,
}

/// How a grid was run over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndToEnd {
    /// Tokens of the workload that one token stood for.
    pub scale: usize,
    /// The route that requests were sent to.
    pub route: String,
    /// Cores of the machine that ran it.
    pub cores: usize,
    /// The workers were not the simulator's: times and capacities are theirs, and the engine profile is the lab's alone.
    pub own_workers: bool,
    /// Why it ended before the end, if it did.
    pub ended_early: Option<String>,
}

/// The engine model's constants, as in `sglang_sim::Timing` and [`Limits`](crate::engine::Limits).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineProfile {
    /// Tokens a second at an empty context.
    pub prefill_tokens_per_s: f64,
    /// Context at which prefill takes twice as long.
    pub half_context_tokens: f64,
    /// Fixed part of a decode step.
    pub decode_base_us: f64,
    /// For each request in it.
    pub decode_per_request_us: f64,
    /// For each token of context.
    pub decode_per_token_ns: f64,
    /// New tokens in a prefill pass.
    pub chunk_tokens: usize,
    /// Requests in a batch.
    pub max_running: usize,
    /// Tokens in a page.
    pub page_tokens: usize,
    /// Time after which a client leaves.
    pub timeout_s: f64,
}

/// One contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// As tables name it.
    pub name: String,
    /// In words.
    pub what: String,
    /// Knows or has what no router does.
    pub is_reference: bool,
    /// The settings that decide.
    pub settings: String,
}

/// One point of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Names the cell within the suite.
    pub id: String,
    /// The workload.
    pub workload: String,
    /// From a trace at a load of ours; not generated, nor a published set-up.
    pub is_real: bool,
    /// Engines.
    pub workers: usize,
    /// Cache of the fleet relative to what a pooled LRU needs for 90 % of the ideal hits, as asked for.
    pub kappa: Option<f64>,
    /// Share of the fleet's time that prefill with an infinite cache and decoding in batches of 16 take, as asked for; zero where requests
    /// come at a pace that its name tells.
    pub rho: f64,
    /// Blocks in a router's index at most, if that is to matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_blocks: Option<u64>,
    /// Seconds that its clients wait for a first token.
    #[serde(default = "patience_s")]
    pub patience_s: f64,
    /// The cell without those who disturb; absent of such a cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet: Option<String>,
    /// What goes wrong.
    pub fault: Option<String>,
    /// Routers in front of all engines.
    pub routers: usize,
    /// Any request goes to any of several routers; if not, sessions are divided among them.
    #[serde(default)]
    pub clients_at_random: bool,
    /// The cell with the same traffic and routers where nothing goes wrong, of that the one with one router; its own id if it is that.
    pub undisturbed: String,
    /// The traffic of each seed.
    pub seeds: Vec<Seed>,
    /// One for each contestant, in their order.
    pub runs: Vec<Run>,
}

/// The traffic of one seed, and what caches could do with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seed {
    /// The seed.
    pub seed: u64,
    /// Hash of the request list, in hexadecimal digits.
    pub hash: String,
    /// Requests.
    pub requests: usize,
    /// Their prompt tokens.
    pub prompt_tokens: u64,
    /// When the last session starts.
    pub span_s: f64,
    /// KV tokens of each engine.
    pub capacity_tokens: usize,
    /// κ that this comes to.
    pub kappa: f64,
    /// Tokens that a pooled LRU needs for 90 % of the ideal hits.
    pub w90_tokens: usize,
    /// Hit rate of an infinite cache.
    pub infinite_hit_rate: f64,
    /// Hit rate of a pooled cache of the fleet's size that knows the future.
    pub belady_hit_rate: f64,
    /// Hit rate of a pooled LRU cache of the fleet's size.
    pub lru_hit_rate: f64,
}

/// One contestant in one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The contestant's name.
    pub contestant: String,
    /// One for each seed.
    pub seeds: Vec<Metrics>,
    /// The first seed's run over time.
    pub detail: Detail,
    /// One for each seed that was run over HTTP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Checks>,
    /// One for each seed that was run over HTTP to its end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recordings: Vec<Recording>,
    /// One for each seed, where something goes wrong at one moment and the grid has the same without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aftermaths: Vec<Aftermath>,
}

/// A file that is no result, or cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// It cannot be read or written.
    #[error("cannot {verb} {path}: {source}")]
    File {
        /// Read or write.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not such a document.
    #[error("{path} is not a result of this benchmark: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A contestant has no figures where others have.
    #[error("{path}: `{contestant}` has not every seed of cell `{cell}`")]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// Who.
        contestant: String,
        /// Where.
        cell: String,
    },
    /// Another version wrote it.
    #[error("{path} has the schema `{found}`, and this program reads `{SCHEMA}`")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: String,
    },
}

/// As it was before cells had their own.
fn patience_s() -> f64 {
    crate::grid::TIMEOUT.as_secs_f64()
}

impl Report {
    /// Reads a document.
    pub fn read(path: &Path) -> Result<Self, ResultError> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let file = |source| ResultError::File { verb: "read", path: path.to_owned(), source };
        let json = |source| ResultError::Json { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(file)?;
        let head: Head = serde_json::from_str(&text).map_err(json)?;
        if head.schema != SCHEMA {
            return Err(ResultError::Schema { path: path.to_owned(), found: head.schema });
        }
        let report: Self = serde_json::from_str(&text).map_err(json)?;
        match report.gap() {
            Some((contestant, cell)) => {
                let (contestant, cell) = (contestant.to_owned(), cell.to_owned());
                Err(ResultError::Incomplete { path: path.to_owned(), contestant, cell })
            }
            None => Ok(report),
        }
    }

    /// A contestant and a cell that it has no or not all figures of.
    fn gap(&self) -> Option<(&str, &str)> {
        let names = || self.contestants.iter().map(|entry| entry.name.as_str());
        let mut all = self.cells.iter().flat_map(|cell| names().map(move |name| (name, cell)));
        let is_whole =
            |name, cell: &Cell| cell.run(name).is_some_and(|run| run.seeds.len() == cell.seeds.len());
        all.find(|(name, cell)| !is_whole(*name, cell)).map(|(name, cell)| (name, cell.id.as_str()))
    }

    /// Writes the document.
    pub fn write(&self, path: &Path) -> Result<(), ResultError> {
        let json = |source| ResultError::Json { path: path.to_owned(), source };
        let text = serde_json::to_string(self).map_err(json)?;
        write(path, &text)
    }

    /// Whether a contestant is a reference.
    pub fn is_reference(&self, name: &str) -> bool {
        self.contestants.iter().any(|entry| entry.name == name && entry.is_reference)
    }
}

impl Cell {
    /// Something goes wrong, or several routers decide.
    pub fn is_disturbed(&self) -> bool {
        self.undisturbed != self.id
    }

    /// A contestant's run.
    pub fn run(&self, contestant: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.contestant == contestant)
    }

    /// Share of what pooling would win over round robin that a contestant wins; absent where there is nothing to win.
    pub fn efficiency(&self, contestant: &str) -> Option<f64> {
        let hits = |name: &str| self.run(name).map(|run| run.mean(|of| of.hit_rate));
        let (own, blind, pooled) = (hits(contestant)?, hits("round_robin")?, hits("pooled cache")?);
        // Below half a point the quotient is noise.
        (pooled - blind > 0.005).then(|| (own - blind) / (pooled - blind))
    }

    /// Traffic hashes by seed.
    pub fn hashes(&self) -> HashMap<u64, &str> {
        self.seeds.iter().map(|seed| (seed.seed, seed.hash.as_str())).collect()
    }
}

impl Run {
    /// Mean of a figure over the seeds in which anything was measured.
    pub fn mean(&self, figure: impl Fn(&Metrics) -> f64) -> f64 {
        let measured = self.seeds.iter().filter(|of| of.requests > 0);
        crate::stats::mean(&measured.map(figure).collect::<Vec<_>>())
    }

    /// It was run, and nothing is known that makes its figures void.
    pub fn is_sound(&self) -> bool {
        self.seeds.iter().any(|of| of.requests > 0) && self.checks.iter().all(Checks::is_sound)
    }
}

/// Writes a file, and the directories above it.
pub fn write(path: &Path, text: &str) -> Result<(), ResultError> {
    let file = |source| ResultError::File { verb: "write", path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(file)?;
    }
    fs::write(path, text).map_err(file)
}
