//! What a request asks for, and the errors in the shape of the API it came by.

use http::{HeaderValue, Response, StatusCode};
use serde::Deserialize;

use super::{Body, json};
use crate::radix::Namespace;
use crate::tokenizer::{ChatApi, Tokenizer};

/// The API a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Generate,
    Completions,
    Chat,
}

/// A request that cannot be served.
#[derive(Debug)]
pub(super) struct BadRequest(String);

/// A request that can.
#[derive(Debug)]
pub(super) struct Parsed {
    /// One or more prompts; none is empty.
    pub(super) prompts: Vec<Vec<u32>>,
    /// The prompts came as a list, so that the answer is one.
    pub(super) is_batch: bool,
    pub(super) namespace: Namespace,
    pub(super) output_tokens: usize,
    pub(super) priority: i64,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) dp_rank: Option<i64>,
    pub(super) bootstrap: Bootstrap,
    pub(super) rid: Option<String>,
    pub(super) model: Option<String>,
    /// The session whose history comes first.
    pub(super) session: Option<String>,
}

/// Tokens of an answer where the request names no number, as in SGLang.
const DEFAULT_OUTPUT_TOKENS: usize = 128;

#[derive(Deserialize)]
struct GenerateBody {
    text: Option<OneOrMany<String>>,
    input_ids: Option<OneOrMany<Vec<u32>>>,
    sampling_params: Option<SamplingParams>,
    rid: Option<serde_json::Value>,
    #[serde(flatten)]
    common: Common,
}

#[derive(Deserialize, Default)]
struct SamplingParams {
    max_new_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct OpenAiBody {
    prompt: Option<Prompt>,
    messages: Option<Vec<Message>>,
    input_ids: Option<Vec<u32>>,
    tools: Option<serde_json::Value>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    stream_options: Option<StreamOptions>,
    model: Option<String>,
    rid: Option<String>,
    #[serde(flatten)]
    common: Common,
}

#[derive(Deserialize)]
struct Common {
    stream: Option<bool>,
    extra_key: Option<String>,
    cache_salt: Option<String>,
    routed_dp_rank: Option<i64>,
    data_parallel_rank: Option<i64>,
    priority: Option<i64>,
    session_params: Option<SessionParams>,
    #[serde(flatten)]
    bootstrap: Bootstrap,
}

#[derive(Deserialize)]
struct SessionParams {
    id: Option<String>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    role: String,
    content: Option<serde_json::Value>,
}

/// How the two sides of a disaggregated generation find each other.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Bootstrap {
    bootstrap_host: Option<OneOrMany<String>>,
    bootstrap_port: Option<OneOrMany<u16>>,
    bootstrap_room: Option<OneOrMany<u64>>,
    pub(super) disagg_prefill_dp_rank: Option<u64>,
}

impl Bootstrap {
    /// The room of a prompt; of a single number they count up, as in SGLang.
    pub(super) fn room(&self, prompt: usize) -> Option<u64> {
        match self.bootstrap_room.as_ref()? {
            OneOrMany::One(first) => Some(first + prompt as u64),
            OneOrMany::Many(rooms) => rooms.get(prompt).copied(),
        }
    }

    /// The bootstrap server of a prompt.
    pub(super) fn address(&self, prompt: usize) -> Option<String> {
        let host = self.bootstrap_host.as_ref()?.of(prompt)?;
        let port = self.bootstrap_port.as_ref()?.of(prompt)?;
        Some(format!("{host}:{port}"))
    }
}

impl<T> OneOrMany<T> {
    fn of(&self, index: usize) -> Option<&T> {
        match self {
            Self::One(one) => Some(one),
            Self::Many(many) => many.get(index),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

/// Reads a body.
pub(super) fn parse(api: Api, body: &[u8], tokenizer: &Tokenizer) -> Result<Parsed, BadRequest> {
    let parsed = match api {
        Api::Generate => generate(read(body)?, tokenizer)?,
        Api::Completions => completions(read(body)?, tokenizer)?,
        Api::Chat => chat(read(body)?, ChatApi::OpenAi, body, tokenizer)?,
    };
    check(parsed)
}

/// Reads a chat that came by another API. `asked` is its body there, which the template is given; `plain` is what a chat request would
/// say.
pub(super) fn parse_chat(
    api: ChatApi,
    asked: &[u8],
    plain: &serde_json::Value,
    tokenizer: &Tokenizer,
) -> Result<Parsed, BadRequest> {
    check(chat(read(plain.to_string().as_bytes())?, api, asked, tokenizer)?)
}

fn check(parsed: Parsed) -> Result<Parsed, BadRequest> {
    if parsed.prompts.is_empty() || parsed.prompts.iter().any(Vec::is_empty) {
        return Err(BadRequest::new("the prompt must not be empty"));
    }
    if parsed.stream && parsed.is_batch {
        return Err(BadRequest::new("the simulator does not stream batches"));
    }
    Ok(parsed)
}

fn read<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, BadRequest> {
    serde_json::from_slice(body).map_err(|error| {
        // Without the error's own words, which quote the prompt.
        BadRequest::new(format!("invalid request body at line {}, column {}", error.line(), error.column()))
    })
}

fn generate(body: GenerateBody, tokenizer: &Tokenizer) -> Result<Parsed, BadRequest> {
    let (prompts, is_batch) = match (body.text, body.input_ids) {
        (Some(OneOrMany::One(text)), None) => (vec![tokenizer.encode(&text)], false),
        (Some(OneOrMany::Many(texts)), None) => {
            (texts.iter().map(|text| tokenizer.encode(text)).collect(), true)
        }
        (None, Some(OneOrMany::One(ids))) => (vec![ids], false),
        (None, Some(OneOrMany::Many(lists))) => (lists, true),
        _ => return Err(BadRequest::new("Either text, input_ids or input_embeds should be provided.")),
    };
    let most = body.sampling_params.unwrap_or_default().max_new_tokens;
    let rid = body.rid.and_then(|rid| rid.as_str().map(str::to_owned));
    Ok(Parsed::new(prompts, is_batch, most, body.common, rid))
}

fn completions(body: OpenAiBody, tokenizer: &Tokenizer) -> Result<Parsed, BadRequest> {
    let (prompts, is_batch) = match body.prompt {
        Some(Prompt::Text(text)) => (vec![tokenizer.encode(&text)], false),
        Some(Prompt::Ids(ids)) => (vec![ids], false),
        Some(Prompt::Texts(texts)) => (texts.iter().map(|text| tokenizer.encode(text)).collect(), true),
        Some(Prompt::IdLists(lists)) => (lists, true),
        None => return Err(BadRequest::new("prompt: Field required")),
    };
    let usage = body.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
    let parsed = Parsed::new(prompts, is_batch, body.max_tokens, body.common, body.rid);
    Ok(Parsed { include_usage: usage, model: body.model, ..parsed })
}

fn chat(body: OpenAiBody, api: ChatApi, raw: &[u8], tokenizer: &Tokenizer) -> Result<Parsed, BadRequest> {
    let messages = body.messages.ok_or_else(|| BadRequest::new("messages: Field required"))?;
    let prompt = match (body.input_ids, tokenizer.render(api, raw)) {
        (Some(ids), _) => ids,
        (None, Some(rendered)) => {
            tokenizer.encode_part(&rendered.map_err(|error| BadRequest::new(error.to_string()))?)
        }
        (None, None) => tokenizer.encode_part(&render(&messages, body.tools.as_ref())),
    };
    let most = body.max_completion_tokens.or(body.max_tokens);
    let usage = body.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
    let parsed = Parsed::new(vec![prompt], false, most, body.common, body.rid);
    Ok(Parsed { include_usage: usage, model: body.model, ..parsed })
}

/// Without a chat template: tools, then every message with its role.
fn render(messages: &[Message], tools: Option<&serde_json::Value>) -> String {
    let tools = tools.map(|tools| format!("<|tools|> {tools} ")).unwrap_or_default();
    let content = |message: &Message| match &message.content {
        None => String::new(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(parts) => parts.to_string(),
    };
    let turns = messages.iter().map(|message| format!("<|{}|> {} <|end|> ", message.role, content(message)));
    tools + &turns.collect::<String>() + "<|assistant|>"
}

impl Parsed {
    fn new(
        prompts: Vec<Vec<u32>>,
        is_batch: bool,
        most: Option<usize>,
        common: Common,
        rid: Option<String>,
    ) -> Self {
        let namespace = Namespace {
            extra_key: common.extra_key.unwrap_or_default(),
            cache_salt: common.cache_salt.unwrap_or_default(),
        };
        Self {
            prompts,
            is_batch,
            namespace,
            output_tokens: most.unwrap_or(DEFAULT_OUTPUT_TOKENS).max(1),
            priority: common.priority.unwrap_or(0),
            stream: common.stream.unwrap_or(false),
            include_usage: false,
            dp_rank: common.routed_dp_rank.or(common.data_parallel_rank),
            bootstrap: common.bootstrap,
            rid,
            model: None,
            session: common.session_params.and_then(|session| session.id),
        }
    }

    /// The header with the rank wins over none, and over the body's.
    pub(super) fn take_rank_header(&mut self, header: Option<&HeaderValue>) -> Result<(), BadRequest> {
        if let Some(header) = header {
            let rank = header.to_str().ok().and_then(|rank| rank.parse().ok());
            let rank = rank.ok_or_else(|| BadRequest::new("X-Data-Parallel-Rank must be an integer"))?;
            self.dp_rank = Some(rank);
        }
        Ok(())
    }
}

impl BadRequest {
    pub(super) fn message(&self) -> &str {
        &self.0
    }

    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl Api {
    /// The error in this API's shape.
    pub(super) fn refuse(self, bad: &BadRequest) -> Response<Body> {
        let message = &bad.0;
        let body = match self {
            Self::Generate => serde_json::json!({"error": {"message": message}}),
            Self::Completions | Self::Chat => serde_json::json!({
                "object": "error", "message": message, "type": "BadRequestError", "param": null, "code": 400,
            }),
        };
        json(StatusCode::BAD_REQUEST, &body)
    }
}
