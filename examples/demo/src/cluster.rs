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
    sims: Vec<Sim>,
    agents: Vec<AgentHandle>,
    router: RunningRouter,
}

/// What cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("a simulated worker: {0}")]
    Sim(#[from] sglang_sim::SimError),
    #[error("the router: {0}")]
    Router(#[from] router_grpc::StartError),
    #[error("an agent: {0}")]
    Agent(#[from] worker_agent::ConfigErrors),
    #[error("after {} s not every worker is ready with its agent's reports: {seen}", PATIENCE.as_secs())]
    NotReady { seen: String },
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
        let agent = |sim: &Sim| {
            Agent::start(AgentConfig {
                worker_url: sim.url(),
                routers: vec![format!("http://{}", router.grpc_addr())],
                ..AgentConfig::default()
            })
        };
        let agents = sims.iter().map(agent).collect::<Result<_, _>>()?;
        let cluster = Self { sims, agents, router };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Base URL for clients.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.router.http_addr())
    }

    /// Compares every claim with what the engines hold, once their last reports have arrived.
    pub(crate) async fn truth(&self) -> Truth {
        let mut divergence = self.divergence().await;
        let mut since = Instant::now();
        while since.elapsed() < SETTLED_AFTER {
            sleep(LOOK).await;
            let next = self.divergence().await;
            if next != divergence {
                (divergence, since) = (next, Instant::now());
            }
        }
        let (differing, held) = divergence;
        Truth {
            divergence_ratio: differing as f64 / held.max(1) as f64,
            report_bytes: self.router.report_bytes(),
            workers: self.sims.len(),
        }
    }

    /// Where everything listens, for people.
    pub(crate) fn addresses(&self) -> String {
        let mut text = format!("router   {}\n", self.url());
        text += &format!("gRPC     http://{}\n", self.router.grpc_addr());
        if let Some(address) = self.router.prometheus_addr() {
            text += &format!("metrics  http://{address}/metrics\n");
        }
        for sim in &self.sims {
            text += &format!("worker   {}\n", sim.url());
        }
        text
    }

    pub(crate) async fn shutdown(self) {
        for agent in self.agents {
            agent.shutdown().await;
        }
        self.router.shutdown().await;
        for sim in self.sims {
            sim.kill().await;
        }
    }

    /// Blocks that are claimed or held but not both, and blocks held.
    async fn divergence(&self) -> (usize, usize) {
        let snapshot = self.router.router().snapshot();
        let (mut differing, mut held_in_all) = (0, 0);
        for sim in &self.sims {
            let Some(worker) = snapshot.fleet.worker_by_url(&sim.url()) else { continue };
            for target in snapshot.fleet.targets_of(worker.id) {
                let claimed: HashSet<BlockHash> =
                    self.router.claims(target.id, Unit::Token).await.into_iter().collect();
                let held = self.held(sim, target).await;
                differing += claimed.symmetric_difference(&held).count();
                held_in_all += held.len();
            }
        }
        (differing, held_in_all)
    }

    /// The blocks an engine really holds.
    async fn held(&self, sim: &Sim, target: &Target) -> HashSet<BlockHash> {
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
            let reported = self.agents.iter().all(|agent| agent.stats().baselines_sent > 0);
            if ready && reported && workers.len() == self.sims.len() {
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
