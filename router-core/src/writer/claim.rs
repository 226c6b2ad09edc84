//! The claims of one slot: what is held, since when, and who says so.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;

use crate::digest::SetDigest;
use crate::index::RunId;
use crate::time::Time;

/// Who vouches for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// We routed the prompt there; nothing has confirmed it. `by`: number of the decision.
    Predicted { by: u64, until: Time },
    /// A response or an agent said so.
    Confirmed { at: Time },
}

/// The claims of one slot.
#[derive(Debug)]
pub(crate) struct SlotClaims {
    pub(super) runs: FxHashMap<RunId, Claim>,
    /// Runs of which the slot holds no child, oldest access first.
    pub(super) leaves: BTreeSet<(Time, RunId)>,
    pub(super) tokens: u64,
    pub(super) digest: SetDigest,
}

/// A slot's claim on the leading blocks of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// Blocks claimed; never zero.
    pub(crate) held: u32,
    /// Of these, the leading blocks that are confirmed.
    pub(crate) confirmed: u32,
    /// Since when all of those are.
    pub(crate) confirmed_since: Time,
    /// For the rest.
    pub(crate) predicted_by: u64,
    pub(crate) predicted_until: Time,
    /// Runs right below of which the slot holds some.
    pub(super) children: u32,
    pub(crate) last_access: Time,
    /// When it was last used before the latest decision for it.
    pub(crate) earlier_access: Time,
}

impl SlotClaims {
    /// Makes room for a claim on a run below `parent`, if there is none yet.
    pub(super) fn begin(&mut self, run: RunId, parent: Option<RunId>, at: Time) {
        if let Entry::Vacant(vacant) = self.runs.entry(run) {
            vacant.insert(Claim::new(at));
            self.leaves.insert((at, run));
            if let Some(parent) = parent {
                self.gain_child(parent);
            }
        }
    }

    pub(super) fn refresh(&mut self, run: RunId, at: Time) {
        let Some(claim) = self.runs.get_mut(&run) else { return };
        // Messages of different requests may be out of order by a little; an access never becomes older.
        if at <= claim.last_access {
            return;
        }
        if claim.children == 0 {
            self.leaves.remove(&(claim.last_access, run));
            self.leaves.insert((at, run));
        }
        claim.last_access = at;
    }

    pub(super) fn gain_child(&mut self, parent: RunId) {
        if let Some(claim) = self.runs.get_mut(&parent) {
            if claim.children == 0 {
                self.leaves.remove(&(claim.last_access, parent));
            }
            claim.children += 1;
        }
    }

    pub(super) fn lose_child(&mut self, parent: RunId) {
        if let Some(claim) = self.runs.get_mut(&parent) {
            claim.children -= 1;
            if claim.children == 0 {
                self.leaves.insert((claim.last_access, parent));
            }
        }
    }
}

impl Claim {
    pub(super) fn new(at: Time) -> Self {
        Self {
            held: 0,
            confirmed: 0,
            confirmed_since: at,
            predicted_by: 0,
            predicted_until: at,
            children: 0,
            last_access: at,
            earlier_access: at,
        }
    }

    /// The leading `blocks` are confirmed.
    pub(super) fn confirm(&mut self, blocks: u32, at: Time) {
        if blocks > self.confirmed {
            self.confirmed = blocks;
            self.confirmed_since = at;
        }
    }

    /// The claims on both halves of a run that was cut after `at` blocks, of which `held` were held.
    pub(super) fn split(self, held: u32, at: u32) -> (Self, Option<Self>) {
        let upper = Self { held: held.min(at), confirmed: self.confirmed.min(at), ..self };
        if held <= at {
            return (Self { children: 0, ..upper }, None);
        }
        let lower = Self { held: held - at, confirmed: self.confirmed.saturating_sub(at), ..self };
        (Self { children: 1, ..upper }, Some(lower))
    }
}

impl Default for SlotClaims {
    fn default() -> Self {
        Self { runs: FxHashMap::default(), leaves: BTreeSet::new(), tokens: 0, digest: SetDigest::empty() }
    }
}
