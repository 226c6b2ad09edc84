//! Which of the router's own sources its claims come from. What agents tell has its own flags.

use std::time::Duration;

use clap::Args;

use super::ConfigError;

/// See the module. `docs/routing.md` explains the channels.
#[derive(Clone, Debug, Args)]
pub struct ClaimArgs {
    /// Nothing is claimed because it was routed: only what agents report
    #[arg(long, env = "ESPALIER_DISABLE_PREDICTION")]
    pub disable_prediction: bool,
    /// Nothing follows from what answers say was cached, and what they generated is not claimed
    #[arg(long, env = "ESPALIER_DISABLE_RESPONSE_CORRECTION")]
    pub disable_response_correction: bool,
    /// Time between two questions to an engine without an agent how much it has cached and evicted (`/metrics`), in seconds; 0 asks for
    /// nothing
    #[arg(long, env = "ESPALIER_ENGINE_COUNTS_INTERVAL_SECS", default_value_t = 5.0)]
    pub engine_counts_interval_secs: f64,
}

impl ClaimArgs {
    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        let interval = self.engine_counts_interval_secs;
        if interval != 0.0 && !(0.01..=1e6).contains(&interval) {
            errors.push(ConfigError::Range {
                flag: "engine-counts-interval-secs",
                value: interval.to_string(),
                problem: "must be 0, or a number of seconds between 0.01 and a million",
            });
        }
    }

    /// `None`: engines are not asked.
    pub(crate) fn counts_interval(&self) -> Option<Duration> {
        let interval = self.engine_counts_interval_secs;
        (interval > 0.0).then(|| Duration::from_secs_f64(interval))
    }
}
