//! What tells whether a run over HTTP can be believed, and what its router cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::drive::Seen;
use crate::stats::quantile;

/// Of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// Requests that are over.
    pub over: usize,
    /// Of these, those without a complete answer, by kind.
    pub failures: BTreeMap<String, usize>,
    /// Time from when requests were due to when they were sent, in the 99th percentile.
    pub driver_lag_p99_ms: f64,
    /// Cores that the driver used, in the mean; absent where the system does not say.
    pub driver_cores: Option<f64>,
    /// What the router cost; absent for what is no process of ours.
    pub router: Option<RouterCost>,
    /// Answers of which the router said what it expected.
    pub predicted: usize,
    /// Of these, those of which the worker found less cached than the router expected.
    pub overpredicted: usize,
    /// Cached tokens of all answers, and what the workers' own counters say; absent where they do not.
    pub cached_tokens: Option<CachedTokens>,
    /// Answers whose prompt the worker counted in another number of tokens than were sent.
    pub other_lengths: usize,
    /// Why the run's figures mean nothing, if they do not.
    pub void: Option<String>,
    /// Why it ended early, if it did; its figures are of the requests that were over.
    pub ended_early: Option<String>,
}

/// Cached prompt tokens of one run, counted twice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CachedTokens {
    /// As the answers say that came through the router.
    pub by_answers: f64,
    /// As the workers' counters say.
    pub by_workers: f64,
}

/// What a router's processes cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterCost {
    /// CPU time for each request that is over.
    pub cpu_ms_per_request: f64,
    /// Resident memory at the end.
    pub resident_mb: f64,
    /// Resident memory at most.
    pub peak_mb: f64,
}

/// A first token is late after a second; a driver that adds more than a twentieth to that measures itself.
pub(super) const MOST_LAG_MS: f64 = 50.0;

/// Counters may differ by this share: requests that failed are in the workers' alone.
const DISAGREEMENT: f64 = 0.01;

impl Checks {
    /// Whether the figures can be compared with others'.
    pub fn is_sound(&self) -> bool {
        self.void.is_none() && self.ended_early.is_none()
    }

    /// The workers count other cached tokens than the answers say.
    pub fn disagrees(&self) -> bool {
        self.cached_tokens.is_some_and(|of| {
            (of.by_answers - of.by_workers).abs() > DISAGREEMENT * of.by_workers.max(of.by_answers)
        })
    }

    /// What the requests alone tell; `sent_tokens` are the lengths of their prompts.
    pub(super) fn of(seen: &[Option<Seen>], sent_tokens: impl Iterator<Item = usize>) -> Self {
        let mut checks = Self::default();
        let mut lags = Vec::new();
        for (seen, sent_tokens) in seen.iter().zip(sent_tokens) {
            let Some(seen) = seen else { continue };
            checks.over += 1;
            lags.push((seen.sent.saturating_sub(seen.due)).as_secs_f64() * 1e3);
            if let Some(failure) = &seen.failure {
                *checks.failures.entry(failure.to_string()).or_default() += 1;
            }
            if seen.done.is_some() {
                checks.other_lengths += usize::from(seen.prompt_tokens != sent_tokens as u64);
                if let Some(predicted) = seen.predicted_tokens {
                    checks.predicted += 1;
                    checks.overpredicted += usize::from(predicted > seen.cached_tokens);
                }
            }
        }
        lags.sort_unstable_by(f64::total_cmp);
        checks.driver_lag_p99_ms = quantile(&lags, 0.99);
        if checks.driver_lag_p99_ms > MOST_LAG_MS {
            let lag = checks.driver_lag_p99_ms;
            checks.void = Some(format!(
                "the driver sent requests {lag:.0} ms late in the 99th percentile, more than {MOST_LAG_MS:.0} ms: this machine is \
                 too slow or too busy for the load"
            ));
        }
        checks
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::client::Failure;
    use super::*;

    fn seen(lag_ms: u64) -> Seen {
        let due = Duration::from_secs(1);
        Seen {
            due,
            sent: due + Duration::from_millis(lag_ms),
            engine: None,
            first: Some(due * 2),
            done: Some(due * 3),
            prompt_tokens: 100,
            cached_tokens: 64,
            predicted_tokens: Some(64),
            retractions: 0,
            failure: None,
        }
    }

    fn of(seen: Vec<Option<Seen>>) -> Checks {
        let lens = vec![100; seen.len()];
        Checks::of(&seen, lens.into_iter())
    }

    #[test]
    fn a_driver_that_lags_makes_a_run_void() {
        let sound = of(vec![Some(seen(50)); 100]);
        assert!(sound.is_sound() && sound.driver_lag_p99_ms == 50.0);
        let one = of((0..200).map(|at| Some(seen(if at == 0 { 900 } else { 1 }))).collect());
        assert!(one.is_sound(), "one of two hundred");
        let void = of(vec![Some(seen(51)); 100]);
        assert!(void.void.is_some_and(|why| why.contains("51 ms late")));
    }

    #[test]
    fn failures_are_counted_by_kind_and_what_is_not_over_is_not() {
        let failed = |failure| Some(Seen { failure: Some(failure), done: None, ..seen(0) });
        let checks = of(vec![
            failed(Failure::Refused),
            None,
            failed(Failure::Refused),
            failed(Failure::TimedOut),
            Some(seen(0)),
        ]);
        assert_eq!(checks.over, 4);
        assert_eq!(checks.failures["connection refused"], 2);
        assert_eq!(checks.failures["no first token in time"], 1);
        assert_eq!((checks.predicted, checks.overpredicted), (1, 0));
    }

    #[test]
    fn disagreement_is_counted() {
        let over = Seen { cached_tokens: 0, ..seen(0) };
        let longer = Seen { prompt_tokens: 101, predicted_tokens: None, ..seen(0) };
        let mut checks = of(vec![Some(over), Some(longer), Some(seen(0))]);
        assert_eq!((checks.predicted, checks.overpredicted, checks.other_lengths), (2, 1, 1));
        for (by_answers, by_workers, disagrees) in
            [(1000.0, 1005.0, false), (900.0, 1000.0, true), (1000.0, 0.0, true)]
        {
            checks.cached_tokens = Some(CachedTokens { by_answers, by_workers });
            assert_eq!(checks.disagrees(), disagrees, "{by_answers} {by_workers}");
        }
    }
}
