//! A decision with its reasons.

use std::sync::Arc;
use std::time::Duration;

use crate::fleet::TargetId;
use crate::load::Load;
use crate::policy::Reason;
use crate::snapshot::Snapshot;

/// What was decided, and from what.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The policy's name.
    pub policy: &'static str,
    /// Index of the chosen one of `candidates`.
    pub chosen: usize,
    /// Why.
    pub reason: Reason,
    /// Length of the prompt in tokens; an estimate for text.
    pub prompt_tokens: u64,
    /// Every target that might have been chosen.
    pub candidates: Vec<CandidateView>,
    /// Every other target.
    pub excluded: Vec<Excluded>,
    /// What the decision was made on.
    pub snapshot: Arc<Snapshot>,
}

/// One candidate.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CandidateView {
    /// The target.
    pub target: TargetId,
    /// Leading tokens of the prompt it holds.
    pub matched_tokens: u64,
    /// What this router has in flight there.
    pub load: Load,
    /// Time until what was dispatched there has been prefilled.
    pub backlog: Duration,
    /// Time to prefill what it does not hold.
    pub prefill: Duration,
    /// What the policy compared, if it compares one number; lower is better.
    pub cost: Option<f64>,
}

/// One target that might not be chosen.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Excluded {
    /// The target.
    pub target: TargetId,
    /// Why not.
    pub why: Arc<str>,
}
