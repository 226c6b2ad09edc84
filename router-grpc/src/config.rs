//! Every knob of the router, defined once: flag, environment variable, key of the configuration file, help and default.

mod admission;
mod api;
mod claims;
mod faults;
mod pools;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use router_core::policy::{CacheAwareSettings, PolicyConfig, ThresholdSettings};
use router_http::{Secret, SecretProblem};

pub use self::admission::AdmissionArgs;
pub use self::api::ApiArgs;
pub use self::claims::ClaimArgs;
pub use self::faults::FaultConfig;
pub use self::pools::PoolConfig;
pub(crate) use self::pools::PoolMember;
use crate::worker_url::{UrlProblem, worker_url};

/// Configuration of a router. [`Default`] is the command line's, on free loopback ports.
#[derive(Clone, Debug, Args)]
pub struct RouterConfig {
    /// TOML file whose keys are the long flags' names; flags and environment variables win over it
    #[arg(long, env = "ESPALIER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to serve clients on
    #[arg(long, env = "ESPALIER_HOST", default_value = "0.0.0.0")]
    pub host: String,
    /// Port to serve clients on; 0 takes a free one
    #[arg(long, env = "ESPALIER_PORT", default_value_t = 30000)]
    pub port: u16,
    /// Threads that serve clients, each with its own connections to the workers; as many as the machine runs at once
    #[arg(long, env = "ESPALIER_HTTP_THREADS", default_value_t = router_http::available_threads())]
    pub http_threads: usize,
    /// Base URLs of SGLang servers; they need not be up. Agents announce others by themselves
    #[arg(long, env = "ESPALIER_WORKER_URLS", num_args = 0.., value_delimiter = ',', value_name = "URL")]
    pub worker_urls: Vec<String>,
    /// Workers that only prefill or only decode
    #[command(flatten)]
    pub pools: PoolConfig,
    /// How requests are routed
    #[arg(long, env = "ESPALIER_POLICY", value_enum, default_value_t = PolicyName::CacheAware)]
    pub policy: PolicyName,
    /// cache_aware: how many further times a cache miss is charged at most
    #[arg(long, env = "ESPALIER_MISS_PENALTY", default_value_t = 1.0)]
    pub miss_penalty: f64,
    /// cache_aware: how much more that is where every miss evicts something
    #[arg(long, env = "ESPALIER_STIFFNESS", default_value_t = 3.0)]
    pub stiffness: f64,
    /// threshold: least share of a prompt that a match must cover to be followed
    #[arg(long, env = "ESPALIER_CACHE_THRESHOLD", default_value_t = 0.3)]
    pub cache_threshold: f64,
    /// threshold: difference in requests in flight from which loads count as uneven
    #[arg(long, env = "ESPALIER_BALANCE_ABS_THRESHOLD", default_value_t = 64)]
    pub balance_abs_threshold: u64,
    /// threshold: ratio of requests in flight from which loads count as uneven
    #[arg(long, env = "ESPALIER_BALANCE_REL_THRESHOLD", default_value_t = 1.5)]
    pub balance_rel_threshold: f64,
    /// Key that clients must send and that is sent to the workers; better given as a file, since argv is no secret
    #[arg(long, env = "ESPALIER_API_KEY", hide_env_values = true, conflicts_with = "api_key_file")]
    pub api_key: Option<String>,
    /// File with the key that clients must send and that is sent to the workers
    #[arg(long, env = "ESPALIER_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// File with the key that is sent to the workers instead of --api-key
    #[arg(long, env = "ESPALIER_WORKER_API_KEY_FILE", value_name = "FILE")]
    pub worker_api_key_file: Option<PathBuf>,
    /// File with the token that agents must send; read again for every session
    #[arg(long, env = "ESPALIER_AGENT_TOKEN_FILE", value_name = "FILE")]
    pub agent_token_file: Option<PathBuf>,
    /// Accept any model name, as SGLang itself does
    #[arg(long, env = "ESPALIER_ACCEPT_ANY_MODEL")]
    pub accept_any_model: bool,
    /// Largest request body, in bytes
    #[arg(long, env = "ESPALIER_MAX_PAYLOAD_SIZE", default_value_t = 256 << 20)]
    pub max_payload_size: usize,
    /// Longest wait for the head of a worker's answer, in seconds; 0 waits for as long as the client does
    #[arg(long, env = "ESPALIER_ANSWER_TIMEOUT_SECS", default_value_t = 0)]
    pub answer_timeout_secs: u64,
    /// Longest silence within a worker's answer, in seconds; 0 for no bound
    #[arg(long, env = "ESPALIER_IDLE_TIMEOUT_SECS", default_value_t = 600)]
    pub idle_timeout_secs: u64,
    /// Time for a client's connection to send a request's head, in seconds
    #[arg(long, env = "ESPALIER_HEADER_TIMEOUT_SECS", default_value_t = 30)]
    pub header_timeout_secs: u64,
    /// Longest silence within a request's body, in seconds
    #[arg(long, env = "ESPALIER_UPLOAD_IDLE_TIMEOUT_SECS", default_value_t = 30)]
    pub upload_idle_timeout_secs: u64,
    /// How long an unused connection to a worker is kept, in seconds; below the 5 s after which SGLang closes it
    #[arg(long, env = "ESPALIER_POOL_IDLE_TIMEOUT_SECS", default_value_t = 4.0)]
    pub pool_idle_timeout_secs: f64,
    /// Time after which a connection to a worker whose host no longer answers is given up, in seconds
    #[arg(long, env = "ESPALIER_DEAD_WORKER_TIMEOUT_SECS", default_value_t = 30)]
    pub dead_worker_timeout_secs: u64,
    /// Workers tried for one request, the first included
    #[arg(long, env = "ESPALIER_MAX_ATTEMPTS", default_value_t = 3)]
    pub max_attempts: usize,
    /// Client connections at once
    #[arg(long, env = "ESPALIER_MAX_CONNECTIONS", default_value_t = 16_384)]
    pub max_connections: usize,
    /// Time for requests in flight to finish at shutdown, in seconds
    #[arg(long, env = "ESPALIER_SHUTDOWN_GRACE_SECS", default_value_t = 30)]
    pub shutdown_grace_secs: u64,
    /// Time between two health checks of a worker, in seconds
    #[arg(long, env = "ESPALIER_HEALTH_CHECK_INTERVAL_SECS", default_value_t = 1.0)]
    pub health_check_interval_secs: f64,
    /// Longest wait for the answer to a health check, in seconds
    #[arg(long, env = "ESPALIER_HEALTH_CHECK_TIMEOUT_SECS", default_value_t = 5.0)]
    pub health_check_timeout_secs: f64,
    /// Failed health checks in a row after which a worker gets no requests
    #[arg(long, env = "ESPALIER_HEALTH_FAILURE_THRESHOLD", default_value_t = 2)]
    pub health_failure_threshold: u32,
    /// Retries, deadlines and ejections
    #[command(flatten)]
    pub faults: FaultConfig,
    /// Bounds on what is in flight, and the queue
    #[command(flatten)]
    pub admission: AdmissionArgs,
    /// Address of the gRPC port: administration and agents
    #[arg(long, env = "ESPALIER_GRPC_HOST", default_value = "127.0.0.1")]
    pub grpc_host: String,
    /// Port for administration and agents; 0 takes a free one
    #[arg(long, env = "ESPALIER_GRPC_PORT", default_value_t = 50051)]
    pub grpc_port: u16,
    /// Time between two pings of a silent gRPC connection, and to answer one, in seconds
    #[arg(long, env = "ESPALIER_GRPC_KEEPALIVE_SECS", default_value_t = 10)]
    pub grpc_keepalive_secs: u64,
    /// Agents' streams at once
    #[arg(long, env = "ESPALIER_MAX_AGENT_SESSIONS", default_value_t = 8192)]
    pub max_agent_sessions: usize,
    /// Address of the metrics port
    #[arg(long, env = "ESPALIER_PROMETHEUS_HOST", default_value = "127.0.0.1")]
    pub prometheus_host: String,
    /// Port for Prometheus metrics at /metrics; 0 takes a free one
    #[arg(long, env = "ESPALIER_PROMETHEUS_PORT", default_value_t = 29000)]
    pub prometheus_port: u16,
    /// Most that agents are asked to report
    #[arg(long, env = "ESPALIER_REPORT_LEVEL", value_enum, default_value_t = LevelName::Full)]
    pub report_level: LevelName,
    /// Silence of an agent after which its reports are no longer followed, in seconds
    #[arg(long, env = "ESPALIER_LEASE_SECS", default_value_t = 15.0)]
    pub lease_secs: f64,
    /// How long agents collect changes before they report them, in milliseconds
    #[arg(long, env = "ESPALIER_REPORT_INTERVAL_MS", default_value_t = 50)]
    pub report_interval_ms: u32,
    /// Longest time between two comparisons of an agent's blocks with the claims on them, in seconds. Where they drift apart they are compared
    /// more often, up to once a second; 0 compares only where reports were lost
    #[arg(long, env = "ESPALIER_RECONCILE_INTERVAL_SECS", default_value_t = 60.0)]
    pub reconcile_interval_secs: f64,
    /// Time after which a predicted claim lapses that nothing has confirmed, in seconds
    #[arg(long, env = "ESPALIER_PREDICTED_TTL_SECS", default_value_t = 600.0)]
    pub predicted_ttl_secs: f64,
    /// Sources of claims.
    #[command(flatten)]
    pub claims: ClaimArgs,
    /// Tokens in a block of the index
    #[arg(long, env = "ESPALIER_BLOCK_SIZE", default_value_t = 64)]
    pub block_size: u32,
    /// Bytes in a block of text prompts
    #[arg(long, env = "ESPALIER_TEXT_BLOCK_SIZE", default_value_t = 256)]
    pub text_block_size: u32,
    /// File with the seed of the block hash, 16 hexadecimal digits; routers that share one agree on ties. Random without
    #[arg(long, env = "ESPALIER_HASH_SEED_FILE", value_name = "FILE")]
    pub hash_seed_file: Option<PathBuf>,
    /// Blocks in the index at most
    #[arg(long, env = "ESPALIER_MAX_BLOCKS", default_value_t = 8 << 20)]
    pub max_blocks: u64,
    /// Tokens claimed at most for a target of unknown capacity
    #[arg(long, env = "ESPALIER_DEFAULT_CAPACITY_TOKENS", default_value_t = 1 << 20)]
    pub default_capacity_tokens: u64,
    /// What is logged, in the syntax of RUST_LOG
    #[arg(long, env = "ESPALIER_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Log as JSON
    #[arg(long, env = "ESPALIER_LOG_JSON")]
    pub log_json: bool,
    /// Beyond the generation of text.
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PolicyName {
    CacheAware,
    Threshold,
    LeastLoad,
    PowerOfTwo,
    RoundRobin,
    Random,
}

/// Report levels by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LevelName {
    Counts,
    Removals,
    Full,
}

/// All that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is out of its range.
    #[error("--{flag} {value}: {problem}")]
    Range {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        problem: &'static str,
    },
    /// A worker's URL cannot be used.
    #[error("--worker-urls {url}: {problem}; write it like http://10.0.0.7:30000")]
    WorkerUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: UrlProblem,
    },
    /// A URL of a pool cannot be used.
    #[error("--{flag} {url}: {problem}; write it like http://10.0.0.7:30000")]
    PoolUrl {
        /// The flag.
        flag: &'static str,
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: UrlProblem,
    },
    /// A key that was given by itself cannot be used. Its value is not shown.
    #[error("--{flag}: {problem}; leave the flag and its environment variable out to ask for no key")]
    Key {
        /// The flag.
        flag: &'static str,
        /// What is wrong with it.
        problem: SecretProblem,
    },
    /// A file cannot be read.
    #[error("--{flag} {}: {source}", path.display())]
    File {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("--{flag} {}: {problem}", path.display())]
    Content {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Default for RouterConfig {
    fn default() -> Self {
        let command = RouterConfig::augment_args(clap::Command::new("router"));
        // Without the environment: an embedder's configuration is what it says.
        let command = command.mut_args(|argument| argument.env(None::<&str>));
        let matches = command.get_matches_from(["router"]);
        let parsed = <Self as clap::FromArgMatches>::from_arg_matches(&matches);
        let parsed = parsed.expect("every knob without a default is optional");
        let loopback = || "127.0.0.1".to_owned();
        Self { host: loopback(), port: 0, grpc_port: 0, prometheus_port: 0, ..parsed }
    }
}

/// Threads beyond which nothing is served faster on any machine, and sockets run out.
const MOST_HTTP_THREADS: usize = 1024;

impl RouterConfig {
    /// Finds all that is wrong at once.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        let mut errors = Vec::new();
        for url in &self.worker_urls {
            if let Err(problem) = worker_url(url) {
                errors.push(ConfigError::WorkerUrl { url: url.clone(), problem });
            }
        }
        self.pools.check(&self.worker_urls, &mut errors);
        if let Some(Err(problem)) = self.api_key.as_deref().map(Secret::new) {
            errors.push(ConfigError::Key { flag: "api-key", problem });
        }
        self.api.check(&mut errors);
        let mut range = |flag, value: String, good: bool, problem| {
            if !good {
                errors.push(ConfigError::Range { flag, value, problem });
            }
        };
        let share = (0.0..=1.0).contains(&self.cache_threshold);
        range("cache-threshold", self.cache_threshold.to_string(), share, "must be a share between 0 and 1");
        let at_least_one = |value: f64| value >= 1.0 && value.is_finite();
        let ratio = at_least_one(self.balance_rel_threshold);
        range("balance-rel-threshold", self.balance_rel_threshold.to_string(), ratio, "must be at least 1");
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        range(
            "miss-penalty",
            self.miss_penalty.to_string(),
            not_negative(self.miss_penalty),
            "must not be negative",
        );
        let interval = self.reconcile_interval_secs;
        let good = (0.0..=1e6).contains(&interval);
        range(
            "reconcile-interval-secs",
            interval.to_string(),
            good,
            "must be 0, or a number of seconds of at most a million",
        );
        range("stiffness", self.stiffness.to_string(), not_negative(self.stiffness), "must not be negative");
        let seconds = |value: f64| value > 0.0 && value <= 1e6;
        for (flag, value) in [
            ("health-check-interval-secs", self.health_check_interval_secs),
            ("health-check-timeout-secs", self.health_check_timeout_secs),
            ("lease-secs", self.lease_secs),
            ("predicted-ttl-secs", self.predicted_ttl_secs),
            ("pool-idle-timeout-secs", self.pool_idle_timeout_secs),
        ] {
            range(flag, value.to_string(), seconds(value), "must be a number of seconds greater than zero");
        }
        for (flag, value) in [
            ("max-payload-size", self.max_payload_size as u64),
            ("max-attempts", self.max_attempts as u64),
            ("max-connections", self.max_connections as u64),
            ("default-capacity-tokens", self.default_capacity_tokens),
            ("health-failure-threshold", u64::from(self.health_failure_threshold)),
            ("report-interval-ms", u64::from(self.report_interval_ms)),
            ("header-timeout-secs", self.header_timeout_secs),
            ("upload-idle-timeout-secs", self.upload_idle_timeout_secs),
            ("dead-worker-timeout-secs", self.dead_worker_timeout_secs),
            ("grpc-keepalive-secs", self.grpc_keepalive_secs),
            ("max-agent-sessions", self.max_agent_sessions as u64),
        ] {
            range(flag, value.to_string(), value > 0, "must be greater than zero");
        }
        let threads = (1..=MOST_HTTP_THREADS).contains(&self.http_threads);
        range("http-threads", self.http_threads.to_string(), threads, "must be between 1 and 1024");
        let blocks = (1..=router_core::MAX_BLOCKS).contains(&self.max_blocks);
        const { assert!(router_core::MAX_BLOCKS == 200_000_000, "the text below says so") };
        range("max-blocks", self.max_blocks.to_string(), blocks, "must be between 1 and 200 million");
        for (flag, value) in [("block-size", self.block_size), ("text-block-size", self.text_block_size)] {
            let good = (1..=router_core::key::MAX_BLOCK_SIZE).contains(&value);
            range(flag, value.to_string(), good, "must be between 1 and 65536");
        }
        self.faults.check(&mut errors);
        self.claims.check(&mut errors);
        self.admission.check(&mut errors);
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }

    pub(crate) fn policy_config(&self) -> PolicyConfig {
        match self.policy {
            PolicyName::CacheAware => PolicyConfig::CacheAware(CacheAwareSettings {
                miss_penalty: self.miss_penalty,
                stiffness: self.stiffness,
                ..CacheAwareSettings::default()
            }),
            PolicyName::Threshold => PolicyConfig::Threshold(ThresholdSettings {
                cache_threshold: self.cache_threshold,
                balance_abs_threshold: self.balance_abs_threshold,
                balance_rel_threshold: self.balance_rel_threshold,
            }),
            PolicyName::LeastLoad => PolicyConfig::LeastLoad,
            PolicyName::PowerOfTwo => PolicyConfig::PowerOfTwo,
            PolicyName::RoundRobin => PolicyConfig::RoundRobin,
            PolicyName::Random => PolicyConfig::Random,
        }
    }

    /// Whether a knob of the policy `threshold` has another value than its default, and another policy is in force.
    pub(crate) fn has_unused_thresholds(&self) -> bool {
        let default = Self::default();
        let own = |config: &Self| {
            (config.cache_threshold, config.balance_abs_threshold, config.balance_rel_threshold)
        };
        self.policy != PolicyName::Threshold && own(self) != own(&default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_every_fault_is_found_at_once() {
        RouterConfig::default().check().unwrap();
        let bad = RouterConfig {
            worker_urls: vec!["10.0.0.1".to_owned(), "https://a".to_owned(), "http://ok:1".to_owned()],
            cache_threshold: 3.0,
            lease_secs: 0.0,
            block_size: 0,
            api_key: Some(" ".to_owned()),
            ..RouterConfig::default()
        };
        let errors = bad.check().unwrap_err();
        assert_eq!(errors.0.len(), 6, "{errors}");
        assert!(errors.to_string().contains("--api-key: it is empty"), "{errors}");
        assert!(errors.to_string().contains("--block-size 0: must be between 1 and 65536"));
    }
}
