//! How often requests are sent to an engine.

use std::time::Duration;

use crate::policy::ArrivalRate;
use crate::time::Time;

/// What was sent there lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arrivals {
    /// Requests, those that are long ago with less weight, at `last`.
    requests: f64,
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

    pub(super) fn count(&mut self, at: Time) {
        self.watch(at);
        self.requests = self.requests_at(at) + 1.0;
        // Messages of different requests may be out of order by a little.
        self.last = self.last.max(at);
    }

    pub(super) fn rate(self, now: Time) -> ArrivalRate {
        let watched = self.since.map_or(Duration::ZERO, |since| now.since(since));
        let seconds = WINDOW.as_secs_f64() * (1.0 - fading(watched));
        ArrivalRate { requests: self.requests_at(now) as f32, seconds: seconds as f32 }
    }

    fn requests_at(self, now: Time) -> f64 {
        self.requests * fading(now.since(self.last))
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
            arrivals.count(at(request * 250));
            let rate = arrivals.rate(at(request * 250)).per_s();
            assert!((3.9..4.1).contains(&rate), "{rate} after {request}");
        }
        arrivals.count(at(0));
        assert!(arrivals.rate(at(250_000)).per_s() > 4.0, "what comes late counts, and turns no clock back");
        assert!(arrivals.rate(at(550_000)).per_s() < 0.001);
        assert_eq!(Arrivals::default().rate(at(0)).per_s(), 0.0);
    }
}
