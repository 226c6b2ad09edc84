//! The processes: a router, and workers that can be killed, stopped, and told to fail.

use std::net::TcpListener;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use espalier_proto::admin_client::AdminClient;
use espalier_proto::{
    DrainRequest, ListWorkersRequest, Target, TargetHealth, UndrainRequest, Worker, WorkerState,
};
use espalier_tests::HttpClient;
use serde_json::Value;
use sglang_sim::{Sim, SimConfig};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use worker_agent::{Agent, AgentConfig};

use crate::Fault;

/// Engines.
pub(crate) const WORKERS: usize = 8;

/// What a fleet sets whose clients must not notice a failing worker: `docs/fault-tolerance.md`.
const SETTINGS: [&str; 4] = ["--health-check-timeout-secs", "0.5", "--retry-statuses", "500,502,503,504"];

/// Ports that no system gives to outgoing connections, so that one that is free stays free while its worker restarts.
const PORTS: Range<u16> = 12_000..30_000;

/// Longer than anything that is waited for here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Everything that runs. Dropping it ends all of it.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) router: String,
    admin: AdminClient<Channel>,
    grpc: String,
    workers: Vec<Process>,
    _router: Process,
}

#[derive(Debug)]
struct Process {
    child: Child,
    port: u16,
}

/// The role `worker`: a simulated engine and its agent, until it is killed.
pub(crate) fn work(arguments: &[String]) -> Result<(), Fault> {
    let [port, router] = arguments else { return Err("worker PORT ROUTER".into()) };
    let port = port.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let config =
            SimConfig { port, decode_log_interval: 1, max_total_tokens: 60_000, ..SimConfig::default() };
        let mut sim = Sim::start(config).await?;
        let agent =
            AgentConfig { worker_url: sim.url(), routers: vec![router.clone()], ..AgentConfig::default() };
        let _agent = Agent::start(agent)?;
        sim.run().await;
        Ok(())
    })
}

impl Fleet {
    pub(crate) async fn start(program: &Path, continues: bool) -> Result<Self, Fault> {
        let ports: Vec<u16> = (0..WORKERS).map(|_| free_port()).collect::<Result<_, _>>()?;
        let (http, grpc) = (free_port()?, free_port()?);
        let urls: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let mut command = Command::new(program);
        command.args([
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            &http.to_string(),
            "--grpc-port",
            &grpc.to_string(),
        ]);
        command.args(["--prometheus-port", "0", "--log-level", "error"]);
        command.args(SETTINGS);
        if continues {
            command.arg("--continue-streams");
        }
        command.arg("--worker-urls").args(&urls);
        for (variable, _) in std::env::vars_os() {
            if ["ESPALIER_", "OTEL_", "RUST_"].iter().any(|ours| variable.to_string_lossy().starts_with(ours))
            {
                command.env_remove(variable);
            }
        }
        let router = Process { child: command.stdin(Stdio::null()).spawn()?, port: http };
        let grpc = format!("http://127.0.0.1:{grpc}");
        let workers = ports.iter().map(|port| Process::worker(*port, &grpc)).collect::<Result<_, _>>()?;
        let channel = Channel::from_shared(grpc.clone())?;
        let give_up = Instant::now() + PATIENCE;
        let channel = loop {
            match channel.connect().await {
                Ok(channel) => break channel,
                Err(error) if Instant::now() > give_up => return Err(error.into()),
                Err(_) => sleep(LOOK).await,
            }
        };
        let admin = AdminClient::new(channel);
        let base = format!("http://127.0.0.1:{http}");
        let mut fleet = Self { router: base, admin, grpc, workers, _router: router };
        for at in 0..WORKERS {
            fleet.until("a worker is in use", at, |worker| in_use(worker) && worker.agent_connected).await?;
        }
        Ok(fleet)
    }

    pub(crate) fn url(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.workers[at].port)
    }

    /// The worker with the most requests.
    pub(crate) async fn busiest(&mut self) -> Result<usize, Fault> {
        let mut loads = Vec::new();
        for at in 0..WORKERS {
            let worker = self.look(at).await?;
            loads.push(worker.targets.iter().map(|target| target.in_flight).sum::<u64>());
        }
        let busiest = (0..WORKERS).max_by_key(|at| loads[*at]);
        Ok(busiest.ok_or("there are workers")?)
    }

    /// What the router knows of a worker.
    pub(crate) async fn look(&mut self, at: usize) -> Result<Worker, Fault> {
        let url = self.url(at);
        let listed = self.admin.list_workers(ListWorkersRequest {}).await?.into_inner();
        Ok(listed.workers.into_iter().find(|worker| worker.url == url).ok_or("it is registered")?)
    }

    /// Waits for something to be true of a worker; returns how long that took.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        at: usize,
        holds: impl Fn(&Worker) -> bool,
    ) -> Result<Duration, Fault> {
        let began = Instant::now();
        loop {
            let worker = self.look(at).await?;
            if holds(&worker) {
                return Ok(began.elapsed());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("never came true of a worker: {what}; the last look: {worker:?}").into());
            }
            sleep(LOOK).await;
        }
    }

    pub(crate) fn kill(&mut self, at: usize) -> Result<(), Fault> {
        self.workers[at].child.kill()?;
        self.workers[at].child.wait()?;
        Ok(())
    }

    pub(crate) fn restart(&mut self, at: usize) -> Result<(), Fault> {
        self.workers[at] = Process::worker(self.workers[at].port, &self.grpc)?;
        Ok(())
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, at: usize, name: &str) -> Result<(), Fault> {
        let process = self.workers[at].child.id().to_string();
        let sent = Command::new("kill").args([name, &process]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("kill {name} ended with {sent}").into()) }
    }

    /// Has a worker do wrong what `faults` says: see the simulator's `/sim/faults`.
    pub(crate) async fn misbehave(&self, at: usize, faults: &Value) -> Result<(), Fault> {
        let answer = HttpClient::at(&self.url(at)).post("/sim/faults", faults).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text.into()) }
    }

    pub(crate) async fn drain(&mut self, at: usize) -> Result<(), Fault> {
        let url = self.url(at);
        let mut progress = self.admin.drain(DrainRequest { url }).await?.into_inner();
        while let Some(progress) = progress.message().await? {
            if progress.done {
                return Ok(());
            }
        }
        Err(format!("the drain of worker {at} ended before it was done").into())
    }

    pub(crate) async fn undrain(&mut self, at: usize) -> Result<(), Fault> {
        let url = self.url(at);
        self.admin.undrain(UndrainRequest { url }).await?;
        Ok(())
    }
}

/// It gets requests.
pub(crate) fn in_use(worker: &Worker) -> bool {
    let closed = |target: &Target| target.health() == TargetHealth::Closed;
    worker.state() == WorkerState::Ready && !worker.targets.is_empty() && worker.targets.iter().all(closed)
}

impl Process {
    fn worker(port: u16, grpc: &str) -> Result<Self, Fault> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", &port.to_string(), grpc]).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self { child: command.spawn()?, port })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16, Fault> {
    let mut tries = std::iter::repeat_with(|| fastrand::u16(PORTS)).take(100);
    let free = tries.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.ok_or_else(|| format!("no port of {PORTS:?} is free").into())
}
