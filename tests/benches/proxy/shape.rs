//! What is sent: prompts of a size, all distinct, that share their first half within a group, as chats on one system prompt do.
//!
//! Text has a line break in every line, as prompts have, and so an escape that a router which reads JSON must undo.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Groups that share a prefix.
const GROUPS: u64 = 16;

/// Bytes of a token id in JSON, its comma included; all are written with five digits.
const ID_BYTES: usize = 6;

/// Token ids that tell one prompt of a group from the others, in base 90,000.
const NUMBER_IDS: usize = 3;

/// Digits that do the same in text.
const NUMBER_DIGITS: usize = 16;

/// A chat up to what its user says.
const CHAT: &str = concat!(
    r#"{"model":"bench","messages":[{"role":"system","content":"Answer in few words."},"#,
    r#"{"role":"user","content":""#,
);

/// How a prompt is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// The prompt of `/v1/completions`.
    Text,
    /// The `input_ids` of `/generate`.
    Ids,
    /// What the user says in `/v1/chat/completions`, after a short word of the system's.
    Chat,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) unit: Unit,
    /// Bytes of the prompt as it stands in the request.
    pub(crate) prompt_bytes: usize,
    /// Answered with server-sent events.
    pub(crate) stream: bool,
}

/// The requests of a shape, by number.
#[derive(Debug)]
pub(crate) struct Requests {
    path: &'static str,
    unit: Unit,
    /// One body for each group.
    templates: Vec<Vec<u8>>,
    /// Where the number of a request goes.
    at: usize,
}

impl Requests {
    pub(crate) fn new(shape: Shape) -> Self {
        let (path, open, close) = match shape.unit {
            Unit::Text => ("/v1/completions", r#"{"model":"bench","prompt":""#, r#"","max_tokens":64"#),
            Unit::Ids => ("/generate", r#"{"input_ids":["#, r#"],"sampling_params":{"max_new_tokens":64}"#),
            Unit::Chat => ("/v1/chat/completions", CHAT, r#""}],"max_tokens":64"#),
        };
        let close = format!("{close},\"stream\":{}}}", shape.stream);
        let templates = (0..GROUPS).map(|group| {
            let prompt = match shape.unit {
                Unit::Text | Unit::Chat => text(group, shape.prompt_bytes),
                Unit::Ids => ids(group, shape.prompt_bytes),
            };
            [open.as_bytes(), &prompt, close.as_bytes()].concat()
        });
        let half = shape.prompt_bytes / 2;
        let at = open.len() + if shape.unit == Unit::Ids { half - half % ID_BYTES } else { half };
        Self { path, unit: shape.unit, templates: templates.collect(), at }
    }

    pub(crate) fn path(&self) -> &'static str {
        self.path
    }

    /// The body of a request. No two numbers have the same.
    pub(crate) fn body(&self, number: u64) -> Bytes {
        let mut body = self.templates[(number % GROUPS) as usize].clone();
        let own = match self.unit {
            Unit::Text | Unit::Chat => format!("{number:0NUMBER_DIGITS$}"),
            Unit::Ids => {
                let mut rest = number;
                let mut id = || {
                    let id = 10_000 + rest % 90_000;
                    rest /= 90_000;
                    format!("{id},")
                };
                (0..NUMBER_IDS).map(|_| id()).collect()
            }
        };
        body[self.at..][..own.len()].copy_from_slice(own.as_bytes());
        body.into()
    }
}

/// Words in lines, with room for a number in the middle.
fn text(group: u64, bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(group);
    let mut text = Vec::with_capacity(bytes + 80);
    while text.len() < bytes {
        let line = (0..70).map(|_| if rng.u8(..6) == 0 { b' ' } else { rng.lowercase() as u8 });
        text.extend(line);
        text.extend(br"\n");
    }
    text.truncate(bytes);
    // No escape may be cut, neither by the number nor by the end.
    for cut in [bytes / 2, bytes] {
        if text[cut - 1] == b'\\' {
            text[cut - 1] = b' ';
        }
    }
    text
}

/// Token ids of five digits.
fn ids(group: u64, bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(group);
    let ids = (0..bytes / ID_BYTES).map(|_| rng.u32(10_000..100_000).to_string());
    ids.collect::<Vec<_>>().join(",").into()
}
