//! The claims of one slot: what is held, since when, and who says so.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::digest::SetDigest;
use crate::index::RunId;
use crate::key::{BlockKind, Unit};
use crate::time::Time;

/// Who vouches for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// We routed the prompt there; nothing has confirmed it. `by`: number of the decision.
    Predicted { by: u64 },
    /// A response or an agent said so.
    Confirmed { at: Time },
}

/// Which of a slot's claims: those on any of three sorts of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope([bool; SORTS]);

/// Blocks that agents name as tokens, blocks that they name as text, and blocks that they cannot name. No prompt has two sorts.
const SORTS: usize = 3;

/// The claims of one slot.
#[derive(Debug)]
pub(crate) struct SlotClaims {
    pub(super) runs: FxHashMap<RunId, Claim>,
    holdings: [Holding; SORTS],
    /// Of the blocks that agents can name, by unit.
    digests: [SetDigest; 2],
}

/// What is held of one sort of blocks.
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
        &mut self.holdings[sort(kind)]
    }

    /// The digest of all blocks that agents name in a unit.
    pub(super) fn digest(&self, unit: Unit) -> &SetDigest {
        &self.digests[unit as usize]
    }

    /// The digest that blocks of this kind count in.
    pub(super) fn digest_mut(&mut self, kind: BlockKind) -> Option<&mut SetDigest> {
        kind.named().map(|unit| &mut self.digests[unit as usize])
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

    /// A run is used, and somebody vouches for its being there.
    pub(super) fn touch(&mut self, run: RunId, at: Time, source: Source) {
        let Some(claim) = self.runs.get_mut(&run) else { return };
        let before = claim.last_access;
        // A request's decision is an access of its own; what confirms it later belongs to the same one.
        if let Source::Predicted { .. } = source {
            claim.earlier_access = before;
        }
        claim.vouch(source);
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
        scope.holdings(&self.holdings).filter_map(|holding| holding.leaves.first().copied()).min()
    }

    pub(super) fn tokens(&self, scope: Scope) -> u64 {
        scope.holdings(&self.holdings).map(|holding| holding.tokens).sum()
    }
}

impl Scope {
    /// All claims.
    pub(crate) const ALL: Self = Self([true; SORTS]);

    /// Blocks that agents can name in a unit.
    pub(crate) fn named(unit: Unit) -> Self {
        let mut sorts = [false; SORTS];
        sorts[sort(unit.into())] = true;
        Self(sorts)
    }

    /// The same but for the blocks that agents can name in a unit.
    pub(crate) fn without(mut self, unit: Unit) -> Self {
        self.0[sort(unit.into())] = false;
        self
    }

    fn holdings(self, holdings: &[Holding; SORTS]) -> impl Iterator<Item = &Holding> {
        holdings.iter().zip(self.0).filter(|(_, wanted)| *wanted).map(|(holding, _)| holding)
    }
}

fn sort(kind: BlockKind) -> usize {
    kind.named().map_or(SORTS - 1, |unit| unit as usize)
}

impl Claim {
    /// Agents can name its blocks in the unit, and something vouches for their being there.
    pub(super) fn is_vouched(&self, unit: Unit) -> bool {
        self.kind.named() == Some(unit) && self.confirmed_since.is_some()
    }

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
            holdings: Default::default(),
            digests: [SetDigest::empty(), SetDigest::empty()],
        }
    }
}
