//! One request in an engine, from its submission to its end.

use std::sync::Arc;

use super::RequestId;
use super::memory::{Hold, Memory};
use crate::sequence::{BLOCK_TOKENS, Sequence};

/// Share of the output still to come that admission reserves memory for, as in `sglang-sim`.
const NEW_TOKEN_RATIO: f64 = 0.4;

/// Output tokens that are reserved for at most, as in SGLang.
const MOST_RESERVED: usize = 4_096;

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: RequestId,
    pub(super) sequence: Arc<Sequence>,
    pub(super) hold: Hold,
    /// Output tokens so far.
    pub(super) produced: usize,
    /// Tokens to be computed before it decodes: the prompt, and after a retraction what was produced before it.
    pub(super) prefill_end: usize,
    /// Prompt tokens that are expected to be cached when its turn comes.
    pub(super) expected: usize,
    /// Prompt tokens that were cached at its first admission.
    pub(super) found: Option<usize>,
}

impl Live {
    pub(super) fn new(id: RequestId, sequence: Arc<Sequence>, expected: usize) -> Self {
        let prefill_end = sequence.prompt_tokens();
        Self { id, sequence, hold: Hold::default(), produced: 0, prefill_end, expected, found: None }
    }

    /// Tokens of the prompt and of what was produced.
    pub(super) fn tokens(&self) -> usize {
        self.sequence.prompt_tokens() + self.produced
    }

    /// Blocks that may be found in the cache: the last token is always computed.
    pub(super) fn matchable(&self) -> usize {
        (self.tokens() - 1) / BLOCK_TOKENS
    }

    pub(super) fn is_prefilling(&self) -> bool {
        self.hold.computed() < self.prefill_end
    }

    /// Tokens to be computed before it decodes.
    pub(super) fn to_prefill(&self) -> usize {
        self.prefill_end.saturating_sub(self.hold.computed())
    }

    /// Output tokens still to come.
    pub(super) fn to_come(&self) -> usize {
        self.sequence.output_tokens() - self.produced
    }

    /// Tokens still to come, as far as admission looks ahead.
    pub(super) fn most_to_come(&self) -> usize {
        self.to_come().min(MOST_RESERVED)
    }

    /// Tokens of memory that are kept for it while it runs.
    pub(super) fn reserved(&self) -> f64 {
        self.most_to_come() as f64 * NEW_TOKEN_RATIO + self.to_prefill().next_multiple_of(BLOCK_TOKENS) as f64
    }

    /// Leading blocks that another prompt shares with this one.
    pub(super) fn in_common(&self, other: &Sequence) -> usize {
        let (mut same, mut most) = (0, self.sequence.matchable_blocks().min(other.matchable_blocks()));
        // Hashes name all before them, so that equality ends once and for good.
        while same < most {
            let middle = (same + most).div_ceil(2);
            if self.sequence.block(middle - 1) == other.block(middle - 1) {
                same = middle
            } else {
                most = middle - 1
            }
        }
        same
    }

    /// Ends what it holds; what the cache does not have is lost.
    pub(super) fn put_back(&mut self, memory: &mut Memory) {
        memory.give_up(&mut self.hold);
    }
}
