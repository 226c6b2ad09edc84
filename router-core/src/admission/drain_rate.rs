//! How fast a queue moves, so that whoever is refused is told when to come back.

use std::time::Duration;

use crate::time::Time;

/// Departures, those of ten seconds ago counting 1/e.
#[derive(Clone, Copy, Debug, Default)]
pub struct DrainRate {
    weight: f64,
    first: Option<Time>,
    last: Time,
}

/// What is older than a few times this says nothing about now.
const MEMORY: Duration = Duration::from_secs(10);

impl DrainRate {
    /// One has left the queue.
    pub fn departed(&mut self, now: Time) {
        self.weight = self.weight_at(now) + 1.0;
        self.first.get_or_insert(now);
        self.last = now;
    }

    /// Departures a second; `None` as long as there was none.
    pub fn per_second(&self, now: Time) -> Option<f64> {
        let seen = now.since(self.first?).as_secs_f64();
        // What a steady rate's weights would have come to in the time that was seen.
        let memory = MEMORY.as_secs_f64();
        let full = memory * (1.0 - (-seen / memory).exp());
        Some(self.weight_at(now) / full.max(1.0))
    }

    /// Time until `waiting` requests have left at that rate, at least a second and at most `most`.
    pub fn time_for(&self, waiting: usize, most: Duration, now: Time) -> Duration {
        let least = Duration::from_secs(1);
        let seconds = self.per_second(now).map_or(0.0, |rate| waiting as f64 / rate.max(1e-9));
        Duration::from_secs_f64(seconds.min(most.as_secs_f64())).max(least)
    }

    fn weight_at(&self, now: Time) -> f64 {
        self.weight * (-now.since(self.last).as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_found_soon_and_forgotten_when_it_ends() {
        let (mut rate, most) = (DrainRate::default(), Duration::from_secs(60));
        assert_eq!(rate.per_second(Time::default()), None);
        assert_eq!(rate.time_for(500, most, Time::default()), Duration::from_secs(1), "nothing is known");
        let mut now = Time::from_micros(1_000_000);
        for departed in 1..=400 {
            rate.departed(now);
            now = now + Duration::from_millis(50);
            if departed >= 40 {
                let found = rate.per_second(now).unwrap();
                assert!((18.0..22.5).contains(&found), "{found} after {departed}");
            }
        }
        let wait = rate.time_for(100, most, now).as_secs_f64();
        assert!((4.5..5.6).contains(&wait), "{wait}");
        let later = now + Duration::from_secs(40);
        assert!(rate.per_second(later).unwrap() < 0.5);
        assert_eq!(rate.time_for(100, most, later), most);
    }
}
