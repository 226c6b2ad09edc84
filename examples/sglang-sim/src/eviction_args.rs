//! What a server is told about eviction: SGLang's names of the policies, and what they are tuned with.

use std::str::FromStr;

use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use crate::radix::Eviction;

/// A policy by its name; [`Eviction`] says what each does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs, reason = "they are SGLang's names")]
pub enum EvictionPolicy {
    #[default]
    Lru,
    Lfu,
    Fifo,
    Mru,
    Filo,
    Priority,
    Slru,
    Tlru,
}

/// What a policy is tuned with; each has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EvictionTuning {
    /// `slru`: requests that make a node protected; 2 unless it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protected_threshold: Option<u64>,
    /// `tlru`: tokens that may be computed anew within the time to a first token that is aimed at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<usize>,
    /// `tlru`: tokens that the next prompt of a conversation is expected to add.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_prompt_estimate: Option<usize>,
}

impl EvictionPolicy {
    /// As SGLang names it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn tuned(self, tuning: EvictionTuning) -> Eviction {
        match self {
            Self::Lru => Eviction::Lru,
            Self::Lfu => Eviction::Lfu,
            Self::Fifo => Eviction::Fifo,
            Self::Mru => Eviction::Mru,
            Self::Filo => Eviction::Filo,
            Self::Priority => Eviction::Priority,
            Self::Slru => Eviction::Slru { protected_hits: tuning.protected_threshold.unwrap_or(2) },
            Self::Tlru => Eviction::Tlru { tail_tokens: tuning.tail_tokens() },
        }
    }

    /// What is wrong with tuning it so.
    pub(crate) fn refuses(self, tuning: EvictionTuning) -> Option<&'static str> {
        let is_segmented = tuning.protected_threshold.is_some();
        let is_tailed = tuning.threshold.is_some() || tuning.next_prompt_estimate.is_some();
        if is_segmented && self != Self::Slru {
            return Some("protected_threshold is for slru alone");
        }
        if is_tailed && self != Self::Tlru {
            return Some("threshold and next_prompt_estimate are for tlru alone");
        }
        let is_idle = self == Self::Tlru && tuning.tail_tokens() == 0;
        is_idle.then_some("tlru needs a threshold above next_prompt_estimate; it would be lru")
    }
}

impl EvictionTuning {
    fn tail_tokens(self) -> usize {
        self.threshold.unwrap_or(0).saturating_sub(self.next_prompt_estimate.unwrap_or(0))
    }
}

impl FromStr for EvictionTuning {
    type Err = serde_json::Error;

    /// From a JSON object.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_is_tuned_with_its_own() {
        let tuning: EvictionTuning = r#"{"threshold": 4096, "next_prompt_estimate": 512}"#.parse().unwrap();
        assert_eq!(EvictionPolicy::Tlru.tuned(tuning), Eviction::Tlru { tail_tokens: 3584 });
        assert_eq!(EvictionPolicy::Tlru.refuses(tuning), None);
        assert!(EvictionPolicy::Slru.refuses(tuning).unwrap().contains("for tlru alone"));
        assert!(EvictionPolicy::Tlru.refuses(EvictionTuning::default()).unwrap().contains("would be lru"));
        let tuning: EvictionTuning = r#"{"protected_threshold": 4}"#.parse().unwrap();
        assert_eq!(EvictionPolicy::Slru.tuned(tuning), Eviction::Slru { protected_hits: 4 });
        assert!(EvictionPolicy::Lru.refuses(tuning).unwrap().contains("for slru alone"));
        assert!(r#"{"protected_treshold": 4}"#.parse::<EvictionTuning>().is_err());
    }
}
