//! What a request says and is answered, as block hashes.

use router_core::key::{BlockHash, KeySpace, PrefixKey, Salt, Unit};

/// Tokens in a block: of the router's key space, and in a page of the engines. One hash names both, so that a prompt of 100,000
/// tokens is 1,562 numbers to the engine model.
pub const BLOCK_TOKENS: usize = 64;

/// Keys all hashes of a run; nothing here is secret.
pub const HASH_SEED: u64 = 0x5EED;

/// A prompt and its answer. Equal prefixes of two sequences have equal hashes.
#[derive(Debug)]
pub struct Sequence {
    prompt: PrefixKey,
    /// Of the prompt and all of the answer but its last token.
    answered: PrefixKey,
    /// Blocks that the answer completes.
    tail: Box<[BlockHash]>,
    output_tokens: usize,
}

/// Hashes tokens as the router does.
#[derive(Clone, Debug)]
pub struct Hasher {
    space: KeySpace,
}

impl Sequence {
    /// The prompt's key, as the router sees it.
    pub fn prompt(&self) -> &PrefixKey {
        &self.prompt
    }

    /// The key of what an engine holds when the answer is complete, as the router reads it from the answer.
    pub fn answered(&self) -> &PrefixKey {
        &self.answered
    }

    /// Tokens in the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.units() as usize
    }

    /// Tokens in the answer.
    pub fn output_tokens(&self) -> usize {
        self.output_tokens
    }

    /// The hash of a block of prompt and answer.
    #[inline]
    pub fn block(&self, index: usize) -> Option<BlockHash> {
        let prompt = self.prompt.hashes();
        prompt.get(index).or_else(|| self.tail.get(index.checked_sub(prompt.len())?)).copied()
    }

    /// Blocks of prompt and answer in order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockHash> + '_ {
        self.prompt.hashes().iter().chain(&*self.tail).copied()
    }

    /// Blocks that are cached when the answer is complete: the last token's KV is never computed.
    pub fn cached_blocks(&self) -> usize {
        (self.prompt_tokens() + self.output_tokens - 1) / BLOCK_TOKENS
    }

    /// Blocks of the prompt that a cache may hold: the prompt's last token is always computed.
    pub fn matchable_blocks(&self) -> usize {
        (self.prompt_tokens() - 1) / BLOCK_TOKENS
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher {
    /// The hasher of the lab's key space.
    pub fn new() -> Self {
        let space = KeySpace::new(Unit::Token, BLOCK_TOKENS as u32, HASH_SEED);
        Self { space: space.expect("a block of 64 tokens is in range") }
    }

    /// The key space, for the router.
    pub fn space(&self) -> &KeySpace {
        &self.space
    }

    /// A prompt and its answer, each at least one token.
    pub fn sequence(&self, prompt: &[u32], output: &[u32]) -> Sequence {
        debug_assert!(!prompt.is_empty() && !output.is_empty(), "there is something to ask and to answer");
        let key = self.space.key_of_tokens(Salt::default(), prompt);
        let whole = key.hashes().len() * BLOCK_TOKENS;
        let rest: Vec<u32> = prompt[whole..].iter().chain(output).copied().collect();
        let mut tail = Vec::new();
        self.space.extend_with_tokens(Salt::default(), key.hashes().last().copied(), &rest, &mut tail);
        let answered = self.space.key_followed_by_tokens(Salt::default(), &key, &rest[..rest.len() - 1]);
        Sequence { prompt: key, answered, tail: tail.into(), output_tokens: output.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_prompt_begins_with_prompt_and_answer() {
        let hasher = Hasher::new();
        let tokens: Vec<u32> = (0..1_000).collect();
        let first = hasher.sequence(&tokens[..300], &tokens[300..500]);
        let next = hasher.sequence(&tokens[..700], &tokens[700..701]);
        let said: Vec<_> = first.blocks().collect();
        assert_eq!(said.len(), 500 / BLOCK_TOKENS);
        assert_eq!(said, next.prompt().hashes()[..said.len()]);
        assert_eq!(first.block(6), next.block(6));
        assert_eq!(first.block(said.len()), None);
    }

    #[test]
    fn the_last_token_is_never_cached() {
        let hasher = Hasher::new();
        let tokens: Vec<u32> = (0..129).collect();
        assert_eq!(hasher.sequence(&tokens[..128], &tokens[128..]).matchable_blocks(), 1);
        assert_eq!(hasher.sequence(&tokens, &tokens[..1]).matchable_blocks(), 2);
        assert_eq!(hasher.sequence(&tokens[..127], &tokens[127..128]).cached_blocks(), 1);
        assert_eq!(hasher.sequence(&tokens[..127], &tokens[127..129]).cached_blocks(), 2);
    }
}
