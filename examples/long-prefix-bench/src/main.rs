//! The command `long-prefix-bench`: runs a suite, compares results, writes reports.

mod over_http;

use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use long_prefix_bench::grid::{Plan, Suite};
use long_prefix_bench::http::WorkersRole;
use long_prefix_bench::report;
use long_prefix_bench::result::{self, Report};
use long_prefix_bench::rows::rows;
use long_prefix_bench::runner::Job;
use router_core::policy::CacheAwareSettings;

use crate::over_http::OverHttp;

#[derive(Parser)]
#[command(
    name = "long-prefix-bench",
    version,
    about = "Routers and policies on fleets of simulated engines, in virtual time and over HTTP"
)]
enum Command {
    /// Runs a suite and prints its tables.
    Run(Run),
    /// Runs cells over HTTP, in real time, against routers that it starts or against one that is running.
    Http(Box<OverHttp>),
    /// Prints how far the lab and a result over HTTP are apart: on the same arrivals, and at the times that were drawn.
    Agree {
        /// The lab's.
        lab: PathBuf,
        /// The one over HTTP.
        http: PathBuf,
    },
    /// Prints how far the lab's own figures move when sessions start some milliseconds later: what two runs at the times that were drawn
    /// cannot undercut.
    Jitter {
        /// Whose cells.
        #[arg(long, value_enum, default_value_t = Suite::EndToEnd)]
        suite: Suite,
        /// Only cells whose name contains this.
        #[arg(long, value_name = "TEXT", default_value = "")]
        only: String,
        /// A directory with trace files, as for `run`.
        #[arg(long, value_name = "DIR")]
        traces: Option<PathBuf>,
    },
    /// Simulated workers, for a run over HTTP.
    #[command(hide = true)]
    Workers(WorkersRole),
    /// Prints the tables of a result.
    Show {
        /// A result.
        result: PathBuf,
        /// Writes its page there too.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// And there its heat map alone.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Prints what one result is relative to another.
    Compare {
        /// The first result.
        a: PathBuf,
        /// The second one.
        b: PathBuf,
    },
}

#[derive(Parser)]
struct Run {
    /// How much is run.
    #[arg(long, value_enum, default_value_t = Suite::Full)]
    suite: Suite,
    /// The quick suite: at most five minutes on two cores.
    #[arg(long, conflicts_with = "suite")]
    quick: bool,
    /// A directory with trace files (docs/benchmark.md names them); without it the sample in the repository is the only one.
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
    /// Seeds: 2 for smoke, 5 for the others by default.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,
    /// Only cells whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Threads: all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Setting of `cache_aware`, for a comparison with its default.
    #[arg(long, value_name = "FACTOR")]
    miss_penalty: Option<f64>,
    /// Setting of `cache_aware`.
    #[arg(long, value_name = "FACTOR")]
    stiffness: Option<f64>,
    /// Setting of `cache_aware`.
    #[arg(long, value_name = "MICROSECONDS")]
    decode_delay_us: Option<f64>,
    /// Where result.json and report.html go.
    #[arg(long, value_name = "DIR", default_value = "target/long-prefix-bench")]
    out: PathBuf,
    /// Prints rows for `cargo xtask bench` on standard output, and the tables on standard error.
    #[arg(long)]
    rows: bool,
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Run(run) => run.run(),
        Command::Http(http) => http.run(),
        Command::Agree { lab, http } => agree(&lab, &http),
        Command::Jitter { suite, only, traces } => jitter(suite, &only, traces.as_deref()),
        Command::Workers(role) => workers(role),
        Command::Show { result, html, svg } => reread(&result, html.as_deref(), svg.as_deref()),
        Command::Compare { a, b } => compare(&a, &b),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("long-prefix-bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The cells of a suite that have `only` in their names.
fn named(suite: Suite, traces: Option<&Path>, only: Option<&str>) -> Result<Vec<Plan>, Failure> {
    let mut cells = suite.cells(traces);
    cells.retain(|plan| only.is_none_or(|only| plan.id().contains(only)));
    if cells.is_empty() {
        let all = "run without --only to see all names";
        return Err(match traces {
            Some(_) => format!("no cell has such a name; {all}").into(),
            None => format!("no cell has such a name; {all}, and with --traces DIR to have those of traces")
                .into(),
        });
    }
    Ok(cells)
}

impl Run {
    fn run(&self) -> Result<(), Failure> {
        let suite = if self.quick { Suite::Quick } else { self.suite };
        let cells = named(suite, self.traces.as_deref(), self.only.as_deref())?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let job = Job {
            suite: suite.name(),
            cells: &cells,
            traces: self.traces.as_deref(),
            seeds: self.seeds.unwrap_or_else(|| suite.seeds()),
            threads: self.threads.unwrap_or(cores),
            cache_aware: self.cache_aware()?,
        };
        let bar = ProgressBar::new(job.runs() as u64);
        let style = "{bar:40} {pos}/{len} runs, {elapsed} gone, {eta} to go";
        bar.set_style(ProgressStyle::with_template(style)?);
        let report = job.run(&|| bar.inc(1))?;
        bar.finish_and_clear();
        let file = self.out.join("result.json");
        report.write(&file)?;
        if self.rows {
            note(&tables(&report));
            for row in rows(&report)? {
                say(&format!("{row}\n"))?;
            }
        } else {
            show(&report)?;
        }
        let page = self.out.join("report.html");
        result::write(&page, &report::page(&report))?;
        note(&format!("{}\n{}", file.display(), page.display()));
        Ok(())
    }
}

impl Run {
    fn cache_aware(&self) -> Result<CacheAwareSettings, Failure> {
        let default = CacheAwareSettings::default();
        let settings = CacheAwareSettings {
            miss_penalty: self.miss_penalty.unwrap_or(default.miss_penalty),
            stiffness: self.stiffness.unwrap_or(default.stiffness),
            decode_delay_us: self.decode_delay_us.unwrap_or(default.decode_delay_us),
        };
        let all = [settings.miss_penalty, settings.stiffness, settings.decode_delay_us];
        if all.iter().any(|figure| !figure.is_finite() || *figure < 0.0) {
            return Err("--miss-penalty, --stiffness and --decode-delay-us take numbers of 0 or more".into());
        }
        Ok(settings)
    }
}

fn reread(path: &Path, html: Option<&Path>, svg: Option<&Path>) -> Result<(), Failure> {
    let report = Report::read(path)?;
    if let Some(svg) = svg {
        result::write(svg, &report::heat_map(&report))?;
    }
    if let Some(html) = html {
        result::write(html, &report::page(&report))?;
    }
    show(&report)
}

fn show(report: &Report) -> Result<(), Failure> {
    say(&tables(report))
}

fn tables(report: &Report) -> String {
    [
        report::cells,
        report::checks,
        report::replays,
        report::others,
        report::published,
        report::gains,
        report::faults,
        report::capacities,
        report::standings,
        report::targets_table,
    ]
    .map(|table| table(report))
    .concat()
}

fn agree(lab: &Path, http: &Path) -> Result<(), Failure> {
    let (lab, http) = (Report::read(lab)?, Report::read(http)?);
    say(&(report::replays(&http) + &report::nominal(&lab, &http)?))
}

fn jitter(suite: Suite, only: &str, traces: Option<&Path>) -> Result<(), Failure> {
    let cells = named(suite, traces, Some(only))?;
    say(&long_prefix_bench::jitter::jitter(&cells, traces)?)
}

fn workers(role: WorkersRole) -> Result<(), Failure> {
    // One thread: engines wait more than they work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(role.serve())?)
}

fn compare(a: &Path, b: &Path) -> Result<(), Failure> {
    say(&report::compare(&Report::read(a)?, &Report::read(b)?)?)
}

/// Whoever reads may stop reading.
fn say(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// For people who watch; nothing is lost if nobody does.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
