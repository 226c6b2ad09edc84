//! The simulated workers of a run: a process of its own, so that what engines cost is not the driver's.
//!
//! It prints the workers' addresses as one JSON line, then `ready` once every agent's baseline is in force at the router, and serves until
//! its standard input ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sglang_sim::{Sim, SimConfig};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use worker_agent::{Agent, AgentConfig, AgentHandle};

use super::process::{Process, ProcessError};
use super::scale::Scale;
use crate::engine::Limits;

/// What the process is told.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct WorkersRole {
    /// Engines.
    #[arg(long)]
    count: usize,
    /// KV tokens of each, in the workload's tokens.
    #[arg(long)]
    capacity_tokens: usize,
    /// Tokens of the workload that one token stands for.
    #[arg(long)]
    scale: Scale,
    /// The router's control plane, for an agent beside each engine; no agents without.
    #[arg(long)]
    router: Option<String>,
}

/// Workers that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    /// The process does not start or has ended.
    #[error("the simulated workers: {0}")]
    Process(#[from] ProcessError),
    /// It has not said what it should have said.
    #[error("the simulated workers said `{said}` instead of {expected}")]
    Unexpected {
        /// What it said.
        said: String,
        /// What it should have.
        expected: &'static str,
    },
    /// An engine does not start.
    #[error(transparent)]
    Sim(#[from] sglang_sim::SimError),
    /// An agent does not start.
    #[error(transparent)]
    Agent(#[from] worker_agent::ConfigErrors),
    /// Its output cannot be written.
    #[error("cannot say where the workers are: {0}")]
    Say(#[from] std::io::Error),
    /// The agents do not reach the router.
    #[error("after {} s not every agent's baseline is in force at the router", PATIENCE.as_secs())]
    Agents,
}

/// The running process.
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) urls: Vec<String>,
    process: Process,
    ready: Option<oneshot::Receiver<String>>,
}

/// Tokens in one event of a stream, in the workload's tokens: one event a token would measure this machine.
const STREAM_INTERVAL: usize = 16;

/// Longest wait for what takes no more than a moment.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at what is awaited.
const LOOK: Duration = Duration::from_millis(50);

impl WorkersRole {
    pub(super) fn new(count: usize, capacity_tokens: usize, scale: Scale, router: Option<String>) -> Self {
        Self { count, capacity_tokens, scale, router }
    }

    /// Serves until standard input ends.
    pub async fn serve(self) -> Result<(), WorkersError> {
        let mut sims = Vec::new();
        for _ in 0..self.count {
            sims.push(Sim::start(self.config()).await?);
        }
        let urls: Vec<String> = sims.iter().map(Sim::url).collect();
        say(&serde_json::json!(urls).to_string())?;
        let agents = match &self.router {
            Some(router) => start_agents(&urls, router).await?,
            None => Vec::new(),
        };
        say("ready")?;
        let (end, ended) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            drop(end);
        });
        // It ends by being dropped.
        let _ = ended.await;
        drop(agents);
        Ok(())
    }

    fn config(&self) -> SimConfig {
        let (scale, limits) = (self.scale.get(), Limits::default());
        SimConfig {
            page_size: self.scale.block_tokens(),
            max_total_tokens: self.capacity_tokens / scale,
            chunked_prefill_size: limits.chunk_tokens / scale,
            max_running_requests: limits.max_running,
            token_weight: scale,
            // The lab's engine plans a step when the one before it is over.
            disable_overlap_schedule: true,
            // As it is recommended for real engines: evictions are published when they happen.
            decode_log_interval: 1,
            stream_interval: STREAM_INTERVAL / scale,
            ..SimConfig::default()
        }
    }

    fn arguments(&self) -> Vec<String> {
        let options = [
            ("--count", self.count.to_string()),
            ("--capacity-tokens", self.capacity_tokens.to_string()),
            ("--scale", self.scale.get().to_string()),
        ];
        let options = options.into_iter().chain(self.router.clone().map(|router| ("--router", router)));
        let options = options.flat_map(|(name, value)| [name.to_owned(), value]);
        std::iter::once("workers".to_owned()).chain(options).collect()
    }
}

impl Workers {
    /// Starts the process; `program` is this one.
    pub(super) async fn start(program: &Path, role: &WorkersRole) -> Result<Self, WorkersError> {
        let mut process = Process::start(program, &role.arguments(), Stdio::piped(), true)?;
        let (told_urls, urls) = oneshot::channel();
        let (told_ready, ready) = oneshot::channel();
        if let Some(stdout) = process.child().stdout.take() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
                for told in [told_urls, told_ready] {
                    // Whoever asked may have gone.
                    let _ = told.send(lines.next().unwrap_or_default());
                }
            });
        }
        let said = timeout(PATIENCE, urls).await.ok().and_then(Result::ok).unwrap_or_default();
        process.check()?;
        let urls = serde_json::from_str(&said)
            .map_err(|_| WorkersError::Unexpected { said, expected: "its workers' addresses" })?;
        Ok(Self { urls, process, ready: Some(ready) })
    }

    /// Waits for the agents.
    pub(super) async fn ready(&mut self) -> Result<(), WorkersError> {
        let Some(ready) = self.ready.take() else { return Ok(()) };
        let said = timeout(2 * PATIENCE, ready).await.ok().and_then(Result::ok).unwrap_or_default();
        if said == "ready" {
            return Ok(());
        }
        self.process.check()?;
        Err(WorkersError::Unexpected { said, expected: "that its agents are ready" })
    }

    /// An error if the process has ended.
    pub(super) fn check(&mut self) -> Result<(), WorkersError> {
        Ok(self.process.check()?)
    }

    pub(super) fn process(&self) -> u32 {
        self.process.id()
    }
}

async fn start_agents(urls: &[String], router: &str) -> Result<Vec<AgentHandle>, WorkersError> {
    let mut agents = Vec::new();
    for url in urls {
        let routers = vec![router.to_owned()];
        agents.push(Agent::start(AgentConfig {
            worker_url: url.clone(),
            routers,
            ..AgentConfig::default()
        })?);
    }
    let in_force = |agent: &AgentHandle| agent.stats().routers.iter().all(|of| of.baselines_in_force > 0);
    let give_up = Instant::now() + PATIENCE;
    while !agents.iter().all(in_force) {
        if Instant::now() > give_up {
            return Err(WorkersError::Agents);
        }
        sleep(LOOK).await;
    }
    Ok(agents)
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
