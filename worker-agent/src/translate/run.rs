//! Blocks as runs: consecutive ones of one prompt, in prompt order.

use rustc_hash::FxHashSet;

/// Consecutive blocks of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Hash of the block before the first one, zero where a prompt begins.
    pub parent: u64,
    /// The blocks' hashes, in order; not empty.
    pub hashes: Vec<u64>,
}

/// Orders blocks, given with their parents, into runs: parents before children, a run as long as it gets. What begins no prompt and
/// has no parent among the blocks begins a run too.
pub fn runs(mut blocks: Vec<(u64, u64)>) -> Vec<Run> {
    blocks.sort_unstable();
    let given: FxHashSet<u64> = blocks.iter().map(|(_, hash)| *hash).collect();
    let children = |parent: u64| {
        let start = blocks.partition_point(|block| block.0 < parent);
        let end = start + blocks[start..].partition_point(|block| block.0 == parent);
        start..end
    };
    let mut out: Vec<Run> = Vec::new();
    // Blocks to begin a run with; the newest first keeps the list short.
    let begins = |block: &(usize, &(u64, u64))| !given.contains(&block.1.0);
    let mut heads: Vec<usize> = blocks.iter().enumerate().filter(begins).map(|(at, _)| at).collect();
    while let Some(head) = heads.pop() {
        let (parent, hash) = blocks[head];
        let mut run = Run { parent, hashes: vec![hash] };
        let mut last = hash;
        loop {
            let mut below = children(last);
            let Some(next) = below.next() else { break };
            heads.extend(below);
            last = blocks[next].1;
            run.hashes.push(last);
        }
        out.push(run);
    }
    out
}

/// Appends a block to the last run, or begins one.
pub(super) fn push_block(runs: &mut Vec<Run>, parent: u64, hash: u64) {
    match runs.last_mut() {
        Some(run) if run.hashes.last() == Some(&parent) => run.hashes.push(hash),
        _ => runs.push(Run { parent, hashes: vec![hash] }),
    }
}
