//! A model's chat template, rendered as SGLang 0.5.23 renders it: from the body of a request to the text that its tokenizer
//! gets.
//!
//! ```
//! use chat_template::{ChatTemplate, Source};
//!
//! let source = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}".to_owned();
//! let template = ChatTemplate::compile(Source { source, ..Source::default() })?;
//! let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
//! assert_eq!(template.render(body)?, "<|user|>hi");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! The way is SGLang's: `request` reads what its protocol takes of a request and normalises it, `environment` is the Jinja of
//! Hugging Face's library (`trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, its `tojson`). What is not known to come
//! out alike is not rendered, and [`RenderError`] says why: images, templates that use the time, requests that SGLang would refuse.
//!
//! A template is a program by somebody else: its size, its steps, its recursion and what it makes are bounded. No error shows
//! anything of a chat.

mod content_format;
mod environment;
mod python;
mod request;
mod system_place;

use std::collections::BTreeMap;

use minijinja::{Environment, Value};

use content_format::ContentFormat;
use request::{Api, Chat};
use system_place::SystemPlace;

/// Largest template that is compiled, in bytes; the largest in use have about 20 KB.
pub const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Most special tokens that a template is given.
pub const MAX_SPECIAL_TOKENS: usize = 64;

/// Most bytes of a special token's name or text, and of what stands before every text.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// The name of the one template in its environment.
const NAME: &str = "chat";

/// What a template is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// The template, in Jinja.
    pub source: String,
    /// Special tokens that it may name: `bos_token` and its like.
    pub special_tokens: BTreeMap<String, String>,
    /// What the tokenizer puts before every text by itself, as text. Prompts that are rendered begin with it, and it is left out of
    /// what is rendered, as it is of texts.
    pub leading: String,
}

/// A template that can be rendered. Rendering takes no lock.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    leading: String,
    format: ContentFormat,
    system_place: SystemPlace,
    /// The template reads a mark of little effort that SGLang makes from `reasoning_effort`.
    marks_low_effort: bool,
}

/// A template that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is too large.
    #[error(
        "the template or its special tokens are too large: {MAX_SOURCE_BYTES} bytes of template, {MAX_SPECIAL_TOKENS} tokens of {MAX_TOKEN_BYTES} bytes are taken"
    )]
    Size,
    /// It is not Jinja, or Jinja that is not known here.
    #[error("the template cannot be read: {0}")]
    Syntax(minijinja::Error),
}

/// Why a request's chat is not rendered. Shows nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The request is none that SGLang would take, as far as this crate knows.
    #[error("the request is not in the form that is rendered here")]
    Form,
    /// Images, audio, video, or thinking in parts.
    #[error("the chat has parts that are not text")]
    Parts,
    /// Blocks or messages of `/v1/messages` that SGLang turns into a chat in ways of their own.
    #[error(
        "the request has blocks, or messages of the system among others, whose effect on the prompt is not known here"
    )]
    Blocks,
    /// Items of `/v1/responses` that SGLang refuses, or whose text is not known here.
    #[error("the request has input items whose effect on the prompt is not known here")]
    Items,
    /// What a stored response has comes first, and is not known here.
    #[error("the request goes on from a stored response")]
    History,
    /// SGLang leaves messages of the system where they are or puts them first, as the template takes them, and it is not known which.
    #[error(
        "the request has messages of the system among others, and it is not known how the template takes them"
    )]
    Systems,
    /// A field whose effect on the prompt is not known here.
    #[error("the request has fields whose effect on the prompt is not known here")]
    Fields,
    /// It depends on the time of rendering.
    #[error("the template uses the time")]
    Time,
    /// The template itself refuses the chat.
    #[error("the template refuses the chat")]
    Refused,
    /// It takes too many steps, or makes too much.
    #[error("the template takes too many steps")]
    Fuel,
    /// It does not begin with what the tokenizer puts before every text.
    #[error("what is rendered does not begin with the tokens that the tokenizer puts before every text")]
    Leading,
    /// Anything else.
    #[error("the template fails on the chat")]
    Failed,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// It is too large, or cannot be read.
    pub fn compile(source: Source) -> Result<Self, CompileError> {
        let Source { source, special_tokens, leading } = source;
        let long = |text: &String| text.len() > MAX_TOKEN_BYTES;
        if source.len() > MAX_SOURCE_BYTES
            || special_tokens.len() > MAX_SPECIAL_TOKENS
            || special_tokens.iter().any(|(name, text)| long(name) || long(text))
            || long(&leading)
        {
            return Err(CompileError::Size);
        }
        let format = ContentFormat::of(&source);
        let marks_low_effort = source.contains("low_effort");
        let system_place = SystemPlace::of(&source);
        let mut environment = environment::environment();
        let source = environment::without_generation_marks(&source);
        environment.add_template_owned(NAME, source).map_err(CompileError::Syntax)?;
        Ok(Self { environment, special_tokens, leading, format, system_place, marks_low_effort })
    }

    /// The text of a chat request's body.
    ///
    /// # Errors
    /// It is not known to come out as SGLang would render it.
    pub fn render(&self, body: &[u8]) -> Result<String, RenderError> {
        self.render_as(Api::Chat, body)
    }

    /// The text of the body of a request to Anthropic's `/v1/messages`, which SGLang turns into a chat request.
    ///
    /// # Errors
    /// It is not known to come out as SGLang would render it.
    pub fn render_messages(&self, body: &[u8]) -> Result<String, RenderError> {
        self.render_as(Api::Messages, body)
    }

    /// The text of the body of a request to OpenAI's `/v1/responses`, which SGLang turns into a chat request for all models but those
    /// that it speaks Harmony with.
    ///
    /// # Errors
    /// It is not known to come out as SGLang would render it.
    pub fn render_responses(&self, body: &[u8]) -> Result<String, RenderError> {
        self.render_as(Api::Responses(self.system_place), body)
    }

    /// The text of the body of a request to Ollama's `/api/chat`, whose messages SGLang gives to the template as they are.
    ///
    /// # Errors
    /// It is not known to come out as SGLang would render it.
    pub fn render_ollama(&self, body: &[u8]) -> Result<String, RenderError> {
        self.render_as(Api::Ollama, body)
    }

    fn render_as(&self, api: Api, body: &[u8]) -> Result<String, RenderError> {
        let chat = Chat::read(api, body, self.format)?;
        if self.marks_low_effort && chat.has_effort {
            return Err(RenderError::Fields);
        }
        let mut variables: BTreeMap<&str, Value> =
            self.special_tokens.iter().map(|(name, text)| (&**name, Value::from(&**text))).collect();
        variables.extend(chat.kwargs.iter().map(|(name, value)| (&**name, value.clone())));
        variables.insert("messages", chat.messages);
        variables.insert("tools", chat.tools);
        variables.insert("documents", Value::from(()));
        variables.insert("add_generation_prompt", Value::from(true));
        let template = self.environment.get_template(NAME).map_err(|_| RenderError::Failed)?;
        let rendered =
            template.render(Value::from_pairs(variables)).map_err(|error| environment::reason(&error))?;
        let text = rendered.strip_prefix(&*self.leading).ok_or(RenderError::Leading)?;
        Ok(match chat.prefix {
            // What is to be gone on with is encoded by itself, after the rest.
            Some(prefix) => format!("{text}{prefix}"),
            None if self.leading.is_empty() => rendered,
            None => text.to_owned(),
        })
    }
}
