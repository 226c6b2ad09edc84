//! `check`: what is wrong with a configuration and its workers, before anything is served.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use router_http::Secret;
use serde_json::Value;

use super::complain;
use crate::config::RouterConfig;
use crate::probe::{Identity, ProbeSettings, Prober};
use crate::settings;

/// One line of the result.
struct Finding {
    bad: bool,
    what: String,
}

pub(super) async fn run(config: RouterConfig) -> ExitCode {
    if let Err(errors) = config.check() {
        return complain(&errors.to_string());
    }
    let listen = ([127, 0, 0, 1], 0).into();
    let files = settings::core(&config).and_then(|_| settings::data_plane(&config, listen));
    let (api_key, token) =
        match (files, settings::secret("agent-token-file", config.agent_token_file.as_deref())) {
            (Ok(data_plane), Ok(token)) => (data_plane.worker_api_key, token),
            (Err(error), _) | (_, Err(error)) => return complain(&error.to_string()),
        };
    let mut findings = vec![good("the configuration is sound".to_owned())];
    if token.is_none() && config.grpc_host != "127.0.0.1" && config.grpc_host != "localhost" {
        let advice = "anybody who reaches the gRPC port can register workers; give --agent-token-file";
        findings.push(Finding { bad: false, what: advice.to_owned() });
    }
    findings.extend(check_workers(&config, api_key).await);
    let mut out = io::stdout().lock();
    for finding in &findings {
        let _ = writeln!(out, "{} {}", if finding.bad { "✗" } else { "✓" }, finding.what);
    }
    if findings.iter().any(|finding| finding.bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn check_workers(config: &RouterConfig, api_key: Option<Secret>) -> Vec<Finding> {
    let prober = Prober::new(ProbeSettings {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs_f64(config.health_check_timeout_secs),
        failure_threshold: 1,
        api_key,
    });
    let mut findings = Vec::new();
    for url in &config.worker_urls {
        let base = url.trim_end_matches('/');
        if let Err(error) = prober.is_ready(base).await {
            findings.push(bad(format!("{base}: {error}; it will be admitted when it comes up")));
            continue;
        }
        match prober.identify(base).await {
            Ok(identity) => findings.extend(check_worker(base, &identity)),
            Err(error) => findings.push(bad(format!("{base}: ready, but {error}"))),
        }
    }
    findings
}

fn check_worker(base: &str, identity: &Identity) -> Vec<Finding> {
    let (profile, info) = (&identity.profile, &identity.description);
    let mut findings = vec![good(format!(
        "{base}: ready, SGLang {}, {} rank(s), {} tokens each, page size {}",
        profile.engine_version, profile.dp_size, profile.capacity_tokens, profile.page_size
    ))];
    let mut advise = |wrong: bool, advice: &str| {
        if wrong {
            findings.push(Finding { bad: false, what: format!("{base}: {advice}") });
        }
    };
    advise(
        info["kv_events"].is_null(),
        "publishes no KV events, so that an agent can report counts only; see --kv-events-config",
    );
    advise(profile.page_size < 16, "small pages cost many bytes of events; use --page-size 16 or more");
    let over = |name: &str, most: u64| info[name].as_u64().is_some_and(|value| value > most);
    advise(over("decode_log_interval", 4), "evictions are published late; use --decode-log-interval 1");
    advise(
        over("load_snapshot_publish_interval", 4),
        "its load is published late; use --load-snapshot-publish-interval 4",
    );
    advise(
        info["enable_cache_report"] == Value::Bool(false),
        "OpenAI answers do not say what was cached; use --enable-cache-report",
    );
    advise(!profile.evicts_lru, "does not evict by LRU, so that responses teach less about evictions");
    findings
}

fn good(what: String) -> Finding {
    Finding { bad: false, what }
}

fn bad(what: String) -> Finding {
    Finding { bad: true, what }
}
