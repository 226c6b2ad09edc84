//! The trace: rows of hash ids, expanded to token ids.
//!
//! The trace names blocks and has no tokens. Each id becomes the same run of pseudo-random tokens wherever it stands, so that
//! prompts share exactly the prefixes that the trace says they share.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use router_core::key::{BlockHash, KeySpace, Salt, Unit};
use serde::Deserialize;

/// The sample that is shipped; origin and licence are in `data/README.md`.
const SAMPLE: &str = include_str!("../data/mooncake_conversation_sample.jsonl");

/// Tokens in one block of the trace.
const BLOCK_TOKENS: usize = 512;

/// The trace's clock ticks this coarsely; requests of one tick are spread over it.
const TICK: Duration = Duration::from_millis(3_000);

/// Ids of the simulated vocabulary that stand for text; the lowest ones are left to special tokens.
const VOCABULARY: std::ops::Range<u32> = 100..32_000;

/// One request of the trace.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// When it is sent, after the trace began.
    pub(crate) at: Duration,
    /// Tokens it asks for.
    pub(crate) output_tokens: usize,
    input_tokens: usize,
    blocks: Vec<u64>,
}

/// A trace that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("cannot read the trace {path}: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("line {line} of the trace is not a Mooncake row: {source}")]
    Row { line: usize, source: serde_json::Error },
    #[error("line {line} of the trace has {blocks} blocks for {tokens} tokens; a block has {BLOCK_TOKENS}")]
    Blocks { line: usize, blocks: usize, tokens: usize },
    #[error("the trace has no requests")]
    Empty,
}

#[derive(Deserialize)]
struct Row {
    timestamp: u64,
    input_length: usize,
    output_length: usize,
    hash_ids: Vec<u64>,
}

/// The requests of a trace file, or of the shipped sample; at most `most`.
pub(crate) fn load(path: Option<&Path>, most: usize) -> Result<Vec<Request>, TraceError> {
    let text = match path {
        None => SAMPLE.to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| TraceError::Unreadable { path: path.display().to_string(), source })?,
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut requests = Vec::new();
    for (index, line) in lines.take(most) {
        let line_number = index + 1;
        let row: Row =
            serde_json::from_str(line).map_err(|source| TraceError::Row { line: line_number, source })?;
        let (blocks, tokens) = (row.hash_ids.len(), row.input_length);
        if blocks != tokens.div_ceil(BLOCK_TOKENS) {
            return Err(TraceError::Blocks { line: line_number, blocks, tokens });
        }
        requests.push(Request {
            at: Duration::from_millis(row.timestamp),
            output_tokens: row.output_length.max(1),
            input_tokens: row.input_length,
            blocks: row.hash_ids,
        });
    }
    if requests.is_empty() {
        return Err(TraceError::Empty);
    }
    requests.sort_by_key(|request| request.at);
    spread(&mut requests);
    Ok(requests)
}

/// Spreads the requests of each tick evenly over it.
fn spread(requests: &mut [Request]) {
    for tick in requests.chunk_by_mut(|a, b| a.at == b.at) {
        let step = TICK / u32::try_from(tick.len()).unwrap_or(u32::MAX);
        let mut offset = Duration::ZERO;
        for request in tick {
            request.at += offset;
            offset += step;
        }
    }
}

/// Share of all prompt tokens that one infinite cache would have held, in order of arrival, in whole pages.
pub(crate) fn ideal_hit_rate(requests: &[Request], page_size: u32) -> f64 {
    let Ok(space) = KeySpace::new(Unit::Token, page_size, 0) else { return 0.0 };
    let mut seen: HashSet<BlockHash> = HashSet::new();
    let (mut hits, mut total) = (0, 0);
    for request in requests {
        let tokens = request.tokens();
        let key = space.key_of_tokens(Salt::default(), &tokens);
        // The last token is always computed, so that the page it completes is no hit.
        let usable = (tokens.len() - 1) / page_size as usize;
        let matched = key.hashes().iter().take(usable).take_while(|hash| seen.contains(hash)).count();
        hits += matched * page_size as usize;
        total += tokens.len();
        seen.extend(key.hashes());
    }
    hits as f64 / total as f64
}

impl Request {
    /// The prompt.
    pub(crate) fn tokens(&self) -> Vec<u32> {
        let blocks = self.blocks.iter();
        let mut tokens: Vec<u32> =
            blocks.flat_map(|block| (0..BLOCK_TOKENS as u64).map(move |i| token(*block, i))).collect();
        tokens.truncate(self.input_tokens);
        tokens
    }
}

/// Token `index` of a block (SplitMix64's finalizer over both).
fn token(block: u64, index: u64) -> u32 {
    let z = (block * BLOCK_TOKENS as u64 + index).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let span = u64::from(VOCABULARY.end - VOCABULARY.start);
    VOCABULARY.start + ((z >> 32) % span) as u32
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_sample_shares_what_its_readme_says() {
        let requests = load(None, usize::MAX).unwrap();
        assert_eq!(requests.len(), 1_214);
        assert!(requests.is_sorted_by_key(|request| request.at));
        // 35.8 % by whole blocks of 512; the last block of a prompt adds nothing, as its id is its own.
        let ideal = ideal_hit_rate(&requests, 16);
        assert!((ideal - 0.358).abs() < 0.002, "{ideal}");
    }

    #[test]
    fn equal_ids_are_equal_tokens_and_others_are_not() {
        let request = |blocks: &[u64], input_tokens| Request {
            at: Duration::ZERO,
            output_tokens: 1,
            input_tokens,
            blocks: blocks.to_vec(),
        };
        let (a, b) = (request(&[1, 2], 700).tokens(), request(&[1, 3], 1_024).tokens());
        assert_eq!((a.len(), b.len()), (700, 1_024));
        assert_eq!(a[..512], b[..512]);
        assert_ne!(a[512..520], b[512..520]);
        assert!(a.iter().all(|token| VOCABULARY.contains(token)));
    }

    #[test]
    fn bad_rows_are_named() {
        let load_text = |text: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            load(Some(file.path()), usize::MAX).unwrap_err().to_string()
        };
        let good = r#"{"timestamp":0,"input_length":6,"output_length":1,"hash_ids":[1]}"#;
        assert!(load_text(&format!("{good}\nnonsense\n")).starts_with("line 2 of the trace is not"));
        assert!(load_text(&good.replace("[1]", "[1,2]")).contains("has 2 blocks for 6 tokens"));
        assert_eq!(load_text("\n"), "the trace has no requests");
        assert!(load(Some(Path::new("/nowhere")), 1).unwrap_err().to_string().contains("/nowhere"));
    }
}
