//! Timing of single lookups.
//!
//! Reading the clock costs 25–40 ns in a virtual machine, and a lookup a few hundred: so the median of an empty
//! measurement, taken anew for every round, is subtracted from every time. Each prompt's keys are in the cache when its
//! lookup begins, as they are when they have just been hashed; the index's own memory is as the lookups before left it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use crate::contest::Reader;
use crate::work::Prompt;

/// Lookups before those that count.
const WARM_UP: usize = 200;
/// Empty measurements, for the clock's own cost.
const EMPTY: usize = 2_001;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    /// The lookup, keys given.
    Lookup,
    /// Hashing and the lookup, tokens given.
    HashAndLookup,
}

/// Times of single operations in nanoseconds, without the clock's own cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    sorted: Vec<u32>,
}

impl Times {
    /// Of times that include the clock's cost.
    pub(crate) fn new(mut raw: Vec<u32>, clock_ns: u32) -> Self {
        raw.iter_mut().for_each(|time| *time = time.saturating_sub(clock_ns));
        raw.sort_unstable();
        Self { sorted: raw }
    }

    /// The middle one.
    pub(crate) fn p50(&self) -> f64 {
        self.sorted[self.sorted.len() / 2].into()
    }

    /// Only one in a hundred is longer.
    pub(crate) fn p99(&self) -> f64 {
        self.sorted[self.sorted.len() * 99 / 100].into()
    }
}

/// Times a lookup of every prompt.
pub(crate) fn time_lookups(reader: &mut dyn Reader, prompts: &[Arc<Prompt>], timed: Timed) -> Times {
    for prompt in prompts.iter().rev().take(WARM_UP) {
        time_lookup(reader, prompt, timed);
    }
    let clock_ns = clock_ns();
    Times::new(prompts.iter().map(|prompt| time_lookup(reader, prompt, timed)).collect(), clock_ns)
}

/// Times one lookup, the clock's cost included.
pub(crate) fn time_lookup(reader: &mut dyn Reader, prompt: &Prompt, timed: Timed) -> u32 {
    match timed {
        Timed::Lookup => {
            reader.warm(prompt);
            let began = Instant::now();
            reader.lookup(black_box(prompt));
            since_ns(began)
        }
        Timed::HashAndLookup => {
            reader.warm_tokens(prompt);
            let began = Instant::now();
            reader.hash_and_lookup(black_box(prompt));
            since_ns(began)
        }
    }
}

/// The median time of some work on a prompt whose tokens are in the cache.
pub(crate) fn times_of(prompts: &[Arc<Prompt>], mut work: impl FnMut(&Prompt)) -> f64 {
    let clock_ns = clock_ns();
    let timed = prompts.iter().map(|prompt| {
        black_box(prompt.tokens.iter().fold(0, |all, token| all ^ token));
        let began = Instant::now();
        work(black_box(prompt));
        since_ns(began)
    });
    Times::new(timed.collect(), clock_ns).p50()
}

/// What an empty measurement comes to.
pub(crate) fn clock_ns() -> u32 {
    let mut empty: Vec<u32> = (0..EMPTY)
        .map(|number| {
            let began = Instant::now();
            black_box(number);
            since_ns(began)
        })
        .collect();
    empty.sort_unstable();
    empty[EMPTY / 2]
}

/// Nanoseconds since a time, as far as 32 bits go: four seconds.
pub(crate) fn since_ns(began: Instant) -> u32 {
    began.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32
}
