//! The agent as a whole: one supervisor of the engine, one link to each router.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{AgentConfig, ConfigErrors};
use crate::engine::{EngineClient, Life, Supervisor};
use crate::session::{Link, RouterCounters, Watched};
use crate::stats::{self, AgentStats};

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

/// A running agent. Dropping it stops the agent without waiting; [`AgentHandle::shutdown`] waits.
#[derive(Debug)]
pub struct AgentHandle {
    life: watch::Receiver<Option<Arc<Life>>>,
    routers: Vec<(String, Arc<RouterCounters>)>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Agent {
    /// Starts an agent on the current tokio runtime. Neither the engine nor any router needs to be up.
    ///
    /// # Errors
    /// All that is wrong with the configuration.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: AgentConfig) -> Result<AgentHandle, ConfigErrors> {
        let settings = Arc::new(config.settle()?);
        let shutdown = CancellationToken::new();
        let client = EngineClient::new(&settings);
        let engine = settings.config.clone();
        let (supervisor, life, health) =
            Supervisor::new(engine, client, settings.routers.len(), shutdown.child_token());
        let requests = supervisor.requests();
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.run());
        let mut routers = Vec::new();
        for (index, url) in settings.routers.iter().enumerate() {
            let counters = Arc::new(RouterCounters::default());
            routers.push((url.clone(), Arc::clone(&counters)));
            let settings = Arc::clone(&settings);
            let engine = Watched { lives: life.clone(), health: health.clone(), requests: requests.clone() };
            let link = Link::new(index, settings, engine, counters, shutdown.child_token());
            tasks.spawn(link.run());
        }
        Ok(AgentHandle { life, routers, shutdown, tasks })
    }
}

impl AgentHandle {
    /// What the agent has done so far and sees now.
    pub fn stats(&self) -> AgentStats {
        stats::collect(self.life.borrow().as_ref(), &self.routers)
    }

    /// Stops the agent: closes all sessions and waits for its tasks.
    pub async fn shutdown(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
