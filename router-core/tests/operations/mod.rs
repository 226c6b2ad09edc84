//! The index beside its specification under a list of operations: for the property test and for the fuzz target.

use std::collections::VecDeque;
use std::sync::LazyLock;

use router_core::Slot;
use router_core::index::{Index, Matches, NaiveIndex, Tree};
use router_core::key::{BlockHash, KeySpace, Salt, Unit};

/// Enough to need every form of a set of holders.
const SLOTS: u16 = 700;
/// Blocks of a prompt at most.
const MOST_BLOCKS: u8 = 24;
/// Snapshots held beside the newest one.
const HELD: usize = 3;

/// One operation as bytes: what, on which prompt, for whom.
pub(crate) type Bytes = [u8; 6];

/// What to do. Every six bytes are one, so that a fuzzer can cut and join lists anywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    kind: Kind,
    slot: Slot,
    prompt: Prompt,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Insert,
    /// Below what the slot holds of the prompt, or below a block in its middle.
    Extend,
    /// The second half of the prompt.
    Remove,
    Clear,
    Publish,
}

/// A prompt that shares the beginning of its group's and then goes its own way.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    group: u8,
    shared: u8,
    own: u8,
    len: u8,
}

/// The index, its specification, and snapshots taken on the way with what they must go on saying.
struct Pair {
    index: Index,
    naive: NaiveIndex,
    taken: VecDeque<(Tree, NaiveIndex)>,
}

/// Carries out all operations on both.
///
/// # Panics
/// Where they differ.
pub(crate) fn run(operations: impl IntoIterator<Item = Operation>) {
    let mut pair = Pair { index: Index::default(), naive: NaiveIndex::default(), taken: VecDeque::new() };
    pair.index.locate_blocks();
    for operation in operations {
        pair.apply(operation);
        assert_eq!(pair.index.size().blocks, pair.naive.blocks(), "after {operation:?}");
    }
    pair.taken.push_back((pair.index.snapshot(), pair.naive));
    for (tree, naive) in &pair.taken {
        for own in [0, 3, 7, 11] {
            let prompt = Prompt { group: own % 3, shared: own, own, len: MOST_BLOCKS - 1 };
            assert_alike(tree, naive, &prompt.key());
        }
    }
}

impl From<Bytes> for Operation {
    fn from([kind, low, high, shared, own, len]: Bytes) -> Self {
        let slot = Slot::new(u16::from_le_bytes([low, high]) % SLOTS);
        let prompt = Prompt {
            group: kind / 10 % 3,
            shared: shared % MOST_BLOCKS,
            own: own % 12,
            len: 1 + len % (MOST_BLOCKS - 1),
        };
        let kind = match kind % 10 {
            0..5 => Kind::Insert,
            5 => Kind::Extend,
            6 | 7 => Kind::Remove,
            8 => Kind::Clear,
            _ => Kind::Publish,
        };
        Self { kind, slot, prompt }
    }
}

impl Prompt {
    /// One token is one block.
    fn key(self) -> Vec<BlockHash> {
        static SPACE: LazyLock<KeySpace> =
            LazyLock::new(|| KeySpace::new(Unit::Token, 1, 5).expect("a block of one token is allowed"));
        let Self { group, shared, own, len } = self;
        let token = |at| if at < shared { u32::from(group) << 16 } else { u32::from(own) << 8 | 1 };
        let tokens: Vec<u32> = (0..len).map(token).collect();
        SPACE.key_of_tokens(Salt::default(), &tokens).hashes().to_vec()
    }
}

impl Pair {
    fn apply(&mut self, Operation { kind, slot, prompt }: Operation) {
        let key = prompt.key();
        match kind {
            Kind::Insert => {
                // Sound hashes may be reported as well as derived.
                if prompt.own % 2 == 0 {
                    self.index.insert(&key, slot);
                } else {
                    self.index.insert_reported(&key, slot);
                }
                self.naive.claim(&key, slot);
            }
            Kind::Extend => {
                let held = self.naive.match_prefix(&key, slot) as usize;
                let from = held.min(usize::from(prompt.shared) + 1);
                let extended = from > 0 && self.index.extend(key[from - 1], &key[from..], slot);
                assert_eq!(extended, from > 0, "what a slot holds can be extended");
                if extended {
                    self.naive.claim(&key, slot);
                }
            }
            Kind::Remove => {
                let before = self.naive.claims(slot).len();
                let gone = &key[key.len() / 2..];
                let taken = self.index.remove(gone, slot);
                gone.iter().for_each(|hash| self.naive.remove(*hash, slot));
                assert_eq!(taken, (before - self.naive.claims(slot).len()) as u64);
            }
            Kind::Clear => {
                self.index.clear(slot);
                self.naive.clear(slot);
            }
            Kind::Publish => {
                self.taken.push_back((self.index.snapshot(), self.naive.clone()));
                if self.taken.len() > HELD {
                    // Neither the oldest nor the newest.
                    self.taken.remove(1);
                }
            }
        }
    }
}

fn assert_alike(tree: &Tree, naive: &NaiveIndex, key: &[BlockHash]) {
    let mut matches = Matches::default();
    // A used one must be as good as new.
    tree.match_prefix(&Prompt { group: 0, shared: 9, own: 0, len: 9 }.key(), &mut matches);
    tree.match_prefix(key, &mut matches);
    for slot in (0..SLOTS).map(Slot::new) {
        assert_eq!(matches.blocks(slot), naive.match_prefix(key, slot), "{slot:?}");
    }
    let held: Vec<u32> = matches.holders().iter().map(|slot| matches.blocks(*slot)).collect();
    assert!(held.is_sorted_by(|a, b| a >= b) && held.iter().all(|blocks| *blocks > 0));
    assert_eq!(held.len(), (0..SLOTS).filter(|slot| naive.match_prefix(key, Slot::new(*slot)) > 0).count());
}
