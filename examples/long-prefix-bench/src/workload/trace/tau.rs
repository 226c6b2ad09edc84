//! tau-bench's trajectories: the tools in the first line, then a session a line, whose every assistant message is one call with the
//! tools and all messages before it as its prompt. Text counts as a token for every four bytes. Starts are drawn evenly; a user
//! or a tool takes two seconds.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::{Draft, DraftSession, DraftTurn};
use super::TraceError;
use super::lines::Text;
use crate::sequence::Hasher;

/// Time that the trace does not have.
const THINK: Duration = Duration::from_secs(2);

/// Bytes of text to a token.
const BYTES_PER_TOKEN: usize = 4;

/// A line of the file.
enum Line {
    Tools { tools: Box<RawValue> },
    Session { messages: Vec<Box<RawValue>> },
}

#[derive(Deserialize)]
struct Message {
    role: String,
}

pub(super) fn read(text: &Text, most: usize, seed: u64) -> Result<Draft, TraceError> {
    let mut tools = None;
    let mut sessions = Vec::new();
    for row in text.rows::<Box<RawValue>>() {
        let (line, row) = row?;
        let row = parse(&row).map_err(|error| text.bad(line, error.to_string()))?;
        match (row, &tools) {
            (Line::Tools { tools: own }, None) => tools = Some(tokens_of(own.get())),
            (Line::Tools { .. }, Some(_)) => return Err(text.bad(line, "a second line of tools".to_owned())),
            (Line::Session { .. }, None) => {
                return Err(text.bad(line, "a session before the line of tools".to_owned()));
            }
            (Line::Session { messages }, Some(_)) => {
                let roles: Result<Vec<Message>, _> =
                    messages.iter().map(|message| serde_json::from_str(message.get())).collect();
                let roles = roles.map_err(|error| text.bad(line, error.to_string()))?;
                let calls = roles.iter().filter(|message| message.role == "assistant").count();
                if calls > 0 {
                    sessions.push((calls, messages, roles));
                }
            }
        }
    }
    let Some(tools) = tools.filter(|_| !sessions.is_empty()) else { return Err(text.empty()) };
    let lens: Vec<usize> = sessions.iter().map(|(calls, ..)| *calls).collect();
    let chosen = super::chosen(&lens, most, seed);
    let (hasher, mut rng) = (Hasher::new(), fastrand::Rng::with_seed(seed));
    let mut draft = Draft::default();
    for ((_, messages, roles), _) in sessions.iter().zip(&chosen).filter(|(_, chosen)| **chosen) {
        let mut prompt = tools.clone();
        let mut turns = Vec::new();
        for (message, role) in messages.iter().zip(roles) {
            let said = tokens_of(message.get());
            if role.role == "assistant" {
                let think = if turns.is_empty() { Duration::ZERO } else { THINK };
                let sequence = Arc::new(hasher.sequence(&prompt, &said));
                turns.push(DraftTurn { think, not_before: 0.0, requests: vec![sequence] });
            }
            prompt.extend(said);
        }
        draft.sessions.push(DraftSession { starts: rng.f64(), turns, ..DraftSession::default() });
    }
    Ok(draft)
}

/// Told apart by their fields.
fn parse(row: &RawValue) -> Result<Line, serde_json::Error> {
    #[derive(Deserialize)]
    struct Tools {
        tools: Box<RawValue>,
    }
    #[derive(Deserialize)]
    struct Session {
        messages: Vec<Box<RawValue>>,
    }
    match serde_json::from_str::<Tools>(row.get()) {
        Ok(Tools { tools }) => Ok(Line::Tools { tools }),
        Err(_) => {
            serde_json::from_str::<Session>(row.get()).map(|Session { messages }| Line::Session { messages })
        }
    }
}

/// Four bytes a token; what is left of the last one is padded.
fn tokens_of(text: &str) -> Vec<u32> {
    let token = |bytes: &[u8]| {
        let mut padded = [b' '; BYTES_PER_TOKEN];
        padded[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(padded)
    };
    text.as_bytes().chunks(BYTES_PER_TOKEN).map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOLS: &str = r#"{"tools":[{"name":"look"}]}"#;
    const SESSION: &str = r#"{"session":"a","messages":[{"role":"system","content":"Be brief and kind."},{"role":"user","content":"Hello"},
        {"role":"assistant","content":"Good day"},{"role":"user","content":"And now?"},{"role":"assistant","content":"Nothing"}]}"#;

    #[test]
    fn every_assistant_message_is_a_call() {
        let session = SESSION.replace('\n', "");
        let draft = read(&Text::of(&format!("{TOOLS}\n{session}")), 100, 1).unwrap();
        assert_eq!((draft.sessions.len(), draft.len()), (1, 2));
        let lens: Vec<usize> =
            draft.sessions[0].turns.iter().map(|turn| turn.requests[0].prompt_tokens()).collect();
        let said = |text: &str| text.len().div_ceil(4);
        let first = said(r#"[{"name":"look"}]"#)
            + said(r#"{"role":"system","content":"Be brief and kind."}"#)
            + said(r#"{"role":"user","content":"Hello"}"#);
        assert_eq!(lens[0], first);
        assert_eq!(draft.sessions[0].turns[1].think, THINK);
    }

    #[test]
    fn bad_lines_are_named() {
        let error = |text: &str| read(&Text::of(text), 100, 1).unwrap_err().to_string();
        let session = SESSION.replace('\n', "");
        assert!(error(&session).contains("line 1: a session before the line of tools"));
        assert!(error(&format!("{TOOLS}\n{TOOLS}")).contains("line 2: a second line of tools"));
        assert!(error(&format!("{TOOLS}\n{{\"messages\":[{{}}]}}")).contains("line 2: missing field `role`"));
        assert_eq!(error(TOOLS), "test.jsonl has no requests");
    }
}
