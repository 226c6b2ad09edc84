//! What a simulated server says about itself: models, configuration, load, metrics.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Server;
use crate::engine::Status;
use crate::publisher::{EVENTS_TOPIC, LOAD_TOPIC};

/// The version whose behaviour is simulated.
const VERSION: &str = "0.5.23";

impl Server {
    pub(super) fn models(&self) -> Value {
        let name = &self.inner.config.served_model_name;
        let created = self.inner.started_at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let model = json!({"id": name, "object": "model", "created": created, "owned_by": "sglang", "root": name,
            "parent": null, "max_model_len": self.inner.config.pool_tokens()});
        json!({"object": "list", "data": [model]})
    }

    pub(super) fn model_info(&self) -> Value {
        let config = &self.inner.config;
        json!({
            "model_path": config.served_model_name,
            "tokenizer_path": self.tokenizer_path(),
            "is_generation": true,
            "weight_version": self.weight_version(),
            "has_image_understanding": false,
            "has_audio_understanding": false,
        })
    }

    fn tokenizer_path(&self) -> String {
        let config = &self.inner.config;
        config
            .tokenizer_path
            .as_ref()
            .map_or(config.served_model_name.clone(), |path| path.display().to_string())
    }

    pub(super) fn server_info(&self) -> Value {
        let (config, ports) = (&self.inner.config, self.inner.ports);
        // Durations of a start; different for every start, as they are for a real server.
        let since_epoch = self.inner.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let unique = f64::from(since_epoch.subsec_nanos()) / 1e9;
        let mut info = json!({
            "version": VERSION,
            "status": "ready",
            "frontend": "python",
            "model_path": config.served_model_name,
            "tokenizer_path": self.tokenizer_path(),
            "served_model_name": config.served_model_name,
            "chat_template": config.chat_template.as_ref().map(|path| path.display().to_string()),
            "hf_chat_template_name": null,
            "default_chat_template_kwargs": null,
            "weight_version": self.weight_version(),
            "host": config.host,
            "port": self.inner.address.port(),
            "page_size": config.page_size,
            "dp_size": config.dp_size,
            "max_total_num_tokens": config.pool_tokens(),
            "max_req_input_len": config.max_req_input_len(),
            "max_running_requests": config.max_running_requests,
            "chunked_prefill_size": config.chunked_prefill_size,
            "radix_eviction_policy": config.radix_eviction_policy.name(),
            "radix_eviction_policy_config": config.radix_eviction_policy_config,
            "disable_radix_cache": false,
            "enable_metrics": true,
            "enable_cache_report": true,
            "decode_log_interval": config.decode_log_interval,
            "disable_overlap_schedule": config.disable_overlap_schedule,
            "load_snapshot_publish_interval": 15,
            "disaggregation_mode": config.disaggregation_mode.name(),
            "disaggregation_bootstrap_port": ports.bootstrap.unwrap_or(config.disaggregation_bootstrap_port),
            "stream_interval": config.stream_interval,
            "schedule_policy": "fcfs",
            "kv_events_config": json!({"publisher": "zmq", "endpoint": format!("tcp://*:{}", ports.events),
                "replay_endpoint": format!("tcp://*:{}", ports.replay), "topic": EVENTS_TOPIC}).to_string(),
            "kv_events": {
                "publisher": "zmq",
                "endpoint_host": "*",
                "endpoint_port_base": ports.events,
                "topic": EVENTS_TOPIC,
                "block_size": config.page_size,
                "dp_size": config.dp_size,
                "load_endpoint_port_base": ports.load,
                "load_topic": LOAD_TOPIC,
                "replay_endpoint_port_base": ports.replay,
            },
            "startup_time": {"load_weight": unique, "scheduler_e2e": unique * 2.0 + 0.1, "tokenizer_e2e": unique * 3.0 + 0.2},
            "uses_mamba_radix_cache": config.cache_kind.has_states(),
            "internal_states": [{"effective_max_running_requests_per_dp": config.max_running_requests,
                "max_mamba_cache_size": config.cache_kind.states(config.max_running_requests),
                "memory_usage": config.cache_kind.memory_usage(config.pool_tokens(), config.kv_bytes_per_token())}],
        });
        if let Some(fields) = info.as_object_mut() {
            fields.extend(config.hicache.fields());
        }
        info
    }

    /// `/v1/loads`; a rank that does not exist has no entry.
    pub(super) fn loads(&self, query: &str) -> Value {
        let rank = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("dp_rank="))
            .and_then(|rank| rank.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let loads = self
            .inner
            .ranks
            .iter()
            .enumerate()
            .filter(|(index, _)| rank.is_none_or(|rank: usize| rank == *index));
        let loads = loads.map(|(index, engine)| {
            let Status { load, totals, .. } = engine.status();
            json!({
                "timestamp": now,
                "dp_rank": index,
                "num_running_reqs": load.running,
                "num_waiting_reqs": load.waiting,
                "num_waiting_uncached_tokens": load.waiting_uncached_tokens,
                "num_used_tokens": load.tokens,
                "num_total_tokens": load.total_tokens,
                "max_total_num_tokens": load.max_total_tokens,
                "max_running_requests": load.max_running,
                "token_usage": load.tokens as f64 / load.max_total_tokens.max(1) as f64,
                "cache_hit_rate": totals.cached_tokens as f64 / totals.prompt_tokens.max(1) as f64,
                "total_prefill_uncached_tokens": load.prefill_uncached_total,
                "total_prefill_busy_us": load.prefill_busy_us_total,
            })
        });
        let loads: Vec<_> = loads.collect();
        json!({"timestamp": now.to_string(), "version": VERSION, "accelerator": null, "num_accelerators": 1, "loads": loads})
    }

    /// `/metrics` in Prometheus text, the families that routers and agents read, labelled as SGLang labels them.
    pub(super) fn metrics(&self) -> String {
        type Family = (&'static str, &'static str, fn(&Status) -> f64);
        let mut families: Vec<Family> = vec![
            ("num_running_reqs", "gauge", |s| s.load.running as f64),
            ("num_queue_reqs", "gauge", |s| s.load.waiting as f64),
            ("num_used_tokens", "gauge", |s| s.load.tokens as f64),
            ("token_usage", "gauge", |s| s.load.tokens as f64 / s.load.max_total_tokens.max(1) as f64),
            ("kv_used_tokens", "gauge", |s| s.load.tokens as f64),
            ("kv_evictable_tokens", "gauge", |s| s.evictable_tokens as f64),
            ("kv_available_tokens", "gauge", |s| {
                let taken = s.load.tokens as f64 + s.evictable_tokens as f64;
                s.load.max_total_tokens as f64 - taken
            }),
            ("max_total_num_tokens", "gauge", |s| s.load.max_total_tokens as f64),
            ("prompt_tokens_total", "counter", |s| s.totals.prompt_tokens as f64),
            ("cached_tokens_total", "counter", |s| s.totals.cached_tokens as f64),
            ("evicted_tokens_total", "counter", |s| s.totals.evicted_tokens as f64),
            ("num_aborted_requests_total", "counter", |s| s.totals.aborted as f64),
        ];
        if self.inner.config.hicache.enable_hierarchical_cache {
            families.push(("hicache_host_used_tokens", "gauge", |s| s.host_tokens as f64));
        }
        let model = &self.inner.config.served_model_name;
        let common = format!("engine_type=\"unified\",model_name=\"{model}\",moe_ep_rank=\"0\",");
        let mut text = format!("# uptime {:.3} s\n", self.inner.started.elapsed().as_secs_f64());
        for (name, kind, value) in families {
            text += &format!("# TYPE sglang:{name} {kind}\n");
            for (rank, engine) in self.inner.ranks.iter().enumerate() {
                let value = value(&engine.status());
                let dp_rank = format!("dp_rank=\"{rank}\",");
                let labels = match name {
                    "evicted_tokens_total" => format!("cache_type=\"UnifiedRadixCache\",{dp_rank}"),
                    // A server of one rank does not name it.
                    _ if self.inner.ranks.len() == 1 => common.clone(),
                    _ => format!("{dp_rank}{common}"),
                };
                text += &format!("sglang:{name}{{{labels}pp_rank=\"0\",tp_rank=\"0\"}} {value}\n");
            }
        }
        text
    }
}
