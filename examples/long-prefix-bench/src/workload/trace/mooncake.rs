//! Mooncake's rows: `timestamp` in ms, lengths, and one id for each 512-token block of a prompt, which names all before it too.
//!
//! There are no sessions in it; they are inferred: a request goes on with the last earlier one through whose last full block it passes, unless
//! more than three requests end there. Output tokens are unknown, so that what a later prompt repeats of an answer is new.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::super::text;
use super::super::{Draft, DraftSession, DraftTurn};
use super::TraceError;
use super::lines::Text;
use crate::sequence::Hasher;

/// Tokens in a block of the trace.
const BLOCK: usize = 512;

/// The trace's clock ticks so coarsely; requests of one tick are spread over it by chance, in their order.
const TICK_MS: f64 = 3_000.0;

/// Requests that may end at a block which a session goes on from.
const MOST_ENDS: usize = 3;

#[derive(Deserialize)]
struct Row {
    timestamp: u64,
    input_length: usize,
    output_length: usize,
    hash_ids: Vec<u64>,
}

pub(super) fn read(text: &Text, most: usize, seed: u64) -> Result<Draft, TraceError> {
    let mut rows = Vec::new();
    for row in text.rows::<Row>() {
        let (line, row) = row?;
        let (blocks, tokens) = (row.hash_ids.len(), row.input_length);
        if tokens == 0 {
            return Err(text.bad(line, "a prompt has at least one token".to_owned()));
        }
        if blocks != tokens.div_ceil(BLOCK) {
            let reason = format!("{blocks} hash_ids for {tokens} tokens; a block has {BLOCK}");
            return Err(text.bad(line, reason));
        }
        let before = rows.last().map_or(0, |row: &Row| row.timestamp);
        if row.timestamp < before {
            let reason = format!("timestamp {} comes after {before}; times do not go back", row.timestamp);
            return Err(text.bad(line, reason));
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(text.empty());
    }
    let times = spread(&rows, seed);
    let end = times.last().copied().unwrap_or(0.0).max(1.0);
    let sessions = sessions(&rows);
    let lens: Vec<usize> = sessions.iter().map(Vec::len).collect();
    let chosen = super::chosen(&lens, most, seed);
    let hasher = Hasher::new();
    let mut rng = fastrand::Rng::with_seed(seed);
    let session = |members: &Vec<usize>| DraftSession {
        starts: times[members[0]] / end,
        offset: Duration::ZERO,
        turns: members.iter().map(|row| turn(&hasher, &rows[*row], times[*row] / end, &mut rng)).collect(),
        intrudes: false,
    };
    let sessions = sessions.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(members, _)| members);
    let recorded = Some(Duration::from_secs_f64(end / 1e3));
    Ok(Draft { sessions: sessions.map(session).collect(), warm_up: None, recorded })
}

fn turn(hasher: &Hasher, row: &Row, not_before: f64, rng: &mut fastrand::Rng) -> DraftTurn {
    let mut tokens = Vec::with_capacity(row.hash_ids.len() * BLOCK);
    row.hash_ids.iter().for_each(|id| text::extend(&mut tokens, *id, BLOCK));
    tokens.truncate(row.input_length);
    let answer = text::text(rng.u64(..), row.output_length.max(1));
    let sequence = Arc::new(hasher.sequence(&tokens, &answer));
    DraftTurn { think: Duration::ZERO, not_before, requests: vec![sequence] }
}

/// Milliseconds after the first tick, the requests of each tick spread over it.
fn spread(rows: &[Row], seed: u64) -> Vec<f64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let first = rows.first().map_or(0, |row| row.timestamp);
    let ticks = rows.chunk_by(|a, b| a.timestamp == b.timestamp);
    let times = ticks.flat_map(|tick| {
        let mut within: Vec<f64> = tick.iter().map(|_| rng.f64() * TICK_MS).collect();
        within.sort_unstable_by(f64::total_cmp);
        tick.iter()
            .zip(within)
            .map(|(row, within)| (row.timestamp - first) as f64 + within)
            .collect::<Vec<_>>()
    });
    times.collect()
}

/// The rows of each session, in order.
fn sessions(rows: &[Row]) -> Vec<Vec<usize>> {
    let last_full = |row: &Row| row.hash_ids.get((row.input_length / BLOCK).checked_sub(1)?).copied();
    let mut ends: HashMap<u64, usize> = HashMap::new();
    for block in rows.iter().filter_map(last_full) {
        *ends.entry(block).or_default() += 1;
    }
    let mut session_at: HashMap<u64, usize> = HashMap::new();
    let mut sessions: Vec<Vec<usize>> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let full = &row.hash_ids[..row.input_length / BLOCK];
        let goes_on = full.iter().rev().find_map(|block| session_at.get(block).copied());
        let session = goes_on.unwrap_or_else(|| {
            sessions.push(Vec::new());
            sessions.len() - 1
        });
        sessions[session].push(number);
        if let Some(block) = last_full(row).filter(|block| ends[block] <= MOST_ENDS) {
            session_at.insert(block, session);
        }
    }
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Accesses;

    fn error(text: &str) -> String {
        read(&Text::of(text), 100, 1).unwrap_err().to_string()
    }

    #[test]
    fn the_sample_shares_what_its_readme_says() {
        let draft = read(&Text::of_sample(), usize::MAX, 1).unwrap();
        assert_eq!(draft.len(), 1_214);
        let traffic = draft.schedule(Duration::from_secs(3_600));
        let found: usize = Accesses::new(&traffic.requests).infinite().iter().sum();
        let ideal = found as f64 / traffic.prompt_tokens() as f64;
        assert!((ideal - 0.358).abs() < 0.005, "{ideal}");
        assert!(draft.sessions.len() < 1_000, "there are conversations in it: {}", draft.sessions.len());
    }

    #[test]
    fn a_part_is_drawn_by_whole_sessions() {
        let draft = |seed| read(&Text::of_sample(), 300, seed).unwrap();
        let (one, other) = (draft(1), draft(2));
        assert!((250..=300).contains(&one.len()), "{}", one.len());
        let hash = |draft: &Draft| draft.schedule(Duration::from_secs(100)).hash;
        assert_eq!(hash(&one), hash(&draft(1)));
        assert_ne!(hash(&one), hash(&other));
    }

    #[test]
    fn ticks_are_spread() {
        let row = |timestamp| Row { timestamp, input_length: 1, output_length: 1, hash_ids: vec![1] };
        let rows = [row(3_000), row(3_000), row(6_000)];
        let times = spread(&rows, 1);
        assert!(times.is_sorted(), "{times:?}");
        assert!(times[1] < TICK_MS && times[2] >= TICK_MS && times[2] < 2.0 * TICK_MS, "{times:?}");
        assert_eq!(times, spread(&rows, 1));
        assert_ne!(times, spread(&rows, 2));
    }

    #[test]
    fn bad_rows_are_named() {
        let good = r#"{"timestamp":0,"input_length":6,"output_length":1,"hash_ids":[1]}"#;
        assert!(error(&format!("{good}\n\nnonsense\n")).starts_with("test.jsonl, line 3: expected"));
        assert!(
            error(&good.replace("[1]", "[1,2]"))
                .ends_with("line 1: 2 hash_ids for 6 tokens; a block has 512")
        );
        assert!(error(&good.replace(":6", ":0")).contains("line 1: a prompt has at least one token"));
        assert!(error(&good.replace("timestamp", "time")).contains("line 1: missing field `timestamp`"));
        let later = good.replace(":0,", ":3000,");
        assert!(
            error(&format!("{later}\n{good}"))
                .ends_with("line 2: timestamp 0 comes after 3000; times do not go back")
        );
        assert_eq!(error("\n"), "test.jsonl has no requests");
    }
}
