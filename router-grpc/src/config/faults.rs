//! Knobs of fault tolerance: retries, deadlines, and when workers that fail are left out.

use std::time::Duration;

use clap::Args;
use router_core::EjectionSettings;
use router_http::RetryConfig;

use super::ConfigError;

/// What becomes of requests whose worker fails, and of the worker. `docs/fault-tolerance.md` explains it.
#[derive(Clone, Debug, Args)]
pub struct FaultConfig {
    /// Longest time for a request, in seconds; 0 for no bound. A stream that has begun goes on. x-request-timeout says otherwise
    #[arg(long, env = "ESPALIER_REQUEST_TIMEOUT_SECS", default_value_t = 0.0, value_name = "SECONDS")]
    pub request_timeout_secs: f64,
    /// Statuses of a worker's answer after which another worker is asked
    #[arg(long, env = "ESPALIER_RETRY_STATUSES", num_args = 0.., value_delimiter = ',', default_values_t = [502, 503, 504])]
    pub retry_statuses: Vec<u16>,
    /// Retries for each request at most, on average; connections that cannot be opened are not counted
    #[arg(long, env = "ESPALIER_RETRY_BUDGET", default_value_t = 0.1)]
    pub retry_budget: f64,
    /// Retries a second that each thread may make whatever the budget
    #[arg(long, env = "ESPALIER_MIN_RETRIES_PER_SEC", default_value_t = 10)]
    pub min_retries_per_sec: u32,
    /// Streams of /generate and /v1/completions whose worker is lost go on at another one. docs/fault-tolerance.md says which
    #[arg(long, env = "ESPALIER_CONTINUE_STREAMS")]
    pub continue_streams: bool,
    /// Failures in a row after which a target is left out; 0 leaves nobody out
    #[arg(long, env = "ESPALIER_EJECTION_FAILURES", default_value_t = 5)]
    pub ejection_failures: u32,
    /// Share of the recent requests (those of ten seconds, at least 20) that must fail for a target to be left out; 0 looks at none
    #[arg(long, env = "ESPALIER_EJECTION_FAILURE_RATE", default_value_t = 0.5)]
    pub ejection_failure_rate: f64,
    /// How long a target is left out at first, in seconds; it doubles with every trial that fails
    #[arg(long, env = "ESPALIER_EJECTION_SECS", default_value_t = 5.0)]
    pub ejection_secs: f64,
    /// How long a target is left out at most, in seconds
    #[arg(long, env = "ESPALIER_MAX_EJECTION_SECS", default_value_t = 300.0)]
    pub max_ejection_secs: f64,
    /// Largest share of the targets that may be left out; of more it is not believed
    #[arg(long, env = "ESPALIER_MAX_EJECTED_SHARE", default_value_t = 0.5)]
    pub max_ejected_share: f64,
    /// How long the load of a target grows that is back or new, in seconds; 0 gives it all at once
    #[arg(long, env = "ESPALIER_SLOW_START_SECS", default_value_t = 10.0)]
    pub slow_start_secs: f64,
}

impl FaultConfig {
    /// Adds all that is wrong.
    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        let mut range = |flag, value: String, good: bool, problem| {
            if !good {
                errors.push(ConfigError::Range { flag, value, problem });
            }
        };
        for (flag, value) in [
            ("request-timeout-secs", self.request_timeout_secs),
            ("ejection-secs", self.ejection_secs),
            ("max-ejection-secs", self.max_ejection_secs),
            ("slow-start-secs", self.slow_start_secs),
        ] {
            let good = (0.0..=1e6).contains(&value);
            range(flag, value.to_string(), good, "must be a number of seconds, at most a million");
        }
        for (flag, value) in [
            ("retry-budget", self.retry_budget),
            ("max-ejected-share", self.max_ejected_share),
            ("ejection-failure-rate", self.ejection_failure_rate),
        ] {
            let good = (0.0..=1.0).contains(&value);
            range(flag, value.to_string(), good, "must be a share between 0 and 1");
        }
        for status in &self.retry_statuses {
            let good = *status == 429 || (500..=599).contains(status);
            range("retry-statuses", status.to_string(), good, "must be 429 or between 500 and 599");
        }
    }

    pub(crate) fn ejection(&self) -> EjectionSettings {
        EjectionSettings {
            failures: self.ejection_failures,
            failure_rate: if self.ejection_failure_rate > 0.0 {
                self.ejection_failure_rate
            } else {
                f64::INFINITY
            },
            base: Duration::from_secs_f64(self.ejection_secs),
            most: Duration::from_secs_f64(self.max_ejection_secs),
            most_share: self.max_ejected_share,
            slow_start: Duration::from_secs_f64(self.slow_start_secs),
            ..EjectionSettings::default()
        }
    }

    pub(crate) fn retry(&self) -> RetryConfig {
        RetryConfig {
            statuses: self.retry_statuses.clone(),
            budget: self.retry_budget,
            least_per_second: self.min_retries_per_sec,
        }
    }

    pub(crate) fn request_timeout(&self) -> Option<Duration> {
        (self.request_timeout_secs > 0.0).then(|| Duration::from_secs_f64(self.request_timeout_secs))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::RouterConfig;

    #[test]
    fn what_is_out_of_range_is_named() {
        let mut config = RouterConfig::default();
        config.faults.retry_statuses = vec![503, 200];
        config.faults.retry_budget = 2.0;
        config.faults.ejection_secs = -1.0;
        let errors = config.check().unwrap_err();
        assert_eq!(errors.0.len(), 3, "{errors}");
        assert!(errors.to_string().contains("--retry-statuses 200: must be 429 or"), "{errors}");
    }
}
