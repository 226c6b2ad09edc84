//! The indexes of `dynamo-kv-router`, fed with its own events.

mod compressed;
mod positional;
mod radix;

use std::hint::black_box;

use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
    KvCacheStoreData, KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent, WorkerWithDpRank,
    compute_block_hash_for_seq, compute_seq_hash_for_block,
};

pub(crate) use compressed::Compressed;
pub(crate) use positional::Positional;
pub(crate) use radix::Radix;

use crate::contest::{Matched, Operation};
use crate::work::{BLOCK_TOKENS, Prompt};

/// The hash of every block, and the chained one.
pub(crate) fn hashes(tokens: &[u32]) -> (Vec<u64>, Vec<u64>) {
    let content = hash(tokens);
    let chain = compute_seq_hash_for_block(&content);
    (content.iter().map(|hash| hash.0).collect(), chain)
}

fn hash(tokens: &[u32]) -> Vec<LocalBlockHash> {
    compute_block_hash_for_seq(tokens, BLOCK_TOKENS as u32, BlockHashOptions::default())
}

/// The prompt's block hashes in Dynamo's type.
fn sequence(prompt: &Prompt) -> impl Iterator<Item = LocalBlockHash> + '_ {
    prompt.content.iter().map(|&hash| LocalBlockHash(hash))
}

fn worker(target: u16) -> WorkerWithDpRank {
    WorkerWithDpRank::new(target.into(), 0)
}

fn event(operation: &Operation) -> RouterEvent {
    let (target, data) = match operation {
        Operation::Store { held, from, to } => {
            let prompt = &held.prompt;
            let block = |at: usize| KvCacheStoredBlockData {
                block_hash: ExternalSequenceBlockHash(prompt.chain[at]),
                tokens_hash: LocalBlockHash(prompt.content[at]),
                mm_extra_info: None,
            };
            let data = KvCacheStoreData {
                parent_hash: from.checked_sub(1).map(|at| ExternalSequenceBlockHash(prompt.chain[at])),
                start_position: None,
                blocks: (*from..*to).map(block).collect(),
            };
            (held.target, KvCacheEventData::Stored(data))
        }
        Operation::Remove { held, from, to } => {
            let block_hashes =
                held.prompt.chain[*from..*to].iter().map(|&hash| ExternalSequenceBlockHash(hash)).collect();
            (held.target, KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }))
        }
        Operation::Clear { target } => (*target, KvCacheEventData::Cleared),
    };
    RouterEvent::new(target.into(), KvCacheEvent { event_id: 0, data, dp_rank: 0 })
}

fn matched(scores: &OverlapScores, targets: u16) -> Matched {
    let blocks = |target| scores.scores.get(&worker(target)).copied().unwrap_or(0);
    Matched::Every((0..targets).map(blocks).collect())
}

fn touch(sequence: &[LocalBlockHash]) {
    black_box(sequence.iter().fold(0, |all, hash| all ^ hash.0));
}
