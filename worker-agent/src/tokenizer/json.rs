//! Reads `tokenizer.json`, the format of the `tokenizers` library: only what turning tokens into bytes needs of it.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Inexact, Vocabulary};

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(borrow)]
    model: Model<'a>,
}

/// A token that is looked for before the text is cut.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    /// It swallows white space before or after it.
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    /// Of another form in other kinds of models.
    #[serde(borrow)]
    vocab: &'a RawValue,
}

/// The vocabulary that a file describes, or why its tokens cannot be turned back into text.
pub(super) fn vocabulary(text: &[u8]) -> Result<Result<Vocabulary, Inexact>, serde_json::Error> {
    let file: File<'_> = serde_json::from_slice(text)?;
    if let Some(reason) = file.loses() {
        return Ok(Err(reason));
    }
    let words: FxHashMap<String, u32> = serde_json::from_str(file.model.vocab.get())?;
    let alphabet = alphabet();
    let mut tokens = BTreeMap::new();
    for added in &file.added_tokens {
        // Of one that swallows white space nobody knows what it stands for.
        let swallows = added.lstrip || added.rstrip;
        tokens.insert(added.id, if swallows { Vec::new() } else { added.content.clone().into_bytes() });
    }
    for (word, id) in words {
        if tokens.contains_key(&id) {
            continue;
        }
        let bytes: Option<Vec<u8>> = word.chars().map(|letter| alphabet.get(&letter).copied()).collect();
        let Some(bytes) = bytes else { return Ok(Err(Inexact::Token(id))) };
        tokens.insert(id, bytes);
    }
    Ok(Vocabulary::new(tokens, leading(&file.post_processor)))
}

impl File<'_> {
    /// What of the tokenizer does not keep every byte of a text.
    fn loses(&self) -> Option<Inexact> {
        let model = &self.model;
        let marks = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
        let marked = marks.into_iter().flatten().any(|mark| !mark.is_empty());
        match model.kind.as_deref().unwrap_or("BPE") {
            "BPE" if model.byte_fallback => return Some(Inexact::Model("BPE with byte fallback".to_owned())),
            "BPE" if marked => return Some(Inexact::Model("BPE that marks words".to_owned())),
            "BPE" => {}
            other => return Some(Inexact::Model(other.chars().take(40).collect())),
        }
        for normalizer in steps(&self.normalizer, "normalizers") {
            if kind(normalizer) != "NFC" {
                return Some(Inexact::Normalizer(kind(normalizer)));
            }
        }
        let cutters = steps(&self.pre_tokenizer, "pretokenizers");
        let keeps = |cutter: &&&Value| match kind(cutter).as_str() {
            // Without the field, the library adds a space.
            "ByteLevel" => cutter.get("add_prefix_space") == Some(&Value::Bool(false)),
            "Split" => cutter.get("behavior").and_then(Value::as_str).is_some_and(|how| how != "Removed"),
            "Digits" => true,
            _ => false,
        };
        if let Some(cutter) = cutters.iter().find(|cutter| !keeps(cutter)) {
            return Some(Inexact::PreTokenizer(kind(cutter)));
        }
        let bytes = cutters.iter().any(|cutter| kind(cutter) == "ByteLevel");
        (!bytes).then(|| Inexact::Model("BPE of characters".to_owned()))
    }
}

/// The steps of a part of the tokenizer, which may be one, several or none.
fn steps<'a>(part: &'a Value, list: &str) -> Vec<&'a Value> {
    match part.get(list).and_then(Value::as_array) {
        Some(steps) => steps.iter().flat_map(|step| self::steps(step, list)).collect(),
        None if part.is_null() => Vec::new(),
        None => vec![part],
    }
}

fn kind(part: &Value) -> String {
    part.get("type").and_then(Value::as_str).unwrap_or("unnamed").chars().take(40).collect()
}

/// The special tokens that the post-processor puts before a text that stands alone.
fn leading(post_processor: &Value) -> Vec<u32> {
    let mut leading = Vec::new();
    for step in steps(post_processor, "processors") {
        let tokens: Option<Vec<u32>> = match kind(step).as_str() {
            "TemplateProcessing" => {
                let pieces = step.get("single").and_then(Value::as_array).map(Vec::as_slice);
                let special = pieces.unwrap_or_default().iter().map_while(|piece| piece.get("SpecialToken"));
                let ids = |special: &Value| {
                    let name = special.get("id")?.as_str()?;
                    let ids = step.get("special_tokens")?.get(name)?.get("ids")?.as_array()?;
                    ids.iter().map(token_id).collect::<Option<Vec<_>>>()
                };
                special.map(ids).collect::<Option<Vec<_>>>().map(|ids| ids.concat())
            }
            "RobertaProcessing" | "BertProcessing" => {
                step.get("cls").and_then(|cls| Some(vec![token_id(cls.get(1)?)?]))
            }
            _ => None,
        };
        leading.splice(0..0, tokens.unwrap_or_default());
    }
    leading
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| id.try_into().ok())
}

/// The characters that byte-level vocabularies write bytes with (GPT-2, `bytes_to_unicode`): the printable ones of Latin-1 stand
/// for themselves, all others follow from U+0100 on in the order of bytes.
fn alphabet() -> FxHashMap<char, u8> {
    let mut others = (0x100_u32..).filter_map(char::from_u32);
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some((char::from(byte), byte)),
        _ => others.next().map(|letter| (letter, byte)),
    };
    (0..=u8::MAX).filter_map(letter).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer() -> Value {
        json!({
            "added_tokens": [
                {"id": 4, "content": "<|begin|>", "special": true, "lstrip": false, "rstrip": false},
                {"id": 5, "content": "<mask>", "special": true, "lstrip": true, "rstrip": false},
            ],
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\p{N}"}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]},
            "post_processor": {"type": "Sequence", "processors": [
                {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false},
                {"type": "TemplateProcessing",
                 "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                 "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [4], "tokens": ["<|begin|>"]}}},
            ]},
            "model": {"type": "BPE", "byte_fallback": false, "vocab": {"a": 0, "Ġa": 1, "Ċ": 2, "â": 3, "<|begin|>": 4}, "merges": []},
        })
    }

    fn read(tokenizer: &Value) -> Result<Vocabulary, Inexact> {
        vocabulary(tokenizer.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn tokens_are_the_bytes_that_they_are_written_for() {
        let vocabulary = read(&tokenizer()).unwrap();
        let bytes: Vec<_> = (0..8).map(|id| vocabulary.bytes(id)).collect();
        let expected: [Option<&[u8]>; 8] =
            [Some(b"a"), Some(b" a"), Some(b"\n"), Some(b"\xE2"), Some(b"<|begin|>"), None, None, None];
        assert_eq!(bytes, expected, "a token that swallows white space has no bytes of its own");
        assert_eq!(vocabulary.leading(), [4]);
    }

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = alphabet();
        let mut bytes: Vec<u8> = alphabet.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!((alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'é']), (b' ', b'\n', 0xE9));
    }

    #[test]
    fn what_loses_something_is_found_out() {
        let changed = |path: &str, value: Value| {
            let mut tokenizer = tokenizer();
            *tokenizer.pointer_mut(path).unwrap() = value;
            read(&tokenizer).err().map(|reason| reason.to_string()).unwrap_or_default()
        };
        for (path, value, word) in [
            ("/model/type", json!("WordPiece"), "WordPiece"),
            ("/model/type", json!("Unigram"), "Unigram"),
            ("/model/byte_fallback", json!(true), "fallback"),
            ("/normalizer", json!({"type": "NFKC"}), "NFKC"),
            ("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "Prepend"}]}), "Prepend"),
            ("/pre_tokenizer", json!({"type": "Metaspace"}), "Metaspace"),
            ("/pre_tokenizer", json!(null), "characters"),
            ("/pre_tokenizer/pretokenizers/0/behavior", json!("Removed"), "Split"),
            ("/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true), "ByteLevel"),
            ("/model/vocab", json!({"▁a": 0}), "token 0"),
            ("/model/vocab", json!({"a": 4_194_304}), "4194304"),
        ] {
            let reason = changed(path, value);
            assert!(reason.contains(word), "{path}: {reason}");
        }
        assert_eq!(changed("/normalizer", json!({"type": "NFC"})), "");
        assert!(vocabulary(b"{}").is_err() && vocabulary(b"[").is_err());
    }
}
