//! A deterministic stand-in for a tokenizer and a model, or a tokenizer that is read from a file.
//!
//! Without a file, text is cut into words, each with the white space before it; a word's token is a hash of its bytes. Equal beginnings of
//! text therefore become equal beginnings of tokens, up to the word in which they part. Tokens have names, so that output
//! is text; the way back does not lead to the original words. The next token is a hash of the position and of the last
//! tokens, so that equal prompts get equal answers.

mod bpe;
mod chats;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bpe::Bpe;
use chat_template::RenderError;
pub(crate) use chats::{ChatApi, Chats};

/// The tokenizer of a simulated server. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tokenizer {
    bpe: Option<Arc<Bpe>>,
    chats: Option<Chats>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of byte-level BPE, or that of a directory; the error says what is wrong with it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let beside = path.join("tokenizer.json");
        let path = if path.is_dir() { &beside } else { path };
        Ok(Self { bpe: Some(Arc::new(Bpe::read(path)?)), chats: None })
    }

    /// The same with a template for chats.
    pub(crate) fn with_chats(self, chats: Chats) -> Self {
        Self { chats: Some(chats), ..self }
    }

    /// The prompt that a chat request's body comes to; `None` without a template, and an error that says why it cannot be rendered.
    pub(crate) fn render(&self, api: ChatApi, body: &[u8]) -> Option<Result<String, RenderError>> {
        self.chats.as_ref().map(|chats| chats.render(api, body))
    }

    /// The tokens of a text as they stand in a chat.
    pub fn encode_part(&self, text: &str) -> Vec<u32> {
        match &self.bpe {
            Some(bpe) => bpe.encode(text),
            None => encode(text),
        }
    }

    /// The tokens of a text that stands alone: with what the tokenizer puts before it by itself.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut tokens = self.bpe.as_ref().map_or_else(Vec::new, |bpe| bpe.leading().to_vec());
        tokens.extend(self.encode_part(text));
        tokens
    }
}

/// Number of token ids.
pub const VOCABULARY: u32 = 32_000;

/// The lowest ids stand for special tokens and are neither read nor produced.
const FIRST_TOKEN: u32 = 100;

/// Tokens that the next one depends on.
const CONTEXT: usize = 8;

/// The tokens of a text.
pub fn encode(text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.len() - rest.trim_start().len();
        let after = rest[word..].find(char::is_whitespace).map_or(rest.len(), |end| word + end);
        let (piece, left) = rest.split_at(after);
        tokens.push(in_vocabulary(hash(piece.bytes().map(u64::from))));
        rest = left;
    }
    tokens
}

/// A text for tokens.
pub fn decode(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!(" w{token}")).collect()
}

/// The token that follows a sequence.
pub(crate) fn next_token(tokens: &[u32]) -> u32 {
    let context = tokens[tokens.len().saturating_sub(CONTEXT)..].iter().map(|token| u64::from(*token));
    in_vocabulary(hash(std::iter::once(tokens.len() as u64).chain(context)))
}

fn in_vocabulary(hash: u64) -> u32 {
    FIRST_TOKEN + (hash % u64::from(VOCABULARY - FIRST_TOKEN)) as u32
}

/// FNV-1a over words, finished with a shift so that low bits depend on all.
fn hash(words: impl Iterator<Item = u64>) -> u64 {
    let mixed =
        words.fold(0xCBF2_9CE4_8422_2325_u64, |h, word| (h ^ word).wrapping_mul(0x0000_0100_0000_01B3));
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_beginnings_are_equal_tokens() {
        let (a, b) = (encode("the quick brown fox"), encode("the quick brown dog jumps"));
        assert_eq!((a.len(), b.len()), (4, 5));
        assert_eq!(a[..3], b[..3]);
        assert_ne!(a[3], b[3]);
        assert!(a.iter().all(|token| (FIRST_TOKEN..VOCABULARY).contains(token)));
        assert!(encode("").is_empty());
        assert_eq!(encode("  tail  ").len(), 2);
    }

    #[test]
    fn answers_depend_on_the_prompt_alone() {
        assert_eq!(next_token(&[1, 2, 3]), next_token(&[1, 2, 3]));
        assert_ne!(next_token(&[1, 2, 3]), next_token(&[1, 2, 4]));
        assert_eq!(decode(&[7, 8]), " w7 w8");
    }
}
