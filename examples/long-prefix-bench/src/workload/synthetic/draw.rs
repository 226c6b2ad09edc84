//! What generators draw: lengths, times, names of texts, sessions that grow.

use std::time::Duration;

use super::super::text;
use super::super::{DraftSession, DraftTurn};
use crate::sequence::Hasher;

/// A seeded source, and the hasher.
#[derive(Debug)]
pub(super) struct Draw {
    pub(super) rng: fastrand::Rng,
    hasher: Hasher,
}

/// A session whose prompts grow by what is said.
#[derive(Debug)]
pub(super) struct Growing {
    tokens: Vec<u32>,
    turns: Vec<DraftTurn>,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), hasher: Hasher::new() }
    }

    /// The name of a text that is nobody else's.
    pub(super) fn name(&mut self) -> u64 {
        self.rng.u64(..)
    }

    /// Names of so many texts.
    pub(super) fn names(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| self.name()).collect()
    }

    /// A length drawn evenly from a range.
    pub(super) fn between(&mut self, least: usize, most: usize) -> usize {
        self.rng.usize(least..=most)
    }

    /// A length with this median and spread (of its logarithm), within bounds: Box and Muller's normal numbers.
    pub(super) fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        let (radius, angle) = (self.rng.f64(), self.rng.f64());
        let normal = (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        median * (sigma * normal).exp()
    }

    /// Output tokens around a median.
    pub(super) fn output(&mut self, median: f64) -> usize {
        (self.lognormal(median, 0.7) as usize).clamp(4, 2_048)
    }

    /// Seconds around a median.
    pub(super) fn seconds(&mut self, median: f64, sigma: f64) -> Duration {
        Duration::from_secs_f64(self.lognormal(median, sigma).min(20.0 * median))
    }

    /// A number below `count`, the n-th with weight n to the power of −s.
    pub(super) fn zipf(&mut self, count: usize, s: f64) -> usize {
        let weights = (1..=count).map(|rank| (rank as f64).powf(-s));
        let mut left = self.rng.f64() * weights.clone().sum::<f64>();
        for (index, weight) in weights.enumerate() {
            left -= weight;
            if left <= 0.0 {
                return index;
            }
        }
        count - 1
    }

    /// A session of one request: shared texts by name and length, then a text of its own.
    pub(super) fn single(
        &mut self,
        starts: f64,
        shared: &[(u64, usize)],
        own: usize,
        output: usize,
    ) -> DraftSession {
        let mut texts = shared.to_vec();
        texts.push((self.name(), own));
        self.again(starts, &texts, output)
    }

    /// A number below the length of cumulative shares, which end at 1.
    pub(super) fn by_shares(&mut self, shares: &[f64]) -> usize {
        let drawn = self.rng.f64();
        shares.partition_point(|share| *share <= drawn).min(shares.len() - 1)
    }

    /// A session of one request with nothing of its own: texts by name and length.
    pub(super) fn again(&mut self, starts: f64, texts: &[(u64, usize)], output: usize) -> DraftSession {
        let mut session = self.growing();
        for (name, len) in texts {
            session.hear(*name, *len);
        }
        self.ask(&mut session, Duration::ZERO, output);
        session.from(starts)
    }

    /// A session that has said nothing yet.
    pub(super) fn growing(&self) -> Growing {
        Growing { tokens: Vec::new(), turns: Vec::new() }
    }

    /// Asks for what the session has come to; the answer becomes part of it.
    pub(super) fn ask(&mut self, session: &mut Growing, think: Duration, output: usize) {
        let answer = text::text(self.name(), output);
        let sequence = self.hasher.sequence(&session.tokens, &answer);
        session.turns.push(DraftTurn::new(think, sequence));
        session.tokens.extend(answer);
    }

    /// Asks for so many continuations at once, each after a few tokens of its own; the first one goes on.
    pub(super) fn branch(&mut self, session: &mut Growing, think: Duration, breadth: usize, output: usize) {
        let mut turn: Option<DraftTurn> = None;
        let mut goes_on = Vec::new();
        for nth in 0..breadth {
            let mut tokens = session.tokens.clone();
            text::extend(&mut tokens, self.name(), 24);
            let output = (output as f64 * (0.5 + self.rng.f64())) as usize;
            let answer = text::text(self.name(), output.max(4));
            let sequence = self.hasher.sequence(&tokens, &answer);
            match &mut turn {
                Some(turn) => turn.requests.push(sequence.into()),
                None => turn = Some(DraftTurn::new(think, sequence)),
            }
            if nth == 0 {
                goes_on = tokens;
                goes_on.extend(answer);
            }
        }
        session.turns.extend(turn);
        session.tokens = goes_on;
    }
}

/// Cumulative shares of Zipf's law, for many draws from one.
pub(super) fn zipf_shares(count: usize, s: f64) -> Vec<f64> {
    let weights = (1..=count).map(|rank| (rank as f64).powf(-s));
    let whole: f64 = weights.clone().sum();
    let up_to = |sum: &mut f64, weight: f64| {
        *sum += weight / whole;
        Some(*sum)
    };
    weights.scan(0.0, up_to).collect()
}

impl Growing {
    /// A text joins the prompt.
    pub(super) fn hear(&mut self, name: u64, len: usize) {
        text::extend(&mut self.tokens, name, len);
    }

    /// Tokens so far.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Keeps the beginning alone.
    pub(super) fn compact_to(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    /// Turns so far.
    pub(super) fn turns(&self) -> usize {
        self.turns.len()
    }

    /// The session, at its share of the span.
    pub(super) fn from(self, starts: f64) -> DraftSession {
        DraftSession { starts, turns: self.turns, ..DraftSession::default() }
    }
}
