//! What an engine says about itself, read tolerantly: fields come and go between releases.

use std::hash::{DefaultHasher, Hash, Hasher};

use router_core::{CacheKind, HostPool, LowerTier};
use serde_json::Value;

use crate::chat_template::ChatSetup;

/// Most dp ranks an engine may have.
const MAX_RANKS: u64 = 1024;

/// With this, what leaves the device stays cached on the host.
const HOST_TIER: &str = "enable_hierarchical_cache";

/// With these, what leaves the device stays cached elsewhere, and is used from there.
const TIERS: [&str; 4] =
    [HOST_TIER, "enable_lmcache", "enable_flexkv", "enable_unified_cache_external_linker"];

/// An engine's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Release of the engine, empty when not named.
    pub version: String,
    /// Name under which the model is served.
    pub model: String,
    /// Path or name of the tokenizer, of the model where none is named; empty when neither is.
    pub tokenizer: String,
    /// How it renders chats.
    pub chats: ChatSetup,
    /// Version of the weights.
    pub weight_version: String,
    /// Number of dp ranks.
    pub dp_size: u32,
    /// Tokens in one page.
    pub page_size: u32,
    /// KV tokens the device of one rank can hold; 0 when not named.
    pub capacity_tokens: u64,
    /// Where it keeps what leaves the device, if anywhere.
    pub lower_tier: Option<LowerTier>,
    /// Which leaf goes first.
    pub eviction: Eviction,
    /// What its cache keeps beside the KV of full attention.
    pub cache_kind: CacheKind,
    /// What it does of a generation.
    pub role: EngineRole,
    /// Where its bootstrap server listens, where it names that.
    pub bootstrap_port: Option<u16>,
    /// When it started, in microseconds since the Unix epoch, where it shows that.
    pub started_us: Option<u64>,
    /// Tells one life of the engine from another; `None` when it shows nothing that differs.
    pub life_fingerprint: Option<u64>,
    /// Where each rank publishes its events, in the order of ranks; empty when events are off.
    pub events: Vec<EventSource>,
    /// Where each rank publishes its load; empty when it does not.
    pub loads: Vec<EventSource>,
    /// Decode steps between two publications while nothing else happens.
    pub decode_log_interval: Option<u64>,
    /// Decode steps between two load frames.
    pub load_publish_interval: Option<u64>,
    /// `/metrics` is served.
    pub metrics: Option<bool>,
    /// The prefix cache is on.
    pub prefix_cache: bool,
    /// The publisher connects instead of binding, because its address is concrete and `bind` is not set.
    pub publisher_connects: bool,
}

/// A socket of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSource {
    /// Where it publishes.
    pub endpoint: String,
    /// Under which topic.
    pub topic: String,
    /// Where it replays.
    pub replay: Option<String>,
}

/// An engine's eviction policy, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Least recently used first.
    Lru,
    /// Another, or what is evicted stays cached on a lower tier.
    Other,
    /// Not named.
    Unknown,
}

/// What an engine does of a generation (SGLang's disaggregation mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineRole {
    /// All of it.
    Unified,
    /// It prefills.
    Prefill,
    /// It decodes.
    Decode,
    /// Not named.
    Unknown,
}

impl EngineInfo {
    /// Reads the answer of `/server_info` of an engine that this process reaches under `host`.
    pub fn read(answer: &Value, host: &str) -> Option<Self> {
        let block = answer.get("kv_events").filter(|block| block.is_object());
        let from_block = |name| block.and_then(|block| positive(block.get(name)));
        let page_size = from_block("block_size").or_else(|| positive(field(answer, "page_size")))?;
        let dp_size = from_block("dp_size").or_else(|| positive(field(answer, "dp_size"))).unwrap_or(1);
        let dp_size = dp_size.min(MAX_RANKS) as u32;
        let prefix_cache = field(answer, "disable_radix_cache").and_then(Value::as_bool) != Some(true);
        let lower_tier = lower_tier(answer);
        let is_foreign = field(answer, "radix_cache_backend").is_some_and(Value::is_string);
        let config = events_config(answer);
        let events =
            if prefix_cache { sources(answer, block, config.as_ref(), host, dp_size) } else { Vec::new() };
        Some(Self {
            version: text(answer, "version"),
            model: match text(answer, "served_model_name") {
                name if name.is_empty() => text(answer, "model_path"),
                name => name,
            },
            tokenizer: match text(answer, "tokenizer_path") {
                path if path.is_empty() => text(answer, "model_path"),
                path => path,
            },
            chats: ChatSetup::read(answer),
            weight_version: text(answer, "weight_version"),
            dp_size,
            page_size: u32::try_from(page_size).ok()?,
            capacity_tokens: positive(field(answer, "max_total_num_tokens")).unwrap_or(0),
            eviction: match field(answer, "radix_eviction_policy").and_then(Value::as_str) {
                // A cache that was plugged in may do anything.
                _ if lower_tier.is_some() || is_foreign => Eviction::Other,
                Some("lru") => Eviction::Lru,
                Some(_) => Eviction::Other,
                None => Eviction::Unknown,
            },
            lower_tier,
            cache_kind: cache_kind(answer),
            role: match field(answer, "disaggregation_mode").and_then(Value::as_str) {
                Some("null") => EngineRole::Unified,
                Some("prefill") => EngineRole::Prefill,
                Some("decode") => EngineRole::Decode,
                _ => EngineRole::Unknown,
            },
            bootstrap_port: positive(field(answer, "disaggregation_bootstrap_port"))
                .and_then(|port| u16::try_from(port).ok()),
            started_us: ["start_time", "instance_id"].iter().find_map(|name| epoch_us(field(answer, name)?)),
            life_fingerprint: life_fingerprint(answer),
            loads: block.map_or_else(Vec::new, |block| load_sources(block, host, dp_size)),
            publisher_connects: !events.is_empty() && config.as_ref().is_some_and(connects),
            events,
            decode_log_interval: field(answer, "decode_log_interval").and_then(Value::as_u64),
            load_publish_interval: field(answer, "load_snapshot_publish_interval").and_then(Value::as_u64),
            metrics: field(answer, "enable_metrics").and_then(Value::as_bool),
            prefix_cache,
        })
    }
}

/// A field of the answer, or of the first scheduler's state where the front end does not repeat it.
fn field<'a>(answer: &'a Value, name: &str) -> Option<&'a Value> {
    let inner = || answer.get("internal_states")?.get(0)?.get(name);
    answer.get(name).filter(|value| !value.is_null()).or_else(inner)
}

/// By the pools that the first scheduler has beside that of full attention. It writes the size of that for recurrent state into its
/// configuration, for whichever model; `uses_mamba_radix_cache` is true for some of these only. A sliding window in the model's
/// configuration is no sign: such layers may keep all KV.
fn cache_kind(answer: &Value) -> CacheKind {
    let scheduler = |path: &str| answer.pointer("/internal_states/0").and_then(|state| state.pointer(path));
    let windows = scheduler("/memory_usage/token_capacity_swa").map(Value::is_number);
    let states = match field(answer, "uses_mamba_radix_cache").and_then(Value::as_bool) {
        Some(true) => Some(true),
        _ => scheduler("/max_mamba_cache_size").map(Value::is_number),
    };
    CacheKind::of_pools(windows, states)
}

/// What keeps what leaves the device. Only of the host's own pool it is said how large it is.
fn lower_tier(answer: &Value) -> Option<LowerTier> {
    let is_on = |name: &str| field(answer, name).and_then(Value::as_bool) == Some(true);
    if !TIERS.into_iter().any(is_on) {
        return None;
    }
    let is_buffer = field(answer, "hicache_host_memory_mode").and_then(Value::as_str) == Some("buffer_only");
    if !is_on(HOST_TIER) || is_buffer {
        return Some(LowerTier::default());
    }
    let usage = |name: &str| answer.pointer(&format!("/internal_states/0/memory_usage/{name}"))?.as_f64();
    let pool = HostPool {
        device_tokens: positive(field(answer, "max_total_num_tokens")).unwrap_or(0),
        ratio: field(answer, "hicache_ratio").and_then(Value::as_f64),
        gigabytes: positive(field(answer, "hicache_size")).unwrap_or(0),
        kv_cache: usage("kvcache").zip(usage("token_capacity")),
        has_all: field(answer, "hicache_write_policy").and_then(Value::as_str) == Some("write_through"),
    };
    Some(pool.tier())
}

fn text(answer: &Value, name: &str) -> String {
    field(answer, name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn positive(value: Option<&Value>) -> Option<u64> {
    value.and_then(Value::as_u64).filter(|value| *value > 0)
}

/// The server's own event configuration: a JSON document in a string.
fn events_config(answer: &Value) -> Option<Value> {
    let config = field(answer, "kv_events_config")?.as_str()?;
    serde_json::from_str(config).ok().filter(Value::is_object)
}

/// A publisher with a concrete address connects to it unless told to bind (0.5.22 and later); wildcards bind.
fn connects(config: &Value) -> bool {
    let endpoint = config.get("endpoint").and_then(Value::as_str).unwrap_or_default();
    let concrete = split(endpoint).is_some_and(|(host, _)| !wildcard(host));
    concrete && config.get("bind").and_then(Value::as_bool) != Some(true)
}

fn sources(
    answer: &Value,
    block: Option<&Value>,
    config: Option<&Value>,
    host: &str,
    dp_size: u32,
) -> Vec<EventSource> {
    // Exact addresses for a process on the same node; of no use from elsewhere.
    if is_loopback(host) {
        let exact = answer.get("kv_event_sources").and_then(exact_sources);
        if let Some(exact) = exact.filter(|exact| exact.len() == dp_size as usize) {
            return exact;
        }
    }
    let described = block.and_then(|block| described_sources(block, host, dp_size));
    described.or_else(|| configured_sources(config?, host, dp_size)).unwrap_or_default()
}

fn exact_sources(sources: &Value) -> Option<Vec<EventSource>> {
    let mut exact: Vec<(u64, EventSource)> = Vec::new();
    for source in sources.as_array()? {
        let string = |name| source.get(name).and_then(Value::as_str).map(str::to_owned);
        let rank = source.get("dp_rank").and_then(Value::as_u64)?;
        let topic = string("topic").unwrap_or_default();
        exact.push((
            rank,
            EventSource { endpoint: string("endpoint")?, topic, replay: string("replay_endpoint") },
        ));
    }
    exact.sort_by_key(|(rank, _)| *rank);
    let dense = exact.iter().enumerate().all(|(index, (rank, _))| *rank == index as u64);
    dense.then(|| exact.into_iter().map(|(_, source)| source).collect())
}

/// From the discovery block of 0.5.14 and later.
fn described_sources(block: &Value, host: &str, dp_size: u32) -> Option<Vec<EventSource>> {
    if block.get("publisher").and_then(Value::as_str) != Some("zmq") {
        return None;
    }
    let host = reachable(block.get("endpoint_host").and_then(Value::as_str).unwrap_or("*"), host);
    let base = positive(block.get("endpoint_port_base"))?;
    let replay = positive(block.get("replay_endpoint_port_base"));
    let topic = block.get("topic").and_then(Value::as_str).unwrap_or_default();
    per_rank(&host, base, topic, replay.map(|port| (host.clone(), port)), dp_size)
}

/// From the server's arguments, for releases without the discovery block.
fn configured_sources(config: &Value, host: &str, dp_size: u32) -> Option<Vec<EventSource>> {
    if config.get("publisher").and_then(Value::as_str) != Some("zmq") {
        return None;
    }
    let endpoint = config.get("endpoint").and_then(Value::as_str).unwrap_or("tcp://*:5557");
    let (bound, base) = split(endpoint)?;
    let replay = config.get("replay_endpoint").and_then(Value::as_str).and_then(split);
    let replay = replay.map(|(bound, port)| (reachable(bound, host), port));
    let topic = config.get("topic").and_then(Value::as_str).unwrap_or_default();
    per_rank(&reachable(bound, host), base, topic, replay, dp_size)
}

fn load_sources(block: &Value, host: &str, dp_size: u32) -> Vec<EventSource> {
    let topic = block.get("load_topic").and_then(Value::as_str).unwrap_or("load");
    // Load sockets take wildcard addresses only.
    let base = positive(block.get("load_endpoint_port_base"));
    base.and_then(|base| per_rank(host, base, topic, None, dp_size)).unwrap_or_default()
}

/// Rank r publishes on the base port plus r.
fn per_rank(
    host: &str,
    base: u64,
    topic: &str,
    replay: Option<(String, u64)>,
    dp_size: u32,
) -> Option<Vec<EventSource>> {
    let port = |base: u64, rank: u32| u16::try_from(base + u64::from(rank)).ok();
    (0..dp_size)
        .map(|rank| {
            let replay = match &replay {
                Some((host, base)) => Some(format!("tcp://{host}:{}", port(*base, rank)?)),
                None => None,
            };
            let endpoint = format!("tcp://{host}:{}", port(base, rank)?);
            Some(EventSource { endpoint, topic: topic.to_owned(), replay })
        })
        .collect()
}

/// Host and port of a `tcp://` endpoint.
fn split(endpoint: &str) -> Option<(&str, u64)> {
    let (host, port) = endpoint.strip_prefix("tcp://")?.rsplit_once(':')?;
    Some((host, port.parse().ok()?))
}

fn wildcard(host: &str) -> bool {
    matches!(host, "" | "*" | "0.0.0.0" | "::" | "[::]")
}

fn reachable(bound: &str, host: &str) -> String {
    if wildcard(bound) { host.to_owned() } else { bound.to_owned() }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A time since the Unix epoch in microseconds, given in seconds, milli-, micro- or nanoseconds, which lie too far apart to
/// be mistaken. SGLang's instance id is such a time.
fn epoch_us(value: &Value) -> Option<u64> {
    let time = value.as_f64().or_else(|| value.as_str()?.parse().ok())?;
    let scales = [(1e9, 1e6), (1e12, 1e3), (1e15, 1.0), (1e18, 1e-3)];
    let (_, scale) = scales.into_iter().find(|(from, _)| (*from..from * 10.0).contains(&time))?;
    Some((time * scale) as u64)
}

/// Hashes what differs between two starts of one server: how long its start took, to the nanosecond, and process ids
/// where it shows any.
///
/// The tokenizer's time is left out because it may be added after the first answers, nested times (graph captures)
/// because they may happen late.
fn life_fingerprint(answer: &Value) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    let mut found = false;
    if let Some(times) = field(answer, "startup_time").and_then(Value::as_object) {
        let mut times: Vec<_> = times.iter().filter(|(name, _)| *name != "tokenizer_e2e").collect();
        times.sort_by_key(|(name, _)| *name);
        for (name, time) in times.into_iter().filter_map(|(name, time)| Some((name, time.as_f64()?))) {
            (name, time.to_bits()).hash(&mut hasher);
            found = true;
        }
    }
    for name in ["instance_id", "pid", "process_id", "start_time"] {
        if let Some(value) = field(answer, name).filter(|value| value.is_string() || value.is_number()) {
            (name, value.to_string()).hash(&mut hasher);
            found = true;
        }
    }
    found.then(|| hasher.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({
            "page_size": 16, "dp_size": 2, "version": "0.5.23", "served_model_name": "tiny", "model_path": "/m",
            "max_total_num_tokens": 1024, "radix_eviction_policy": "lru", "decode_log_interval": 40,
            "startup_time": {"load_weight": 0.25, "scheduler_e2e": 8.5, "cuda_graph": {"decode": 0.0}},
            "kv_events": {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 31557, "topic": "kv",
                "block_size": 16, "dp_size": 2, "load_endpoint_port_base": 31559, "load_topic": "load",
                "replay_endpoint_port_base": 31657},
        })
    }

    #[test]
    fn the_discovery_block_gives_every_rank_its_sockets() {
        let info = EngineInfo::read(&answer(), "10.0.0.7").unwrap();
        assert_eq!(info.events[1].endpoint, "tcp://10.0.0.7:31558");
        assert_eq!(info.events[1].replay.as_deref(), Some("tcp://10.0.0.7:31658"));
        assert_eq!((info.events.len(), info.events[0].topic.as_str()), (2, "kv"));
        assert_eq!(info.loads[1].endpoint, "tcp://10.0.0.7:31560");
        assert_eq!((info.page_size, info.capacity_tokens, info.eviction), (16, 1024, Eviction::Lru));
        assert_eq!(info.model, "tiny");
    }

    #[test]
    fn only_a_plain_lru_cache_is_called_one() {
        for (policy, tiered, expected) in [
            (json!("lru"), json!(false), Eviction::Lru),
            (json!("lru"), json!(true), Eviction::Other),
            (json!("slru"), json!(null), Eviction::Other),
            (json!(null), json!(false), Eviction::Unknown),
        ] {
            let mut answer = answer();
            answer["radix_eviction_policy"] = policy;
            for tier in TIERS {
                let mut answer = answer.clone();
                answer[tier] = tiered.clone();
                assert_eq!(EngineInfo::read(&answer, "10.0.0.7").unwrap().eviction, expected, "{tier}");
            }
        }
        let mut foreign = answer();
        foreign["radix_cache_backend"] = json!("theirs");
        assert_eq!(EngineInfo::read(&foreign, "10.0.0.7").unwrap().eviction, Eviction::Other);
    }

    #[test]
    fn what_a_host_can_hold_is_read_or_reckoned() {
        let tokens = |change: Value| {
            let mut answer = answer();
            answer["internal_states"] = json!([{"memory_usage": {"kvcache": 0.25, "token_capacity": 1024}}]);
            answer["hicache_ratio"] = json!(2.0);
            for (name, value) in change.as_object().unwrap() {
                answer[name] = value.clone();
            }
            EngineInfo::read(&answer, "w").unwrap().lower_tier.map(|tier| tier.capacity_tokens)
        };
        assert_eq!(tokens(json!({})), None);
        assert_eq!(tokens(json!({HOST_TIER: true})), Some(2_048));
        assert_eq!(tokens(json!({HOST_TIER: true, "hicache_write_policy": "write_through"})), Some(1_024));
        assert_eq!(tokens(json!({HOST_TIER: true, "hicache_write_policy": "write_back"})), Some(2_048));
        // 256 KiB a token.
        assert_eq!(tokens(json!({HOST_TIER: true, "hicache_size": 2})), Some(7_629));
        assert_eq!(tokens(json!({HOST_TIER: true, "hicache_host_memory_mode": "buffer_only"})), Some(0));
        assert_eq!(tokens(json!({"enable_lmcache": true})), Some(0));
    }

    #[test]
    fn the_kind_of_the_cache_is_known_by_the_pools_of_the_scheduler() {
        for (window_tokens, states, listed, expected) in [
            (Some(json!(null)), Some(json!(null)), Some(false), CacheKind::Full),
            (Some(json!(4096)), Some(json!(null)), Some(false), CacheKind::SlidingWindow),
            (Some(json!(null)), Some(json!(120)), Some(true), CacheKind::RecurrentState),
            (Some(json!(null)), Some(json!(120)), Some(false), CacheKind::RecurrentState),
            // Releases that do not tell of windows, or of neither.
            (None, Some(json!(120)), None, CacheKind::RecurrentState),
            (None, Some(json!(null)), None, CacheKind::Unknown),
            (None, None, Some(true), CacheKind::RecurrentState),
            (None, None, Some(false), CacheKind::Unknown),
            (None, None, None, CacheKind::Unknown),
        ] {
            let mut answer = answer();
            let case = format!("{window_tokens:?}, {states:?}, {listed:?}");
            let mut scheduler = json!({"memory_usage": {"token_capacity": 1024}});
            if let Some(tokens) = window_tokens {
                scheduler["memory_usage"]["token_capacity_swa"] = tokens;
            }
            if let Some(states) = states {
                scheduler["max_mamba_cache_size"] = states;
            }
            answer["internal_states"] = json!([scheduler]);
            if let Some(listed) = listed {
                answer["uses_mamba_radix_cache"] = json!(listed);
            }
            assert_eq!(EngineInfo::read(&answer, "w").unwrap().cache_kind, expected, "{case}");
        }
    }

    #[test]
    fn without_schedulers_little_is_known_and_a_window_in_the_configuration_is_no_sign() {
        let mut answer = answer();
        assert_eq!(EngineInfo::read(&answer, "w").unwrap().cache_kind, CacheKind::Unknown);
        answer["sliding_window"] = json!(1024);
        answer["disable_hybrid_swa_memory"] = json!(true);
        answer["internal_states"] =
            json!([{"max_mamba_cache_size": null, "memory_usage": {"token_capacity_swa": null}}]);
        assert_eq!(EngineInfo::read(&answer, "w").unwrap().cache_kind, CacheKind::Full);
    }

    #[test]
    fn exact_sources_are_preferred_on_the_same_node_only() {
        let mut answer = answer();
        answer["kv_event_sources"] = json!([
            {"dp_rank": 1, "endpoint": "tcp://127.0.0.1:5", "topic": "t", "replay_endpoint": null},
            {"dp_rank": 0, "endpoint": "tcp://127.0.0.1:4", "topic": "t", "replay_endpoint": "tcp://127.0.0.1:9"},
        ]);
        let near = EngineInfo::read(&answer, "127.0.0.1").unwrap();
        assert_eq!(near.events[0].endpoint, "tcp://127.0.0.1:4");
        assert_eq!(
            (near.events[0].replay.as_deref(), &near.events[1].replay),
            (Some("tcp://127.0.0.1:9"), &None)
        );
        let far = EngineInfo::read(&answer, "10.0.0.7").unwrap();
        assert_eq!(far.events[0].endpoint, "tcp://10.0.0.7:31557");
    }

    #[test]
    fn releases_without_discovery_are_read_from_their_arguments() {
        let config =
            r#"{"publisher":"zmq","endpoint":"tcp://127.0.0.1:5557","replay_endpoint":"tcp://*:5558"}"#;
        let answer = json!({"page_size": 1, "kv_events_config": config});
        let info = EngineInfo::read(&answer, "w").unwrap();
        assert_eq!(info.events[0].endpoint, "tcp://127.0.0.1:5557");
        assert_eq!(info.events[0].replay.as_deref(), Some("tcp://w:5558"));
        assert!(info.publisher_connects && info.life_fingerprint.is_none());
    }

    #[test]
    fn a_life_is_known_by_the_times_of_its_start() {
        let fingerprint = |answer: &Value| EngineInfo::read(answer, "w").unwrap().life_fingerprint;
        let mut later = answer();
        later["startup_time"]["tokenizer_e2e"] = json!(69.5);
        later["startup_time"]["cuda_graph"]["decode"] = json!(1.5);
        assert_eq!(fingerprint(&answer()), fingerprint(&later));
        later["startup_time"]["scheduler_e2e"] = json!(8.500_000_000_1);
        assert_ne!(fingerprint(&answer()), fingerprint(&later));
    }

    #[test]
    fn a_start_is_read_in_whatever_unit_it_is_shown() {
        let started = |value: Value| {
            let answer = json!({"page_size": 1, "start_time": value});
            EngineInfo::read(&answer, "w").unwrap().started_us
        };
        let expected = Some(1_760_000_000_500_000);
        for shown in [json!(1_760_000_000.5), json!(1_760_000_000_500_u64), json!("1760000000500000")] {
            assert_eq!(started(shown), expected);
        }
        assert_eq!(started(json!(1_760_000_000_500_000_000_u64)), expected);
        assert_eq!(
            (started(json!(12.5)), started(json!("boot-7")), started(json!(null))),
            (None, None, None)
        );
    }

    #[test]
    fn switched_off_caches_and_missing_pages() {
        let mut off = answer();
        off["disable_radix_cache"] = json!(true);
        let info = EngineInfo::read(&off, "w").unwrap();
        assert!(info.events.is_empty() && !info.prefix_cache);
        assert_eq!(EngineInfo::read(&json!({"version": "1"}), "w"), None);
        assert_eq!(EngineInfo::read(&json!([]), "w"), None);
    }
}
