//! One door to every measurement: `cargo xtask bench NAME [--quick] [--only TEXT] [--router PROGRAM] [--beside PROGRAM] [--json]`.
//!
//! A measurement is a program that prints one JSON row a line. This door adds machine and commit, and prints all of it as
//! one document or as a table.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::commands::built;
use crate::dist;

/// Something that can be measured.
struct Measurement {
    name: &'static str,
    what: &'static str,
    /// The router that it measures; it takes the path as `--router`.
    measures: Option<Build>,
    /// The command that measures.
    arguments: &'static [&'static str],
}

/// A build of the router.
#[derive(Clone, Copy, Debug)]
enum Build {
    /// The release profile.
    Release,
    /// `cargo xtask dist`; where that cannot be made, the release build.
    Dist,
}

/// Builds of the router that are there already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs<'p> {
    /// Measured in place of the one that would be built.
    pub(crate) router: Option<&'p Path>,
    /// Measured in the same rounds.
    pub(crate) beside: Option<&'p Path>,
}

/// The router and what measures it. Cargo asks of dependencies what all packages that it builds do, so that one command for both, of
/// the whole workspace, builds nothing twice.
const ROUTER: &[&str] = &[
    "build",
    "--quiet",
    "--release",
    "--workspace",
    "--bin",
    "router-grpc",
    "--bench",
    "faults",
    "--bench",
    "proxy",
];

const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: "index",
        what: "key derivation, lookup, updates and decision of router-core, beside the naive index",
        measures: None,
        arguments: &["bench", "--quiet", "--workspace", "--bench", "index", "--"],
    },
    Measurement {
        name: "index-scale",
        what: "lookups and publications of 100 M blocks on 4,096 targets: some minutes, 6 GB",
        measures: None,
        arguments: &["bench", "--quiet", "--workspace", "--bench", "index", "--", "--scale"],
    },
    Measurement {
        name: "index-peers",
        what: "the same beside the published crates of other routers, results compared",
        measures: None,
        arguments: &[
            "run",
            "--quiet",
            "--release",
            "--manifest-path",
            "router-core/peers/Cargo.toml",
            "--target-dir",
            "target/peers",
            "--",
        ],
    },
    Measurement {
        name: "divergence",
        what: "how far claims are from what engines hold, at every report level, and the bytes that takes",
        measures: None,
        arguments: &["bench", "--quiet", "--workspace", "--bench", "divergence", "--"],
    },
    Measurement {
        name: "chats",
        what: "rendering chats with a template, beside the canonical serialisation",
        measures: None,
        arguments: &["bench", "--quiet", "--workspace", "--bench", "chats", "--"],
    },
    Measurement {
        name: "policy",
        what: "routing policies on simulated fleets (docs/benchmark.md): half an hour of CPU, with --quick three and a half minutes",
        measures: None,
        arguments: &["run", "--quiet", "--release", "--package", "long-prefix-bench", "--", "run", "--rows"],
    },
    Measurement {
        name: "faults",
        what: "what becomes of requests when workers are killed, stopped, slow, failing, or restarted in turn",
        measures: Some(Build::Release),
        arguments: &["bench", "--quiet", "--workspace", "--bench", "faults", "--"],
    },
    Measurement {
        name: "soak",
        what: "memory of the data plane over ten million requests: half an hour; with --quick over 200,000",
        measures: Some(Build::Release),
        arguments: &["bench", "--quiet", "--workspace", "--bench", "proxy", "--", "--soak"],
    },
    Measurement {
        name: "proxy",
        what: "CPU, latency and memory of `cargo xtask dist`, beside nginx and other proxies that are installed",
        measures: Some(Build::Dist),
        arguments: &["bench", "--quiet", "--workspace", "--bench", "proxy", "--"],
    },
];

/// What every measurement comes to.
#[derive(Debug, Serialize)]
struct Report {
    /// Processor and number of cores.
    machine: String,
    /// The commit that was measured, with `+` if the tree has changes.
    commit: String,
    /// The program that was measured, where that is the router.
    router: Option<PathBuf>,
    rows: Vec<Row>,
}

/// One figure beside the one it is held against, measured in the same run.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    row: String,
    unit: String,
    ours: f64,
    reference: Option<f64>,
    reference_name: Option<String>,
    /// Ours relative to the reference, so that more than 1 is better, whatever the unit.
    ratio: Option<f64>,
    target: Option<f64>,
    met: Option<bool>,
    min: f64,
    max: f64,
    runs: usize,
}

/// Runs a measurement, or lists them all.
pub(crate) fn run(
    name: Option<&str>,
    quick: bool,
    only: Option<&str>,
    programs: Programs<'_>,
    json: bool,
) -> Result<(), Box<dyn Error>> {
    let Some(name) = name else {
        for Measurement { name, what, .. } in MEASUREMENTS {
            println!("{name:<12} {what}");
        }
        return Ok(());
    };
    let Some(measurement) = MEASUREMENTS.iter().find(|known| known.name == name) else {
        let known: Vec<_> = MEASUREMENTS.iter().map(|known| known.name).collect();
        return Err(format!("there is no measurement `{name}`; there are: {}", known.join(", ")).into());
    };
    let mut command = Command::new(env!("CARGO"));
    command.args(measurement.arguments).args(quick.then_some("--quick")).stderr(Stdio::inherit());
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    if let Some(beside) = programs.beside {
        if name != "proxy" {
            return Err(format!("`{name}` measures one build; `proxy` takes another with --beside").into());
        }
        if !beside.is_file() {
            return Err(format!("--beside {}: there is no such program", beside.display()).into());
        }
        command.arg("--beside").arg(std::path::absolute(beside)?);
    }
    // The measurement does not run where this does.
    let router = match (measurement.measures, programs.router) {
        (None, None) => None,
        (None, Some(_)) => return Err(format!("`{name}` does not measure the router").into()),
        (Some(_), Some(router)) if !router.is_file() => {
            return Err(format!("--router {}: there is no such program", router.display()).into());
        }
        (Some(_), Some(router)) => Some(std::path::absolute(router)?),
        (Some(build), None) => Some(build.make()?),
    };
    if let Some(router) = &router {
        command.arg("--router").arg(router);
    }
    let output = command.output()?;
    let lines = String::from_utf8(output.stdout)?;
    let rows = lines.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str);
    let report =
        Report { machine: machine(), commit: commit(), router, rows: rows.collect::<Result<_, _>>()? };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&report);
    }
    // What was measured before it failed may say why.
    if !output.status.success() {
        return Err(format!("the measurement ended with {}", output.status).into());
    }
    match only {
        Some(only) if report.rows.is_empty() => {
            Err(format!("nothing of `{name}` has `{only}` in its name").into())
        }
        _ => Ok(()),
    }
}

impl Build {
    /// Builds it, and says where it is.
    fn make(self) -> Result<PathBuf, Box<dyn Error>> {
        match self {
            Self::Release => built(ROUTER, "router-grpc"),
            Self::Dist => match dist::is_possible() {
                Ok(()) => dist::build(),
                // Whoever names the tool wants that build.
                Err(error) if std::env::var_os("LLVM_PROFDATA").is_some() => Err(error),
                Err(error) => {
                    eprintln!(
                        "xtask: measuring the release build; `cargo xtask dist` is not possible: {error}"
                    );
                    built(ROUTER, "router-grpc")
                }
            },
        }
    }
}

fn print_table(report: &Report) {
    println!("{}, commit {}", report.machine, report.commit);
    if let Some(router) = &report.router {
        println!("router: {}", router.display());
    }
    println!(
        "{:<52}{:>9}{:>14}{:>14}{:>9}{:>9}  reference",
        "row", "unit", "ours", "reference", "ratio", "target"
    );
    for row in &report.rows {
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        let met = match row.met {
            Some(true) => " met",
            Some(false) => " MISSED",
            None => "",
        };
        println!(
            "{:<52}{:>9}{:>14.2}{:>14}{:>9}{:>9}  {}{met}",
            row.row,
            row.unit,
            row.ours,
            number(row.reference),
            number(row.ratio),
            number(row.target),
            row.reference_name.as_deref().unwrap_or(""),
        );
        println!("{:<52}{:>9}  {} runs, {:.2} to {:.2}", "", "", row.runs, row.min, row.max);
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{}, {cores} cores", model.map_or("unknown processor", |(_, model)| model))
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    if changed { commit + "+" } else { commit }
}
