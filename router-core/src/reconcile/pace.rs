//! How often claims are compared with what is held.

use std::time::Duration;

/// As often as it takes for little to differ, and no more often than is of use: after each comparison it says when the next is due.
///
/// What an agent does not tell makes claims and caches differ ever more until they are compared again: most when other routers send work
/// to the same engine, and hardly at all where only this one does. The time is chosen so that one block in
/// 250 differs when they are compared, half as many on average.
///
/// ```
/// use std::time::Duration;
/// use router_core::reconcile::Pace;
///
/// let pace = Pace::new(Duration::from_secs(60));
/// // Of 10,000 blocks 240 differed after a minute.
/// assert_eq!(pace.compared(Duration::from_secs(60), 240, 10_000), Duration::from_secs(10));
/// // Then nothing: it is twice as long until the next.
/// assert_eq!(pace.compared(Duration::from_secs(10), 0, 10_000), Duration::from_secs(20));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    longest: Duration,
}

/// Share of blocks that differs when they are compared.
const WANTED: f64 = 1.0 / 250.0;

/// Shortest time between two comparisons: what is on its way settles in about as long.
const SHORTEST: Duration = Duration::from_secs(1);

/// Most that the time grows from one comparison to the next.
const MOST_GROWTH: f64 = 2.0;

impl Pace {
    /// `longest`: time between two comparisons of what does not differ.
    pub fn new(longest: Duration) -> Self {
        Self { longest }
    }

    /// The time to the next comparison, after one of `blocks` blocks found `differing`, `elapsed` after the last.
    pub fn compared(&self, elapsed: Duration, differing: u64, blocks: u64) -> Duration {
        let allowed = WANTED * blocks.max(1) as f64;
        let growth = (allowed / differing as f64).min(MOST_GROWTH);
        elapsed.mul_f64(growth).clamp(SHORTEST.min(self.longest), self.longest)
    }

    /// The longest time between two comparisons.
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_drift_is_found_when_it_is_as_large_as_is_wanted() {
        // 10 of 10,000 blocks a second: 40 after four.
        let pace = Pace::new(Duration::from_secs(60));
        let mut time = pace.longest();
        for _ in 0..3 {
            time = pace.compared(time, (10.0 * time.as_secs_f64()) as u64, 10_000);
        }
        assert_eq!(time, Duration::from_secs(4));
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let pace = Pace::new(Duration::from_secs(60));
        assert_eq!(pace.compared(Duration::from_secs(40), 0, 0), Duration::from_secs(60));
        assert_eq!(pace.compared(Duration::from_secs(60), 10_000, 10), SHORTEST);
        let short = Duration::from_millis(300);
        assert_eq!(Pace::new(short).compared(short, 5, 10), short);
    }
}
