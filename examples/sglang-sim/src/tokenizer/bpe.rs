//! A byte-level BPE tokenizer, read from a `tokenizer.json` whose text is cut as GPT-2's is.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use serde_json::Value;

/// A tokenizer that loses nothing: its tokens, put together, are the text.
#[derive(Debug)]
pub(super) struct Bpe {
    /// The token of each single byte.
    bytes: [u32; 256],
    /// What two neighbours become, the lowest rank first.
    merges: HashMap<(u32, u32), (usize, u32)>,
    /// Tokens that are looked for before the text is cut.
    added: Vec<(String, u32)>,
    leading: Vec<u32>,
}

/// What is wrong with a file.
type Problem = &'static str;

impl Bpe {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        Self::of(&file).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))
    }

    fn of(file: &Value) -> Result<Self, Problem> {
        let model = &file["model"];
        if model["type"] != "BPE" || file["pre_tokenizer"]["type"] != "ByteLevel" {
            return Err("only byte-level BPE that is cut as GPT-2 does is simulated");
        }
        let words = model["vocab"].as_object().ok_or("it has no vocabulary")?;
        let id = |word: &str| words.get(word).and_then(Value::as_u64).map(|id| id as u32);
        let letters = letters();
        let mut bytes = [0; 256];
        for (byte, letter) in letters.iter().enumerate() {
            bytes[byte] = id(&letter.to_string()).ok_or("a byte has no token")?;
        }
        let mut merges = HashMap::new();
        for (rank, merge) in model["merges"].as_array().ok_or("it has no merges")?.iter().enumerate() {
            let pair = match merge {
                Value::String(pair) => pair.split_once(' '),
                pair => pair[0].as_str().zip(pair[1].as_str()),
            };
            let (left, right) = pair.ok_or("a merge is not of two tokens")?;
            let merged = id(left).zip(id(right)).zip(id(&format!("{left}{right}")));
            let (pair, whole) = merged.ok_or("a merge is of unknown tokens")?;
            merges.entry(pair).or_insert((rank, whole));
        }
        let mut added = Vec::new();
        for token in file["added_tokens"].as_array().into_iter().flatten() {
            let (content, id) =
                token["content"].as_str().zip(token["id"].as_u64()).ok_or("an added token has no id")?;
            added.push((content.to_owned(), id as u32));
        }
        let single = file["post_processor"]["single"].as_array().into_iter().flatten();
        let names = single.map_while(|piece| piece["SpecialToken"]["id"].as_str());
        let leading =
            names.filter_map(|name| added.iter().find(|(content, _)| content == name)).map(|(_, id)| *id);
        let leading = leading.collect();
        Ok(Self { bytes, merges, added, leading })
    }

    /// The tokens of a text, without those that are put before it.
    pub(super) fn encode(&self, mut text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        while !text.is_empty() {
            let found = self.added.iter().filter_map(|added| Some((text.find(&added.0)?, added)));
            let first = found.min_by_key(|(at, (content, _))| (*at, std::cmp::Reverse(content.len())));
            let (plain, rest) = match first {
                Some((at, (content, _))) => (&text[..at], &text[at + content.len()..]),
                None => (text, ""),
            };
            words(plain).for_each(|word| self.merge(word, &mut tokens));
            tokens.extend(first.map(|(_, (_, id))| *id));
            text = rest;
        }
        tokens
    }

    /// What is put before every text that stands alone.
    pub(super) fn leading(&self) -> &[u32] {
        &self.leading
    }

    fn merge(&self, word: &str, tokens: &mut Vec<u32>) {
        let mut parts: Vec<u32> = word.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
        loop {
            let pairs = parts.windows(2).enumerate();
            let known = pairs.filter_map(|(at, pair)| Some((*self.merges.get(&(pair[0], pair[1]))?, at)));
            let Some(((_, whole), at)) = known.min() else { break };
            parts.splice(at..at + 2, [whole]);
        }
        tokens.append(&mut parts);
    }
}

/// Cuts a text as GPT-2's regular expression does: endings after an apostrophe, then runs of letters, digits or other signs, each
/// with the space before it, then white space, of which the last sign is left to the word that follows.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let len = word_len(rest)?;
        let (word, after) = rest.split_at(len);
        rest = after;
        Some(word)
    })
}

fn word_len(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    let endings = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    if let Some(ending) = endings.iter().find(|ending| text.starts_with(**ending)) {
        return Some(ending.len());
    }
    let space = usize::from(first == ' ');
    let class = |sign: char| match sign {
        _ if sign.is_whitespace() => 0,
        _ if sign.is_alphabetic() => 1,
        _ if sign.is_numeric() => 2,
        _ => 3,
    };
    let after = &text[space..];
    if let Some(begin) = after.chars().next().map(class).filter(|class| *class > 0) {
        return Some(space + after.find(|sign| class(sign) != begin).unwrap_or(after.len()));
    }
    let Some(end) = text.find(|sign: char| !sign.is_whitespace()) else { return Some(text.len()) };
    let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
    Some(if end > last { end - last } else { end })
}

/// The character that each byte is written with.
fn letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u8 {
        printable @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(printable),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Bpe {
        Bpe::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tokenizer.json"))).unwrap()
    }

    /// What the `tokenizers` library, version 0.23.3, makes of these texts with this file.
    #[test]
    fn tokens_are_those_of_the_library() {
        let golden: [(&str, &[u32]); 6] = [
            ("Hello, world", &[0, 41, 505, 290, 13, 271, 285, 382]),
            (
                "  two spaces\n\nüber 12345 日本語 😀",
                &[
                    0, 222, 259, 931, 817, 301, 267, 200, 200, 129, 122, 1009, 291, 19, 20, 21, 22, 222, 164,
                    247, 100, 164, 252, 107, 166, 105, 254, 222, 174, 255, 248, 224,
                ],
            ),
            ("don't we'll IT'S", &[0, 69, 266, 8, 85, 271, 70, 8, 322, 636, 53, 8, 52]),
            ("a\tb  c   ", &[0, 66, 199, 67, 222, 278, 447]),
            ("<|begin|>x<|end|> y", &[0, 0, 89, 1, 810]),
            ("x x x x x !?...", &[0, 89, 222, 89, 222, 89, 222, 89, 222, 89, 222, 2, 32, 15, 15, 15]),
        ];
        let bpe = sample();
        for (text, tokens) in golden {
            assert_eq!([bpe.leading(), &bpe.encode(text)].concat(), tokens, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_simulated_is_refused() {
        assert!(Bpe::of(&serde_json::json!({"model": {"type": "WordPiece"}})).is_err());
        assert!(Bpe::read(Path::new("/nowhere/tokenizer.json")).is_err());
    }
}
