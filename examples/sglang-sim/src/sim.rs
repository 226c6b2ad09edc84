//! A running simulated server: its ranks, its sockets, and the truth about its caches.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::config::{DisaggregationMode, SimConfig, SimError};
use crate::engine::{EngineHandle, Status};
use crate::http::Server;
use crate::publisher::{Listeners, Publisher};
use crate::radix::Namespace;
use crate::scheduler::Totals;
use crate::transfer::Rooms;

/// A simulated server in this process. Dropping it is a `kill -9`: every socket closes at once.
#[derive(Debug)]
pub struct Sim {
    address: SocketAddr,
    server: Server,
    tasks: JoinSet<()>,
}

/// One rank's numbers.
#[derive(Clone, Copy, Debug)]
pub struct RankStats {
    /// Counters since the start.
    pub totals: Totals,
    /// Tokens in the cache, on the device.
    pub cached_tokens: usize,
    /// Tokens on the host.
    pub host_tokens: usize,
    /// Requests that run or wait.
    pub live_requests: u64,
}

/// Ports of one rank's sockets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) events: u16,
    pub(crate) replay: u16,
    pub(crate) load: u16,
    /// Of a prefill server.
    pub(crate) bootstrap: Option<u16>,
}

/// Attempts to find as many free ports in a row as there are ranks.
const ATTEMPTS: usize = 64;

impl Sim {
    /// Starts a server on the current runtime.
    pub async fn start(config: SimConfig) -> Result<Self, SimError> {
        config.check()?;
        let tokenizer = config.tokenizer()?;
        let config = Arc::new(config);
        let mut tasks = JoinSet::new();
        let http = listen(&config.host, config.port, 1)?.remove(0);
        let events = listen(&config.host, config.kv_events_port, config.dp_size)?;
        let replay = listen(&config.host, config.replay_port, config.dp_size)?;
        let load = listen(&config.host, config.load_port, config.dp_size)?;
        let mut ports =
            Ports { events: port(&events), replay: port(&replay), load: port(&load), bootstrap: None };
        let mut ranks = Vec::new();
        let sockets = events.into_iter().zip(replay).zip(load);
        for (rank, ((events, replay), load)) in sockets.enumerate() {
            let listeners = Listeners { events, replay, load };
            let publisher = Publisher::start(listeners, config.buffer_steps, &mut tasks).await?;
            let (handle, work) = EngineHandle::new(config.clone(), rank as u32, publisher);
            tasks.spawn(work);
            ranks.push(handle);
        }
        let address = http.local_addr().map_err(|source| listen_error(&config.host, config.port, source))?;
        let rooms = Rooms::new(config.dp_size);
        if config.disaggregation_mode == DisaggregationMode::Prefill {
            let bootstrap = listen(&config.host, config.disaggregation_bootstrap_port, 1)?;
            ports.bootstrap = Some(port(&bootstrap));
            for listener in bootstrap {
                let listener = tokio::net::TcpListener::from_std(listener);
                let port = config.disaggregation_bootstrap_port;
                let listener = listener.map_err(|source| listen_error(&config.host, port, source))?;
                tasks.spawn(rooms.clone().serve(listener));
            }
        }
        let server = Server::new(config.clone(), tokenizer, ranks, ports, address, rooms);
        let accept =
            server.clone().accept(http).map_err(|source| listen_error(&config.host, config.port, source))?;
        tasks.spawn(accept);
        Ok(Self { address, server, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every sequence that a rank has cached on any tier, from the root of its tree to a leaf; empty for a rank that does not exist.
    pub async fn cached_paths(&self, rank: u32) -> Vec<(Namespace, Vec<u32>)> {
        match self.server.rank(rank) {
            Some(rank) => rank.paths().await,
            None => Vec::new(),
        }
    }

    /// A rank's numbers as of its last step.
    pub fn stats(&self, rank: u32) -> Option<RankStats> {
        let status = self.server.rank(rank)?.status();
        let live_requests = status.load.running + status.load.waiting;
        let Status { totals, cached_tokens, host_tokens, .. } = status;
        Some(RankStats { totals, cached_tokens, host_tokens, live_requests })
    }

    /// Ends it as `kill -9` would: no connection is closed properly, no request is answered.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    /// Runs until it is dropped.
    pub async fn run(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Listeners on `count` ports in a row, from `port` on or from any that are free.
fn listen(host: &str, port: u16, count: u32) -> Result<Vec<TcpListener>, SimError> {
    let mut failed = None;
    for _ in 0..if port == 0 { ATTEMPTS } else { 1 } {
        match listen_once(host, port, count) {
            Ok(listeners) => return Ok(listeners),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.expect("at least one attempt was made"))
}

fn listen_once(host: &str, port: u16, count: u32) -> Result<Vec<TcpListener>, SimError> {
    let bind = |port: u16| {
        let listener = TcpListener::bind((host, port)).map_err(|source| listen_error(host, port, source))?;
        listener.set_nonblocking(true).map_err(|source| listen_error(host, port, source))?;
        Ok(listener)
    };
    let first = bind(port)?;
    let base = first.local_addr().map_err(|source| listen_error(host, port, source))?.port();
    let mut listeners = vec![first];
    for offset in 1..count {
        let next = u16::try_from(u32::from(base) + offset).unwrap_or(0);
        listeners.push(bind(next)?);
    }
    Ok(listeners)
}

fn listen_error(host: &str, port: u16, source: std::io::Error) -> SimError {
    SimError::Listen { address: format!("{host}:{port}"), source }
}

fn port(listeners: &[TcpListener]) -> u16 {
    listeners.first().and_then(|listener| listener.local_addr().ok()).map_or(0, |address| address.port())
}
