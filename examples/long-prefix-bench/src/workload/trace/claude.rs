//! Sessions of Claude Code as kv-cache-tester recorded them: runs of 64-token block ids, local to the session; sub-agents share them.
//!
//! Starts are drawn evenly, since the trace has none; think times are its own, 300 s at most. Sessions with equally many tokens of tools
//! are taken to have the same tools.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::super::text;
use super::super::{Draft, DraftSession, DraftTurn};
use super::TraceError;
use super::lines::Text;
use crate::sequence::Hasher;

/// Tokens in a block of the trace.
const BLOCK: usize = 64;

/// A longer pause is taken for this.
const MOST_THINK_S: f64 = 300.0;

/// Names of shared tools are kept apart from those of sessions' blocks.
const TOOLS: u64 = 1 << 62;

#[derive(Deserialize)]
struct Session {
    block_size: usize,
    tool_tokens: usize,
    requests: Vec<Row>,
    #[serde(default)]
    subagents: Vec<SubAgent>,
}

#[derive(Deserialize)]
struct SubAgent {
    after: usize,
    tool_tokens: usize,
    requests: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    /// Seconds since the session began.
    #[serde(default)]
    t: f64,
    #[serde(rename = "in")]
    input: usize,
    out: usize,
    runs: Vec<(u64, usize)>,
    #[serde(default)]
    think: f64,
    #[serde(default)]
    api: f64,
}

pub(super) fn read(text: &Text, most: usize, seed: u64) -> Result<Draft, TraceError> {
    let mut all = Vec::new();
    for row in text.rows::<Session>() {
        let (line, session) = row?;
        check(&session).map_err(|reason| text.bad(line, reason.to_string()))?;
        all.push((line, session));
    }
    if all.is_empty() {
        return Err(text.empty());
    }
    let len = |(_, session): &(usize, Session)| {
        session.requests.len() + session.subagents.iter().map(|agent| agent.requests.len()).sum::<usize>()
    };
    let lens: Vec<usize> = all.iter().map(len).collect();
    let chosen = super::chosen(&lens, most, seed);
    let mut reader =
        Reader { hasher: Hasher::new(), rng: fastrand::Rng::with_seed(seed), sessions: Vec::new() };
    for ((line, session), _) in all.iter().zip(&chosen).filter(|(_, chosen)| **chosen) {
        reader.take(*line as u64, session);
    }
    Ok(Draft { sessions: reader.sessions, ..Draft::default() })
}

/// What is wrong with a session.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("block_size is {0}, and must be {BLOCK}")]
    BlockSize(usize),
    #[error("a session has no requests")]
    NoRequests,
    #[error("request {number}: {blocks} blocks in runs for {tokens} tokens; a block has {BLOCK}")]
    Blocks { number: usize, blocks: usize, tokens: usize },
    #[error("request {number}: {name} is not a time")]
    Time { number: usize, name: &'static str },
    #[error("request {number}: t is {t} after {before}; times do not go back")]
    Backwards { number: usize, t: f64, before: f64 },
    #[error("a sub-agent comes after request {after} of {requests}")]
    After { after: usize, requests: usize },
}

fn check(session: &Session) -> Result<(), Fault> {
    if session.block_size != BLOCK {
        return Err(Fault::BlockSize(session.block_size));
    }
    if session.requests.is_empty() {
        return Err(Fault::NoRequests);
    }
    for agent in &session.subagents {
        if agent.after >= session.requests.len() {
            return Err(Fault::After { after: agent.after, requests: session.requests.len() });
        }
    }
    for rows in
        std::iter::once(&session.requests).chain(session.subagents.iter().map(|agent| &agent.requests))
    {
        let back = rows.windows(2).position(|pair| pair[1].t < pair[0].t);
        if let Some(at) = back {
            return Err(Fault::Backwards { number: at + 1, t: rows[at + 1].t, before: rows[at].t });
        }
    }
    let rows = session.requests.iter().chain(session.subagents.iter().flat_map(|agent| &agent.requests));
    for (number, row) in rows.enumerate() {
        let blocks = row.runs.iter().fold(0_usize, |blocks, (_, count)| blocks.saturating_add(*count));
        let tokens = row.input;
        // A last block that is not full may have an id or not.
        if tokens == 0 || !(tokens / BLOCK..=tokens.div_ceil(BLOCK)).contains(&blocks) {
            return Err(Fault::Blocks { number, blocks, tokens });
        }
        for (name, seconds) in [("think", row.think), ("api", row.api)] {
            if !(seconds.is_finite() && seconds >= 0.0) {
                return Err(Fault::Time { number, name });
            }
        }
    }
    Ok(())
}

struct Reader {
    hasher: Hasher,
    rng: fastrand::Rng,
    sessions: Vec<DraftSession>,
}

impl Reader {
    fn take(&mut self, name: u64, session: &Session) {
        let starts = self.rng.f64();
        self.push(name, session.tool_tokens, &session.requests, starts, Duration::ZERO);
        for agent in &session.subagents {
            let before = session.requests[..=agent.after].iter();
            let offset = before.map(|row| row.think.min(MOST_THINK_S) + row.api.min(MOST_THINK_S)).sum();
            let offset = Duration::from_secs_f64(offset);
            self.push(name, agent.tool_tokens, &agent.requests, starts, offset);
        }
    }

    fn push(&mut self, name: u64, tools: usize, rows: &[Row], starts: f64, offset: Duration) {
        let turns = rows.iter().enumerate().map(|(nth, row)| {
            let think = if nth == 0 { 0.0 } else { row.think.min(MOST_THINK_S) };
            self.turn(name, tools, row, Duration::from_secs_f64(think))
        });
        let turns = turns.collect();
        self.sessions.push(DraftSession { starts, offset, turns, intrudes: false });
    }

    fn turn(&mut self, name: u64, tools: usize, row: &Row, think: Duration) -> DraftTurn {
        let mut tokens = Vec::with_capacity(row.input + BLOCK);
        let ids = row.runs.iter().flat_map(|(first, count)| (0..*count as u64).map(move |i| first + i));
        for (place, id) in ids.enumerate() {
            let of_tools = (place + 1) * BLOCK <= tools;
            let block = if of_tools { TOOLS | (tools as u64) << 24 | place as u64 } else { name << 32 | id };
            text::extend(&mut tokens, block, BLOCK);
        }
        // What is beyond the last block that has an id is nobody else's.
        let missing = row.input.saturating_sub(tokens.len());
        text::extend(&mut tokens, self.rng.u64(..), missing);
        tokens.truncate(row.input);
        let answer = text::text(self.rng.u64(..), row.out.max(1));
        let sequence = self.hasher.sequence(&tokens, &answer);
        DraftTurn { think, not_before: 0.0, requests: vec![Arc::new(sequence)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"session":"a","models":["m"],"block_size":64,"tool_tokens":128,"system_tokens":10,"requests":[
        {"t":0.0,"in":200,"out":9,"runs":[[1,3]],"think":0.0,"api":5.0},{"t":9.0,"in":300,"out":9,"runs":[[1,3],[9,2]],"think":700.0}],
        "subagents":[{"after":0,"t":3.0,"tool_tokens":0,"system_tokens":0,"model":"m","requests":[{"t":0.0,"in":64,"out":1,"runs":[[50,1]]}]}]}"#;

    fn line() -> String {
        LINE.replace('\n', "")
    }

    #[test]
    fn sessions_and_sub_agents_are_read() {
        let other = line().replace(r#""session":"a""#, r#""session":"b""#);
        let draft = read(&Text::of(&format!("{}\n{other}", line())), 100, 1).unwrap();
        assert_eq!((draft.len(), draft.sessions.len()), (6, 4));
        assert_eq!(draft.sessions[0].turns[1].think, Duration::from_secs(300));
        assert_eq!(draft.sessions[1].offset, Duration::from_secs(5));
        let blocks = |session: usize, turn: usize| {
            let sequence = &draft.sessions[session].turns[turn].requests[0];
            sequence.prompt().hashes().to_vec()
        };
        assert_eq!(blocks(0, 0), blocks(0, 1)[..3]);
        assert_eq!(blocks(0, 0)[..2], blocks(2, 0)[..2], "equal tools");
        assert_ne!(blocks(0, 0)[2], blocks(2, 0)[2], "ids are a session's own");
    }

    #[test]
    fn bad_sessions_are_named() {
        let error = |text: &str| read(&Text::of(text), 100, 1).unwrap_err().to_string();
        assert!(
            error(&line().replace("[[1,3]]", "[[1,2]]"))
                .contains("line 1: request 0: 2 blocks in runs for 200")
        );
        assert!(error(&line().replace(":64,", ":16,")).contains("line 1: block_size is 16"));
        assert!(error(&line().replace("\"after\":0", "\"after\":2")).contains("after request 2 of 2"));
        assert!(
            error(&line().replace("\"t\":9.0", "\"t\":-9.0")).contains("line 1: request 1: t is -9 after 0")
        );
        assert!(error(&line().replace("700.0", "-1")).contains("request 1: think is not a time"));
        assert!(error(&line().replace("5.0", "-5.0")).contains("request 0: api is not a time"));
        assert!(error("{}").contains("line 1: missing field"));
    }
}
