//! Real traces, from files. A bad line is an error that names it.

mod claude;
mod lines;
mod mooncake;
mod tau;

use std::io;
use std::path::{Path, PathBuf};

use super::Draft;

/// A trace and what is expected of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The sample of Mooncake's conversation trace that comes with this repository.
    Sample,
    /// R1: Mooncake, conversation.
    Conversation,
    /// R2: Mooncake, synthetic.
    Synthetic,
    /// R3: Mooncake, tool and agent.
    ToolAgent,
    /// R4: Claude Code sessions of kv-cache-tester.
    ClaudeCode,
    /// R5: tau-bench, airline.
    Tau,
}

/// A trace that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// None of the files is there.
    #[error("no trace {name} in {dir}: looked for {looked_for}", looked_for = looked_for.join(", "))]
    Missing {
        /// The trace.
        name: &'static str,
        /// The directory.
        dir: PathBuf,
        /// The names that it may have.
        looked_for: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what the format says.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There is nothing in it.
    #[error("{path} has no requests")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl Trace {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Sample, Self::Conversation, Self::Synthetic, Self::ToolAgent, Self::ClaudeCode, Self::Tau];

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sample => "R1 conversation, sample",
            Self::Conversation => "R1 conversation",
            Self::Synthetic => "R2 synthetic",
            Self::ToolAgent => "R3 tool-agent",
            Self::ClaudeCode => "R4 Claude Code",
            Self::Tau => "R5 tau airline",
        }
    }

    /// The file's name without the ending of its compression.
    fn file(self) -> &'static str {
        match self {
            Self::Sample => "mooncake_conversation_sample.jsonl",
            Self::Conversation => "mooncake_conversation.jsonl",
            Self::Synthetic => "mooncake_synthetic.jsonl",
            Self::ToolAgent => "mooncake_toolagent_first1000.jsonl",
            Self::ClaudeCode => "claude_code.sessions.jsonl",
            Self::Tau => "taubench_airline_gpt4o.sessions.jsonl",
        }
    }
}

/// At most about so many requests of a trace in a directory: whole sessions, drawn by the seed where there are more.
pub fn load(trace: Trace, dir: &Path, most: usize, seed: u64) -> Result<Draft, TraceError> {
    let text = match trace {
        Trace::Sample => lines::Text::of_sample(),
        _ => lines::Text::find(trace.name(), dir, trace.file())?,
    };
    match trace {
        Trace::Sample | Trace::Conversation | Trace::Synthetic | Trace::ToolAgent => {
            mooncake::read(&text, most, seed)
        }
        Trace::ClaudeCode => claude::read(&text, most, seed),
        Trace::Tau => tau::read(&text, most, seed),
    }
}

/// Which of so many sessions, given by their numbers of requests, come to about `most` requests: all or, by chance, some.
fn chosen(lens: &[usize], most: usize, seed: u64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let mut chosen = vec![false; lens.len()];
    let mut taken = 0;
    for session in order {
        if taken > 0 && taken + lens[session] > most {
            continue;
        }
        chosen[session] = true;
        taken += lens[session];
    }
    chosen
}
