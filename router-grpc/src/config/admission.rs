//! Knobs of admission: how much may be in flight, and how requests wait for room.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use http::HeaderName;
use router_core::admission::{Limits, QueueSettings};
use router_http::AdmissionConfig;

use super::ConfigError;

/// Bounds on what is in flight, and the queue before them. `docs/admission.md` explains it.
#[derive(Clone, Debug, Args)]
pub struct AdmissionArgs {
    /// Requests in flight at most, at all targets together; 0 for no bound
    #[arg(long, env = "ESPALIER_MAX_CONCURRENT_REQUESTS", default_value_t = 0)]
    pub max_concurrent_requests: u64,
    /// Requests in flight at most at one target (worker and dp rank); 0 for no bound. Not below the engine's batch
    #[arg(long, env = "ESPALIER_MAX_CONCURRENT_REQUESTS_PER_TARGET", default_value_t = 0)]
    pub max_concurrent_requests_per_target: u64,
    /// Requests that wait for room at most; beyond it the answer is 429. 0 lets none wait
    #[arg(long, env = "ESPALIER_QUEUE_SIZE", default_value_t = 1024)]
    pub queue_size: usize,
    /// Longest wait for room, in seconds; after it the answer is 503
    #[arg(long, env = "ESPALIER_QUEUE_TIMEOUT_SECS", default_value_t = 60.0)]
    pub queue_timeout_secs: f64,
    /// Header that names the tenant on whose behalf a request waits
    #[arg(long, env = "ESPALIER_TENANT_HEADER", default_value = "x-espalier-tenant", value_name = "HEADER")]
    pub tenant_header: String,
    /// Shares of tenants that wait, relative to 1 of those that are not named, like acme=3
    #[arg(long, env = "ESPALIER_TENANT_WEIGHTS", num_args = 0.., value_delimiter = ',', value_name = "TENANT=WEIGHT")]
    pub tenant_weights: Vec<String>,
}

impl AdmissionArgs {
    /// Adds all that is wrong.
    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        let mut range = |flag, value: &str, problem| {
            errors.push(ConfigError::Range { flag, value: value.to_owned(), problem });
        };
        if !(self.queue_timeout_secs > 0.0 && self.queue_timeout_secs <= 1e6) {
            let problem = "must be a number of seconds greater than zero";
            range("queue-timeout-secs", &self.queue_timeout_secs.to_string(), problem);
        }
        if self.tenant_header.parse::<HeaderName>().is_err() {
            range("tenant-header", &self.tenant_header, "cannot be the name of an HTTP header");
        }
        for given in self.tenant_weights.iter().filter(|given| tenant_weight(given).is_none()) {
            range("tenant-weights", given, "must be a name and a weight from 0.001 to 1000, like acme=3");
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        let bound = |most: u64| if most == 0 { u64::MAX } else { most };
        Limits {
            per_target: bound(self.max_concurrent_requests_per_target),
            total: bound(self.max_concurrent_requests),
        }
    }

    /// As the data plane wants it; [checked](Self::check) before.
    pub(crate) fn settings(&self) -> AdmissionConfig {
        let default = AdmissionConfig::default();
        let weights: HashMap<_, _> =
            self.tenant_weights.iter().filter_map(|given| tenant_weight(given)).collect();
        AdmissionConfig {
            queue: QueueSettings { capacity: self.queue_size, weights, ..QueueSettings::default() },
            timeout: Duration::from_secs_f64(self.queue_timeout_secs),
            tenant_header: self.tenant_header.parse().unwrap_or(default.tenant_header),
        }
    }

    /// Whether there is a bound, without which nothing of the rest has an effect.
    pub(crate) fn has_limits(&self) -> bool {
        self.limits() != Limits::NONE
    }
}

fn tenant_weight(given: &str) -> Option<(Box<str>, f64)> {
    let (name, weight) = given.rsplit_once('=')?;
    let weight = weight.trim().parse::<f64>().ok().filter(|weight| (0.001..=1000.0).contains(weight))?;
    (!name.trim().is_empty()).then(|| (name.trim().into(), weight))
}

#[cfg(test)]
mod tests {
    use super::super::RouterConfig;
    use super::*;

    #[test]
    fn faults_are_named_and_zero_is_no_bound() {
        let sound = RouterConfig::default();
        assert_eq!(sound.admission.limits(), Limits::NONE);
        let bad = AdmissionArgs {
            queue_timeout_secs: f64::NAN,
            tenant_header: "a b".to_owned(),
            tenant_weights: vec!["acme=3".into(), "acme".into(), "=1".into(), "b=0".into()],
            ..sound.admission.clone()
        };
        let error = RouterConfig { admission: bad, ..sound.clone() }.check().unwrap_err();
        assert_eq!(error.0.len(), 5, "{error}");
        assert!(error.to_string().contains("--tenant-weights b=0: must be a name and a weight"), "{error}");
        let good = AdmissionArgs {
            max_concurrent_requests_per_target: 8,
            tenant_weights: vec!["a=b=2.5".into()],
            ..sound.admission
        };
        assert_eq!(good.limits(), Limits { per_target: 8, total: u64::MAX });
        assert_eq!(good.settings().queue.weights["a=b"], 2.5);
    }
}
