//! Policies: pure functions from what is known to one target.
//!
//! A policy sees a [`View`] and a source of randomness, and names one of the view's candidates. It holds no handles, keeps
//! no state, starts nothing and counts nothing; whatever may not be chosen is not in the view.

mod cache_aware;
mod kv_space;
mod least_load;
mod power_of_two;
mod random;
mod round_robin;
mod threshold;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use cache_aware::{CacheAware, CacheAwareSettings};
pub use kv_space::KvSpace;
pub use least_load::LeastLoad;
pub use power_of_two::PowerOfTwo;
pub use random::Random;
pub use round_robin::RoundRobin;
pub use threshold::{Threshold, ThresholdSettings};

use crate::fleet::TargetId;
use crate::load::Load;
use crate::timing::PrefillModel;

/// Decides where a request goes.
pub trait Policy: fmt::Debug + Send + Sync {
    /// The name it is configured by.
    fn name(&self) -> &'static str;

    /// The candidate to send the request to. The view has at least one.
    ///
    /// Called on the thread that decides, for every request: it must not block. An index that no candidate has makes
    /// [`Router::route`](crate::Router::route) panic.
    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice;

    /// Whether a view of some targets of a large fleet will do: the holders of the longest matches, and others drawn by chance.
    fn may_sample(&self) -> bool {
        false
    }

    /// Whether it looks at what targets are believed to have cached: then something should vouch for that.
    fn follows_cache(&self) -> bool {
        false
    }

    /// What the policy compares, lower being better, for policies that compare one number.
    fn cost(&self, view: &View<'_>, candidate: &Candidate) -> Option<f64> {
        let _ = (view, candidate);
        None
    }
}

/// Everything a policy may look at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Targets that may be chosen; never empty.
    pub candidates: &'a [Candidate],
    /// Length of the prompt in tokens; an estimate for text.
    pub prompt_tokens: u64,
    /// Number of this decision, counting up by one from zero.
    pub ordinal: u64,
    /// Hash of the prompt's first blocks; `None` if it has no full block.
    pub first_blocks: Option<u64>,
}

/// One target that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The target.
    pub id: TargetId,
    /// Leading tokens of the prompt that it holds, or will hold when what is queued there has run.
    pub matched_tokens: u64,
    /// What this router has in flight there.
    pub load: Load,
    /// Tokens that wait there to be prefilled beyond what this router sent, as its agent reports.
    pub foreign_waiting_tokens: u64,
    /// KV tokens in use there beyond the prompts of what this router has in flight, as of its agent's last report.
    pub foreign_used_tokens: u64,
    /// KV tokens it can hold: as reported, else as its engine says, else [`Settings::default_capacity_tokens`].
    ///
    /// [`Settings::default_capacity_tokens`]: crate::Settings::default_capacity_tokens
    pub capacity_tokens: u64,
    /// Prefill speed.
    pub prefill: PrefillModel,
    /// See [`Target::eviction_pressure`](crate::Target::eviction_pressure).
    pub eviction_pressure: f32,
    /// See [`Target::tail_reuse`](crate::Target::tail_reuse).
    pub tail_reuse: f32,
    /// See [`Target::arrivals`](crate::Target::arrivals).
    pub arrivals: ArrivalRate,
    /// See [`Target::retention`](crate::Target::retention).
    pub retention: f32,
    /// Tokens claimed to be cached there.
    pub claimed_tokens: u64,
    /// Names the target for rendezvous hashing; equal in all routers.
    pub identity: u64,
}

/// Requests that were sent somewhere, and the seconds in which they were: both count less the longer ago they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ArrivalRate {
    /// Requests.
    pub requests: f32,
    /// Seconds that their prefills were expected to take.
    pub prefill_seconds: f32,
    /// Seconds.
    pub seconds: f32,
}

impl ArrivalRate {
    /// Requests a second.
    pub fn per_s(self) -> f64 {
        if self.seconds > 0.0 { f64::from(self.requests) / f64::from(self.seconds) } else { 0.0 }
    }

    /// What so many routers send of which each sends as much.
    pub(crate) fn times(self, routers: u32) -> Self {
        let routers = routers as f32;
        Self {
            requests: self.requests * routers,
            prefill_seconds: self.prefill_seconds * routers,
            seconds: self.seconds,
        }
    }

    /// Share of the time that their prefills take; more than 1 where more is sent than can be computed.
    pub fn busy(self) -> f64 {
        if self.seconds > 0.0 { f64::from(self.prefill_seconds) / f64::from(self.seconds) } else { 0.0 }
    }
}

/// A policy's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index into [`View::candidates`].
    pub index: usize,
    /// Why.
    pub reason: Reason,
}

/// Why a candidate was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Reason {
    /// There was no other.
    Only,
    /// It holds the longest match, and costs least.
    LongestMatch,
    /// Another one holds more, but waiting for it would take longer.
    Spill,
    /// Nobody holds any of it; this one costs least.
    LeastCost,
    /// Several cost the same; rendezvous hashing of the first blocks decided.
    Rendezvous,
    /// It has the least load.
    LeastLoad,
    /// Loads are too uneven to look at the cache.
    Imbalance,
    /// No match was long enough; it claims the fewest tokens.
    MostRoom,
    /// It has the best of load and free KV space.
    KvSpace,
    /// It was its turn.
    Turn,
    /// Chance.
    Random,
}

/// A policy by the name and settings that users configure.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum PolicyConfig {
    /// [`CacheAware`].
    CacheAware(CacheAwareSettings),
    /// [`Threshold`].
    Threshold(ThresholdSettings),
    /// [`LeastLoad`].
    LeastLoad,
    /// [`PowerOfTwo`].
    PowerOfTwo,
    /// [`RoundRobin`].
    RoundRobin,
    /// [`Random`].
    Random,
}

impl PolicyConfig {
    /// The policy itself.
    pub fn build(&self) -> Arc<dyn Policy> {
        match self {
            Self::CacheAware(settings) => Arc::new(CacheAware::new(*settings)),
            Self::Threshold(settings) => Arc::new(Threshold::new(*settings)),
            Self::LeastLoad => Arc::new(LeastLoad),
            Self::PowerOfTwo => Arc::new(PowerOfTwo),
            Self::RoundRobin => Arc::new(RoundRobin),
            Self::Random => Arc::new(Random),
        }
    }
}

impl Candidate {
    /// Leading tokens of the prompt that it is likely to hold still.
    #[inline]
    pub(crate) fn retained_tokens(&self) -> u64 {
        retained(self.matched_tokens, self.retention)
    }

    /// Time until everything dispatched there has been prefilled.
    pub fn backlog(&self) -> Duration {
        Duration::from_micros(self.load.backlog_us)
            .saturating_add(self.prefill.prefill_time(self.foreign_waiting_tokens, 0))
    }

    /// The same in microseconds.
    #[inline]
    pub(crate) fn backlog_us(&self) -> f64 {
        let own = self.load.backlog_us as f64;
        // Three divisions, for every candidate of a decision.
        if self.foreign_waiting_tokens == 0 {
            return own;
        }
        own + self.prefill.prefill_us(self.foreign_waiting_tokens, 0)
    }

    /// The rendezvous score of this candidate for a prefix: the highest wins, and stays the winner when others come or go.
    pub fn rendezvous(&self, first_blocks: u64) -> u64 {
        let mut h = self.identity ^ first_blocks.rotate_left(32);
        h = (h ^ (h >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        h = (h ^ (h >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        h ^ (h >> 32)
    }
}

/// What is likely to be there of tokens that are claimed to be.
#[inline]
pub(crate) fn retained(matched_tokens: u64, retention: f32) -> u64 {
    if retention < 1.0 { (matched_tokens as f64 * f64::from(retention)) as u64 } else { matched_tokens }
}

impl View<'_> {
    /// One of the candidates that `best` accepts, by rendezvous hashing if the prompt has a full block, else by chance.
    fn break_tie(&self, rng: &mut fastrand::Rng, best: impl Fn(&Candidate) -> bool) -> usize {
        let tied = self.candidates.iter().enumerate().filter(|(_, candidate)| best(candidate));
        tied.map(|(index, candidate)| (self.tie_score(candidate, rng), index))
            .max()
            .map_or(0, |(_, index)| index)
    }

    /// What decides between equals: the higher score wins.
    fn tie_score(&self, candidate: &Candidate, rng: &mut fastrand::Rng) -> u64 {
        self.first_blocks.map_or_else(|| rng.u64(..), |first| candidate.rendezvous(first))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Only => "the only target that may be chosen",
            Self::LongestMatch => "longest match and lowest cost",
            Self::Spill => "a longer match elsewhere would have waited longer",
            Self::LeastCost => "nobody holds the prefix; lowest cost",
            Self::Rendezvous => "equal costs; chosen by rendezvous hash of the first blocks",
            Self::LeastLoad => "least load",
            Self::Imbalance => "loads too uneven to follow the cache; least load",
            Self::MostRoom => "no match above the threshold; fewest claimed tokens",
            Self::KvSpace => "best of load and free KV space",
            Self::Turn => "its turn",
            Self::Random => "chance",
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Candidates for tests of policies.

    use super::*;
    use crate::fleet::WorkerId;

    pub(crate) fn candidate(worker: u32) -> Candidate {
        Candidate {
            id: TargetId { worker: WorkerId(worker), rank: 0 },
            matched_tokens: 0,
            load: Load::default(),
            foreign_waiting_tokens: 0,
            foreign_used_tokens: 0,
            capacity_tokens: 1 << 20,
            prefill: PrefillModel::default(),
            eviction_pressure: 0.0,
            tail_reuse: f32::INFINITY,
            arrivals: ArrivalRate::default(),
            retention: 1.0,
            claimed_tokens: 0,
            identity: u64::from(worker).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        }
    }

    pub(crate) fn view(candidates: &[Candidate], prompt_tokens: u64) -> View<'_> {
        View { candidates, prompt_tokens, ordinal: 0, first_blocks: Some(7) }
    }
}
