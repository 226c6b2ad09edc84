//! What the router believes each target to hold: the index with access times, sources and leases.
//!
//! One [`ClaimTable`] owns the index and, for every slot, a [`SlotClaims`]. All changes go through it, so that index, LRU
//! order, token counts and digests cannot disagree.

use rustc_hash::FxHashMap;

use super::claim::{Claim, SlotClaims, Source};
use crate::digest::SetDigest;
use crate::fleet::Slot;
use crate::index::{Index, RunId, Split, Step, Tree};
use crate::key::{BlockHash, PrefixKey, Unit};
use crate::snapshot::IndexSize;
use crate::time::Time;

/// The index and everybody's claims in it.
#[derive(Debug)]
pub(crate) struct ClaimTable {
    index: Index,
    slots: Vec<SlotClaims>,
    block_tokens: BlockTokens,
    /// Buffers of one operation.
    steps: Vec<Step>,
    splits: Vec<Split>,
}

/// Tokens that one block stands for, by unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockTokens {
    pub(crate) token: u64,
    pub(crate) text: u64,
}

impl ClaimTable {
    pub(crate) fn new(block_tokens: BlockTokens) -> Self {
        Self {
            index: Index::default(),
            slots: Vec::new(),
            block_tokens,
            steps: Vec::new(),
            splits: Vec::new(),
        }
    }

    pub(crate) fn tree(&self) -> Tree {
        self.index.snapshot()
    }

    pub(crate) fn size(&self) -> IndexSize {
        self.index.size()
    }

    /// Tokens claimed for a slot.
    pub(crate) fn tokens(&self, slot: Slot) -> u64 {
        self.slots.get(usize::from(slot.0)).map_or(0, |claims| claims.tokens)
    }

    /// Digest of the token blocks claimed for a slot.
    pub(crate) fn digest(&self, slot: Slot) -> SetDigest {
        self.slots.get(usize::from(slot.0)).map_or_else(SetDigest::empty, |claims| claims.digest.clone())
    }

    /// From now on blocks are found by their hash alone, as agents name them.
    pub(crate) fn locate_blocks(&mut self) {
        self.index.locate_blocks();
    }

    /// Claims all of `hashes` for a slot, touches the path, and returns the tokens that are newly claimed.
    pub(crate) fn claim(
        &mut self,
        slot: Slot,
        unit: Unit,
        hashes: &[BlockHash],
        at: Time,
        source: Source,
    ) -> u64 {
        let mut steps = std::mem::take(&mut self.steps);
        let mut splits = std::mem::take(&mut self.splits);
        steps.clear();
        splits.clear();
        self.index.claim(unit, hashes, slot, &mut steps, &mut splits);
        for split in splits.drain(..) {
            self.follow_split(&split);
        }
        let before = self.slot_mut(slot).tokens;
        let mut parent = None;
        for step in &steps {
            self.claim_run(slot, unit, parent, *step, at, source);
            parent = Some(step.run);
        }
        let after = self.slot_mut(slot).tokens;
        self.steps = steps;
        self.splits = splits;
        after - before
    }

    /// Confirms what a slot still claims of `key`, and touches it.
    pub(crate) fn confirm(&mut self, slot: Slot, hashes: &[BlockHash], at: Time) {
        for step in self.path(slot, hashes) {
            let claims = self.slot_mut(slot);
            claims.refresh(step.run, at);
            if let Some(claim) = claims.runs.get_mut(&step.run) {
                claim.confirm(step.covered.min(claim.held), at);
            }
        }
    }

    /// Takes back what decision `by` predicted along `key` and nothing has confirmed since.
    pub(crate) fn undo(&mut self, slot: Slot, hashes: &[BlockHash], by: u64) {
        let path = self.path(slot, hashes);
        for step in path.iter().rev() {
            let unconfirmed = |claim: &Claim| claim.confirmed < claim.held && claim.predicted_by == by;
            let Some(claim) = self.claim_of(slot, step.run).filter(unconfirmed) else { continue };
            if claim.children == 0 {
                self.shorten(slot, step.run, claim.confirmed);
            }
        }
    }

    /// Drops what a prediction's lease covered, if it still is only predicted. `run`: the last one on its path.
    pub(crate) fn lapse(&mut self, slot: Slot, run: RunId, now: Time) {
        let mut next = Some(run);
        while let Some(run) = next {
            next = self.index.parent(run);
            let lapsed = |claim: &Claim| claim.confirmed < claim.held && claim.predicted_until <= now;
            match self.claim_of(slot, run).filter(lapsed) {
                Some(claim) if claim.children == 0 => self.shorten(slot, run, claim.confirmed),
                _ => break,
            };
        }
    }

    /// The engine no longer holds these blocks, nor what is below them. Returns the tokens dropped.
    pub(crate) fn remove(&mut self, slot: Slot, hashes: &[BlockHash]) -> u64 {
        let before = self.tokens(slot);
        let mut keep: FxHashMap<RunId, u32> = FxHashMap::default();
        for hash in hashes {
            if let Some((run, offset)) = self.index.locate(*hash) {
                keep.entry(run).and_modify(|kept| *kept = (*kept).min(offset)).or_insert(offset);
            }
        }
        for (run, kept) in keep {
            self.cut(slot, run, kept);
        }
        before - self.tokens(slot)
    }

    /// The run of a block and the block's place in it, if it is known.
    pub(crate) fn locate(&self, hash: BlockHash) -> Option<(RunId, u32)> {
        self.index.locate(hash)
    }

    /// All hashes from a prompt's first block to `hash`, if the block is known.
    pub(crate) fn key_to(&self, hash: BlockHash) -> Option<Vec<BlockHash>> {
        self.index.locate(hash).map(|(run, offset)| self.index.key_to(run, offset))
    }

    /// Drops the least recently used leaves of a slot until it claims at most `most` tokens. Returns the tokens dropped.
    pub(crate) fn evict_to(&mut self, slot: Slot, most: u64) -> u64 {
        let before = self.tokens(slot);
        while self.tokens(slot) > most {
            if !self.drop_oldest(slot, Time::from_micros(u64::MAX)) {
                break;
            }
        }
        before - self.tokens(slot)
    }

    /// Drops every leaf of a slot last accessed before `time`. Returns the tokens dropped.
    pub(crate) fn move_horizon(&mut self, slot: Slot, time: Time) -> u64 {
        let before = self.tokens(slot);
        while self.drop_oldest(slot, time) {}
        before - self.tokens(slot)
    }

    /// The access time of a slot's oldest leaf.
    pub(crate) fn oldest(&self, slot: Slot) -> Option<Time> {
        self.slots.get(usize::from(slot.0))?.leaves.first().map(|(time, _)| *time)
    }

    /// Drops a slot's oldest leaf if it was last accessed before `time`.
    pub(crate) fn drop_oldest(&mut self, slot: Slot, time: Time) -> bool {
        let oldest = self.slot_mut(slot).leaves.first().copied().filter(|(accessed, _)| *accessed < time);
        oldest.is_some_and(|(_, run)| {
            self.shorten(slot, run, 0);
            true
        })
    }

    /// Keeps at most the first `keep` blocks of a run for a slot, and nothing below if that is not all of it.
    pub(crate) fn cut(&mut self, slot: Slot, run: RunId, keep: u32) {
        let Some(claim) = self.claim_of(slot, run).filter(|claim| claim.held > keep) else { return };
        if claim.children > 0 {
            for child in self.index.held_children(run, slot) {
                self.drop_subtree(slot, child);
            }
        }
        self.shorten(slot, run, keep);
    }

    /// Drops a run and everything below it for a slot.
    pub(crate) fn drop_subtree(&mut self, slot: Slot, top: RunId) {
        let mut open = vec![top];
        while let Some(&run) = open.last() {
            let children = self.index.held_children(run, slot);
            if children.is_empty() {
                self.shorten(slot, run, 0);
                open.pop();
            } else {
                open.extend(children);
            }
        }
    }

    /// The runs right below that a slot holds some of.
    pub(crate) fn held_children(&self, slot: Slot, run: RunId) -> Vec<RunId> {
        self.index.held_children(run, slot)
    }

    /// A slot's claim on a run.
    pub(crate) fn claim_of(&self, slot: Slot, run: RunId) -> Option<Claim> {
        self.slots.get(usize::from(slot.0))?.runs.get(&run).copied()
    }

    /// The runs that `hashes` lead through and of which the slot holds some.
    pub(crate) fn path(&self, slot: Slot, hashes: &[BlockHash]) -> Vec<Step> {
        let mut steps = Vec::new();
        self.index.walk(hashes, slot, &mut steps);
        let held = steps.iter().take_while(|step| step.held > 0).count();
        steps.truncate(held);
        steps
    }

    /// Leading blocks of a prompt that something vouches for.
    pub(crate) fn confirmed_blocks(&self, slot: Slot, key: &PrefixKey) -> u32 {
        let mut blocks = 0;
        for step in self.path(slot, key.hashes()) {
            let confirmed =
                self.claim_of(slot, step.run).map_or(0, |claim| claim.confirmed.min(step.covered));
            blocks += confirmed;
            if confirmed < step.covered {
                break;
            }
        }
        blocks
    }

    /// Every block of a unit claimed for a slot.
    pub(crate) fn all(&self, slot: Slot, unit: Unit) -> Vec<BlockHash> {
        let Some(claims) = self.slots.get(usize::from(slot.0)) else { return Vec::new() };
        let mut all = Vec::new();
        for (run, claim) in &claims.runs {
            if self.index.unit(*run) == Some(unit) {
                all.extend_from_slice(&self.index.hashes(*run)[..claim.held as usize]);
            }
        }
        all
    }

    /// Predictions of a slot whose lease has not ended: key, access time and source of each.
    pub(crate) fn predictions(&self, slot: Slot, now: Time) -> Vec<(Unit, Vec<BlockHash>, Time, Source)> {
        let Some(claims) = self.slots.get(usize::from(slot.0)) else { return Vec::new() };
        let open = |claim: &Claim| claim.confirmed < claim.held && claim.predicted_until > now;
        let open = claims.runs.iter().filter(|(_, claim)| open(claim));
        open.filter_map(|(run, claim)| {
            let key = self.index.key_to(*run, claim.held - 1);
            let source = Source::Predicted { by: claim.predicted_by, until: claim.predicted_until };
            Some((self.index.unit(*run)?, key, claim.last_access, source))
        })
        .collect()
    }

    /// Releases runs of a slot that is no longer used, as many as the budget has. `true` when nothing is left.
    pub(crate) fn sweep(&mut self, slot: Slot, budget: &mut usize) -> bool {
        while *budget > 0 {
            if !self.drop_oldest(slot, Time::from_micros(u64::MAX)) {
                return true;
            }
            *budget -= 1;
        }
        false
    }

    fn claim_run(
        &mut self,
        slot: Slot,
        unit: Unit,
        parent: Option<RunId>,
        step: Step,
        at: Time,
        source: Source,
    ) {
        let block_tokens = self.block_tokens.of(unit);
        let hashes = self.index.hashes(step.run);
        let claims = slot_mut(&mut self.slots, slot);
        let held = step.covered.max(step.held);
        if held > step.held {
            claims.tokens += u64::from(held - step.held) * block_tokens;
            if unit == Unit::Token {
                hashes[step.held as usize..held as usize].iter().for_each(|hash| claims.digest.add(*hash));
            }
        }
        // A request's decision is an access of its own; what confirms it later belongs to the same one.
        if let (Source::Predicted { .. }, Some(claim)) = (source, claims.runs.get_mut(&step.run)) {
            claim.earlier_access = claim.last_access;
        }
        claims.begin(step.run, parent, at);
        claims.refresh(step.run, at);
        let claim = claims.runs.get_mut(&step.run).expect("inserted above if it was not there");
        claim.held = held;
        match source {
            Source::Confirmed { at } => claim.confirm(step.covered, at),
            Source::Predicted { by, until } if claim.confirmed < claim.held => {
                claim.predicted_by = by;
                claim.predicted_until = until;
            }
            Source::Predicted { .. } => {}
        }
    }

    /// Leaves a slot the first `keep` blocks of a run of which it holds no child.
    fn shorten(&mut self, slot: Slot, run: RunId, keep: u32) {
        let Some(unit) = self.index.unit(run) else { return };
        let parent = self.index.parent(run);
        let claims = slot_mut(&mut self.slots, slot);
        let Some(claim) = claims.runs.get_mut(&run).filter(|claim| claim.held > keep) else { return };
        debug_assert_eq!(claim.children, 0, "a slot gives up what is below first");
        let dropped = keep as usize..claim.held as usize;
        claims.tokens -= dropped.len() as u64 * self.block_tokens.of(unit);
        if unit == Unit::Token {
            self.index.hashes(run)[dropped].iter().for_each(|hash| claims.digest.remove(*hash));
        }
        claim.held = keep;
        claim.confirmed = claim.confirmed.min(keep);
        if keep == 0 {
            let accessed = claim.last_access;
            claims.runs.remove(&run);
            claims.leaves.remove(&(accessed, run));
            if let Some(parent) = parent {
                claims.lose_child(parent);
            }
        }
        self.index.release(run, slot, keep);
    }

    /// Gives every holder of a run that was cut in two its claims on both halves.
    fn follow_split(&mut self, split: &Split) {
        for &(slot, held) in &split.holders {
            let claims = slot_mut(&mut self.slots, slot);
            let Some(old) = claims.runs.remove(&split.lower) else { continue };
            claims.leaves.remove(&(old.last_access, split.lower));
            let (upper, lower) = old.split(held, split.at);
            claims.runs.insert(split.upper, upper);
            match lower {
                Some(lower) => {
                    claims.runs.insert(split.lower, lower);
                    if lower.children == 0 {
                        claims.leaves.insert((lower.last_access, split.lower));
                    }
                }
                None => {
                    claims.leaves.insert((upper.last_access, split.upper));
                }
            }
        }
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut SlotClaims {
        slot_mut(&mut self.slots, slot)
    }
}

impl BlockTokens {
    fn of(self, unit: Unit) -> u64 {
        match unit {
            Unit::Token => self.token,
            Unit::Text => self.text,
        }
    }
}

fn slot_mut(slots: &mut Vec<SlotClaims>, slot: Slot) -> &mut SlotClaims {
    let index = usize::from(slot.0);
    if index >= slots.len() {
        slots.resize_with(index + 1, SlotClaims::default);
    }
    &mut slots[index]
}
