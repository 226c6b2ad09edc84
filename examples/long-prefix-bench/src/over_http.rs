//! The subcommand `http`.

use std::path::PathBuf;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use long_prefix_bench::grid::Suite;
use long_prefix_bench::http::{Against, Api, Contestant, HttpJob, Programs, Progress, Scale};
use long_prefix_bench::report;
use long_prefix_bench::result;
use long_prefix_bench::runner::Job;
use router_core::policy::CacheAwareSettings;
use tokio::sync::watch;

use crate::{Failure, named, note, say, show};

#[derive(Parser)]
pub(crate) struct OverHttp {
    /// Whose cells are run. All but the default take hours.
    #[arg(long, value_enum, default_value_t = Suite::EndToEnd)]
    suite: Suite,
    /// Only cells whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// So many requests a cell at most, for a shorter run of its own traffic.
    #[arg(long)]
    requests: Option<usize>,
    /// Engines, in place of the cells' own number.
    #[arg(long)]
    workers: Option<usize>,
    /// A directory with trace files, as for `run`.
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
    /// Seeds [default: the suite's].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: Option<u64>,
    /// Divides all lengths, blocks and capacities (1, 2, 4, 8 or 16): for machines that are too small for full lengths. Routers that
    /// reckon in tokens a second then see an engine so many times slower than a real one.
    #[arg(long, default_value_t = Scale::ONE)]
    scale: Scale,
    /// The route that requests are sent to.
    #[arg(long, value_enum, default_value_t = Api::Generate)]
    api: Api,
    /// The model's name, where the route wants one.
    #[arg(long, default_value = "sim")]
    model: String,
    /// Who is measured, in this order.
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "url", default_values_t = OURS)]
    routers: Vec<Contestant>,
    /// The program of ours [default: router-grpc beside this one].
    #[arg(long, value_name = "PATH")]
    router: Option<PathBuf>,
    /// The program of SGLang's router.
    #[arg(long, value_name = "PATH", default_value = "sglang-router")]
    sglang_router: PathBuf,
    /// The program of Shepherd Model Gateway. (The package `sglang-router` has one of this name too.)
    #[arg(long, value_name = "PATH", default_value = "smg")]
    smg: PathBuf,
    /// A router that is running, in place of those that are started.
    #[arg(long, value_parser = http_url)]
    url: Option<String>,
    /// Its name in the tables.
    #[arg(long, default_value = "router", requires = "url")]
    name: String,
    /// A worker behind it; give it once for each. Their caches are emptied before every run, and their counters are read.
    #[arg(long, value_name = "URL", requires = "url", value_parser = http_url)]
    worker_url: Vec<String>,
    /// Runs the same cells in the lab too, at the times that were drawn, and prints how far the two are apart. How far the lab is apart
    /// on the arrivals as they were is printed in any case.
    #[arg(long)]
    agree: bool,
    /// Where result.json and report.html go, and lab.json with --agree.
    #[arg(long, value_name = "DIR", default_value = "target/long-prefix-bench-http")]
    out: PathBuf,
}

/// What needs nothing but this repository.
const OURS: [Contestant; 4] = [
    Contestant::CacheAware,
    Contestant::CacheAwareNoAgents,
    Contestant::SessionSticky,
    Contestant::RoundRobin,
];

/// A base URL, as paths are put after it.
fn http_url(given: &str) -> Result<String, &'static str> {
    let base = given.trim_end_matches('/');
    match base.strip_prefix("http://") {
        Some(rest) if !rest.is_empty() => Ok(base.to_owned()),
        _ => Err("a URL that begins with http:// is needed"),
    }
}

/// A bar for each run; drawn on terminals alone.
struct Bar(ProgressBar);

impl OverHttp {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut cells = named(self.suite, self.traces.as_deref(), self.only.as_deref())?;
        // Here nothing goes wrong on purpose, and one router is in front of all workers: such a cell would be another one.
        cells.retain(|plan| plan.fault.is_none() && plan.routers == 1);
        if cells.is_empty() {
            return Err("faults and several routers are simulated by `run` alone".into());
        }
        for plan in &mut cells {
            plan.requests = self.requests.unwrap_or(plan.requests).min(plan.requests);
            plan.workers = self.workers.unwrap_or(plan.workers);
        }
        let seeds = self.seeds.unwrap_or_else(|| self.suite.seeds());
        let job = HttpJob {
            suite: self.suite.name(),
            cells: &cells,
            traces: self.traces.as_deref(),
            seeds,
            scale: self.scale,
            api: self.api,
            model: &self.model,
            against: self.against()?,
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?;
        let bar = Bar(ProgressBar::new(0).with_style(style));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let report = runtime.block_on(async {
            let (stop, stopped) = watch::channel(false);
            tokio::spawn(async move {
                asked_to_stop().await;
                let _ = stop.send(true);
                // Whoever asks twice does not want to wait.
                asked_to_stop().await;
                std::process::exit(130);
            });
            job.run(&bar, stopped).await
        })?;
        bar.0.finish_and_clear();
        let file = self.out.join("result.json");
        report.write(&file)?;
        show(&report)?;
        let page = self.out.join("report.html");
        result::write(&page, &report::page(&report))?;
        if self.agree {
            self.beside_the_lab(&job, &report)?;
        }
        note(&format!("{}\n{}", file.display(), page.display()));
        match report.end_to_end.and_then(|of| of.ended_early) {
            Some(reason) => Err(format!("ended early, and kept what there was: {reason}").into()),
            None => Ok(()),
        }
    }

    fn against(&self) -> Result<Against, Failure> {
        if let Some(url) = &self.url {
            return Ok(Against::Running {
                name: self.name.clone(),
                url: url.clone(),
                workers: self.worker_url.clone(),
            });
        }
        let own = std::env::current_exe()?;
        let programs = Programs {
            router: self.router.clone().unwrap_or_else(|| own.with_file_name("router-grpc")),
            own,
            sglang_router: self.sglang_router.clone(),
            smg: self.smg.clone(),
        };
        Ok(Against::Started { contestants: self.routers.clone(), programs })
    }

    fn beside_the_lab(&self, job: &HttpJob<'_>, http: &result::Report) -> Result<(), Failure> {
        let lab = Job {
            suite: job.suite,
            cells: job.cells,
            traces: job.traces,
            seeds: job.seeds,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            cache_aware: CacheAwareSettings::default(),
        };
        let lab = lab.run(&|| ())?;
        lab.write(&self.out.join("lab.json"))?;
        say(&report::nominal(&lab, http)?)
    }
}

/// Somebody presses Ctrl-C, or ends this process in another way that it can hear.
async fn asked_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

impl Progress for Bar {
    fn begin(&self, what: &str, requests: usize) {
        self.0.reset();
        self.0.set_length(requests as u64);
        self.0.set_message(what.to_owned());
        if self.0.is_hidden() {
            note(what);
        }
    }

    fn over(&self) -> Box<dyn Fn() + Send + Sync> {
        let bar = self.0.clone();
        Box::new(move || bar.inc(1))
    }

    fn note(&self, text: &str) {
        self.0.suspend(|| note(text));
    }
}
