//! A deterministic stand-in for a tokenizer, a chat template and a model.
//!
//! Text is cut into pieces: a marker `<|…|>`, or a word with the white space before it, and of longer words and runs of white
//! space at most [`MOST_PIECE_BYTES`] at a time. A piece's token is a hash of its bytes, so equal beginnings of text become
//! equal beginnings of tokens up to the piece in which they part. The text of a token is ` w` and its number, and *that* text
//! becomes the same token again: an answer that comes back in the next prompt of a conversation is found in the cache, as
//! with a real tokenizer. The text of a prompt is not recovered from its tokens.

/// Number of token ids.
pub const VOCABULARY: u32 = 151_936;

/// Longest piece of a word, in bytes; holds the text of every token.
const MOST_PIECE_BYTES: usize = 8;

/// Longest marker, in bytes.
const MOST_MARKER_BYTES: usize = 24;

/// The lowest ids stand for special tokens and are neither read nor produced.
const FIRST_TOKEN: u32 = 100;

/// The token that ends an answer; told in `finish_reason`, never produced.
pub const END_OF_TEXT: u32 = 2;

/// The tokens of a text.
pub fn encode(text: &str) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(text.len() / 5);
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(piece_len(rest));
        tokens.push(spelled(piece).unwrap_or_else(|| in_vocabulary(hash(piece.bytes().map(u64::from)))));
        rest = left;
    }
    tokens
}

/// A text for tokens.
pub fn decode(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!(" w{token}")).collect()
}

/// What makes one prompt's answer differ from another's.
pub(crate) fn seed(prompt: &[u32]) -> u64 {
    hash(prompt.iter().map(|token| u64::from(*token)))
}

/// The token at a position of the answer to a prompt.
pub(crate) fn token_at(seed: u64, position: usize) -> u32 {
    in_vocabulary(hash([seed, position as u64].into_iter()))
}

/// Bytes of the first piece; at least one whole character.
fn piece_len(text: &str) -> usize {
    if let Some(marker) = marker_len(text) {
        return marker;
    }
    let mut in_word = false;
    for (at, character) in text.char_indices().skip(1) {
        in_word |= !text[..at].ends_with(char::is_whitespace);
        let word_ends = in_word && character.is_whitespace();
        if word_ends || at + character.len_utf8() > MOST_PIECE_BYTES || marker_len(&text[at..]).is_some() {
            return at;
        }
    }
    text.len()
}

fn marker_len(text: &str) -> Option<usize> {
    let inner = text.strip_prefix("<|")?;
    let window = inner.bytes().take(MOST_MARKER_BYTES).collect::<Vec<_>>();
    window.windows(2).position(|pair| pair == b"|>").map(|at| at + 4)
}

/// The token whose text this is.
fn spelled(piece: &str) -> Option<u32> {
    let digits = piece.strip_prefix(" w")?;
    let canonical = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    let token = digits.parse().ok()?;
    (canonical && (FIRST_TOKEN..VOCABULARY).contains(&token)).then_some(token)
}

fn in_vocabulary(hash: u64) -> u32 {
    FIRST_TOKEN + (hash % u64::from(VOCABULARY - FIRST_TOKEN)) as u32
}

/// FNV-1a over words, finished so that every bit depends on all.
fn hash(words: impl Iterator<Item = u64>) -> u64 {
    let mixed =
        words.fold(0xCBF2_9CE4_8422_2325_u64, |h, word| (h ^ word).wrapping_mul(0x0000_0100_0000_01B3));
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ (mixed >> 32)
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
    fn long_words_are_cut_between_characters() {
        assert_eq!(encode(&"x".repeat(20)).len(), 3);
        assert_eq!(encode(&"é".repeat(9)).len(), 3);
        assert_eq!(encode(&"\n".repeat(16)).len(), 2);
    }

    #[test]
    fn markers_stand_alone() {
        let tokens = encode("<|user|>hello<|end|>\n<|assistant|>");
        assert_eq!(tokens.len(), 5);
        assert_eq!(tokens[1..2], encode("hello")[..]);
        assert_eq!(encode("<| is no marker").len(), 4);
    }

    #[test]
    fn an_answer_read_again_is_the_same_tokens() {
        let answer: Vec<_> = (0..50).map(|position| token_at(seed(&[1, 2, 3]), position)).collect();
        let text = format!("<|assistant|>{}<|end|>", decode(&answer));
        assert_eq!(encode(&text)[1..51], answer[..]);
        assert_ne!(encode(" w7"), [7], "special tokens cannot be spelled");
    }

    #[test]
    fn answers_depend_on_the_prompt_and_the_position() {
        let token = |prompt: &[u32], at| token_at(seed(prompt), at);
        assert_eq!(token(&[1, 2, 3], 0), token(&[1, 2, 3], 0));
        assert_ne!(token(&[1, 2, 3], 0), token(&[9, 2, 3], 0));
        assert_ne!(token(&[1, 2, 3], 0), token(&[1, 2, 3], 1));
        assert_eq!(decode(&[700, 800]), " w700 w800");
    }
}
