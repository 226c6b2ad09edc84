//! The writer's side of the index: what slots hold.

use super::record::Holders;
use super::runs::{MOST_BLOCKS, Origin, Runs};
use super::tree::Tree;
use crate::fleet::Slot;
use crate::key::BlockHash;
use crate::snapshot::IndexSize;

/// Names a run for the writer's tables. Numbers of runs that are gone are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RunId(u32);

/// The index under edit.
///
/// Whoever claims blocks keeps two promises: a slot is claimed from the first block on (`claim` does so by itself), and is
/// released from the last block on (`release` of a run needs all runs below it released).
#[derive(Debug, Default)]
pub struct Index {
    runs: Runs,
}

/// One run on the path of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) run: RunId,
    /// Blocks in the run.
    pub(crate) len: u32,
    /// Leading blocks of it that the prompt covers; all but in the last step always all.
    pub(crate) covered: u32,
    /// The leading blocks that the slot held before: none, all, or all but those that a claim has added.
    pub(crate) held: u32,
}

/// Room that is left to a run which follows one that nobody else holds and nothing else follows: what an engine generates.
const ROOM_TO_GROW: u32 = 24;

/// A run was cut in two. The lower half keeps the id, and with it its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) upper: RunId,
    pub(crate) lower: RunId,
    /// Blocks in the upper half.
    pub(crate) at: u32,
    /// Who held it, and now holds both.
    pub(crate) holders: Vec<Slot>,
}

impl RunId {
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

impl Index {
    /// Publishes the tree as it is now; it will not change.
    pub fn snapshot(&mut self) -> Tree {
        self.runs.publish()
    }

    /// Blocks and runs.
    pub fn size(&self) -> IndexSize {
        self.runs.size()
    }

    /// Claims the whole of `key`, which was derived from a prompt, for a slot.
    pub fn insert(&mut self, key: &[BlockHash], slot: Slot) {
        self.claim((key, Origin::Derived), slot, |_| true, &mut Vec::new(), &mut Vec::new());
    }

    /// The same with hashes that somebody reports: should they commit to nothing, then what others hold is found all the same.
    pub fn insert_reported(&mut self, key: &[BlockHash], slot: Slot) {
        self.claim((key, Origin::Reported), slot, |_| true, &mut Vec::new(), &mut Vec::new());
    }

    /// Claims blocks, as somebody reports them, for a slot that follow `parent`, which must be the last block of what it holds of a prompt or stand
    /// above it. `false`: the slot does not hold `parent`, or blocks are not located.
    pub fn extend(&mut self, parent: BlockHash, hashes: &[BlockHash], slot: Slot) -> bool {
        let Some((run, offset)) = self.locate(parent, slot) else { return false };
        if !self.holds(run, slot) {
            return false;
        }
        let upper = self.cut(run, offset + 1).map_or(run, |split| split.upper);
        let is_known = hashes.first().is_some_and(|head| self.runs.find(Some(upper.0), *head).is_some());
        if is_known {
            let mut key = self.key_to(upper, offset);
            key.extend_from_slice(hashes);
            self.insert_reported(&key, slot);
        } else {
            self.claim_below(Some(upper), (hashes, Origin::Reported), slot, |_| true, &mut Vec::new());
        }
        true
    }

    /// Takes blocks, and all below them, from a slot. Blocks that it does not hold are passed over. Returns the blocks taken.
    pub fn remove(&mut self, hashes: &[BlockHash], slot: Slot) -> u64 {
        let before = self.size();
        let mut taken = 0;
        let mut rest = hashes;
        while let Some((hash, others)) = rest.split_first() {
            rest = others;
            let Some((run, offset)) = self.locate(*hash, slot).filter(|(run, _)| self.holds(*run, slot))
            else {
                continue;
            };
            // What follows in the run goes with it, and needs not be found.
            rest = &others[self.continued(run, offset + 1, others) as usize..];
            if offset > 0 && self.is_sole_leaf(run, slot) {
                taken += u64::from(self.shorten(run, offset));
                continue;
            }
            if offset > 0 {
                self.cut(run, offset);
            }
            let mut open = vec![run];
            while let Some(&run) = open.last() {
                let below = self.held_children(run, slot);
                if below.is_empty() {
                    taken += u64::from(self.runs.record(run.0).len);
                    self.release(run, slot);
                    open.pop();
                } else {
                    open.extend(below);
                }
            }
        }
        debug_assert!(self.size().blocks <= before.blocks, "removing adds nothing");
        taken
    }

    /// Takes everything from a slot, in time that grows with the whole index.
    pub fn clear(&mut self, slot: Slot) {
        self.runs.clear(slot);
    }

    /// From now on blocks can be found by their hash alone, as [`extend`](Self::extend) and [`remove`](Self::remove) need.
    pub fn locate_blocks(&mut self) {
        self.runs.locate_blocks();
    }

    /// Claims the whole of `key` for a slot. Appends the runs on its path, first to last, and what had to be cut: the path
    /// ends where a run ends. A last run that nobody else holds may be lengthened if `may_grow` allows.
    pub(crate) fn claim(
        &mut self,
        (key, origin): (&[BlockHash], Origin),
        slot: Slot,
        may_grow: impl Fn(RunId) -> bool,
        steps: &mut Vec<Step>,
        splits: &mut Vec<Split>,
    ) {
        self.walk(key, slot, steps);
        let covered: u32 = steps.iter().map(|step| step.covered).sum();
        if let Some(last) = steps.last_mut().filter(|last| last.covered < last.len) {
            let split = self.cut_from(last.run, last.covered);
            last.run = split.upper;
            (last.len, last.held) = (last.covered, last.held.min(last.covered));
            splits.push(split);
        }
        if origin == Origin::Derived {
            steps.iter().for_each(|step| self.runs.vouch(step.run.0));
        }
        for step in steps.iter().filter(|step| step.held == 0) {
            let record = self.runs.record(step.run.0);
            let changed = record.holders.with(self.runs.words(), slot);
            self.runs.set_holders(step.run.0, record, changed);
        }
        let parent = steps.last().map(|step| step.run);
        self.claim_below(parent, (&key[covered as usize..], origin), slot, may_grow, steps);
    }

    /// Claims blocks that follow a run which the slot holds whole, and of which none stands there yet.
    fn claim_below(
        &mut self,
        mut parent: Option<RunId>,
        (mut rest, origin): (&[BlockHash], Origin),
        slot: Slot,
        may_grow: impl Fn(RunId) -> bool,
        steps: &mut Vec<Step>,
    ) {
        let mut room = 0;
        if let Some(run) = parent
            && self.is_sole_leaf(run, slot)
            && steps.last().is_none_or(|step| step.held > 0)
            && may_grow(run)
        {
            let (more, left) = rest.split_at(rest.len().min(self.runs.room(run.0) as usize));
            if !more.is_empty() {
                self.runs.grow(run.0, more, origin);
                if let Some(step) = steps.last_mut() {
                    step.len += more.len() as u32;
                    step.covered = step.len;
                }
            }
            // What has grown once will grow again.
            (rest, room) = (left, ROOM_TO_GROW);
        }
        for hashes in rest.chunks(MOST_BLOCKS as usize) {
            let run = RunId(self.runs.add(parent.map(|run| run.0), hashes, origin, slot, room));
            let len = hashes.len() as u32;
            steps.push(Step { run, len, covered: len, held: 0 });
            parent = Some(run);
        }
    }

    /// The runs that `key` leads through, and whether a slot holds them; the last may be covered in part.
    pub(crate) fn walk(&self, key: &[BlockHash], slot: Slot, steps: &mut Vec<Step>) {
        let mut rest = key;
        let mut parent = None;
        while let Some(run) = rest.first().and_then(|head| self.runs.find(parent, *head)) {
            let record = self.runs.record(run);
            let covered = self.runs.common(run, &record, rest);
            let held = if record.holders.contains(self.runs.words(), slot) { record.len } else { 0 };
            steps.push(Step { run: RunId(run), len: record.len, covered, held });
            if covered < record.len {
                break;
            }
            rest = &rest[covered as usize..];
            parent = Some(run);
        }
    }

    /// Cuts a run after its first `at` blocks, if these are neither none nor all.
    pub(crate) fn cut(&mut self, run: RunId, at: u32) -> Option<Split> {
        (0 < at && at < self.runs.record(run.0).len).then(|| self.cut_from(run, at))
    }

    /// Leaves the first `at` blocks, neither none nor all, of a run that only one slot holds and from which nothing hangs.
    /// Returns the blocks that are gone.
    pub(crate) fn shorten(&mut self, run: RunId, at: u32) -> u32 {
        let before = self.runs.record(run.0).len;
        self.runs.shorten(run.0, at);
        before - at
    }

    fn cut_from(&mut self, run: RunId, at: u32) -> Split {
        let holders = self.runs.record(run.0).holders.slots(self.runs.words());
        let upper = RunId(self.runs.split(run.0, at));
        Split { upper, lower: run, at, holders }
    }

    /// Takes a slot, which must hold nothing below it, out of a run's holders.
    pub(crate) fn release(&mut self, run: RunId, slot: Slot) {
        let record = self.runs.record(run.0);
        if record.holders == Holders::one(slot) {
            self.runs.remove(run.0);
        } else {
            let changed = record.holders.without(self.runs.words(), slot);
            self.runs.set_holders(run.0, record, changed);
        }
    }

    /// Pairs of runs on a path that nothing tells apart any more, last first: the second is all that hangs from the first, and
    /// `slot` alone holds both.
    pub(crate) fn joinable(&self, path: &[Step], slot: Slot) -> Vec<(RunId, RunId)> {
        let own = Holders::one(slot);
        let pairs = path.iter().rev().filter_map(|step| {
            let upper = self.runs.record(step.run.0);
            let mut children = self.runs.children(step.run.0);
            let (Some(child), None) = (children.next(), children.next()) else { return None };
            let lower = self.runs.record(child);
            // What is joined is copied: with each at least half as long as the one before, a block is seldom copied again.
            let fits = upper.len <= 2 * lower.len && upper.len + lower.len <= MOST_BLOCKS;
            let alike = upper.holders == own && lower.holders == own && fits;
            alike.then_some((step.run, RunId(child)))
        });
        pairs.collect()
    }

    /// Makes one run of a pair of [`joinable`](Self::joinable); it has the id of the second.
    pub(crate) fn join(&mut self, upper: RunId, lower: RunId) {
        self.runs.join(upper.0, lower.0);
    }

    /// The hashes of a run.
    pub(crate) fn hashes(&self, run: RunId) -> impl Iterator<Item = BlockHash> + '_ {
        self.runs.hashes(run.0)
    }

    /// The run above.
    pub(crate) fn parent(&self, run: RunId) -> Option<RunId> {
        self.runs.parent(run.0).map(RunId)
    }

    /// The runs right below that a slot holds.
    pub(crate) fn held_children(&self, run: RunId, slot: Slot) -> Vec<RunId> {
        self.runs.children(run.0).map(RunId).filter(|child| self.holds(*child, slot)).collect()
    }

    /// The run of a block and the block's place in it, if blocks are located and it is there: one that the slot holds, rather
    /// than another.
    pub(crate) fn locate(&self, hash: BlockHash, slot: Slot) -> Option<(RunId, u32)> {
        self.runs.locate(hash, slot).map(|(run, offset)| (RunId(run), offset))
    }

    /// Of these hashes, so many are those of a run from block `offset` on.
    pub(crate) fn continued(&self, run: RunId, offset: u32, hashes: &[BlockHash]) -> u32 {
        let record = self.runs.record(run.0);
        let most = hashes.len().min((record.len - offset) as usize);
        self.runs.words().count_equal(record.hashes + offset, &hashes[..most], BlockHash::get) as u32
    }

    /// All hashes from the first block to block `offset` of a run.
    pub(crate) fn key_to(&self, run: RunId, offset: u32) -> Vec<BlockHash> {
        let mut path = vec![run];
        while let Some(above) = path.last().and_then(|run| self.parent(*run)) {
            path.push(above);
        }
        let above = path[1..].iter().rev().flat_map(|run| self.hashes(*run));
        above.chain(self.hashes(run).take(offset as usize + 1)).collect()
    }

    #[cfg(test)]
    pub(crate) fn owners(&self) -> usize {
        self.runs.owners()
    }

    /// Words in use, those included that snapshots still see.
    pub(crate) fn used_words(&self) -> u64 {
        self.runs.used_words()
    }

    fn holds(&self, run: RunId, slot: Slot) -> bool {
        self.runs.record(run.0).holders.contains(self.runs.words(), slot)
    }

    /// Nothing hangs from the run, and nobody else holds it.
    pub(crate) fn is_sole_leaf(&self, run: RunId, slot: Slot) -> bool {
        self.runs.children(run.0).next().is_none() && self.runs.record(run.0).holders == Holders::one(slot)
    }
}
