//! Which claims an engine's own counts of evictions disprove.
//!
//! Let an engine have held `H` tokens at `t`, and have evicted `E` since. What nobody has used since `t` is at most `H`, and an engine that
//! evicts the least recently used leaf takes it before anything that was used later: with `E ≥ H` all of it is gone, and the horizon
//! moves to `t`. That holds whoever sent what the engine stored meanwhile.

use std::collections::VecDeque;

use crate::time::Time;

/// One count that later ones are compared with.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Time,
    held_tokens: u64,
    evicted_total: u64,
}

/// Earlier counts of one engine's life, oldest first, of which none disproves anything yet.
#[derive(Debug, Default)]
pub(crate) struct Evictions {
    samples: VecDeque<Sample>,
    last_total: Option<u64>,
}

/// Samples for what the engine holds: the horizon lags by this share of it.
const SAMPLES_PER_CACHE: u64 = 32;

/// Samples kept at most, also of an engine whose cache shrinks.
const SAMPLES_KEPT: usize = 4 * SAMPLES_PER_CACHE as usize;

impl Evictions {
    /// Takes a count in; returns the tokens evicted since the one before.
    pub(crate) fn count(&mut self, at: Time, held_tokens: u64, evicted_total: u64) -> u64 {
        let before = self.last_total.replace(evicted_total);
        if before.is_some_and(|before| evicted_total < before) {
            // A new life of the engine, or another way of counting.
            self.samples.clear();
        }
        let due = self.samples.back().is_none_or(|last| {
            evicted_total.saturating_sub(last.evicted_total) >= last.held_tokens / SAMPLES_PER_CACHE
        });
        if due {
            self.samples.push_back(Sample { at, held_tokens, evicted_total });
            if self.samples.len() > SAMPLES_KEPT {
                self.samples.pop_front();
            }
        }
        before.map_or(0, |before| evicted_total.saturating_sub(before))
    }

    /// The latest moment since which nothing is held that was not used again; once.
    pub(crate) fn horizon(&mut self) -> Option<Time> {
        let total = self.last_total?;
        let is_over = |sample: &Sample| {
            sample.held_tokens > 0 && total.saturating_sub(sample.evicted_total) >= sample.held_tokens
        };
        let last = self.samples.iter().rposition(is_over)?;
        let horizon = self.samples[last].at;
        self.samples.drain(..=last);
        Some(horizon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time::from_micros(second * 1_000_000)
    }

    #[test]
    fn what_was_held_is_gone_once_as_much_has_been_evicted_and_not_before() {
        let mut evictions = Evictions::default();
        assert_eq!(evictions.count(at(1), 1_000, 5_000), 0, "what came before is not known");
        assert_eq!(evictions.count(at(2), 1_000, 5_400), 400);
        assert_eq!(evictions.count(at(3), 1_000, 5_999), 599);
        assert_eq!(evictions.horizon(), None);
        evictions.count(at(4), 1_000, 6_000);
        assert_eq!(evictions.horizon(), Some(at(1)));
        assert_eq!(evictions.horizon(), None, "it is told once");
        evictions.count(at(5), 1_000, 7_100);
        assert_eq!(evictions.horizon(), Some(at(3)), "the latest that is disproved");
    }

    #[test]
    fn a_total_that_falls_begins_anew_and_an_idle_engine_fills_nothing() {
        let mut evictions = Evictions::default();
        evictions.count(at(1), 1_000, 5_000);
        assert_eq!(evictions.count(at(2), 1_000, 10), 0);
        evictions.count(at(3), 1_000, 1_009);
        assert_eq!(evictions.horizon(), None, "999 since the restart");
        for second in 4..1_000 {
            evictions.count(at(second), 1_000, 1_009);
        }
        assert_eq!(evictions.samples.len(), 2);
        for second in 1_000..10_000 {
            evictions.count(at(second), 0, second);
        }
        assert!(evictions.samples.len() <= SAMPLES_KEPT);
    }
}
