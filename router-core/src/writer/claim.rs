//! The claims of one slot: what is held, since when, and who says so.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::digest::SetDigest;
use crate::index::RunId;
use crate::key::BlockKind;
use crate::time::Time;

/// Who vouches for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// We routed the prompt there; nothing has confirmed it. `by`: number of the decision.
    Predicted { by: u64 },
    /// A response or an agent said so.
    Confirmed { at: Time },
}

/// Which of a slot's claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    /// Blocks that agents can name.
    Reported,
    /// Blocks that they cannot.
    Unreported,
}

/// The claims of one slot.
#[derive(Debug)]
pub(crate) struct SlotClaims {
    pub(super) runs: FxHashMap<RunId, Claim>,
    pub(super) reported: Holding,
    pub(super) unreported: Holding,
    /// Of the blocks that agents can name.
    pub(super) digest: SetDigest,
}

/// What is held of reported blocks, or of the others. No prompt has both.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Runs of which the slot holds no child, oldest access first.
    pub(super) leaves: BTreeSet<(Time, RunId)>,
    pub(super) tokens: u64,
}

/// A slot's claim on one run.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(super) blocks: u32,
    pub(super) kind: BlockKind,
    /// Runs right below that the slot holds too.
    pub(super) children: u32,
    /// Since when something vouches for it.
    pub(crate) confirmed_since: Option<Time>,
    /// While nothing does: the decisions that predicted it and have neither failed nor lapsed.
    pub(super) predicted_by: Vec<u64>,
    pub(crate) last_access: Time,
    /// When it was last used before the latest decision for it.
    pub(crate) earlier_access: Time,
}

/// Decisions remembered of one claim. One more is not remembered: if the others fail, it is given up although that one may
/// still store it.
const MOST_PREDICTIONS: usize = 64;

impl SlotClaims {
    pub(super) fn holding(&mut self, kind: BlockKind) -> &mut Holding {
        if kind.is_reported() { &mut self.reported } else { &mut self.unreported }
    }

    /// Enters a claim on a run below `parent`.
    pub(super) fn begin(&mut self, run: RunId, parent: Option<RunId>, claim: Claim) {
        self.holding(claim.kind).leaves.insert((claim.last_access, run));
        self.runs.insert(run, claim);
        if let Some(parent) = parent
            && let Some(above) = self.runs.get_mut(&parent)
        {
            above.children += 1;
            if above.children == 1 {
                let (kind, at) = (above.kind, above.last_access);
                self.holding(kind).leaves.remove(&(at, parent));
            }
        }
    }

    /// The run has so many blocks now.
    pub(super) fn resize(&mut self, run: RunId, blocks: u32) {
        if let Some(claim) = self.runs.get_mut(&run) {
            claim.blocks = blocks;
        }
    }

    /// Takes out the claim on a run below `parent`, of which the slot holds no child.
    pub(super) fn end(&mut self, run: RunId, parent: Option<RunId>) -> Option<Claim> {
        let claim = self.runs.remove(&run)?;
        debug_assert_eq!(claim.children, 0, "a slot gives up what is below first");
        self.holding(claim.kind).leaves.remove(&(claim.last_access, run));
        if let Some(parent) = parent
            && let Some(above) = self.runs.get_mut(&parent)
        {
            above.children -= 1;
            if above.children == 0 {
                let (kind, at) = (above.kind, above.last_access);
                self.holding(kind).leaves.insert((at, parent));
            }
        }
        Some(claim)
    }

    pub(super) fn refresh(&mut self, run: RunId, at: Time) {
        let Some(claim) = self.runs.get_mut(&run) else { return };
        let before = claim.last_access;
        // Messages of different requests may be out of order by a little; an access never becomes older.
        if at <= before {
            return;
        }
        claim.last_access = at;
        if claim.children == 0 {
            let kind = claim.kind;
            let leaves = &mut self.holding(kind).leaves;
            leaves.remove(&(before, run));
            leaves.insert((at, run));
        }
    }

    /// The oldest leaf.
    pub(super) fn oldest(&self, scope: Scope) -> Option<(Time, RunId)> {
        let reported = || self.reported.leaves.first().copied();
        let unreported = || self.unreported.leaves.first().copied();
        match scope {
            Scope::Reported => reported(),
            Scope::Unreported => unreported(),
            Scope::All => [reported(), unreported()].into_iter().flatten().min(),
        }
    }

    pub(super) fn tokens(&self, scope: Scope) -> u64 {
        match scope {
            Scope::Reported => self.reported.tokens,
            Scope::Unreported => self.unreported.tokens,
            Scope::All => self.reported.tokens + self.unreported.tokens,
        }
    }
}

impl Claim {
    pub(super) fn new(kind: BlockKind, blocks: u32, at: Time) -> Self {
        Self {
            blocks,
            kind,
            children: 0,
            confirmed_since: None,
            predicted_by: Vec::new(),
            last_access: at,
            earlier_access: at,
        }
    }

    pub(super) fn vouch(&mut self, source: Source) {
        match source {
            Source::Confirmed { at } => {
                self.confirmed_since.get_or_insert(at);
                self.predicted_by = Vec::new();
            }
            Source::Predicted { by } if self.confirmed_since.is_none() => {
                if self.predicted_by.len() < MOST_PREDICTIONS && !self.predicted_by.contains(&by) {
                    self.predicted_by.push(by);
                }
            }
            Source::Predicted { .. } => {}
        }
    }

    /// Blocks of this kind that this source vouches for can be added to the claim's own.
    pub(super) fn may_grow(&self, kind: BlockKind, source: Source) -> bool {
        self.kind == kind && self.confirmed_since.is_some() && matches!(source, Source::Confirmed { .. })
    }

    /// Nothing vouches for it and no decision that predicted it is open.
    pub(super) fn is_void(&self) -> bool {
        self.confirmed_since.is_none() && self.predicted_by.is_empty()
    }

    /// The claims on both halves of a run that was cut after `at` blocks.
    pub(super) fn split(self, at: u32) -> (Self, Self) {
        let upper = Self { blocks: at, children: 1, ..self.clone() };
        (upper, Self { blocks: self.blocks - at, ..self })
    }

    /// One claim for this run and the one below, if that says the same.
    pub(super) fn join(&self, below: &Self) -> Option<Self> {
        let alike = self.kind == below.kind
            && self.last_access == below.last_access
            && self.confirmed_since.is_some() == below.confirmed_since.is_some()
            && self.predicted_by == below.predicted_by;
        alike.then(|| Self {
            blocks: self.blocks + below.blocks,
            // Of two times the one from which less follows.
            confirmed_since: self.confirmed_since.max(below.confirmed_since),
            earlier_access: self.earlier_access.min(below.earlier_access),
            ..below.clone()
        })
    }
}

impl Default for SlotClaims {
    fn default() -> Self {
        Self {
            runs: FxHashMap::default(),
            reported: Holding::default(),
            unreported: Holding::default(),
            digest: SetDigest::empty(),
        }
    }
}
