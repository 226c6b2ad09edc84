//! A whole cluster on loopback, for stories that cross crates: simulated engines, agents, routers, and a client.
//!
//! Nothing here waits for a time: [`until`] looks at a condition again and again and gives up after a time that nothing here
//! needs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::missing_panics_doc, missing_docs)]

pub mod text;
pub mod upstream;

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use espalier_proto::admin_client::AdminClient;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use router_core::key::{BlockHash, Salt, Unit};
use router_core::{Worker, WorkerState};
use router_grpc::{RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::{Sim, SimConfig};
use tokio::time::Instant;
use tonic::transport::Channel;
use worker_agent::{Agent, AgentConfig, AgentHandle};

/// Longer than anything in these tests takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at a condition until it holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < give_up, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A simulated engine at a hundred times real time.
pub fn fast() -> SimConfig {
    SimConfig { time_scale: 100.0, decode_log_interval: 1, ..SimConfig::default() }
}

/// A router that finds out quickly.
pub fn alert(worker_urls: Vec<String>) -> RouterConfig {
    RouterConfig {
        worker_urls,
        health_check_interval_secs: 0.05,
        report_interval_ms: 10,
        ..RouterConfig::default()
    }
}

pub fn agent(sim: &Sim, routers: &[&RunningRouter]) -> AgentHandle {
    let routers = routers.iter().map(|router| format!("http://{}", router.grpc_addr())).collect();
    Agent::start(AgentConfig {
        worker_url: sim.url(),
        routers,
        state_interval: Duration::from_millis(50),
        info_interval: Duration::from_millis(200),
        counts_interval: Duration::from_millis(200),
        max_reconnect_delay: Duration::from_millis(100),
        ..AgentConfig::default()
    })
    .unwrap()
}

pub async fn admin(router: &RunningRouter) -> AdminClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", router.grpc_addr())).unwrap();
    AdminClient::new(channel.connect().await.unwrap())
}

/// What a scrape of the router's metrics says.
pub async fn metrics(router: &RunningRouter) -> String {
    let address = router.prometheus_addr().unwrap();
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.get(format!("http://{address}/metrics").parse().unwrap()).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

pub fn worker(router: &RunningRouter, url: &str) -> Option<Worker> {
    router.router().snapshot().fleet.worker_by_url(url).map(|worker| (**worker).clone())
}

pub async fn until_ready(router: &RunningRouter, count: usize) {
    until("every worker is ready", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count() == count
    })
    .await;
}

/// Waits until the router's claims on an engine are what it holds; returns how many blocks that is.
pub async fn until_exact(router: &RunningRouter, sim: &Sim) -> usize {
    let mut blocks = 0;
    until("the claims on an engine are what it holds", async || {
        let held = held(router, sim).await;
        blocks = held.len();
        claimed(router, sim).await == held
    })
    .await;
    blocks
}

/// The blocks an engine holds, over all its ranks.
pub async fn held(router: &RunningRouter, sim: &Sim) -> HashSet<BlockHash> {
    let space = router.router().key_space(Unit::Token);
    let mut held = HashSet::new();
    for rank in 0..ranks(router, sim) {
        for (namespace, tokens) in sim.cached_paths(rank).await {
            let salt = Salt::new("", &namespace.cache_salt, "");
            held.extend(space.key_of_tokens(salt, &tokens).hashes().iter().copied());
        }
    }
    held
}

/// The blocks a router claims for an engine, over all its ranks.
pub async fn claimed(router: &RunningRouter, sim: &Sim) -> HashSet<BlockHash> {
    let snapshot = router.router().snapshot();
    let Some(worker) = snapshot.fleet.worker_by_url(&sim.url()) else { return HashSet::new() };
    let mut claimed = HashSet::new();
    for target in snapshot.fleet.targets_of(worker.id) {
        claimed.extend(router.claims(target.id, Unit::Token).await);
    }
    claimed
}

fn ranks(router: &RunningRouter, sim: &Sim) -> u32 {
    worker(router, &sim.url()).map_or(0, |worker| worker.profile.dp_size)
}

/// A prompt of tokens that differs from others by its first one.
pub fn prompt(first: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| if i == 0 { first } else { i % 30_000 }).collect()
}

pub fn generate(prompt: &[u32], output_tokens: usize) -> Value {
    json!({"input_ids": prompt, "sampling_params": {"max_new_tokens": output_tokens}})
}

/// An HTTP client of a router.
#[derive(Clone, Debug)]
pub struct HttpClient {
    base: String,
    key: Option<String>,
    headers: Vec<(&'static str, String)>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl HttpClient {
    pub fn of(router: &RunningRouter) -> Self {
        Self::at(&format!("http://{}", router.http_addr()))
    }

    /// A client of whatever serves at a base URL.
    pub fn at(base: &str) -> Self {
        let base = base.to_owned();
        Self {
            base,
            key: None,
            headers: Vec::new(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// The same with a key to send.
    pub fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// The same with one more header.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body.to_string()).await
    }

    pub async fn send(&self, method: &str, path: &str, body: String) -> Answer {
        let response = self.open(method, path, body).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, text }
    }

    pub async fn open(&self, method: &str, path: &str, body: String) -> http::Response<Incoming> {
        let request = http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        };
        let request =
            self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let request = request.header("content-type", "application/json").body(Full::from(body)).unwrap();
        tokio::time::timeout(PATIENCE, self.client.request(request)).await.unwrap().unwrap()
    }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn cached_tokens(&self) -> u64 {
        self.json()["meta_info"]["cached_tokens"].as_u64().unwrap()
    }
}
