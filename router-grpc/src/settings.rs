//! From a configuration to the settings of core and data plane: files are read here, once.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use router_core::key::{KeySpace, Unit};
use router_core::{ReportLevel, Settings};
use router_http::{DataPlaneConfig, Secret, SecretProblem};

use crate::config::{ConfigError, LevelName, RouterConfig};

/// The core's settings.
pub(crate) fn core(config: &RouterConfig) -> Result<Settings, ConfigError> {
    let seed = seed(config.hash_seed_file.as_deref())?;
    let space = |unit, size| KeySpace::new(unit, size, seed).expect("block sizes were checked");
    Ok(Settings {
        token_space: space(Unit::Token, config.block_size),
        text_space: space(Unit::Text, config.text_block_size),
        policy: config.policy_config(),
        accept_any_model: config.accept_any_model,
        predict: !config.claims.disable_prediction,
        correct_from_responses: !config.claims.disable_response_correction,
        count_from_engines: config.claims.counts_interval().is_some(),
        predicted_ttl: Duration::from_secs_f64(config.predicted_ttl_secs),
        stale_after: config.lease(),
        default_capacity_tokens: config.default_capacity_tokens,
        max_blocks: config.max_blocks,
        ejection: config.faults.ejection(),
        limits: config.admission.limits(),
        ..Settings::new(seed)
    })
}

/// The data plane's configuration.
pub(crate) fn data_plane(config: &RouterConfig, listen: SocketAddr) -> Result<DataPlaneConfig, ConfigError> {
    let seconds = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
    let api_key = match &config.api_key {
        Some(key) => Some(Secret::new(key).map_err(|problem| ConfigError::Key { flag: "api-key", problem })?),
        None => secret("api-key-file", config.api_key_file.as_deref())?,
    };
    let worker_api_key = secret("worker-api-key-file", config.worker_api_key_file.as_deref())?;
    Ok(DataPlaneConfig {
        listen,
        threads: config.http_threads,
        max_body_bytes: config.max_payload_size,
        max_connections: config.max_connections,
        max_attempts: config.max_attempts,
        head_timeout: seconds(config.answer_timeout_secs),
        request_timeout: config.faults.request_timeout(),
        retry: config.faults.retry(),
        asks_usage: !config.api.disable_stream_usage,
        continue_streams: config.faults.continue_streams,
        admission: config.admission.settings(),
        idle_timeout: seconds(config.idle_timeout_secs),
        header_timeout: Duration::from_secs(config.header_timeout_secs),
        upload_idle_timeout: Duration::from_secs(config.upload_idle_timeout_secs),
        pool_idle_timeout: Duration::from_secs_f64(config.pool_idle_timeout_secs),
        dead_worker_timeout: Duration::from_secs(config.dead_worker_timeout_secs),
        shutdown_grace: Duration::from_secs(config.shutdown_grace_secs),
        worker_api_key: worker_api_key.or_else(|| api_key.clone()),
        api_key,
        api: config.api.settings()?,
        ..DataPlaneConfig::default()
    })
}

/// The secret in a file, if one is named; an empty file is an error, not an open door.
pub(crate) fn secret(flag: &'static str, path: Option<&Path>) -> Result<Option<Secret>, ConfigError> {
    let Some(path) = path else { return Ok(None) };
    let secret = Secret::new(&read(flag, path)?).map_err(|problem| match problem {
        SecretProblem::Empty => content(flag, path, "the file is empty"),
        SecretProblem::Characters => {
            content(flag, path, "it must hold one line of visible ASCII characters, to go into a header")
        }
    });
    secret.map(Some)
}

fn seed(path: Option<&Path>) -> Result<u64, ConfigError> {
    const FLAG: &str = "hash-seed-file";
    let Some(path) = path else {
        // The operating system's randomness: nobody can guess which blocks would collide.
        return Ok(getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)));
    };
    let text = read(FLAG, path)?;
    let digits = text.trim();
    let seed = u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16);
    seed.ok_or_else(|| {
        content(FLAG, path, "it must hold 16 hexadecimal digits, like `openssl rand -hex 8` prints")
    })
}

fn read(flag: &'static str, path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::File { flag, path: path.to_owned(), source })
}

fn content(flag: &'static str, path: &Path, problem: &'static str) -> ConfigError {
    ConfigError::Content { flag, path: PathBuf::from(path), problem }
}

/// What agents are told.
impl RouterConfig {
    pub(crate) fn level(&self) -> ReportLevel {
        match self.report_level {
            LevelName::Counts => ReportLevel::Counts,
            LevelName::Removals => ReportLevel::Removals,
            LevelName::Full => ReportLevel::Full,
        }
    }

    /// `None`: only what was lost is looked for.
    pub(crate) fn reconcile_interval(&self) -> Option<Duration> {
        (self.reconcile_interval_secs > 0.0).then(|| Duration::from_secs_f64(self.reconcile_interval_secs))
    }

    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs_f64(self.lease_secs)
    }
}
