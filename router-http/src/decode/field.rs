//! Which member of a body means what, for every kind of route: one table for both readers.

use super::RouteKind;

/// What a member is to routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// `/generate`'s text.
    Text,
    /// Token ids, or lists of them.
    Ids,
    /// A prompt of text or token ids.
    Prompt,
    /// A chat.
    Messages,
    /// A chat, or one user's message.
    Input,
    /// What a chat begins with: text, or blocks of it.
    System,
    /// The same as text alone.
    Instructions,
    Tools,
    /// Vertex AI's list of prompts.
    Instances,
    Model,
    Rank,
    /// The rank by its older name.
    OlderRank,
    /// Something that separates caches: its place among the salts.
    Salt(usize),
    /// The caller's name for the request.
    Rid,
    /// The session whose history comes before the prompt.
    Session,
    /// A session that the request belongs to.
    SessionId,
    /// The stored response whose history comes before the prompt.
    PreviousResponse,
    /// Whether the answer is an OpenAI stream.
    Stream,
    /// What is told in it beside the text.
    StreamOptions,
    /// Nothing.
    Other,
}

impl Field {
    pub(super) fn of(kind: RouteKind, key: &[u8]) -> Self {
        use RouteKind::{
            Chat, Completions, Generate, Messages, OllamaChat, OllamaGenerate, Responses, Vertex,
        };
        match (kind, key) {
            (Generate, b"text") => Self::Text,
            (Generate | Chat, b"input_ids") => Self::Ids,
            (Completions | OllamaGenerate, b"prompt") => Self::Prompt,
            (Chat | Messages | OllamaChat, b"messages") => Self::Messages,
            (Responses, b"input") => Self::Input,
            (Messages, b"system") => Self::System,
            (Responses, b"instructions") | (OllamaGenerate, b"system") => Self::Instructions,
            (Chat | Messages | Responses, b"tools") => Self::Tools,
            (Vertex, b"instances") => Self::Instances,
            (Completions | Chat, b"stream") => Self::Stream,
            (Completions | Chat, b"stream_options") => Self::StreamOptions,
            (Generate | Vertex, b"model") => Self::Other,
            (_, b"model") => Self::Model,
            (Generate | Completions | Chat | Responses, _) => Self::of_sglang(kind, key),
            _ => Self::Other,
        }
    }

    /// SGLang's own members, which it adds to some APIs.
    fn of_sglang(kind: RouteKind, key: &[u8]) -> Self {
        let responses = kind == RouteKind::Responses;
        match key {
            b"routed_dp_rank" => Self::Rank,
            b"data_parallel_rank" => Self::OlderRank,
            b"lora_path" => Self::Salt(0),
            b"cache_salt" => Self::Salt(1),
            b"extra_key" => Self::Salt(2),
            b"rid" if !responses => Self::Rid,
            b"request_id" if responses => Self::Rid,
            b"session_params" if !responses => Self::Session,
            b"session_id" => Self::SessionId,
            b"previous_response_id" if responses => Self::PreviousResponse,
            _ => Self::Other,
        }
    }

    /// Its name, and what it must be.
    pub(super) fn place(self, kind: RouteKind) -> Option<(&'static str, &'static str)> {
        const RANK: &str = "a number of a dp rank";
        Some(match self {
            Self::Text => ("text", "a string or a list of strings"),
            Self::Ids => ("input_ids", "a list of token ids, or a list of such lists"),
            Self::Prompt => ("prompt", "a string, a list of token ids, or a list of either"),
            Self::Messages => ("messages", "a list of messages, each an object with a string `role`"),
            Self::Input => ("input", "a string or a list of objects"),
            Self::System => ("system", "a string or a list of text blocks"),
            Self::Instructions if kind == RouteKind::OllamaGenerate => ("system", "a string"),
            Self::Instructions => ("instructions", "a string"),
            Self::Tools => ("tools", "JSON"),
            Self::Instances => ("instances", "a list of objects with `text` or `input_ids`"),
            Self::Model => ("model", "a string"),
            Self::Rank => ("routed_dp_rank", RANK),
            Self::OlderRank => ("data_parallel_rank", RANK),
            Self::Salt(0) => ("lora_path", "a string"),
            Self::Salt(1) => ("cache_salt", "a string"),
            Self::Salt(_) => ("extra_key", "a string"),
            // Whatever they are, they are the worker's to judge.
            Self::Rid
            | Self::Session
            | Self::SessionId
            | Self::PreviousResponse
            | Self::Stream
            | Self::StreamOptions
            | Self::Other => return None,
        })
    }
}
