//! Knobs of what is not a generation: the admin key, control calls, questions to all workers, sessions.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use router_http::{ApiConfig, Secret};

use super::ConfigError;
use crate::settings;

/// See the module.
#[derive(Clone, Debug, Args)]
pub struct ApiArgs {
    /// Key that routes which control the engine take, and then no other, as with SGLang; it is sent to the workers with such calls.
    /// Better given as a file, since argv is no secret
    #[arg(
        long,
        env = "ESPALIER_ADMIN_API_KEY",
        hide_env_values = true,
        conflicts_with = "admin_api_key_file"
    )]
    pub admin_api_key: Option<String>,
    /// File with the key that routes which control the engine take
    #[arg(long, env = "ESPALIER_ADMIN_API_KEY_FILE", value_name = "FILE")]
    pub admin_api_key_file: Option<PathBuf>,
    /// File with the key that is sent to the workers with control calls instead of --admin-api-key
    #[arg(long, env = "ESPALIER_WORKER_ADMIN_API_KEY_FILE", value_name = "FILE")]
    pub worker_admin_api_key_file: Option<PathBuf>,
    /// Longest wait for one worker's answer to a control call, in seconds
    #[arg(long, env = "ESPALIER_CONTROL_TIMEOUT_SECS", default_value_t = 600.0)]
    pub control_timeout_secs: f64,
    /// Longest wait for one worker's answer to a question that is asked of all, like /v1/models, in seconds
    #[arg(long, env = "ESPALIER_FLEET_TIMEOUT_SECS", default_value_t = 5.0)]
    pub fleet_timeout_secs: f64,
    /// Sessions whose worker is remembered at most, and stored responses; the least recently used is forgotten first
    #[arg(long, env = "ESPALIER_MAX_KEPT_IDS", default_value_t = 65_536)]
    pub max_kept_ids: usize,
    /// Time after its last use for which the worker of a session or stored response is remembered, in seconds
    #[arg(long, env = "ESPALIER_KEPT_ID_TTL_SECS", default_value_t = 3600.0)]
    pub kept_id_ttl_secs: f64,
    /// OpenAI's streams are not asked for usage on the behalf of clients who did not ask; what was cached for them stays unknown
    #[arg(long, env = "ESPALIER_DISABLE_STREAM_USAGE")]
    pub disable_stream_usage: bool,
}

impl ApiArgs {
    /// Finds all that is wrong at once.
    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        if let Some(Err(problem)) = self.admin_api_key.as_deref().map(Secret::new) {
            errors.push(ConfigError::Key { flag: "admin-api-key", problem });
        }
        for (flag, value) in [
            ("control-timeout-secs", self.control_timeout_secs),
            ("fleet-timeout-secs", self.fleet_timeout_secs),
            ("kept-id-ttl-secs", self.kept_id_ttl_secs),
        ] {
            if !(value > 0.0 && value <= 1e6) {
                let problem = "must be a number of seconds greater than zero";
                errors.push(ConfigError::Range { flag, value: value.to_string(), problem });
            }
        }
        if self.max_kept_ids == 0 {
            let problem = "must be greater than zero";
            errors.push(ConfigError::Range { flag: "max-kept-ids", value: "0".to_owned(), problem });
        }
    }

    /// As the data plane wants it; files are read here.
    pub(crate) fn settings(&self) -> Result<ApiConfig, ConfigError> {
        let given = self.admin_api_key.as_deref().map(Secret::new).transpose();
        let given = given.map_err(|problem| ConfigError::Key { flag: "admin-api-key", problem })?;
        let admin_api_key = match given {
            Some(key) => Some(key),
            None => settings::secret("admin-api-key-file", self.admin_api_key_file.as_deref())?,
        };
        let workers =
            settings::secret("worker-admin-api-key-file", self.worker_admin_api_key_file.as_deref())?;
        Ok(ApiConfig {
            worker_admin_api_key: workers.or_else(|| admin_api_key.clone()),
            admin_api_key,
            control_timeout: Duration::from_secs_f64(self.control_timeout_secs),
            fleet_timeout: Duration::from_secs_f64(self.fleet_timeout_secs),
            max_kept_ids: self.max_kept_ids,
            kept_id_ttl: Duration::from_secs_f64(self.kept_id_ttl_secs),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::RouterConfig;
    use super::*;

    #[test]
    fn faults_are_named_and_the_admin_key_goes_to_the_workers_unless_they_have_their_own() {
        let sound = RouterConfig::default();
        sound.check().unwrap();
        let api = ApiArgs {
            admin_api_key: Some(" ".to_owned()),
            fleet_timeout_secs: 0.0,
            max_kept_ids: 0,
            ..sound.api.clone()
        };
        let error = RouterConfig { api, ..sound.clone() }.check().unwrap_err();
        assert_eq!(error.0.len(), 3, "{error}");
        assert!(error.to_string().contains("--admin-api-key: it is empty"), "{error}");
        let keyed = ApiArgs { admin_api_key: Some("a".to_owned()), ..sound.api };
        assert!(keyed.settings().unwrap().worker_admin_api_key.unwrap().matches(b"a"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "w\n").unwrap();
        let own = ApiArgs { worker_admin_api_key_file: Some(file.path().to_owned()), ..keyed };
        let settings = own.settings().unwrap();
        assert!(settings.worker_admin_api_key.unwrap().matches(b"w"));
        assert!(settings.admin_api_key.unwrap().matches(b"a"));
    }
}
