//! How many retries there may be: a share of the requests, so that an outage is not amplified by those who meet it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use router_core::Time;

/// When what a worker could not do is tried elsewhere. Connections that cannot be opened always are, and cost no budget: nothing
/// has been done for them.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryConfig {
    /// Statuses of a worker's answer after which another worker is asked.
    pub statuses: Vec<u16>,
    /// Retries for each request, 0 to 1.
    pub budget: f64,
    /// Retries a second that each thread may make whatever the share comes to.
    pub least_per_second: u32,
}

/// One thread's budget: a bucket of thousandths of a retry. Requests fill it by the share, time by the least rate.
#[derive(Debug, Default)]
pub(crate) struct RetryBudget {
    thousandths: AtomicU64,
    filled_at_us: AtomicU64,
    begun: std::sync::atomic::AtomicBool,
}

const RETRY: u64 = 1_000;

/// What the bucket holds at most beyond one second's least: retries saved up in quiet times are not spent in one outage.
const MOST_SAVED: u64 = 10 * RETRY;

impl Default for RetryConfig {
    /// 502, 503 and 504; one in ten, and 10 a second.
    fn default() -> Self {
        Self { statuses: vec![502, 503, 504], budget: 0.1, least_per_second: 10 }
    }
}

impl RetryBudget {
    /// A request has come.
    pub(crate) fn deposit(&self, config: &RetryConfig) {
        let share = (config.budget * RETRY as f64) as u64;
        self.add(share, Self::most(config));
    }

    /// Takes one retry, if there is one.
    pub(crate) fn withdraw(&self, config: &RetryConfig, now: Time) -> bool {
        self.fill(config, now);
        let taken = self.thousandths.try_update(Relaxed, Relaxed, |held| held.checked_sub(RETRY));
        taken.is_ok()
    }

    fn fill(&self, config: &RetryConfig, now: Time) {
        let rate = u64::from(config.least_per_second);
        let before = self.filled_at_us.swap(now.as_micros(), Relaxed);
        let earned = if self.begun.swap(true, Relaxed) {
            now.as_micros().saturating_sub(before).min(1_000_000) * rate / 1_000
        } else {
            rate * RETRY
        };
        self.add(earned, Self::most(config));
    }

    fn most(config: &RetryConfig) -> u64 {
        u64::from(config.least_per_second) * RETRY + if config.budget > 0.0 { MOST_SAVED } else { 0 }
    }

    fn add(&self, thousandths: u64, most: u64) {
        let add = |held: u64| Some(held.saturating_add(thousandths).min(most));
        let _ = self.thousandths.try_update(Relaxed, Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(budget: &RetryBudget, config: &RetryConfig, now: Time) -> usize {
        std::iter::repeat_with(|| budget.withdraw(config, now)).take_while(|taken| *taken).count()
    }

    #[test]
    fn an_outage_is_amplified_by_the_share_and_no_more() {
        let config = RetryConfig { least_per_second: 0, ..RetryConfig::default() };
        let budget = RetryBudget::default();
        let now = Time::from_micros(1);
        let retried = (0..1_000).filter(|_| {
            budget.deposit(&config);
            budget.withdraw(&config, now)
        });
        assert_eq!(retried.count(), 100);
    }

    #[test]
    fn quiet_times_save_up_a_bounded_number() {
        let config = RetryConfig { least_per_second: 0, ..RetryConfig::default() };
        let budget = RetryBudget::default();
        (0..100_000).for_each(|_| budget.deposit(&config));
        assert_eq!(retries(&budget, &config, Time::from_micros(1)), 10);
    }

    #[test]
    fn few_requests_may_be_retried_all_the_same() {
        let config = RetryConfig { budget: 0.0, least_per_second: 4, ..RetryConfig::default() };
        let budget = RetryBudget::default();
        assert_eq!(retries(&budget, &config, Time::from_micros(5)), 4);
        assert_eq!(retries(&budget, &config, Time::from_micros(500_005)), 2);
        assert_eq!(retries(&budget, &config, Time::from_micros(90_000_000)), 4);
    }
}
