//! What in an engine's setup keeps an agent from reporting well.

use std::fmt;

use router_core::CacheKind;

use crate::config::AgentConfig;
use crate::engine::{EngineClient, EngineError, EngineInfo, Eviction};

/// Most decode steps that evictions and finished requests should wait to be published.
const MAX_DECODE_LOG_INTERVAL: u64 = 4;
const MAX_LOAD_INTERVAL: u64 = 4;
/// Below it, events cost about 13 bytes a token instead of about 5.
const MIN_PAGE_SIZE: u32 = 16;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Good,
    /// Works, but worse than it could.
    Advice,
    /// Without it the agent can report load only.
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was found, and what to do about it.
    pub text: String,
}

/// A check that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigErrors),
    /// The engine does not describe itself.
    #[error("the engine does not describe itself: {0}")]
    Engine(#[from] EngineError),
}

/// Looks at the live engine of a configuration; its routers are not contacted.
pub async fn check(config: AgentConfig) -> Result<Vec<Finding>, CheckError> {
    // Checking an engine needs no router.
    let routers =
        if config.routers.is_empty() { vec!["http://127.0.0.1:1".to_owned()] } else { config.routers };
    let settings = AgentConfig { routers, ..config }.settle()?;
    Ok(findings(&EngineClient::new(&settings).info().await?))
}

/// What an engine's description shows.
pub fn findings(info: &EngineInfo) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut add = |severity, text: String| out.push(Finding { severity, text });
    let version = if info.version.is_empty() { "of unknown version" } else { &info.version };
    add(Severity::Good, format!("SGLang {version}, model {:?}, {} dp rank(s)", info.model, info.dp_size));
    match info.events.first() {
        Some(first) => add(Severity::Good, format!("KV events: {} and one port up for each further rank", first.endpoint)),
        None if !info.prefix_cache => {
            add(Severity::Fault, "the prefix cache is off (--disable-radix-cache): there is nothing to report".to_owned());
        }
        None => add(
            Severity::Fault,
            "KV events are off: start the server with --kv-events-config '{\"publisher\":\"zmq\",\
             \"endpoint\":\"tcp://127.0.0.1:5557\",\"bind\":true,\"replay_endpoint\":\"tcp://127.0.0.1:5657\"}'"
                .to_owned(),
        ),
    }
    if info.publisher_connects {
        add(
            Severity::Fault,
            "the event publisher connects to its concrete address instead of listening there: add \"bind\":true to \
             --kv-events-config, or use tcp://*:PORT"
                .to_owned(),
        );
    }
    if !info.events.is_empty() {
        match info.events.iter().all(|source| source.replay.is_some()) {
            true => add(Severity::Good, "missed events can be replayed".to_owned()),
            false => add(
                Severity::Advice,
                "no replay endpoint: events that are missed once are lost until the cache is flushed; add \
                 \"replay_endpoint\" to --kv-events-config"
                    .to_owned(),
            ),
        }
    }
    add_intervals(info, &mut add);
    add_cache(info, &mut add);
    match info.page_size {
        size if size >= MIN_PAGE_SIZE => add(Severity::Good, format!("page size {size}")),
        size => add(
            Severity::Advice,
            format!(
                "page size {size} makes events large (about 13 bytes a token instead of 5): use --page-size 16 or more"
            ),
        ),
    }
    match info.metrics {
        Some(false) => add(
            Severity::Advice,
            "metrics are off: the engine then counts every queued token as not cached; use --enable-metrics"
                .to_owned(),
        ),
        Some(true) => add(Severity::Good, "metrics are on".to_owned()),
        None => {}
    }
    if info.loads.is_empty() {
        add(
            Severity::Advice,
            "load is polled over HTTP: use --load-publish-endpoint auto (0.5.19 and later) to have it published".to_owned(),
        );
    }
    out
}

fn add_intervals(info: &EngineInfo, add: &mut impl FnMut(Severity, String)) {
    match info.decode_log_interval {
        Some(steps) if steps > MAX_DECODE_LOG_INTERVAL => add(
            Severity::Advice,
            format!(
                "evictions and finished requests wait for up to {steps} decode steps: use --decode-log-interval 1 \
                 (at most {MAX_DECODE_LOG_INTERVAL})"
            ),
        ),
        Some(steps) => add(Severity::Good, format!("events leave every {steps} decode step(s)")),
        None => {}
    }
    if let Some(steps) = info.load_publish_interval.filter(|steps| *steps > MAX_LOAD_INTERVAL) {
        let text = format!(
            "load is published every {steps} decode steps: use --load-snapshot-publish-interval {MAX_LOAD_INTERVAL} or less"
        );
        add(Severity::Advice, text);
    }
}

fn add_cache(info: &EngineInfo, add: &mut impl FnMut(Severity, String)) {
    if let Some(tier) = info.lower_tier {
        let size = match tier.capacity_tokens {
            0 => "it does not say how much".to_owned(),
            tokens => format!("{tokens} tokens of each rank beside those of the device"),
        };
        let text = format!(
            "keeps in a lower tier what leaves its device ({size}): routers infer nothing from responses and counts, and claim what \
             any tier holds that its events tell of"
        );
        add(Severity::Advice, text);
    } else if info.eviction == Eviction::Other {
        let text = "evicts by another rule than LRU, or has a cache that was plugged in: routers infer nothing from responses and \
                    counts";
        add(Severity::Advice, text.to_owned());
    }
    let beside = match info.cache_kind {
        CacheKind::Unknown => return,
        CacheKind::Full => {
            return add(Severity::Good, "its cache is of full attention alone".to_owned());
        }
        CacheKind::SlidingWindow => "sliding windows",
        CacheKind::RecurrentState => "recurrent state",
    };
    let text = format!(
        "its model has {beside}, evicted apart from the KV that events tell of: more is reported than can be used, and routers infer \
         nothing from responses and counts"
    );
    add(Severity::Advice, text);
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.severity {
            Severity::Good => "ok    ",
            Severity::Advice => "advice",
            Severity::Fault => "FAULT ",
        };
        write!(f, "{mark}  {}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn worst(answer: serde_json::Value) -> (Severity, Vec<String>) {
        let findings = findings(&EngineInfo::read(&answer, "127.0.0.1").unwrap());
        let faults = findings.iter().any(|finding| finding.severity == Severity::Fault);
        let advice: Vec<String> =
            findings.iter().filter(|f| f.severity != Severity::Good).map(ToString::to_string).collect();
        let worst = match (faults, advice.is_empty()) {
            (true, _) => Severity::Fault,
            (false, false) => Severity::Advice,
            (false, true) => Severity::Good,
        };
        (worst, advice)
    }

    fn good() -> serde_json::Value {
        json!({"page_size": 16, "dp_size": 1, "decode_log_interval": 1, "load_snapshot_publish_interval": 4,
            "enable_metrics": true,
            "kv_events": {"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 1, "block_size": 16,
                "dp_size": 1, "load_endpoint_port_base": 3, "replay_endpoint_port_base": 2}})
    }

    #[test]
    fn a_good_setup_needs_no_advice() {
        assert_eq!(worst(good()), (Severity::Good, Vec::new()));
    }

    #[test]
    fn a_cache_that_teaches_less_is_told() {
        let mut ours = good();
        ours["radix_eviction_policy"] = json!("lfu");
        ours["internal_states"] =
            json!([{"max_mamba_cache_size": null, "memory_usage": {"token_capacity_swa": 4096}}]);
        let (severity, advice) = worst(ours.clone());
        assert!(severity == Severity::Advice && advice.len() == 2, "{advice:?}");
        assert!(advice[0].contains("another rule") && advice[1].contains("sliding windows"), "{advice:?}");
        ours["radix_eviction_policy"] = json!("lru");
        ours["internal_states"][0]["max_mamba_cache_size"] = json!(64);
        let (_, advice) = worst(ours.clone());
        assert!(advice.len() == 1 && advice[0].contains("recurrent state"), "{advice:?}");
        ours["internal_states"] =
            json!([{"max_mamba_cache_size": null, "memory_usage": {"token_capacity_swa": null}}]);
        assert_eq!(worst(ours.clone()), (Severity::Good, Vec::new()));
        ours["enable_hierarchical_cache"] = json!(true);
        ours["hicache_ratio"] = json!(2.0);
        for (capacity, size) in [(json!(1024), "2048 tokens of each rank"), (json!(null), "does not say")] {
            ours["max_total_num_tokens"] = capacity;
            let (_, advice) = worst(ours.clone());
            assert!(advice.len() == 1 && advice[0].contains(size), "{advice:?}");
        }
    }

    #[test]
    fn defaults_get_advice_and_missing_events_are_a_fault() {
        let mut lazy = good();
        lazy["decode_log_interval"] = json!(40);
        lazy["load_snapshot_publish_interval"] = json!(15);
        lazy["kv_events"]["block_size"] = json!(1);
        lazy["kv_events"]["replay_endpoint_port_base"] = json!(null);
        let (severity, advice) = worst(lazy);
        assert_eq!((severity, advice.len()), (Severity::Advice, 4), "{advice:?}");
        let (severity, _) = worst(json!({"page_size": 16}));
        assert_eq!(severity, Severity::Fault);
        let config = "{\"publisher\":\"zmq\",\"endpoint\":\"tcp://127.0.0.1:5557\"}";
        let (severity, advice) = worst(json!({"page_size": 16, "kv_events_config": config}));
        assert!(severity == Severity::Fault && advice[0].contains("bind"), "{advice:?}");
    }
}
