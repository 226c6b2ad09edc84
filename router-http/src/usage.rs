//! Finds in the bytes of a passing answer how much of the prompt was cached.
//!
//! Both numbers are looked for by their key as it stands in JSON, `"prompt_tokens":` (the responses API says `"input_tokens":`)
//! and `"cached_tokens":`. A generated text
//! that imitates them cannot be mistaken: within a JSON string its quotes are escaped. What may be the beginning of a key or of
//! its number at the end of a chunk is carried over to the next.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use router_core::Usage;

use crate::decimal;
use crate::decode::RouteKind;

/// See the module.
#[derive(Debug)]
pub(crate) struct UsageSearch {
    prompt: Field,
    cached: Field,
    carried: Vec<u8>,
}

#[derive(Debug)]
struct Field {
    key: &'static Finder<'static>,
    value: Option<u64>,
}

/// Made once: it takes longer than a search in a short answer.
static PROMPT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"prompt_tokens\":"));
static INPUT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"input_tokens\":"));
static CACHED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"cached_tokens\":"));

/// How each of them ends.
static END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("_tokens\":"));

/// Longest key with its number and white space.
pub(crate) const MOST_CARRIED: usize = 64;

impl UsageSearch {
    /// The search in an answer by this kind of route.
    pub(crate) fn of(kind: RouteKind) -> Self {
        let field = |key| Field { key, value: None };
        let prompt = if kind == RouteKind::Responses { &INPUT } else { &PROMPT };
        Self { prompt: field(prompt), cached: field(&CACHED), carried: Vec::new() }
    }

    /// Looks at the next chunk; returns the usage once, when both numbers have been seen.
    pub(crate) fn look(&mut self, chunk: &[u8]) -> Option<Usage> {
        if self.found().is_some() {
            return None;
        }
        if !self.carried.is_empty() {
            // The border first: the end of what came before with the beginning of this.
            let mut border = std::mem::take(&mut self.carried);
            border.extend_from_slice(&chunk[..chunk.len().min(MOST_CARRIED)]);
            self.search(&border);
            self.carried = border;
        }
        self.search(chunk);
        let found = self.found();
        if found.is_none() {
            self.carry(chunk);
        }
        found
    }

    /// Keeps the end of what has come, unless it is the end of an event, beyond which nothing goes on.
    fn carry(&mut self, chunk: &[u8]) {
        if chunk.ends_with(b"\n\n") {
            self.carried.clear();
        } else if chunk.len() >= MOST_CARRIED || self.carried.is_empty() {
            self.carried.clear();
            self.carried.extend_from_slice(&chunk[chunk.len().saturating_sub(MOST_CARRIED)..]);
        } else {
            // It has the chunk already.
            self.carried.drain(..self.carried.len().saturating_sub(MOST_CARRIED));
        }
    }

    /// Bytes that are kept for the next chunk.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn carries(&self) -> usize {
        self.carried.len()
    }

    fn found(&self) -> Option<Usage> {
        Some(Usage { prompt_tokens: self.prompt.value?, cached_tokens: self.cached.value? })
    }

    fn search(&mut self, mut bytes: &[u8]) {
        while let Some(key) = self.sought()
            && let Some(at) = key.find(bytes)
        {
            let (key, after) = bytes.split_at(at + key.needle().len());
            for field in [&mut self.prompt, &mut self.cached] {
                if field.value.is_none() && key.ends_with(field.key.needle()) {
                    field.value = number(after);
                }
            }
            bytes = after;
        }
    }

    /// What is missing. One search for both: most events of a stream have neither.
    fn sought(&self) -> Option<&'static Finder<'static>> {
        match (self.prompt.value, self.cached.value) {
            (None, None) => Some(&END),
            (None, Some(_)) => Some(self.prompt.key),
            (Some(_), None) => Some(self.cached.key),
            (Some(_), Some(_)) => None,
        }
    }
}

/// The number that the bytes begin with, if a byte that ends it is there too.
fn number(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.trim_ascii_start();
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    // At the end of the bytes the number may go on in the next chunk.
    bytes.get(digits)?;
    decimal::number(&bytes[..digits])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NATIVE: &str =
        r#"data: {"text":" a","meta_info":{"id":"x","prompt_tokens":1234,"cached_tokens": 567,"e":1}}"#;

    fn usage(chunks: &[&[u8]]) -> Option<Usage> {
        let mut search = UsageSearch::of(RouteKind::Generate);
        let found: Vec<_> = chunks.iter().filter_map(|chunk| search.look(chunk)).collect();
        assert!(found.len() <= 1, "it is told once");
        found.first().copied()
    }

    proptest! {
        #[test]
        fn chunks_may_end_anywhere(mut cuts in prop::collection::vec(0..NATIVE.len(), 0..12)) {
            cuts.sort_unstable();
            cuts.push(NATIVE.len());
            let mut from = 0;
            let chunks: Vec<_> = cuts.iter().map(|&to| { let part = &NATIVE.as_bytes()[from..to]; from = to; part }).collect();
            prop_assert_eq!(usage(&chunks), Some(Usage { prompt_tokens: 1234, cached_tokens: 567 }));
        }
    }

    #[test]
    fn openais_shape_is_understood_and_absence_too() {
        let openai =
            br#"{"usage":{"prompt_tokens":9,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0}}}"#;
        assert_eq!(usage(&[openai]), Some(Usage { prompt_tokens: 9, cached_tokens: 0 }));
        let unreported = br#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}"#;
        assert_eq!(usage(&[unreported]), None);
        assert_eq!(usage(&[br#"{"prompt_tokens":null,"cached_tokens":null}"#]), None);
    }

    #[test]
    fn the_responses_api_has_names_of_its_own() {
        let usage =
            br#"{"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":3},"output_tokens":2}}"#;
        let found = UsageSearch::of(RouteKind::Responses).look(usage);
        assert_eq!(found, Some(Usage { prompt_tokens: 5, cached_tokens: 3 }));
    }

    #[test]
    fn generated_text_cannot_imitate_it() {
        let text = serde_json::json!({"text": r#"{"prompt_tokens":1,"cached_tokens":1}"#, "meta_info":
            {"prompt_tokens": 50, "cached_tokens": 16, "x": 0}});
        assert_eq!(
            usage(&[text.to_string().as_bytes()]),
            Some(Usage { prompt_tokens: 50, cached_tokens: 16 })
        );
    }
}
