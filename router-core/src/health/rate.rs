//! The share of a target's recent requests that failed, in one word that threads share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::time::Time;

/// Outcomes of the running window, and of those before it half as many each time: 24 bits of window number, 20 of
/// failures, 20 of all.
#[derive(Debug, Default)]
pub(super) struct FailureRate(AtomicU64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    window: u64,
    failed: u64,
    all: u64,
}

const COUNT_BITS: u32 = 20;
const MOST: u64 = (1 << COUNT_BITS) - 1;
const WINDOWS: u64 = 1 << (64 - 2 * COUNT_BITS);

impl FailureRate {
    /// Counts an outcome; returns the share that failed, if it is one of at least `least` outcomes.
    pub(super) fn count(&self, failed: bool, now: Time, window: Duration, least: u64) -> Option<f64> {
        let number = (now.as_micros() / (window.as_micros() as u64).max(1)) % WINDOWS;
        let mut counts = Counts::default();
        let update = |word| {
            counts = Counts::unpack(word).at(number);
            counts.all += 1;
            counts.failed += u64::from(failed);
            if counts.all > MOST {
                (counts.all, counts.failed) = (counts.all / 2, counts.failed / 2);
            }
            Some(counts.pack())
        };
        let _ = self.0.fetch_update(Relaxed, Relaxed, update);
        (counts.all >= least).then(|| counts.failed as f64 / counts.all as f64)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }
}

impl Counts {
    fn unpack(word: u64) -> Self {
        let (failed, all) = ((word >> COUNT_BITS) & MOST, word & MOST);
        Self { window: word >> (2 * COUNT_BITS), failed, all }
    }

    fn pack(self) -> u64 {
        self.window << (2 * COUNT_BITS) | self.failed << COUNT_BITS | self.all
    }

    /// What is left of them in a later window. A thread whose reading of the clock is older counts in the one that runs.
    fn at(self, window: u64) -> Self {
        let passed = window.wrapping_sub(self.window) % WINDOWS;
        if passed == 0 || passed > WINDOWS / 2 {
            return self;
        }
        let left = |count: u64| count.checked_shr(passed.min(64) as u32).unwrap_or(0);
        Self { window, failed: left(self.failed), all: left(self.all) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_share_of_enough_is_told_and_what_is_old_counts_less() {
        let rate = FailureRate::default();
        for outcome in 0..19 {
            assert_eq!(rate.count(outcome % 2 == 0, at(1), WINDOW, 20), None);
        }
        assert_eq!(rate.count(false, at(1), WINDOW, 20), Some(0.5));
        // In the next window ten are left of twenty, five of them failures.
        assert_eq!(rate.count(true, at(6), WINDOW, 11), Some(6.0 / 11.0));
        assert_eq!(rate.count(false, at(1_000), WINDOW, 1), Some(0.0), "long after, nothing is left");
        rate.clear();
        assert_eq!(rate.count(true, at(1_000), WINDOW, 1), Some(1.0));
    }

    #[test]
    fn a_clock_that_is_read_late_and_numbers_that_begin_anew_do_no_harm() {
        let rate = FailureRate::default();
        rate.count(true, at(10), WINDOW, 1);
        assert_eq!(rate.count(true, at(4), WINDOW, 1), Some(1.0), "counted in the window that runs");
        let last = Counts { window: WINDOWS - 1, failed: 8, all: 16 };
        assert_eq!(last.at(0), Counts { window: 0, failed: 4, all: 8 });
        assert_eq!(Counts::unpack(last.pack()), last);
    }

    #[test]
    fn counts_never_run_over() {
        let rate = FailureRate(AtomicU64::new(Counts { window: 0, failed: MOST, all: MOST }.pack()));
        assert_eq!(rate.count(true, at(0), WINDOW, 1), Some(1.0));
        assert_eq!(Counts::unpack(rate.0.load(Relaxed)).all, 1 << (COUNT_BITS - 1));
    }
}
