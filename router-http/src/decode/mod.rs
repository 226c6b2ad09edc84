//! What routing needs to know of a request, read without building a tree of its JSON.
//!
//! A body of the usual shape is scanned (`quick`): what routing does not need is passed over unread, prompts are borrowed or read
//! straight into token ids. Anything else is walked by a careful reader (`body`), which says what is wrong: nothing of a
//! value appears in an error, only the field and the place.

pub(crate) mod answer;
mod body;
mod chat;
mod field;
mod ids;
mod quick;
pub(crate) mod said;
mod scan;
mod spare;
mod text;
mod value;

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method};

pub use body::DecodeError;

use crate::headers::find;

/// The dp rank asked for, on OpenAI's routes.
const RANK: HeaderName = HeaderName::from_static("x-data-parallel-rank");

/// Which kind of route a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// SGLang's own `/generate`.
    Generate,
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`, and SageMaker's `/invocations`.
    Chat,
    /// `/v1/responses`.
    Responses,
    /// Anthropic's `/v1/messages`.
    Messages,
    /// Ollama's `/api/chat`.
    OllamaChat,
    /// Ollama's `/api/generate`.
    OllamaGenerate,
    /// Vertex AI's `/vertex_generate`.
    Vertex,
    /// What concerns a session or a stored response.
    Session,
    /// A question to all workers.
    Fleet,
    /// A command to workers.
    Control,
    /// Anything else: passed on by load.
    Other,
}

/// What routing needs to know of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The kind of its route.
    pub kind: RouteKind,
    /// The model asked for, if any.
    pub model: Option<Cow<'a, str>>,
    /// The dp rank asked for, if any.
    pub rank: Option<u32>,
    /// LoRA adapter, cache salt and extra key; empty where absent.
    pub salts: [Cow<'a, str>; 3],
    /// The prompt, or the first of several.
    pub prompt: Prompt<'a>,
    /// There are several prompts: what an answer says about usage is their sum.
    pub several: bool,
    /// The answer is to be an OpenAI stream, and the request does not say what is to be told in it beside the text.
    pub quiet_stream: bool,
    /// What the request names.
    pub names: Names<'a>,
}

/// What a request names, by which it or others are found again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names<'a> {
    /// The request itself, as its caller does. Of a list, none.
    pub rid: Option<Cow<'a, str>>,
    /// The session whose history comes before the prompt.
    pub session: Option<Cow<'a, str>>,
    /// A session that it belongs to, which need not have been opened.
    pub session_id: Option<Cow<'a, str>>,
    /// The stored response whose history comes before the prompt.
    pub previous_response: Option<Cow<'a, str>>,
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// The request has none that routing understands.
    None,
    /// Token ids.
    Tokens(Vec<u32>),
    /// Text, or a chat in the serialisation of the `chat` module. Whether a text is UTF-8 is the worker's to judge.
    Text(Cow<'a, [u8]>),
}

impl Prompt<'_> {
    /// Nobody reads it any more: its memory is the next one's.
    pub(crate) fn give_back(self) {
        match self {
            Self::None => {}
            Self::Tokens(tokens) => ids::give_back(tokens),
            Self::Text(text) => text::give_back(text),
        }
    }
}

impl RouteKind {
    /// The kind of a route.
    pub fn of(method: &Method, path: &str) -> Self {
        crate::route::of(method, path).kind()
    }

    /// Those that generate.
    pub(crate) const GENERATIONS: [Self; 8] = [
        Self::Generate,
        Self::Completions,
        Self::Chat,
        Self::Responses,
        Self::Messages,
        Self::OllamaChat,
        Self::OllamaGenerate,
        Self::Vertex,
    ];

    /// Whether it generates, so that its body has a prompt and it can be done again as long as nothing has been answered.
    pub fn generates(self) -> bool {
        (self as usize) < Self::GENERATIONS.len()
    }

    /// Whether the body can say by which dp rank it is to be served (`routed_dp_rank`).
    pub fn takes_rank(self) -> bool {
        matches!(self, Self::Generate | Self::Completions | Self::Chat | Self::Responses)
    }

    /// The kind as metrics and logs name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Completions => "completions",
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::OllamaChat => "ollama_chat",
            Self::OllamaGenerate => "ollama_generate",
            Self::Vertex => "vertex",
            Self::Session => "session",
            Self::Fleet => "fleet",
            Self::Control => "control",
            Self::Other => "other",
        }
    }
}

/// Reads what routing needs. A request by a route that does not generate has no facts but its kind.
pub fn facts<'a>(kind: RouteKind, headers: &HeaderMap, body: &'a [u8]) -> Result<Facts<'a>, DecodeError> {
    let mut facts = match kind {
        kind if !kind.generates() => Facts::of_kind(kind),
        _ => match quick::read(kind, body) {
            Some(facts) => facts,
            None => body::read(kind, body)?,
        },
    };
    if let (Some(header), RouteKind::Completions | RouteKind::Chat | RouteKind::Responses) =
        (find(headers, &RANK), kind)
    {
        let rank = header.to_str().ok().and_then(|rank| rank.parse().ok());
        facts.rank = Some(rank.ok_or(DecodeError::RankHeader)?);
    }
    Ok(facts)
}

/// The model that a body names which is no generation's; none if it cannot be told.
pub(crate) fn model(body: &[u8]) -> Option<Cow<'_, str>> {
    quick::model(body)
}

impl Facts<'_> {
    fn of_kind(kind: RouteKind) -> Self {
        let salts = [Cow::Borrowed(""), Cow::Borrowed(""), Cow::Borrowed("")];
        let (prompt, names) = (Prompt::None, Names::default());
        Self { kind, model: None, rank: None, salts, prompt, several: false, quiet_stream: false, names }
    }
}

/// What both readers understand they understand the same way; the quick one leaves to the worker what it passes over.
#[cfg(any(test, fuzzing))]
pub(crate) fn compare_readers(kind: RouteKind, bytes: &[u8]) {
    if let (Some(quick), Ok(careful)) = (quick::read(kind, bytes), body::read(kind, bytes)) {
        assert_eq!(quick, careful);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: RouteKind, body: &str) -> Result<Facts<'_>, DecodeError> {
        facts(kind, &HeaderMap::new(), body.as_bytes())
    }

    fn prompt(kind: RouteKind, body: &str) -> Prompt<'_> {
        read(kind, body).unwrap().prompt
    }

    #[test]
    fn every_form_of_a_prompt_is_read() {
        use RouteKind::{Completions, Generate};
        let text = |text: &'static str| Prompt::Text(text.as_bytes().into());
        assert_eq!(prompt(Generate, r#"{"text":"a b"}"#), text("a b"));
        assert_eq!(prompt(Generate, r#"{"text":["a","b"]}"#), text("a"));
        assert_eq!(prompt(Generate, r#"{"input_ids":[1,2,3]}"#), Prompt::Tokens(vec![1, 2, 3]));
        assert_eq!(prompt(Generate, r#"{"input_ids":[[4,5],[6]]}"#), Prompt::Tokens(vec![4, 5]));
        assert_eq!(prompt(Completions, r#"{"prompt":"a\nb"}"#), text("a\nb"));
        assert_eq!(prompt(Completions, r#"{"prompt":["a","b"]}"#), text("a"));
        assert_eq!(prompt(Completions, r#"{"prompt":[7,8]}"#), Prompt::Tokens(vec![7, 8]));
        assert_eq!(prompt(Completions, r#"{"prompt":[[7],[8]]}"#), Prompt::Tokens(vec![7]));
        assert_eq!(prompt(Generate, r#"{"input_embeds":[[0.5]]}"#), Prompt::None);
        assert_eq!(prompt(Generate, r#"{"text":null,"input_ids":[]}"#), Prompt::Tokens(vec![]));
    }

    #[test]
    fn the_prompts_of_every_api_are_read() {
        use RouteKind::{Chat, Messages, OllamaChat, OllamaGenerate, Responses, Vertex};
        let chat =
            prompt(Chat, r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}"#);
        for (kind, body) in [
            (Messages, r#"{"system":"s","messages":[{"role":"user","content":"u"}]}"#),
            (
                Messages,
                r#"{"messages":[{"role":"user","content":"u"}],"system":[{"type":"text","text":"s"}]}"#,
            ),
            (Responses, r#"{"instructions":"s","input":"u"}"#),
            (Responses, r#"{"instructions":"s","input":[{"role":"user","content":"u"}]}"#),
            (OllamaChat, r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}"#),
        ] {
            assert_eq!(prompt(kind, body), chat, "{body}");
        }
        assert_eq!(prompt(OllamaGenerate, r#"{"prompt":"u","system":"s"}"#), Prompt::Text(b"s\n\nu".into()));
        assert_eq!(prompt(OllamaGenerate, r#"{"prompt":"u"}"#), Prompt::Text(b"u".into()));
        let vertex = r#"{"instances":[{"input_ids":[1,2]},{"input_ids":[3]}],"parameters":{}}"#;
        let facts = read(Vertex, vertex).unwrap();
        assert_eq!((facts.prompt, facts.several), (Prompt::Tokens(vec![1, 2]), true));
        assert_eq!(read(Messages, r#"{"model":"m","messages":[]}"#).unwrap().model.as_deref(), Some("m"));
    }

    #[test]
    fn the_model_of_other_bodies_is_read_where_they_have_one() {
        assert_eq!(model(br#"{"input":["a","model"],"x":{"model":"no"},"model":"m"}"#).as_deref(), Some("m"));
        for none in [&br#"{"input":"model"}"#[..], b"--boundary\r\nmodel", b"", b"{\"model\":7}", b"{\"model"]
        {
            assert_eq!(model(none), None);
        }
    }

    #[test]
    fn what_is_named_is_read_and_history_elsewhere_hides_the_prompt() {
        let facts = read(RouteKind::Generate, r#"{"text":"p","rid":"r","session_id":"l"}"#).unwrap();
        assert_eq!((facts.names.rid.as_deref(), facts.names.session_id.as_deref()), (Some("r"), Some("l")));
        assert_eq!(facts.prompt, Prompt::Text(b"p".into()));
        let facts =
            read(RouteKind::Generate, r#"{"text":"p","session_params":{"id":"s","rid":"x"}}"#).unwrap();
        assert_eq!((facts.names.session.as_deref(), &facts.prompt), (Some("s"), &Prompt::None));
        let body = r#"{"input":"p","previous_response_id":"resp_1","request_id":"resp_2"}"#;
        let facts = read(RouteKind::Responses, body).unwrap();
        assert_eq!(facts.names.previous_response.as_deref(), Some("resp_1"));
        assert_eq!((facts.names.rid.as_deref(), &facts.prompt), (Some("resp_2"), &Prompt::None));
        // Whatever shape they have, they are the worker's to judge.
        read(RouteKind::Generate, r#"{"text":"p","rid":{"id":[]},"session_params":7,"session_id":[1]}"#)
            .unwrap();
    }

    #[test]
    fn what_routing_needs_is_read_and_the_rest_is_skipped() {
        let body = r#"{"x":{"text":"no"},"text":"p","stream":true,"lora_path":"l","cache_salt":"c","extra_key":"e",
            "routed_dp_rank":3,"model":"m"}"#;
        let facts = read(RouteKind::Generate, body).unwrap();
        assert_eq!((facts.rank, facts.model.as_deref()), (Some(3), None));
        assert_eq!(facts.salts, ["l", "c", "e"]);
        let facts = read(RouteKind::Chat, r#"{"model":"m","messages":[],"data_parallel_rank":1}"#).unwrap();
        assert_eq!((facts.rank, facts.model.as_deref()), (Some(1), Some("m")));
        // What routing has no use for is the worker's to judge.
        read(RouteKind::Generate, r#"{"text":"p","stream":1}"#).unwrap();
    }

    #[test]
    fn a_rank_by_its_older_name_counts_beside_a_null() {
        for body in [
            r#"{"text":"p","data_parallel_rank":1,"routed_dp_rank":null}"#,
            r#"{"text":"p","routed_dp_rank":null,"data_parallel_rank":1}"#,
            r#"{"text":"p","data_parallel_rank":5,"routed_dp_rank":1}"#,
            r#"{"text":"p","routed_dp_rank":1,"data_parallel_rank":5}"#,
        ] {
            assert_eq!(read(RouteKind::Generate, body).unwrap().rank, Some(1), "{body}");
        }
    }

    #[test]
    fn several_prompts_are_told_from_one_in_a_list() {
        use RouteKind::{Completions, Generate};
        for (kind, body, several) in [
            (Generate, r#"{"text":["a"]}"#, false),
            (Generate, r#"{"text":["a","b"]}"#, true),
            (Generate, r#"{"input_ids":[1,2]}"#, false),
            (Generate, r#"{"input_ids":[[1,2],[3]]}"#, true),
            (Completions, r#"{"prompt":[[1,2]]}"#, false),
            (Completions, r#"{"prompt":["a",""]}"#, true),
        ] {
            assert_eq!(read(kind, body).unwrap().several, several, "{body}");
        }
    }

    #[test]
    fn errors_name_the_field_and_show_no_value() {
        let wrong = [
            (RouteKind::Generate, r#"{"text":5}"#, "text"),
            (RouteKind::Generate, r#"{"input_ids":["secret"]}"#, "input_ids"),
            (RouteKind::Generate, r#"{"input_ids":[-1]}"#, "input_ids"),
            (RouteKind::Generate, r#"{"input_ids":[4294967296]}"#, "input_ids"),
            (RouteKind::Chat, r#"{"messages":"secret"}"#, "messages"),
            (RouteKind::Chat, r#"{"messages":[{"role":7}]}"#, "messages"),
            (RouteKind::Completions, r#"{"prompt":{"secret":1}}"#, "prompt"),
            (RouteKind::Chat, r#"{"messages":[],"routed_dp_rank":-2}"#, "routed_dp_rank"),
        ];
        for (kind, body, field) in wrong {
            let message = read(kind, body).unwrap_err().to_string();
            assert!(message.contains(field) && !message.contains("secret"), "{body}: {message}");
        }
        for malformed in ["", "{", "[]", "\"secret\"", r#"{"text":"secret"#, r#"{"text":"a"} secret"#] {
            let message = read(RouteKind::Generate, malformed).unwrap_err().to_string();
            assert!(!message.contains("secret"), "{malformed}: {message}");
        }
    }

    #[test]
    fn the_rank_header_counts_on_openais_routes() {
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-data-parallel-rank"),
            http::HeaderValue::from_static("2"),
        )]);
        let of = |kind, body: &str| facts(kind, &headers, body.as_bytes()).unwrap().rank;
        assert_eq!(of(RouteKind::Chat, r#"{"messages":[]}"#), Some(2));
        assert_eq!(of(RouteKind::Generate, r#"{"text":"a"}"#), None);
    }
}
