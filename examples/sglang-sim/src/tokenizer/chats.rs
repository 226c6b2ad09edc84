//! Chats as prompts, by a model's chat template.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use chat_template::{ChatTemplate, RenderError, Source};
use serde_json::Value;

/// A chat template. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Chats(Arc<ChatTemplate>);

/// The API by which a chat came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChatApi {
    /// `/v1/chat/completions`.
    OpenAi,
    /// `/v1/messages`.
    Anthropic,
    /// `/v1/responses`.
    Responses,
    /// `/api/chat`.
    Ollama,
}

impl Chats {
    /// Reads a template; special tokens come from the `tokenizer_config.json` of the model's directory. `given`: it was named on the
    /// command line, where SGLang reads `\\n` as a line break.
    pub(crate) fn read(
        path: &Path,
        given: bool,
        directory: Option<&Path>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut source = std::fs::read_to_string(path)?;
        if given {
            source = source.trim_matches('\n').replace("\\n", "\n");
        }
        let config = directory.map(|directory| directory.join("tokenizer_config.json"));
        let config: Value = match config.filter(|path| path.is_file()) {
            Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
            None => Value::Null,
        };
        let names = ["bos_token", "eos_token", "pad_token"];
        let token = |name: &str| Some((name.to_owned(), config[name].as_str()?.to_owned()));
        let special_tokens = names.into_iter().filter_map(token).collect();
        let leading = String::new();
        Ok(Self(Arc::new(ChatTemplate::compile(Source { source, special_tokens, leading })?)))
    }

    /// The prompt of a request's chat; the error says why it cannot be rendered.
    pub(super) fn render(&self, api: ChatApi, body: &[u8]) -> Result<String, RenderError> {
        match api {
            ChatApi::OpenAi => self.0.render(body),
            ChatApi::Anthropic => self.0.render_messages(body),
            ChatApi::Responses => self.0.render_responses(body),
            ChatApi::Ollama => self.0.render_ollama(body),
        }
    }
}
