//! `ChainIndex`: runs in an arena, read under sequence locks, with a map of blocks for every worker.
//!
//! It is asked through `score_into`, which allocates nothing; the scores go into a reused list.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};

use super::hash;
use crate::contest::{Contestant, Matched, Operation, Reader};
use crate::work::Prompt;

/// See the module.
pub(crate) struct Chain {
    index: Arc<ChainIndex>,
    maps: Vec<ChainBlockMap>,
    staged: VecDeque<Event>,
}

enum Event {
    Store { worker: u32, parent: Option<SequenceHash>, blocks: Vec<StoredBlock> },
    Remove { worker: u32, hashes: Vec<SequenceHash> },
    Clear { worker: u32 },
}

struct ChainReader {
    index: Arc<ChainIndex>,
    scores: Vec<(u32, u32)>,
}

impl Chain {
    /// An empty index of workers `0..targets`.
    pub(crate) fn new(targets: u16) -> Self {
        let index = Arc::new(ChainIndex::with_max_workers(targets.into()));
        for target in 0..targets {
            let id = index.intern_worker(&format!("http://worker-{target}")).expect("there is room for all");
            assert_eq!(id, u32::from(target), "ids are given in order");
        }
        let maps = (0..targets).map(|_| ChainBlockMap::new()).collect();
        Self { index, maps, staged: VecDeque::new() }
    }

    fn apply_event(&mut self, event: &Event) {
        match event {
            Event::Store { worker, parent, blocks } => {
                let map = &mut self.maps[*worker as usize];
                self.index.apply_stored(*worker, blocks, *parent, map).expect("events are in order");
            }
            Event::Remove { worker, hashes } => {
                self.index.apply_removed(*worker, hashes, &mut self.maps[*worker as usize]);
            }
            Event::Clear { worker } => {
                self.index.apply_cleared(*worker, &mut self.maps[*worker as usize]);
            }
        }
    }

    fn new_reader(&self) -> ChainReader {
        ChainReader { index: self.index.clone(), scores: Vec::new() }
    }
}

fn event(operation: &Operation) -> Event {
    match operation {
        Operation::Store { held, from, to } => {
            let prompt = &held.prompt;
            let block = |at: usize| StoredBlock {
                seq_hash: SequenceHash(prompt.chain[at]),
                content_hash: ContentHash(prompt.content[at]),
            };
            Event::Store {
                worker: held.target.into(),
                parent: from.checked_sub(1).map(|at| SequenceHash(prompt.chain[at])),
                blocks: (*from..*to).map(block).collect(),
            }
        }
        Operation::Remove { held, from, to } => Event::Remove {
            worker: held.target.into(),
            hashes: held.prompt.chain[*from..*to].iter().map(|&hash| SequenceHash(hash)).collect(),
        },
        Operation::Clear { target } => Event::Clear { worker: (*target).into() },
    }
}

impl Contestant for Chain {
    fn name(&self) -> &'static str {
        "smg ChainIndex"
    }

    fn stage(&mut self, operations: &[Operation]) {
        self.staged.extend(operations.iter().map(event));
    }

    fn apply(&mut self, count: usize) -> Duration {
        let events: Vec<_> = self.staged.drain(..count).collect();
        let began = Instant::now();
        events.iter().for_each(|event| self.apply_event(event));
        began.elapsed()
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(self.new_reader())
    }

    fn shared_reader(&self) -> Option<Box<dyn Reader + Send>> {
        Some(Box::new(self.new_reader()))
    }
}

impl Reader for ChainReader {
    fn warm(&mut self, prompt: &Prompt) {
        black_box(prompt.content.iter().fold(0, |all, hash| all ^ hash));
    }

    fn lookup(&mut self, prompt: &Prompt) {
        let scores = &mut self.scores;
        scores.clear();
        self.index.score_into(
            &prompt.content,
            |&hash| hash,
            false,
            |worker, blocks| {
                scores.push((worker, blocks));
            },
        );
    }

    fn hash_and_lookup(&mut self, prompt: &Prompt) {
        let scores = &mut self.scores;
        scores.clear();
        let content = hash(&prompt.tokens);
        self.index.score_into(&content, |hash| hash.0, false, |worker, blocks| scores.push((worker, blocks)));
    }

    fn matched(&mut self, targets: u16) -> Matched {
        let mut every = vec![0; targets.into()];
        for &(worker, blocks) in &self.scores {
            every[worker as usize] = blocks;
        }
        Matched::Every(every)
    }
}
