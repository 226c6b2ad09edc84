//! Lengths over HTTP: those of the workload divided by one number, so that a small machine can drive long prompts.
//!
//! Blocks stay blocks: a cache finds and evicts what it would at full length. Prefill and decoding take as long as they would
//! (`sglang-sim --token-weight`). A router that reckons with an engine's speed in tokens sees an engine so many times slower.

use std::fmt;
use std::str::FromStr;

use crate::sequence::{BLOCK_TOKENS, Sequence};

/// Tokens of the workload that one token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale(usize);

/// A scale that leaves no whole blocks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no scale: 1, 2, 4, 8 and 16 divide a block into tokens that still tell blocks apart")]
pub struct ScaleError(String);

/// At most; a block of fewer than four tokens could be another one by chance.
const MOST: usize = 16;

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Scale {
    type Err = ScaleError;

    fn from_str(text: &str) -> Result<Self, ScaleError> {
        let scale = text.parse().ok().filter(|scale: &usize| scale.is_power_of_two() && *scale <= MOST);
        scale.map(Self).ok_or_else(|| ScaleError(text.to_owned()))
    }
}

impl Scale {
    /// Full lengths.
    pub const ONE: Self = Self(1);

    /// The number.
    pub fn get(self) -> usize {
        self.0
    }

    /// Tokens in a block.
    pub fn block_tokens(self) -> usize {
        BLOCK_TOKENS / self.0
    }

    /// Tokens in a prompt: rounded up, which leaves as many whole blocks before its last token as there were.
    pub fn prompt_tokens(self, sequence: &Sequence) -> usize {
        sequence.prompt_tokens().div_ceil(self.0)
    }

    /// Tokens in an answer: the first, and the others rounded, so that answers take as many decode steps in the mean.
    pub fn output_tokens(self, sequence: &Sequence) -> usize {
        (sequence.output_tokens() - 1 + self.0 / 2) / self.0 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Hasher;

    #[test]
    fn a_scale_divides_blocks() {
        assert_eq!("16".parse::<Scale>().map(Scale::block_tokens), Ok(4));
        for text in ["0", "3", "32", "-1", "x"] {
            assert!(text.parse::<Scale>().unwrap_err().to_string().contains(text));
        }
    }

    #[test]
    fn what_a_cache_may_hold_of_a_prompt_stays() {
        let (hasher, tokens) = (Hasher::new(), (0..400).collect::<Vec<u32>>());
        for scale in ["1", "2", "4", "8", "16"].map(|text| text.parse::<Scale>().unwrap()) {
            for len in 1..300 {
                let sequence = hasher.sequence(&tokens[..len], &tokens[len..len + 40]);
                let blocks = (scale.prompt_tokens(&sequence) - 1) / scale.block_tokens();
                assert_eq!(blocks, sequence.matchable_blocks(), "{len} tokens, {scale:?}");
            }
        }
    }
}
