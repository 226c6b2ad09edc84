//! How far what is believed of a target is from what was found: prediction errors, divergence, counts, reconciliation.
//!
//! Nothing here is on the way of a decision.

use crate::key::Unit;
use crate::notice::MispredictionCause;
use crate::time::Time;

/// What is known of the error of what is believed of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Accuracy {
    /// Predictions that responses have shown to be right or wrong, since the target was registered.
    pub predictions: PredictionError,
    /// How far claims were from what the target holds when somebody last could tell; `None` while nobody could.
    pub divergence: Option<Divergence>,
    /// What the engine counts; `None` while nobody has told.
    pub counts: Option<Counted>,
    /// The last reconciliation in each unit, tokens first.
    pub reconciliations: [Option<Reconciliation>; 2],
    /// Claims are followed here and nothing vouches for them: no agent, and no response that said what was cached.
    pub unvouched: bool,
}

/// Sums over the responses that said how much was cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PredictionError {
    /// Responses that said how much was cached.
    pub checked: u64,
    /// Complete responses that did not say it, since the last one that did.
    pub unchecked: u64,
    /// Predicted and not cached: confirmed blocks that were evicted since.
    pub evicted: Mispredicted,
    /// Predicted and not cached: nothing had confirmed the blocks.
    pub not_yet_stored: Mispredicted,
    /// Cached and not predicted.
    pub other_traffic: Mispredicted,
}

/// Predictions that were wrong for one cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mispredicted {
    /// Responses.
    pub responses: u64,
    /// Absolute difference of predicted and actual cached tokens, over all of them.
    pub tokens: u64,
}

/// Tokens that are claimed and not held, or held and not claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Divergence {
    /// How many. A reconciliation has put them right since.
    pub tokens: u64,
    /// How it was found.
    pub source: DivergenceSource,
    /// When.
    pub at: Time,
}

/// How a divergence was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum DivergenceSource {
    /// An agent's digest of what is held, beside that of the claims: an estimate.
    Fingerprint,
    /// Reconciliation: the very blocks.
    Reconciliation,
    /// The tokens held, beside those claimed: it may be more, because what is held may be other tokens.
    Counts,
}

/// What an engine counts of its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Counts {
    /// Tokens in the prefix cache; not fewer than there are, but for those that the engine itself has below its device.
    pub held_tokens: u64,
    /// Tokens evicted since the engine started; `None` where it does not say, or not of one rank by itself.
    pub evicted_tokens_total: Option<u64>,
}

/// Counts, and who told them when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Counted {
    /// The counts.
    pub counts: Counts,
    /// Who told them.
    pub by: Witness,
    /// When.
    pub at: Time,
}

/// Who told counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Witness {
    /// Its agent.
    Agent,
    /// The engine itself, when it was asked for its metrics.
    Engine,
}

/// What one reconciliation found, and has put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Reconciliation {
    /// When its difference was put right.
    pub at: Time,
    /// Blocks that were claimed and not held.
    pub false_claims: u64,
    /// Blocks that were held and not claimed.
    pub missing: u64,
    /// The tokens of both; an estimate for text.
    pub tokens: u64,
    /// Bytes that it took both ways, as the messages are encoded.
    pub bytes: u64,
}

impl Accuracy {
    /// The last reconciliation in a unit.
    pub fn reconciliation(&self, unit: Unit) -> Option<&Reconciliation> {
        self.reconciliations[unit as usize].as_ref()
    }
}

impl PredictionError {
    /// A response said how much was cached: `error_tokens` are predicted minus actual tokens.
    pub(crate) fn check(&mut self, error_tokens: i64, cause: Option<MispredictionCause>) {
        self.checked += 1;
        self.unchecked = 0;
        let sum = match cause {
            None => return,
            Some(MispredictionCause::Evicted) => &mut self.evicted,
            Some(MispredictionCause::NotYetStored) => &mut self.not_yet_stored,
            Some(MispredictionCause::OtherTraffic) => &mut self.other_traffic,
        };
        sum.responses += 1;
        sum.tokens = sum.tokens.saturating_add(error_tokens.unsigned_abs());
    }

    /// The causes that errors were told apart by, with their sums.
    pub fn causes(&self) -> [(MispredictionCause, Mispredicted); 3] {
        [
            (MispredictionCause::Evicted, self.evicted),
            (MispredictionCause::NotYetStored, self.not_yet_stored),
            (MispredictionCause::OtherTraffic, self.other_traffic),
        ]
    }

    /// Mean of predicted minus actual cached tokens: above zero, more is claimed than there is. Zero without responses.
    pub fn mean_tokens(&self) -> f64 {
        let over = (self.evicted.tokens + self.not_yet_stored.tokens) as f64;
        self.mean(over - self.other_traffic.tokens as f64)
    }

    /// Mean of the absolute difference of predicted and actual cached tokens. Zero without responses.
    pub fn mean_absolute_tokens(&self) -> f64 {
        self.mean(self.causes().iter().map(|(_, sum)| sum.tokens as f64).sum())
    }

    fn mean(&self, sum: f64) -> f64 {
        if self.checked == 0 { 0.0 } else { sum / self.checked as f64 }
    }
}

impl DivergenceSource {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fingerprint => "fingerprint",
            Self::Reconciliation => "reconciliation",
            Self::Counts => "counts",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_signed_and_absolute_over_all_that_was_checked() {
        let mut sums = PredictionError { unchecked: 9, ..PredictionError::default() };
        assert_eq!((sums.mean_tokens(), sums.mean_absolute_tokens()), (0.0, 0.0));
        sums.check(0, None);
        sums.check(300, Some(MispredictionCause::Evicted));
        sums.check(100, Some(MispredictionCause::NotYetStored));
        sums.check(-200, Some(MispredictionCause::OtherTraffic));
        assert_eq!((sums.checked, sums.unchecked), (4, 0));
        assert_eq!((sums.mean_tokens(), sums.mean_absolute_tokens()), (50.0, 150.0));
        assert_eq!(sums.evicted, Mispredicted { responses: 1, tokens: 300 });
    }
}
