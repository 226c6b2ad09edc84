//! Everything the main job needs, on loopback: simulated engines, an agent beside each, and the router before them.

use std::collections::HashSet;
use std::time::Duration;

use router_core::key::{BlockHash, Salt, Unit};
use router_core::{Target, WorkerState};
use router_grpc::{PolicyName, RouterConfig, RunningRouter};
use sglang_sim::{Sim, SimConfig};
use tokio::time::{Instant, sleep};
use worker_agent::{Agent, AgentConfig, AgentHandle};

use crate::report::Truth;

/// A router with its workers.
#[derive(Debug)]
pub(crate) struct Cluster {
    engines: Vec<Engine>,
    router: RunningRouter,
}

/// A simulated engine, up or down, and the agent beside it.
#[derive(Debug)]
struct Engine {
    /// With the port it has once it has been up.
    config: SimConfig,
    url: String,
    /// `None` while it is down.
    sim: Option<Sim>,
    agent: AgentHandle,
}

/// What cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("cannot start a simulated worker: {0}")]
    Sim(#[from] sglang_sim::SimError),
    #[error("cannot start the router: {0}")]
    Router(#[from] router_grpc::StartError),
    #[error("cannot start an agent: {0}")]
    Agent(#[from] worker_agent::ConfigErrors),
    #[error("after {} s not every worker is ready with its agent's reports in force: {seen}", PATIENCE.as_secs())]
    NotReady { seen: String },
    #[error(
        "the router has lost worker {url}, so that its claims cannot be compared; see its log with RUST_LOG=info"
    )]
    Lost { url: String },
}

/// An engine that cannot be killed or started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperateError {
    #[error("there is no engine {number}; they are 1 to {engines}")]
    Unknown { number: usize, engines: usize },
    #[error("engine {number} is down already; `start {number}` brings it back")]
    Down { number: usize },
    #[error("engine {number} is up already; `kill {number}` ends it")]
    Up { number: usize },
    #[error("engine {number} does not start: {source}")]
    Start { number: usize, source: sglang_sim::SimError },
}

/// Shape of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) workers: usize,
    pub(crate) sim: SimConfig,
    pub(crate) port: u16,
    pub(crate) grpc_port: u16,
    pub(crate) prometheus_port: u16,
}

/// Longest wait for the parts to find each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(50);

/// Agents report within this once an engine is idle: they collect changes for some 50 ms, and engines publish at once.
const SETTLED_AFTER: Duration = Duration::from_millis(500);

impl Cluster {
    /// Starts everything and waits until every worker is ready and every agent's baseline is in force.
    pub(crate) async fn start(policy: PolicyName, shape: &Shape) -> Result<Self, ClusterError> {
        let mut sims = Vec::new();
        for _ in 0..shape.workers {
            sims.push(Sim::start(shape.sim.clone()).await?);
        }
        let router = router_grpc::start(RouterConfig {
            policy,
            port: shape.port,
            grpc_port: shape.grpc_port,
            prometheus_port: shape.prometheus_port,
            worker_urls: sims.iter().map(Sim::url).collect(),
            ..RouterConfig::default()
        })
        .await?;
        let mut engines = Vec::new();
        for sim in sims {
            let agent = Agent::start(AgentConfig {
                worker_url: sim.url(),
                routers: vec![format!("http://{}", router.grpc_addr())],
                ..AgentConfig::default()
            })?;
            let config = SimConfig { port: sim.address().port(), ..shape.sim.clone() };
            engines.push(Engine { config, url: sim.url(), sim: Some(sim), agent });
        }
        let cluster = Self { engines, router };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Number of engines, up or down.
    pub(crate) fn engines(&self) -> usize {
        self.engines.len()
    }

    /// Workers that the router would send requests to now.
    pub(crate) fn ready(&self) -> usize {
        let snapshot = self.router.router().snapshot();
        snapshot.fleet.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count()
    }

    /// Ends an engine as `kill -9` would. Engines count from 1.
    pub(crate) async fn kill(&mut self, number: usize) -> Result<(), OperateError> {
        let sim = self.engine(number)?.sim.take().ok_or(OperateError::Down { number })?;
        sim.kill().await;
        Ok(())
    }

    /// Starts an engine that was killed, at its old address and with nothing cached.
    pub(crate) async fn revive(&mut self, number: usize) -> Result<(), OperateError> {
        let engine = self.engine(number)?;
        if engine.sim.is_some() {
            return Err(OperateError::Up { number });
        }
        let started = Sim::start(engine.config.clone()).await;
        engine.sim = Some(started.map_err(|source| OperateError::Start { number, source })?);
        Ok(())
    }

    fn engine(&mut self, number: usize) -> Result<&mut Engine, OperateError> {
        let engines = self.engines.len();
        let engine = number.checked_sub(1).and_then(|index| self.engines.get_mut(index));
        engine.ok_or(OperateError::Unknown { number, engines })
    }

    /// Base URL for clients.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.router.http_addr())
    }

    /// Compares every claim with what the engines hold, once their last reports have arrived.
    pub(crate) async fn truth(&self) -> Result<Truth, ClusterError> {
        let mut divergence = self.divergence().await?;
        let mut since = Instant::now();
        while since.elapsed() < SETTLED_AFTER {
            sleep(LOOK).await;
            let next = self.divergence().await?;
            if next != divergence {
                (divergence, since) = (next, Instant::now());
            }
        }
        let (differing, held) = divergence;
        Ok(Truth {
            divergence_ratio: differing as f64 / held.max(1) as f64,
            report_bytes: self.router.report_bytes(),
            workers: self.engines.len(),
        })
    }

    /// Where everything listens, for people.
    pub(crate) fn addresses(&self) -> String {
        let mut text = format!("router   {}\n", self.url());
        text += &format!("gRPC     http://{}\n", self.router.grpc_addr());
        if let Some(address) = self.router.prometheus_addr() {
            text += &format!("metrics  http://{address}/metrics\n");
        }
        for (index, engine) in self.engines.iter().enumerate() {
            text += &format!("engine {} {}\n", index + 1, engine.url);
        }
        text
    }

    pub(crate) async fn shutdown(self) {
        let mut sims = Vec::new();
        for engine in self.engines {
            engine.agent.shutdown().await;
            sims.extend(engine.sim);
        }
        self.router.shutdown().await;
        for sim in sims {
            sim.kill().await;
        }
    }

    /// Blocks that are claimed or held but not both, and blocks held.
    async fn divergence(&self) -> Result<(usize, usize), ClusterError> {
        let snapshot = self.router.router().snapshot();
        let (mut differing, mut held_in_all) = (0, 0);
        for engine in &self.engines {
            let lost = || ClusterError::Lost { url: engine.url.clone() };
            let worker = snapshot.fleet.worker_by_url(&engine.url).ok_or_else(lost)?;
            for target in snapshot.fleet.targets_of(worker.id) {
                let claimed: HashSet<BlockHash> =
                    self.router.claims(target.id, Unit::Token).await.into_iter().collect();
                let held = self.held(engine, target).await;
                differing += claimed.symmetric_difference(&held).count();
                held_in_all += held.len();
            }
        }
        Ok((differing, held_in_all))
    }

    /// The blocks an engine really holds.
    async fn held(&self, engine: &Engine, target: &Target) -> HashSet<BlockHash> {
        // What is down holds nothing.
        let Some(sim) = &engine.sim else { return HashSet::new() };
        let space = self.router.router().key_space(Unit::Token);
        let paths = sim.cached_paths(target.id.rank).await;
        let keys = paths.iter().map(|(namespace, tokens)| {
            space.key_of_tokens(Salt::new("", &namespace.cache_salt, ""), tokens).hashes().to_vec()
        });
        keys.flatten().collect()
    }

    async fn wait_until_ready(&self) -> Result<(), ClusterError> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let snapshot = self.router.router().snapshot();
            let workers = &snapshot.fleet.workers;
            let ready =
                workers.iter().all(|worker| worker.state == WorkerState::Ready && worker.agent.is_some());
            if ready && self.engines.iter().all(Engine::is_reported) && workers.len() == self.engines.len() {
                return Ok(());
            }
            if Instant::now() > give_up {
                let seen =
                    workers.iter().map(|w| format!("{} {}, agent {}", w.url, w.state, w.agent.is_some()));
                return Err(ClusterError::NotReady { seen: seen.collect::<Vec<_>>().join("; ") });
            }
            sleep(LOOK).await;
        }
    }
}

impl Engine {
    /// A baseline of every rank is in force in the router.
    fn is_reported(&self) -> bool {
        let routers = self.agent.stats().routers;
        routers.iter().all(|router| router.baselines_in_force >= u64::from(self.config.dp_size))
    }
}
