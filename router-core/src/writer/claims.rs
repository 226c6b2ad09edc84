//! What the router believes each target to hold: the index with access times and sources.
//!
//! One [`ClaimTable`] owns the index and, for every slot, a [`SlotClaims`]. All changes go through it, so that index, LRU
//! order, token counts and digests cannot disagree.

use rustc_hash::FxHashMap;

use super::claim::{Claim, Scope, SlotClaims, Source};
use crate::digest::SetDigest;
use crate::fleet::Slot;
use crate::index::{Index, Origin, RunId, Split, Step, Tree};
use crate::key::{BlockHash, BlockKind, PrefixKey, Unit};
use crate::snapshot::IndexSize;
use crate::time::Time;

/// The index and everybody's claims in it.
#[derive(Debug)]
pub(crate) struct ClaimTable {
    index: Index,
    slots: Vec<SlotClaims>,
    pub(super) block_tokens: BlockTokens,
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

    pub(crate) fn tree(&mut self) -> Tree {
        self.index.snapshot()
    }

    pub(crate) fn size(&self) -> IndexSize {
        self.index.size()
    }

    /// Entries in the index's lists of who owns what of the log.
    #[cfg(test)]
    pub(crate) fn owners(&self) -> usize {
        self.index.owners()
    }

    /// Words that the index uses.
    pub(crate) fn words(&self) -> u64 {
        self.index.used_words()
    }

    /// Tokens claimed for a slot.
    pub(crate) fn tokens(&self, slot: Slot, scope: Scope) -> u64 {
        self.slot(slot).map_or(0, |claims| claims.tokens(scope))
    }

    /// Digest of the blocks claimed for a slot that agents can name in a unit.
    pub(crate) fn digest(&self, slot: Slot, unit: Unit) -> SetDigest {
        self.slot(slot).map_or_else(SetDigest::empty, |claims| claims.digest(unit).clone())
    }

    /// From now on blocks are found by their hash alone, as agents name them.
    pub(crate) fn locate_blocks(&mut self) {
        self.index.locate_blocks();
    }

    /// Claims all of `hashes` for a slot, touches the path, and returns the tokens that are newly claimed.
    pub(crate) fn claim(
        &mut self,
        slot: Slot,
        kind: BlockKind,
        (hashes, origin): (&[BlockHash], Origin),
        at: Time,
        source: Source,
    ) -> u64 {
        let mut steps = std::mem::take(&mut self.steps);
        let mut splits = std::mem::take(&mut self.splits);
        steps.clear();
        splits.clear();
        let own = self.slots.get(usize::from(slot.0));
        let may_grow = |run: RunId| {
            own.and_then(|claims| claims.runs.get(&run)).is_some_and(|claim| claim.may_grow(kind, source))
        };
        self.index.claim((hashes, origin), slot, may_grow, &mut steps, &mut splits);
        for split in splits.drain(..) {
            self.follow_split(&split);
        }
        let block_tokens = self.block_tokens.of(kind);
        let claims = slot_mut(&mut self.slots, slot);
        let before = claims.tokens(Scope::ALL);
        let mut parent = None;
        let mut rest = hashes;
        for step in &steps {
            let (own, below) = rest.split_at(step.len as usize);
            if step.held == 0 {
                claims.begin(step.run, parent, Claim::new(kind, step.len, at));
            } else if step.held < step.len {
                claims.resize(step.run, step.len);
            }
            if step.held < step.len {
                let fresh = &own[step.held as usize..];
                claims.holding(kind).tokens += fresh.len() as u64 * block_tokens;
                if let Some(digest) = claims.digest_mut(kind) {
                    fresh.iter().for_each(|hash| digest.add(*hash));
                }
            }
            claims.touch(step.run, at, source);
            parent = Some(step.run);
            rest = below;
        }
        let after = claims.tokens(Scope::ALL);
        if steps.len() > 1 {
            self.join_alike(slot, &steps);
        }
        self.steps = steps;
        self.splits = splits;
        after - before
    }

    /// Confirms what a slot still claims of a prompt, and touches it.
    pub(crate) fn confirm(&mut self, slot: Slot, hashes: &[BlockHash], at: Time) {
        let mut path = self.path(slot, hashes);
        if let Some(last) = path.last_mut().filter(|last| last.covered < last.len)
            && let Some(upper) = self.cut(last.run, last.covered)
        {
            last.run = upper;
        }
        let claims = slot_mut(&mut self.slots, slot);
        path.iter().for_each(|step| claims.touch(step.run, at, Source::Confirmed { at }));
    }

    /// Takes back what decision `by` predicted along a prompt and nothing else vouches for.
    pub(crate) fn undo(&mut self, slot: Slot, hashes: &[BlockHash], by: u64) {
        for step in self.path(slot, hashes).iter().rev() {
            let claims = slot_mut(&mut self.slots, slot);
            let Some(claim) = claims.runs.get_mut(&step.run) else { continue };
            let predictions = claim.predicted_by.len();
            claim.predicted_by.retain(|other| *other != by);
            if claim.predicted_by.len() < predictions && claim.is_void() && claim.children == 0 {
                self.drop_leaf(slot, step.run);
            }
        }
    }

    /// The engine no longer holds these blocks, nor what is below them. Returns the tokens dropped.
    pub(crate) fn remove(&mut self, slot: Slot, hashes: &[BlockHash]) -> u64 {
        let before = self.tokens(slot, Scope::ALL);
        // In every run the first block that is gone: it takes the others with it.
        let mut first_gone: FxHashMap<RunId, (u32, BlockHash)> = FxHashMap::default();
        let mut rest = hashes;
        while let Some((hash, others)) = rest.split_first() {
            rest = others;
            if let Some((run, offset)) = self.index.locate(*hash, slot) {
                let first = first_gone.entry(run).or_insert((offset, *hash));
                *first = (*first).min((offset, *hash));
                rest = &others[self.index.continued(run, offset + 1, others) as usize..];
            }
        }
        for (_, hash) in first_gone.into_values() {
            // What went before may have cut the run, or given its number to another.
            let Some((run, offset)) = self.index.locate(hash, slot) else { continue };
            if self.claim_of(slot, run).is_none() {
                continue;
            }
            if offset > 0 && self.index.is_sole_leaf(run, slot) {
                self.shorten(slot, run, offset);
                continue;
            }
            if offset > 0 {
                self.cut(run, offset);
            }
            self.drop_subtree(slot, run);
        }
        before - self.tokens(slot, Scope::ALL)
    }

    /// All hashes from a prompt's first block to `hash`, if the block is known, along a path of the slot's own if there is one.
    pub(crate) fn key_to(&self, slot: Slot, hash: BlockHash) -> Option<Vec<BlockHash>> {
        self.index.locate(hash, slot).map(|(run, offset)| self.index.key_to(run, offset))
    }

    /// When a slot last used a block, if it claims it.
    pub(crate) fn last_access(&self, slot: Slot, hash: BlockHash) -> Option<Time> {
        let (run, _) = self.index.locate(hash, slot)?;
        self.claim_of(slot, run).map(|claim| claim.last_access)
    }

    /// Drops the least recently used leaves of a slot until it claims at most `most` tokens. Returns the tokens dropped.
    pub(crate) fn evict_to(&mut self, slot: Slot, scope: Scope, most: u64) -> u64 {
        let before = self.tokens(slot, scope);
        while self.tokens(slot, scope) > most && self.drop_oldest(slot, scope, Time::MAX) {}
        before - self.tokens(slot, scope)
    }

    /// Drops every leaf of a slot last accessed before `time`. Returns the tokens dropped.
    pub(crate) fn move_horizon(&mut self, slot: Slot, scope: Scope, time: Time) -> u64 {
        let before = self.tokens(slot, scope);
        while self.drop_oldest(slot, scope, time) {}
        before - self.tokens(slot, scope)
    }

    /// The access time of a slot's oldest leaf.
    pub(crate) fn oldest(&self, slot: Slot) -> Option<Time> {
        self.slot(slot)?.oldest(Scope::ALL).map(|(time, _)| time)
    }

    /// Drops a slot's oldest leaf if it was last accessed before `time`.
    pub(crate) fn drop_oldest(&mut self, slot: Slot, scope: Scope, time: Time) -> bool {
        let oldest = self.slot(slot).and_then(|claims| claims.oldest(scope));
        let oldest = oldest.filter(|(accessed, _)| *accessed < time);
        oldest.is_some_and(|(_, run)| {
            self.drop_leaf(slot, run);
            true
        })
    }

    /// Drops a run and everything below it for a slot.
    pub(crate) fn drop_subtree(&mut self, slot: Slot, top: RunId) {
        let mut open = vec![top];
        while let Some(&run) = open.last() {
            match self.claim_of(slot, run).map(|claim| claim.children) {
                Some(1..) => open.extend(self.index.held_children(run, slot)),
                Some(0) => {
                    self.drop_leaf(slot, run);
                    open.pop();
                }
                None => _ = open.pop(),
            }
        }
    }

    /// The runs right below that a slot holds.
    pub(crate) fn held_children(&self, slot: Slot, run: RunId) -> Vec<RunId> {
        match self.claim_of(slot, run) {
            Some(claim) if claim.children > 0 => self.index.held_children(run, slot),
            _ => Vec::new(),
        }
    }

    /// A slot's claim on a run.
    pub(crate) fn claim_of(&self, slot: Slot, run: RunId) -> Option<&Claim> {
        self.slot(slot)?.runs.get(&run)
    }

    /// The runs that a prompt leads through and that the slot holds.
    pub(crate) fn path(&self, slot: Slot, hashes: &[BlockHash]) -> Vec<Step> {
        let mut steps = Vec::new();
        self.index.walk(hashes, slot, &mut steps);
        let held = steps.iter().take_while(|step| step.held > 0).count();
        steps.truncate(held);
        steps
    }

    /// Leading blocks of a prompt that something vouches for.
    pub(crate) fn confirmed_blocks(&self, slot: Slot, key: &PrefixKey) -> u32 {
        let confirmed =
            |step: &Step| self.claim_of(slot, step.run).is_some_and(|claim| claim.confirmed_since.is_some());
        self.path(slot, key.hashes()).into_iter().take_while(confirmed).map(|step| step.covered).sum()
    }

    /// Every block of a unit claimed for a slot.
    pub(crate) fn all(&self, slot: Slot, unit: Unit) -> Vec<BlockHash> {
        self.blocks(slot, |claim| claim.kind.unit() == unit)
    }

    /// Every block claimed for a slot that agents can name in a unit and something vouches for.
    pub(crate) fn vouched(&self, slot: Slot, unit: Unit) -> Vec<BlockHash> {
        self.blocks(slot, |claim| claim.is_vouched(unit))
    }

    /// The runs of the same, and how many blocks they are.
    pub(crate) fn vouched_runs(&self, slot: Slot, unit: Unit) -> (Vec<RunId>, u64) {
        let mut blocks = 0;
        let claims = self.slot(slot).into_iter().flat_map(|claims| &claims.runs);
        let vouched = claims.filter(|(_, claim)| claim.is_vouched(unit));
        let runs = vouched.map(|(run, claim)| {
            blocks += u64::from(claim.blocks);
            *run
        });
        (runs.collect(), blocks)
    }

    /// Releases runs of a slot that is no longer used, as many as the budget has. `true` when nothing is left.
    pub(crate) fn sweep(&mut self, slot: Slot, budget: &mut usize) -> bool {
        while *budget > 0 {
            if !self.drop_oldest(slot, Scope::ALL, Time::MAX) {
                return true;
            }
            *budget -= 1;
        }
        false
    }

    fn blocks(&self, slot: Slot, wanted: impl Fn(&Claim) -> bool) -> Vec<BlockHash> {
        let claims = self.slot(slot).into_iter().flat_map(|claims| &claims.runs);
        claims.filter(|(_, claim)| wanted(claim)).flat_map(|(run, _)| self.index.hashes(*run)).collect()
    }

    /// Joins neighbours on the path of a prompt that nothing tells apart any more, neither holders nor times nor sources.
    fn join_alike(&mut self, slot: Slot, path: &[Step]) {
        for (upper, lower) in self.index.joinable(path, slot) {
            let claims = slot_mut(&mut self.slots, slot);
            let pair = (claims.runs.get(&upper), claims.runs.get(&lower));
            let (Some(above), Some(below)) = pair else { continue };
            if let Some(joined) = above.join(below) {
                claims.runs.remove(&upper);
                claims.runs.insert(lower, joined);
                self.index.join(upper, lower);
            }
        }
    }

    /// Cuts a run for everybody; returns the upper half.
    fn cut(&mut self, run: RunId, at: u32) -> Option<RunId> {
        let split = self.index.cut(run, at)?;
        self.follow_split(&split);
        Some(split.upper)
    }

    /// Leaves a slot the first `keep` blocks of a run that only it holds and from which nothing hangs.
    fn shorten(&mut self, slot: Slot, run: RunId, keep: u32) {
        let claims = slot_mut(&mut self.slots, slot);
        let Some(kind) = claims.runs.get(&run).map(|claim| claim.kind) else { return };
        if let Some(digest) = claims.digest_mut(kind) {
            self.index.hashes(run).skip(keep as usize).for_each(|hash| digest.remove(hash));
        }
        claims.resize(run, keep);
        let gone = self.index.shorten(run, keep);
        claims.holding(kind).tokens -= u64::from(gone) * self.block_tokens.of(kind);
    }

    /// Drops a run of which a slot holds no child.
    fn drop_leaf(&mut self, slot: Slot, run: RunId) {
        let parent = self.index.parent(run);
        let claims = slot_mut(&mut self.slots, slot);
        let Some(claim) = claims.end(run, parent) else { return };
        claims.holding(claim.kind).tokens -= u64::from(claim.blocks) * self.block_tokens.of(claim.kind);
        if let Some(digest) = claims.digest_mut(claim.kind) {
            self.index.hashes(run).for_each(|hash| digest.remove(hash));
        }
        self.index.release(run, slot);
    }

    /// Gives every holder of a run that was cut in two its claims on both halves.
    fn follow_split(&mut self, split: &Split) {
        for &slot in &split.holders {
            let claims = slot_mut(&mut self.slots, slot);
            // The slot that a run is cut for holds the upper half by now, and may not have held the whole.
            let Some(claim) = claims.runs.remove(&split.lower) else { continue };
            let (upper, lower) = claim.split(split.at);
            claims.runs.insert(split.upper, upper);
            claims.runs.insert(split.lower, lower);
        }
    }

    fn slot(&self, slot: Slot) -> Option<&SlotClaims> {
        self.slots.get(usize::from(slot.0))
    }
}

impl BlockTokens {
    pub(super) fn of(self, kind: BlockKind) -> u64 {
        match kind.unit() {
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
