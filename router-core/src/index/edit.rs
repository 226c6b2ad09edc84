//! The writer's side of the index: edits the tree and knows where each run stands.

use rustc_hash::FxHashMap;

use super::branch::Children;
use super::holders::Holders;
use super::run::{Run, RunHashes, RunId};
use super::tree::Tree;
use crate::fleet::Slot;
use crate::key::{BlockHash, Unit};
use crate::snapshot::IndexSize;

/// The index under edit.
///
/// Whoever claims blocks keeps two promises: a slot is claimed from the first block on (`claim` does so by itself), and is
/// released from the last block on (`release` of a run needs all runs below it released).
#[derive(Debug, Default)]
pub struct Index {
    tree: Tree,
    places: Vec<Option<Place>>,
    free: Vec<RunId>,
    size: IndexSize,
    /// Run of every block, once something names blocks by their hash alone.
    locator: Option<FxHashMap<BlockHash, RunId>>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    parent: Option<RunId>,
    head: BlockHash,
    unit: Unit,
}

/// One run on the path of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) run: RunId,
    /// Leading blocks of the run that the prompt covers.
    pub(crate) covered: u32,
    /// Leading blocks that the slot held before.
    pub(crate) held: u32,
}

/// A run was cut in two. The lower half keeps the id, and with it its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) upper: RunId,
    pub(crate) lower: RunId,
    /// Blocks in the upper half.
    pub(crate) at: u32,
    /// Who held how much of the whole.
    pub(crate) holders: Vec<(Slot, u32)>,
}

impl Index {
    /// The tree as it is now; it will not change.
    pub fn snapshot(&self) -> Tree {
        self.tree.clone()
    }

    /// Blocks and runs.
    pub fn size(&self) -> IndexSize {
        self.size
    }

    /// Claims the whole of `key` for a slot, for those who keep no tables beside the index.
    pub fn insert(&mut self, unit: Unit, key: &[BlockHash], slot: Slot) {
        self.claim(unit, key, slot, &mut Vec::new(), &mut Vec::new());
    }

    /// Claims the whole of `key` for a slot. Appends the runs on its path, first to last, and what had to be cut.
    pub(crate) fn claim(
        &mut self,
        unit: Unit,
        key: &[BlockHash],
        slot: Slot,
        steps: &mut Vec<Step>,
        splits: &mut Vec<Split>,
    ) {
        self.walk(key, slot, steps);
        let covered: u32 = steps.iter().map(|step| step.covered).sum();
        if covered as usize == key.len() && steps.iter().all(|step| step.held >= step.covered) {
            return;
        }
        steps.clear();
        let mut tree = std::mem::take(&mut self.tree);
        let mut level = &mut tree.root;
        let mut rest = key;
        let mut parent = None;
        while let Some(head) = rest.first() {
            if level.get(*head).is_none() {
                let id = self.add_run(unit, parent, rest, slot, level);
                steps.push(Step { run: id, covered: rest.len() as u32, held: 0 });
                break;
            }
            let run = level.get_mut(*head).expect("it was there a line ago");
            let common = run.hashes.common(rest);
            if common < run.len() && (common as usize) < rest.len() {
                splits.push(self.split(run, common));
            }
            let held = run.holders.held(slot, run.len());
            if held < common {
                run.holders.set(slot, common, run.len());
            }
            steps.push(Step { run: run.id, covered: common, held });
            parent = Some(run.id);
            rest = &rest[common as usize..];
            level = &mut run.children;
        }
        self.tree = tree;
    }

    /// The runs that `key` leads through, with what a slot holds of them; the last may be covered in part.
    pub(crate) fn walk(&self, key: &[BlockHash], slot: Slot, steps: &mut Vec<Step>) {
        let mut level = &self.tree.root;
        let mut rest = key;
        while let Some(run) = rest.first().and_then(|head| level.get(*head)) {
            let covered = run.hashes.common(rest);
            steps.push(Step { run: run.id, covered, held: run.holders.held(slot, run.len()) });
            if covered < run.len() {
                break;
            }
            rest = &rest[covered as usize..];
            level = &run.children;
        }
    }

    /// Leaves a slot the first `keep` blocks of a run, of which it holds more. It must hold nothing below the run.
    pub(crate) fn release(&mut self, id: RunId, slot: Slot, keep: u32) {
        let path = self.path(id);
        let Some((head, above)) = path.split_last() else { return };
        let mut tree = std::mem::take(&mut self.tree);
        let mut level = &mut tree.root;
        for step in above {
            level = &mut level.get_mut(*step).expect("places name runs that are in the tree").children;
        }
        let run = level.get_mut(*head).expect("places name runs that are in the tree");
        let len = run.len();
        run.holders.set(slot, keep, len);
        let longest = run.holders.longest(len);
        debug_assert!(
            longest == len || run.children.is_empty(),
            "whoever holds a child holds all of its parent"
        );
        for hash in &run.hashes.as_slice()[longest as usize..] {
            if let Some(locator) = &mut self.locator {
                locator.remove(hash);
            }
        }
        if longest == 0 {
            level.remove(*head);
            self.places[id.0 as usize] = None;
            self.free.push(id);
            self.size.runs -= 1;
        } else if longest < len {
            run.hashes = run.hashes.split(longest).0;
            run.holders.shorten(longest);
        }
        self.size.blocks -= u64::from(len - longest);
        self.tree = tree;
    }

    /// The hashes of a run.
    pub(crate) fn hashes(&self, id: RunId) -> &[BlockHash] {
        self.run(id).map_or(&[], |run| run.hashes.as_slice())
    }

    /// What a run's blocks are made of.
    pub(crate) fn unit(&self, id: RunId) -> Option<Unit> {
        self.place(id).map(|place| place.unit)
    }

    /// The run above.
    pub(crate) fn parent(&self, id: RunId) -> Option<RunId> {
        self.place(id).and_then(|place| place.parent)
    }

    /// The runs right below that a slot holds some of.
    pub(crate) fn held_children(&self, id: RunId, slot: Slot) -> Vec<RunId> {
        let mut held = Vec::new();
        if let Some(run) = self.run(id) {
            run.children.for_each(&mut |child| {
                if child.holders.held(slot, child.len()) > 0 {
                    held.push(child.id);
                }
            });
        }
        held
    }

    /// From now on blocks can be found by their hash alone.
    pub(crate) fn locate_blocks(&mut self) {
        if self.locator.is_none() {
            let mut locator = FxHashMap::default();
            collect(&self.tree.root, &mut |run| {
                locator.extend(run.hashes.as_slice().iter().map(|hash| (*hash, run.id)));
            });
            self.locator = Some(locator);
        }
    }

    /// The run of a block and the block's place in it, if blocks are located and it is there.
    pub(crate) fn locate(&self, hash: BlockHash) -> Option<(RunId, u32)> {
        let id = *self.locator.as_ref()?.get(&hash)?;
        let offset = self.hashes(id).iter().position(|own| *own == hash)?;
        Some((id, offset as u32))
    }

    /// All hashes from the first block to block `offset` of a run.
    pub(crate) fn key_to(&self, id: RunId, offset: u32) -> Vec<BlockHash> {
        let mut key = Vec::new();
        let mut level = &self.tree.root;
        for head in self.path(id) {
            let Some(run) = level.get(head) else { break };
            let upto = if run.id == id { offset as usize + 1 } else { run.len() as usize };
            key.extend_from_slice(&run.hashes.as_slice()[..upto]);
            level = &run.children;
        }
        key
    }

    fn add_run(
        &mut self,
        unit: Unit,
        parent: Option<RunId>,
        hashes: &[BlockHash],
        slot: Slot,
        level: &mut Children,
    ) -> RunId {
        let id = self.new_id(Place { parent, head: hashes[0], unit });
        let hashes = RunHashes::new(hashes);
        let mut holders = Holders::default();
        holders.set(slot, hashes.len(), hashes.len());
        self.size.blocks += u64::from(hashes.len());
        self.size.runs += 1;
        if let Some(locator) = &mut self.locator {
            locator.extend(hashes.as_slice().iter().map(|hash| (*hash, id)));
        }
        level.insert(Run { id, hashes, holders, children: Children::None });
        id
    }

    /// Cuts a run after `at` blocks. The upper half stays where it is and gets a new id.
    fn split(&mut self, run: &mut Run, at: u32) -> Split {
        let len = run.len();
        let lower_id = run.id;
        let place = self.place(lower_id).expect("every run in the tree has a place");
        let upper_id = self.new_id(place);
        let record = Split { upper: upper_id, lower: lower_id, at, holders: run.holders.iter(len).collect() };
        let (upper, lower) = run.hashes.split(at);
        let (upper_holders, lower_holders) = run.holders.split(at);
        if let Some(locator) = &mut self.locator {
            locator.extend(upper.as_slice().iter().map(|hash| (*hash, upper_id)));
        }
        self.places[lower_id.0 as usize] =
            Some(Place { parent: Some(upper_id), head: lower.head(), ..place });
        self.size.runs += 1;
        let below = Run {
            id: lower_id,
            hashes: lower,
            holders: lower_holders,
            children: std::mem::take(&mut run.children),
        };
        run.id = upper_id;
        run.hashes = upper;
        run.holders = upper_holders;
        run.children.insert(below);
        record
    }

    fn new_id(&mut self, place: Place) -> RunId {
        if let Some(id) = self.free.pop() {
            self.places[id.0 as usize] = Some(place);
            return id;
        }
        let id = RunId(u32::try_from(self.places.len()).expect("blocks are bounded far below 2^32"));
        self.places.push(Some(place));
        id
    }

    fn place(&self, id: RunId) -> Option<Place> {
        self.places.get(id.0 as usize).copied().flatten()
    }

    /// First hashes of the runs from the root to this one.
    fn path(&self, id: RunId) -> Vec<BlockHash> {
        let mut heads = Vec::new();
        let mut next = Some(id);
        while let Some(place) = next.and_then(|id| self.place(id)) {
            heads.push(place.head);
            next = place.parent;
        }
        heads.reverse();
        heads
    }

    fn run(&self, id: RunId) -> Option<&Run> {
        let mut level = &self.tree.root;
        let mut found = None;
        for head in self.path(id) {
            let run = level.get(head)?;
            level = &run.children;
            found = Some(run);
        }
        found
    }
}

/// Calls `each` with every run below.
fn collect(children: &Children, each: &mut dyn FnMut(&Run)) {
    // A stack of its own: a chain of runs may be longer than the thread's stack allows.
    let mut runs: Vec<Run> = Vec::new();
    children.for_each(&mut |run| runs.push(run.clone()));
    while let Some(run) = runs.pop() {
        each(&run);
        run.children.for_each(&mut |child| runs.push(child.clone()));
    }
}
