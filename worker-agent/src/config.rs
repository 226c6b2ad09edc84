//! What an agent is told, and the checks of it.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// Most routers one agent reports to.
pub const MAX_ROUTERS: usize = 64;

/// Everything an agent can be told. The defaults suit a server on the same machine; `routers` has none.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// How the agent reaches the engine, for example `http://127.0.0.1:30000`.
    pub worker_url: String,
    /// How routers must reach the engine; `worker_url` when not given. It is the worker's name everywhere.
    pub advertise_url: Option<String>,
    /// The control-plane addresses of all routers, for example `http://10.0.0.1:50051`.
    pub routers: Vec<String>,
    /// The most that is ever reported.
    pub report_level: Level,
    /// File with the engine's API key; read again for every request.
    pub api_key_file: Option<PathBuf>,
    /// File with the engine's admin key, tried where the API key is refused.
    pub admin_api_key_file: Option<PathBuf>,
    /// File with the bearer token for the routers; read again for every connection.
    pub token_file: Option<PathBuf>,
    /// The model's `tokenizer.json` or its directory; by default where the engine says that it has it.
    pub tokenizer: Option<PathBuf>,
    /// The file that the server was given as `--chat-template`; by default the template beside the tokenizer.
    pub chat_template: Option<PathBuf>,
    /// Most pages to track for each rank; by default four times the rank's capacity.
    pub max_pages: Option<usize>,
    /// Time between two checks of the engine's state.
    pub state_interval: Duration,
    /// Time between two looks at the engine's own description, by which a restart is noticed that nothing else showed.
    pub info_interval: Duration,
    /// Time without events after which the agent asks the engine whether it missed any.
    pub verify_interval: Duration,
    /// Time between two polls of the engine's load while it publishes none.
    pub load_interval: Duration,
    /// Time between two reports of counts and set fingerprints.
    pub counts_interval: Duration,
    /// Longest wait for one answer of the engine.
    pub engine_timeout: Duration,
    /// Longest pause between two attempts to reach a router.
    pub max_reconnect_delay: Duration,
    /// Most unacknowledged deltas kept for one rank and router; beyond it the next report is a baseline.
    pub max_unacked_deltas: usize,
    /// Most bytes of unacknowledged deltas kept for one rank and router.
    pub max_unacked_bytes: usize,
}

/// How much of its cache an agent reports; each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Level {
    /// Counts and load only.
    Counts,
    /// Removed blocks too; of several routers each is also told of stored blocks that it could not have predicted.
    Removals,
    /// Removed and stored blocks.
    Full,
}

/// All that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// An address cannot be used.
    #[error("{field}: {value:?} is not a usable address: {problem}; write it like {example}")]
    Url {
        /// Name of the field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// Nobody to report to.
    #[error("routers: none is given; name at least one, like http://10.0.0.1:50051")]
    NoRouter,
    /// More routers than an agent serves.
    #[error("routers: {given} are given; an agent reports to at most {MAX_ROUTERS}")]
    TooManyRouters {
        /// How many were given.
        given: usize,
    },
    /// A router is named twice.
    #[error("routers: {url} is given twice")]
    TwiceTheSameRouter {
        /// The address.
        url: String,
    },
    /// An interval or bound is zero.
    #[error("{field} must be greater than zero")]
    Zero {
        /// Name of the field.
        field: &'static str,
    },
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            worker_url: "http://127.0.0.1:30000".to_owned(),
            advertise_url: None,
            routers: Vec::new(),
            report_level: Level::Full,
            api_key_file: None,
            admin_api_key_file: None,
            token_file: None,
            tokenizer: None,
            chat_template: None,
            max_pages: None,
            state_interval: Duration::from_secs(1),
            info_interval: Duration::from_secs(10),
            verify_interval: Duration::from_secs(10),
            load_interval: Duration::from_secs(1),
            counts_interval: Duration::from_secs(5),
            engine_timeout: Duration::from_secs(5),
            max_reconnect_delay: Duration::from_secs(10),
            max_unacked_deltas: 4096,
            max_unacked_bytes: 8 << 20,
        }
    }
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) config: AgentConfig,
    pub(crate) engine: Url,
    pub(crate) advertised: String,
    pub(crate) routers: Vec<String>,
}

impl Settings {
    /// Others send work to the engine, too, so that a router does not know all of it by itself.
    pub(crate) fn wants_predictions(&self) -> bool {
        self.routers.len() > 1
    }
}

impl AgentConfig {
    /// Checks the configuration without starting anything, and finds all that is wrong with it at once.
    pub fn check(&self) -> Result<(), ConfigErrors> {
        self.clone().settle().map(|_| ())
    }

    pub(crate) fn settle(self) -> Result<Settings, ConfigErrors> {
        let mut errors = self.zeroes();
        let engine = base_url("worker_url", &self.worker_url).map_err(|error| errors.push(error)).ok();
        let advertised = self.advertise_url.as_deref().unwrap_or(&self.worker_url);
        if self.advertise_url.is_some() {
            let _ = base_url("advertise_url", advertised).map_err(|error| errors.push(error));
        }
        let advertised = advertised.trim_end_matches('/').to_owned();
        let mut routers: Vec<String> = Vec::new();
        for router in &self.routers {
            match base_url("routers", router) {
                Ok(_) => {
                    let router = router.trim_end_matches('/').to_owned();
                    if routers.contains(&router) {
                        errors.push(ConfigError::TwiceTheSameRouter { url: router });
                    } else {
                        routers.push(router);
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        match self.routers.len() {
            0 => errors.push(ConfigError::NoRouter),
            given if given > MAX_ROUTERS => errors.push(ConfigError::TooManyRouters { given }),
            _ => {}
        }
        match engine {
            Some(engine) if errors.is_empty() => Ok(Settings { config: self, engine, advertised, routers }),
            _ => Err(ConfigErrors(errors)),
        }
    }

    fn zeroes(&self) -> Vec<ConfigError> {
        let intervals = [
            ("state_interval", self.state_interval),
            ("info_interval", self.info_interval),
            ("verify_interval", self.verify_interval),
            ("load_interval", self.load_interval),
            ("counts_interval", self.counts_interval),
            ("engine_timeout", self.engine_timeout),
            ("max_reconnect_delay", self.max_reconnect_delay),
        ];
        let bounds = [
            ("max_pages", self.max_pages.unwrap_or(1)),
            ("max_unacked_deltas", self.max_unacked_deltas),
            ("max_unacked_bytes", self.max_unacked_bytes),
        ];
        let zero = intervals.iter().filter(|(_, value)| value.is_zero()).map(|(field, _)| *field);
        let zero = zero.chain(bounds.iter().filter(|(_, value)| *value == 0).map(|(field, _)| *field));
        zero.map(|field| ConfigError::Zero { field }).collect()
    }
}

/// A base URL that a plain HTTP connection can be opened to.
pub(crate) fn base_url(field: &'static str, value: &str) -> Result<Url, ConfigError> {
    let example = if field == "routers" { "http://10.0.0.1:50051" } else { "http://10.0.0.7:30000" };
    let error = |problem| ConfigError::Url { field, value: value.to_owned(), problem, example };
    let url = Url::parse(value).map_err(|_| error("it does not parse as a URL"))?;
    match url.scheme() {
        "http" => {}
        "https" => return Err(error("TLS is not supported yet")),
        _ => return Err(error("its scheme is not http")),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(error("it names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(error("it contains a user or password"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(error("it has a path, query or fragment"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_are_found_at_once() {
        let config = AgentConfig {
            worker_url: "127.0.0.1:30000".to_owned(),
            advertise_url: Some("https://worker".to_owned()),
            routers: vec!["http://a:1".to_owned(), "http://a:1/".to_owned(), "http://b/x".to_owned()],
            max_unacked_deltas: 0,
            ..AgentConfig::default()
        };
        let ConfigErrors(errors) = config.check().unwrap_err();
        assert_eq!(errors.len(), 5, "{errors:?}");
        assert!(errors.contains(&ConfigError::TwiceTheSameRouter { url: "http://a:1".to_owned() }));
        assert!(errors.contains(&ConfigError::Zero { field: "max_unacked_deltas" }));
    }

    #[test]
    fn the_worker_goes_by_its_advertised_name() {
        let config = AgentConfig { routers: vec!["http://r:50051".to_owned()], ..AgentConfig::default() };
        assert_eq!(config.clone().settle().unwrap().advertised, "http://127.0.0.1:30000");
        let config = AgentConfig { advertise_url: Some("http://10.0.0.7:30000/".to_owned()), ..config };
        assert_eq!(config.settle().unwrap().advertised, "http://10.0.0.7:30000");
    }

    #[test]
    fn nobody_to_report_to_is_an_error() {
        let ConfigErrors(errors) = AgentConfig::default().check().unwrap_err();
        assert_eq!(errors, [ConfigError::NoRouter]);
    }
}
