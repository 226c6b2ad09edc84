//! The tokens that stand for a workload's block hashes.
//!
//! A hash names its block and all before it, so that tokens drawn from it are shared exactly where the hashes are. A block that an answer
//! completed has the tokens that the engine generated: prompts that go on from an answer contain it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use router_core::key::BlockHash;

use super::scale::Scale;
use crate::sequence::{BLOCK_TOKENS, Sequence};
use crate::workload::text;

/// See the module.
#[derive(Debug)]
pub(super) struct Prompts {
    scale: Scale,
    answered: Mutex<HashMap<BlockHash, Box<[u32]>>>,
}

impl Prompts {
    pub(super) fn new(scale: Scale) -> Self {
        Self { scale, answered: Mutex::default() }
    }

    /// The prompt of a request, which its number names where nothing else does.
    pub(super) fn prompt(&self, number: u32, sequence: &Sequence) -> Vec<u32> {
        let (len, block) = (self.scale.prompt_tokens(sequence), self.scale.block_tokens());
        let mut tokens = Vec::with_capacity(len + block);
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        for hash in sequence.prompt().hashes() {
            match answered.get(hash) {
                Some(known) => tokens.extend_from_slice(known),
                None => text::extend(&mut tokens, hash.get(), block),
            }
        }
        // What is left goes on in the answer, if that is long enough.
        let rest = sequence.block(sequence.prompt_tokens() / BLOCK_TOKENS);
        let name = rest.map_or(u64::MAX - u64::from(number), BlockHash::get);
        let missing = len.saturating_sub(tokens.len());
        text::extend(&mut tokens, name, missing);
        tokens
    }

    /// Takes in what an engine generated after a prompt.
    pub(super) fn learn(&self, sequence: &Sequence, prompt: &[u32], output: &[u32]) {
        let block = self.scale.block_tokens();
        let all: Vec<u32> = prompt.iter().chain(output).copied().collect();
        let first = sequence.prompt_tokens() / BLOCK_TOKENS;
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, hash) in (first..).map_while(|place| Some((place, sequence.block(place)?))) {
            let came = all.get(place * block..).unwrap_or_default();
            let mut tokens = came[..block.min(came.len())].to_vec();
            // Rounding may have left the answer some tokens short.
            let missing = text::text(hash.get(), block);
            tokens.extend_from_slice(&missing[tokens.len()..]);
            answered.insert(hash, tokens.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Hasher;

    /// 300 tokens of prompt, 200 of answer, and a prompt that goes on from both.
    fn turns() -> (Sequence, Sequence) {
        let (hasher, tokens) = (Hasher::new(), (0..900).collect::<Vec<u32>>());
        (hasher.sequence(&tokens[..300], &tokens[300..500]), hasher.sequence(&tokens[..800], &tokens[800..]))
    }

    #[test]
    fn prompts_share_what_their_hashes_do() {
        let (hasher, scale) = (Hasher::new(), "16".parse().unwrap());
        let tokens: Vec<u32> = (0..400).collect();
        let other: Vec<u32> = (0..200).chain(600..800).collect();
        let prompts = Prompts::new(scale);
        let one = prompts.prompt(1, &hasher.sequence(&tokens, &[1]));
        let two = prompts.prompt(2, &hasher.sequence(&other, &[1]));
        assert_eq!((one.len(), two.len()), (25, 25));
        // 200 tokens are three blocks and a part.
        assert_eq!(one[..12], two[..12]);
        assert_ne!(one[12..16], two[12..16]);
    }

    #[test]
    fn the_next_prompt_has_what_the_engine_generated() {
        for scale in ["1", "16"].map(|text| text.parse::<Scale>().unwrap()) {
            let (first, next) = turns();
            let prompts = Prompts::new(scale);
            let prompt = prompts.prompt(1, &first);
            let output: Vec<u32> = (0..scale.output_tokens(&first) as u32).map(|at| 40_000 + at).collect();
            prompts.learn(&first, &prompt, &output);
            let said: Vec<u32> = prompt.iter().chain(&output).copied().collect();
            let whole = first.blocks().count() * scale.block_tokens();
            let next = prompts.prompt(2, &next);
            assert_eq!(next[..whole.min(said.len())], said[..whole.min(said.len())], "{scale:?}");
            assert!(next[whole..].iter().all(|token| *token < 40_000), "the rest is said by the user");
        }
    }
}
