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
    weight: Weight,
    what: String,
}

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Good,
    /// Works, and could be better or safer.
    Advice,
    Bad,
}

/// Addresses that nobody else's machine can reach.
const LOOPBACK: [&str; 3] = ["127.0.0.1", "localhost", "::1"];

pub(super) async fn run(config: RouterConfig, notes: &[&str]) -> ExitCode {
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
    findings.extend(notes.iter().map(|note| advice((*note).to_owned())));
    findings.extend(check_exposure(&config, token.is_some()).map(|what| advice(what.to_owned())));
    findings.extend(check_workers(&config, api_key).await);
    let mut out = io::stdout().lock();
    for finding in &findings {
        let mark = match finding.weight {
            Weight::Good => "✓",
            Weight::Advice => "!",
            Weight::Bad => "✗",
        };
        let _ = writeln!(out, "{mark} {}", finding.what);
    }
    if findings.iter().any(|finding| finding.weight == Weight::Bad) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// What whoever reaches the gRPC port may do.
fn check_exposure(config: &RouterConfig, token: bool) -> Option<&'static str> {
    if LOOPBACK.contains(&&*config.grpc_host) {
        return None;
    }
    Some(match token {
        true => {
            "whoever reaches the gRPC port can add, remove and drain workers: --agent-token-file is asked of agents only, \
             administration has no token; keep the port on a network you trust"
        }
        false => {
            "whoever reaches the gRPC port can add, remove and drain workers, and report as any worker's agent; keep the \
             port on a network you trust, and give --agent-token-file against the latter"
        }
    })
}

async fn check_workers(config: &RouterConfig, api_key: Option<Secret>) -> Vec<Finding> {
    let prober = Prober::new(ProbeSettings {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs_f64(config.health_check_timeout_secs),
        failure_threshold: 1,
        api_key,
        counts_interval: None,
    });
    let mut findings = Vec::new();
    let pools = config.pools.members();
    for url in config.worker_urls.iter().chain(pools.iter().map(|member| &member.url)) {
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
            findings.push(self::advice(format!("{base}: {advice}")));
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
    advise(
        info["enable_metrics"] == Value::Bool(false),
        "does not say how much it has cached, which corrects claims where no agent does; use --enable-metrics",
    );
    advise(
        !profile.evicts_lru,
        "does not evict by LRU, or keeps what it evicts elsewhere, so that responses and counts teach less about evictions",
    );
    advise(
        profile.cache_kind.is_hybrid(),
        "its model has sliding windows or recurrent state, evicted apart from the KV that is counted and reported, so that claims \
         promise more than is used and responses teach less about evictions",
    );
    findings
}

fn good(what: String) -> Finding {
    Finding { weight: Weight::Good, what }
}

fn advice(what: String) -> Finding {
    Finding { weight: Weight::Advice, what }
}

fn bad(what: String) -> Finding {
    Finding { weight: Weight::Bad, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_about_an_open_port_is_true_with_and_without_a_token() {
        let open = RouterConfig { grpc_host: "0.0.0.0".to_owned(), ..RouterConfig::default() };
        for token in [false, true] {
            assert!(check_exposure(&open, token).unwrap().contains("add, remove and drain"));
        }
        assert_eq!(check_exposure(&RouterConfig::default(), false), None);
    }
}
