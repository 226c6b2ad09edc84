//! The main job in one command: simulated SGLang workers, real agents, the router, and a real trace, once with each policy.

mod cluster;
mod drive;
mod kept;
mod report;
mod trace;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use router_grpc::PolicyName;
use sglang_sim::SimConfig;

use crate::cluster::{Cluster, ClusterError, Shape};
use crate::drive::Pace;
use crate::kept::Kept;
use crate::report::Run;
use crate::trace::{Request, TraceError};

/// Routes a real trace to simulated SGLang workers, once with each policy, and prints the runs side by side.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
struct Arguments {
    /// Policies to run, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [PolicyName::RoundRobin, PolicyName::CacheAware])]
    policies: Vec<PolicyName>,
    /// Simulated workers
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// KV tokens that each worker can hold
    #[arg(long, default_value_t = 500_000)]
    capacity_tokens: usize,
    /// Requests of the trace to send, from its beginning
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    requests: usize,
    /// A trace in Mooncake's format, in place of the sample that is shipped
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Times faster than the trace that requests arrive, in the engines' time: the load
    #[arg(long, default_value_t = 6.0, value_parser = positive)]
    compression: f64,
    /// Times faster than real time that the engines run
    #[arg(long, default_value_t = 16.0, value_parser = positive)]
    time_scale: f64,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Afterwards keep a cluster running, on fixed ports and in real time, until `quit` or Ctrl-C: the trace's requests go
    /// on in a loop with a line of figures every few seconds, and what is typed (or piped in) kills and starts engines:
    /// `kill 2`, `start 2`, `help`, `quit`
    #[arg(long, verbatim_doc_comment)]
    keep: bool,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// A request that takes longer, in the engines' time, has failed.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Ports of a cluster that is kept.
const KEPT_PORTS: (u16, u16, u16) = (8000, 50051, 29000);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run(&arguments).await {
        Ok(failed) if failed > 0 => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every policy; returns the number of failed requests.
async fn run(arguments: &Arguments) -> Result<usize, DemoError> {
    let trace = trace::load(arguments.trace.as_deref(), arguments.requests)?;
    let ideal = trace::ideal_hit_rate(&trace, arguments.sim_config().page_size as u32);
    let mut runs = Vec::new();
    for policy in &arguments.policies {
        runs.push(run_policy(*policy, &trace, ideal, arguments).await?);
    }
    let mut out = io::stdout().lock();
    if arguments.json {
        report::print_json(&runs, &mut out)?;
    } else {
        report::print_table(&runs, &mut out)?;
    }
    out.flush()?;
    drop(out);
    if arguments.keep {
        keep(&trace, arguments).await?;
    }
    Ok(runs.iter().map(|run| run.failed).sum())
}

async fn run_policy(
    policy: PolicyName,
    trace: &[Request],
    ideal: f64,
    arguments: &Arguments,
) -> Result<Run, DemoError> {
    let cluster = Cluster::start(policy, &arguments.shape((0, 0, 0))).await?;
    let name = clap::ValueEnum::to_possible_value(&policy)
        .map_or_else(String::new, |value| value.get_name().to_owned());
    let progress = progress_bar(&name, trace.len());
    let pace =
        Pace { compression: arguments.compression, time_scale: arguments.time_scale, timeout: TIMEOUT };
    let outcome = drive::drive(&cluster.url(), trace, pace, &progress).await;
    progress.finish();
    let truth = cluster.truth().await;
    cluster.shutdown().await;
    Ok(Run::new(&name, ideal, outcome, truth?))
}

/// Leaves a fresh cluster running, with traffic, for people to play with.
async fn keep(trace: &[Request], arguments: &Arguments) -> Result<(), DemoError> {
    let shape =
        Shape { sim: SimConfig { time_scale: 1.0, ..arguments.sim_config() }, ..arguments.shape(KEPT_PORTS) };
    let policy = arguments.policies.last().copied().unwrap_or(PolicyName::CacheAware);
    let cluster = Cluster::start(policy, &shape).await?;
    let pace = Pace { compression: arguments.compression, time_scale: 1.0, timeout: TIMEOUT };
    Kept::new(cluster, pace).run(trace).await?;
    Ok(())
}

fn progress_bar(policy: &str, requests: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(requests as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg:<12} {wide_bar} {pos}/{len} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(policy.to_owned());
    bar
}

fn positive(text: &str) -> Result<f64, &'static str> {
    let number: f64 = text.parse().map_err(|_| "not a number")?;
    if number > 0.0 && number.is_finite() { Ok(number) } else { Err("must be greater than zero") }
}

impl Arguments {
    fn sim_config(&self) -> SimConfig {
        SimConfig {
            max_total_tokens: self.capacity_tokens,
            time_scale: self.time_scale,
            // As it is recommended for real engines: evictions are published when they happen.
            decode_log_interval: 1,
            // At many times real time one event a token would measure this process, not the router.
            stream_interval: 16,
            ..SimConfig::default()
        }
    }

    fn shape(&self, (port, grpc_port, prometheus_port): (u16, u16, u16)) -> Shape {
        Shape { workers: usize::from(self.workers), sim: self.sim_config(), port, grpc_port, prometheus_port }
    }
}
