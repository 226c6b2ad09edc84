//! How often requests are sent to an engine, and how busy their prefills keep it.

use std::time::Duration;

use crate::policy::ArrivalRate;
use crate::time::Time;

/// What was sent there lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arrivals {
    /// Requests, those that are long ago with less weight, at `last`.
    requests: f64,
    /// Seconds that their prefills were expected to take, likewise.
    prefill_seconds: f64,
    last: Time,
    /// Since when they are counted.
    since: Option<Time>,
}

/// What is so long ago counts a third (1 / e). A burst is over sooner, and says little about what comes next.
const WINDOW: Duration = Duration::from_secs(30);

impl Arrivals {
    /// Requests are counted from now on, if they are not yet.
    pub(super) fn watch(&mut self, now: Time) {
        self.since.get_or_insert(now);
    }

    pub(super) fn count(&mut self, at: Time, prefill: Duration) {
        self.watch(at);
        let weight = fading(at.since(self.last));
        self.requests = self.requests * weight + 1.0;
        self.prefill_seconds = self.prefill_seconds * weight + prefill.as_secs_f64();
        // Messages of different requests may be out of order by a little.
        self.last = self.last.max(at);
    }

    pub(super) fn rate(self, now: Time) -> ArrivalRate {
        let watched = self.since.map_or(Duration::ZERO, |since| now.since(since));
        let seconds = WINDOW.as_secs_f64() * (1.0 - fading(watched));
        let weight = fading(now.since(self.last));
        ArrivalRate {
            requests: (self.requests * weight) as f32,
            prefill_seconds: (self.prefill_seconds * weight) as f32,
            seconds: seconds as f32,
        }
    }
}

/// The weight of what is so long ago.
fn fading(age: Duration) -> f64 {
    (-age.as_secs_f64() / WINDOW.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_micros(1_000_000 + millis * 1_000)
    }

    #[test]
    fn the_rate_is_right_from_the_start_and_forgotten() {
        let mut arrivals = Arrivals::default();
        arrivals.watch(at(0));
        for request in 1..=1_000 {
            arrivals.count(at(request * 250), Duration::from_millis(100));
            let rate = arrivals.rate(at(request * 250));
            assert!((3.9..4.1).contains(&rate.per_s()), "{rate:?} after {request}");
            assert!((0.39..0.41).contains(&rate.busy()), "{rate:?} after {request}");
        }
        arrivals.count(at(0), Duration::ZERO);
        assert!(arrivals.rate(at(250_000)).per_s() > 4.0, "what comes late counts, and turns no clock back");
        assert!(arrivals.rate(at(550_000)).per_s() < 0.001);
        assert_eq!(Arrivals::default().rate(at(0)).per_s(), 0.0);
    }
}
