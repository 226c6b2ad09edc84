//! Health checks, and what engines are asked beside: whether each worker answers, what it says about itself, and whether it is the same process as before.

mod counts;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use router_core::{
    CacheKind, Done, FleetUpdate, HostPool, LowerTier, Role, Router, Update, Worker, WorkerId, WorkerProfile,
    WorkerState,
};
use router_http::{Clock, Secret};
use serde_json::Value;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::events::FleetEvent;
use crate::requests::{ask, send};

/// Every this many checks a worker that answers is asked again what it is: a restart between two checks is noticed then.
const CHECKS_PER_LOOK: u32 = 10;

/// How long an unused connection is kept; SGLang closes it after 5 s.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Longest `/server_info` that is read.
const MOST_INFO_BYTES: usize = 4 << 20;

/// With this option of an engine, what leaves its device stays cached on the host.
const HOST_TIER: &str = "enable_hierarchical_cache";

/// With these, what leaves its device stays cached elsewhere, and is used from there.
const TIERS: [&str; 4] =
    [HOST_TIER, "enable_lmcache", "enable_flexkv", "enable_unified_cache_external_linker"];

/// How workers are checked.
#[derive(Clone, Debug)]
pub(crate) struct ProbeSettings {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) failure_threshold: u32,
    pub(crate) api_key: Option<Secret>,
    /// Time between two questions for the counts of an engine without an agent; `None`: they are not asked for.
    pub(crate) counts_interval: Option<Duration>,
}

/// Asks workers about themselves. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    client: Client<HttpConnector, Empty<Bytes>>,
    settings: ProbeSettings,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("answered {1} to {0}")]
    Status(&'static str, StatusCode),
    #[error("its answer to {0} cannot be read")]
    Unreadable(&'static str),
    #[error("is paused: it answers /ping, and not /ready")]
    Paused,
}

/// What a worker says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) profile: WorkerProfile,
    /// Differs between two lives of the process; `None` if the worker does not say.
    life: Option<u64>,
    /// The whole description.
    pub(crate) description: Value,
}

/// What is remembered of a worker between checks.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    failures: u32,
    checks: u32,
    life: Option<u64>,
}

impl Record {
    /// A check failed; whether the writer has to be told. It is told at every further failure until the snapshot shows it, since
    /// a writer that is overloaded may not have listened.
    fn failed(&mut self, known_unreachable: bool, threshold: u32) -> bool {
        self.failures = self.failures.saturating_add(1);
        // The first failure of one that never answered says why.
        if known_unreachable { self.failures == 1 } else { self.failures >= threshold }
    }
}

impl Prober {
    pub(crate) fn new(settings: ProbeSettings) -> Self {
        // As in the data plane: a connection that the worker is about to close must not count as a failure of its own.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(HttpConnector::new());
        Self { client, settings }
    }

    /// Checks all registered workers, each by itself: one that does not answer delays no other. A new one is checked at once.
    pub(crate) async fn run(self, router: Router, clock: Clock, mut events: Receiver<FleetEvent>) {
        let mut checked: HashSet<WorkerId> = HashSet::new();
        let mut watches = JoinSet::new();
        loop {
            for worker in &router.snapshot().fleet.workers {
                if checked.insert(worker.id) {
                    watches.spawn(self.clone().watch(router.clone(), clock, worker.id));
                }
            }
            tokio::select! {
                // Whatever happened, and however many events were missed: the fleet is looked at again.
                event = events.recv() => if matches!(event, Err(RecvError::Closed)) { return },
                Some(ended) = watches.join_next() => {
                    if let Ok(worker) = ended {
                        checked.remove(&worker);
                    }
                }
            }
        }
    }

    /// Checks and counts one worker for as long as it is registered; the one does not wait for the other.
    async fn watch(self, router: Router, clock: Clock, id: WorkerId) -> WorkerId {
        let count = async {
            if let Some(every) = self.settings.counts_interval {
                self.count(every, clock, &router, id).await;
            }
        };
        tokio::join!(self.keep_checking(&router, id), count);
        id
    }

    async fn keep_checking(&self, router: &Router, id: WorkerId) {
        let mut ticks = interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut record = Record::default();
        loop {
            ticks.tick().await;
            let snapshot = router.snapshot();
            let Some(worker) = snapshot.fleet.workers.iter().find(|worker| worker.id == id).cloned() else {
                return;
            };
            drop(snapshot);
            record = self.check(router, &worker, record).await;
        }
    }

    /// Checks one worker and tells the writer what has changed.
    async fn check(&self, router: &Router, worker: &Worker, mut record: Record) -> Record {
        record.checks = record.checks.wrapping_add(1);
        let answer = self.is_ready(&worker.url).await;
        let known_unreachable = worker.state == WorkerState::Unreachable;
        match answer {
            // Alive: it keeps its cache, and lets what it gets wait.
            Err(error @ ProbeError::Paused) => {
                record.failures = 0;
                if known_unreachable {
                    tell_health(router, worker.id, true, error.to_string()).await;
                }
                if worker.state != WorkerState::Updating {
                    tell_pause(router, worker.id, true, error.to_string()).await;
                }
            }
            Err(error) => {
                if record.failed(known_unreachable, self.settings.failure_threshold) {
                    tell_health(router, worker.id, false, error.to_string()).await;
                }
            }
            Ok(()) => {
                record.failures = 0;
                if known_unreachable || record.checks % CHECKS_PER_LOOK == 1 {
                    record.life = self.look(router, worker, record.life).await;
                }
                if known_unreachable {
                    tell_health(router, worker.id, true, "answers its health check".to_owned()).await;
                }
                if worker.state == WorkerState::Updating {
                    tell_pause(router, worker.id, false, "goes on".to_owned()).await;
                }
            }
        }
        record
    }

    /// Asks a worker what it is; voids its claims if it is another process than before.
    async fn look(&self, router: &Router, worker: &Worker, before: Option<u64>) -> Option<u64> {
        let identity = match self.identify(&worker.url).await {
            Ok(identity) => identity,
            Err(error) => {
                tracing::debug!(worker = &*worker.url, %error, "the worker does not describe itself");
                return before;
            }
        };
        if before.is_some() && identity.life.is_some() && before != identity.life {
            let reason = Arc::from("the engine restarted");
            let _ = send(router, Update::Fleet(FleetUpdate::Void { worker: worker.id, reason })).await;
        }
        if identity.profile != worker.profile {
            let (id, profile) = (worker.id, Box::new(identity.profile.clone()));
            let set =
                ask(router, |done| Update::Fleet(FleetUpdate::Profile { worker: id, profile, done })).await;
            if let Ok(Err(error)) = set {
                tracing::error!(worker = &*worker.url, %error, "the worker's ranks do not fit");
            }
        }
        identity.life.or(before)
    }

    /// Whether a worker takes requests: `/ready`, or `/v1/models` where that does not exist. Never `/health`, which makes an
    /// idle engine generate and takes a second.
    pub(crate) async fn is_ready(&self, base: &str) -> Result<(), ProbeError> {
        let (mut path, mut status) = ("/ready", self.get(base, "/ready").await?.0);
        if status == StatusCode::NOT_FOUND {
            path = "/v1/models";
            status = self.get(base, path).await?.0;
        }
        if status == StatusCode::SERVICE_UNAVAILABLE
            && path == "/ready"
            && self.get(base, "/ping").await?.0.is_success()
        {
            return Err(ProbeError::Paused);
        }
        if status.is_success() { Ok(()) } else { Err(ProbeError::Status(path, status)) }
    }

    /// What a worker says about itself.
    pub(crate) async fn identify(&self, base: &str) -> Result<Identity, ProbeError> {
        let (mut status, mut body) = self.get(base, "/server_info").await?;
        if status == StatusCode::NOT_FOUND {
            (status, body) = self.get(base, "/get_server_info").await?;
        }
        if !status.is_success() {
            return Err(ProbeError::Status("/server_info", status));
        }
        let info: Value =
            serde_json::from_slice(&body).map_err(|_| ProbeError::Unreadable("/server_info"))?;
        Ok(Identity { profile: profile(&info), life: life(&info), description: info })
    }

    async fn get(&self, base: &str, path: &'static str) -> Result<(StatusCode, Bytes), ProbeError> {
        let mut request = Request::get(format!("{base}{path}"));
        if let Some(key) = &self.settings.api_key {
            request = request.header(header::AUTHORIZATION, key.as_header());
        }
        let request =
            request.body(Empty::new()).map_err(|error| ProbeError::Unreachable(error.to_string()))?;
        let exchange = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|error| ProbeError::Unreachable(root_cause(&error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST_INFO_BYTES).collect().await;
            Ok((status, body.map_err(|_| ProbeError::Unreadable(path))?.to_bytes()))
        };
        let limit = self.settings.timeout;
        timeout(limit, exchange).await.map_err(|_| ProbeError::Timeout(limit))?
    }
}

async fn tell_health(router: &Router, worker: WorkerId, reachable: bool, reason: String) {
    let update = FleetUpdate::Health { worker, reachable, reason: reason.into() };
    // With an overloaded writer the next check says it again.
    let _ = send(router, Update::Fleet(update)).await;
}

async fn tell_pause(router: &Router, worker: WorkerId, on: bool, reason: String) {
    let update = FleetUpdate::Pause { worker, on, reason: reason.into(), done: Done::ignore() };
    // With an overloaded writer the next check says it again.
    let _ = send(router, Update::Fleet(update)).await;
}

fn profile(info: &Value) -> WorkerProfile {
    let names = [&info["served_model_name"], &info["model_path"]];
    let mut models: Vec<Arc<str>> =
        names.into_iter().filter_map(|name| name.as_str()).map(Arc::from).collect();
    models.dedup();
    let number = |name: &str| info[name].as_u64().or_else(|| info["internal_states"][0][name].as_u64());
    let small = |name: &str| number(name).and_then(|value| u32::try_from(value).ok()).unwrap_or(1).max(1);
    let is_on = |name: &str| info[name].as_bool();
    let lower_tier = lower_tier(info);
    WorkerProfile {
        models,
        engine_version: Arc::from(info["version"].as_str().unwrap_or("")),
        dp_size: small("dp_size"),
        page_size: small("page_size"),
        capacity_tokens: number("max_total_num_tokens").unwrap_or(0),
        role: role(&info["disaggregation_mode"]),
        bootstrap_port: number("disaggregation_bootstrap_port").and_then(|port| u16::try_from(port).ok()),
        // Where the engine tells it without being asked, there is nothing to ask for.
        usage_on_request: is_on("enable_cache_report")
            .map(|reports| reports && !is_on("stream_response_default_include_usage").unwrap_or(false)),
        // A cache that was plugged in may do anything.
        evicts_lru: info["radix_eviction_policy"].as_str().is_none_or(|policy| policy == "lru")
            && lower_tier.is_none()
            && !info["radix_cache_backend"].is_string(),
        cache_kind: cache_kind(info),
        lower_tier,
    }
}

/// By the pools that the first scheduler has beside that of full attention, as agents read them.
fn cache_kind(info: &Value) -> CacheKind {
    let scheduler = |path: &str| info.pointer("/internal_states/0").and_then(|state| state.pointer(path));
    let windows = scheduler("/memory_usage/token_capacity_swa").map(Value::is_number);
    let states = match info["uses_mamba_radix_cache"].as_bool() {
        // True for some of the models that have states.
        Some(true) => Some(true),
        _ => scheduler("/max_mamba_cache_size").map(Value::is_number),
    };
    CacheKind::of_pools(windows, states)
}

/// What keeps what leaves the device, as agents read it.
fn lower_tier(info: &Value) -> Option<LowerTier> {
    let is_on = |name: &str| info[name] == true;
    if !TIERS.into_iter().any(is_on) {
        return None;
    }
    if !is_on(HOST_TIER) || info["hicache_host_memory_mode"] == "buffer_only" {
        return Some(LowerTier::default());
    }
    let number = |name: &str| info[name].as_u64().or_else(|| info["internal_states"][0][name].as_u64());
    let usage = |name: &str| info["internal_states"][0]["memory_usage"][name].as_f64();
    let pool = HostPool {
        device_tokens: number("max_total_num_tokens").unwrap_or(0),
        ratio: info["hicache_ratio"].as_f64(),
        gigabytes: number("hicache_size").unwrap_or(0),
        kv_cache: usage("kvcache").zip(usage("token_capacity")),
        has_all: info["hicache_write_policy"] == "write_through",
    };
    Some(pool.tier())
}

/// What SGLang calls its disaggregation mode; `null` where it says so, in words or not.
fn role(mode: &Value) -> Option<Role> {
    match mode {
        Value::String(mode) if mode == "prefill" => Some(Role::Prefill),
        Value::String(mode) if mode == "decode" => Some(Role::Decode),
        Value::String(mode) if mode == "null" => Some(Role::Unified),
        _ => None,
    }
}

/// The durations of a start are as good as a name of the process: no two starts take equally many microseconds throughout.
fn life(info: &Value) -> Option<u64> {
    let startup = info.get("startup_time").filter(|startup| startup.is_object())?;
    let mut hasher = DefaultHasher::new();
    startup.to_string().hash(&mut hasher);
    Some(hasher.finish())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_until_it_is_known() {
        let mut record = Record::default();
        let told: Vec<_> = [false, false, false, true, true].map(|known| record.failed(known, 2)).into();
        assert_eq!(told, [false, true, true, false, false]);
        let mut never_up = Record::default();
        assert!(never_up.failed(true, 2), "why it is not up is worth knowing at once");
        assert!(!never_up.failed(true, 2));
    }

    /// The agent reads the same capture, in its own tests.
    #[test]
    fn a_captured_engine_is_plain() {
        let captured = include_str!("../../worker-agent/tests/fixtures/server_info.json");
        let read = profile(&serde_json::from_str(captured).unwrap());
        assert_eq!((read.page_size, read.dp_size, read.capacity_tokens), (16, 1, 1024));
        assert!(read.evicts_lru && read.tells_evictions());
        assert_eq!(read.cache_kind, CacheKind::Full);
    }

    #[test]
    fn what_a_host_can_hold_is_read_as_agents_read_it() {
        let tokens = |info: Value| profile(&info).lower_tier.map(|tier| tier.capacity_tokens);
        let mut info = serde_json::json!({"max_total_num_tokens": 1024, "hicache_ratio": 2.0, HOST_TIER: true,
            "internal_states": [{"memory_usage": {"kvcache": 0.25, "token_capacity": 1024}}]});
        assert_eq!(tokens(info.clone()), Some(2_048));
        info["hicache_write_policy"] = "write_through".into();
        assert_eq!(tokens(info.clone()), Some(1_024));
        info["hicache_size"] = 2.into();
        assert_eq!(tokens(info.clone()), Some(7_629 - 1_024), "256 KiB a token");
        info["hicache_host_memory_mode"] = "buffer_only".into();
        assert_eq!(tokens(info.clone()), Some(0));
        info[HOST_TIER] = false.into();
        assert_eq!(tokens(info), None);
    }

    #[test]
    fn a_description_is_read_tolerantly() {
        let info = serde_json::json!({"served_model_name": "m", "model_path": "/models/m", "page_size": 16, "dp_size": 2,
            "max_total_num_tokens": 1024, "version": "0.5.23", "radix_eviction_policy": "lfu",
            "startup_time": {"load_weight": 0.5}});
        let read = profile(&info);
        assert_eq!(read.models, [Arc::from("m"), Arc::from("/models/m")]);
        assert_eq!(
            (read.page_size, read.dp_size, read.capacity_tokens, read.evicts_lru),
            (16, 2, 1024, false)
        );
        let bare = profile(&serde_json::json!({"page_size": -3, "dp_size": "two"}));
        assert_eq!(bare, WorkerProfile::default());
        for (told_anyway, expected) in [(false, true), (true, false)] {
            let info = serde_json::json!({"enable_cache_report": true,
                "stream_response_default_include_usage": told_anyway});
            assert_eq!(profile(&info).usage_on_request, Some(expected));
        }
        for policy in ["lru", "lfu", "fifo", "priority", "slru"] {
            let mut foreign = serde_json::json!({"radix_eviction_policy": policy});
            foreign["radix_cache_backend"] = "theirs".into();
            assert!(!profile(&foreign).evicts_lru, "{policy}");
            for (tier, tiered) in TIERS.into_iter().flat_map(|tier| [(tier, false), (tier, true)]) {
                let info = serde_json::json!({"radix_eviction_policy": policy, tier: tiered});
                assert_eq!(
                    profile(&info).evicts_lru,
                    policy == "lru" && !tiered,
                    "{policy}, {tier}: {tiered}"
                );
            }
        }
        for (window_tokens, states, listed, expected) in [
            (None, None, false, CacheKind::Full),
            (Some(4096), None, false, CacheKind::SlidingWindow),
            (None, Some(120), false, CacheKind::RecurrentState),
            (Some(4096), None, true, CacheKind::RecurrentState),
        ] {
            let info = serde_json::json!({"uses_mamba_radix_cache": listed, "internal_states": [
                {"max_mamba_cache_size": states, "memory_usage": {"token_capacity_swa": window_tokens}}]});
            assert_eq!(profile(&info).cache_kind, expected, "{info}");
        }
        let other = serde_json::json!({"startup_time": {"load_weight": 0.6}});
        assert_ne!(life(&info), life(&other));
        assert_eq!(life(&serde_json::json!({})), None);
    }
}
