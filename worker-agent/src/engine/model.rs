//! What the files of the engine's model say.

use std::path::PathBuf;
use std::sync::Arc;

use super::probe::EngineInfo;
use crate::chat_template::{ChatTemplate, ModelFiles};
use crate::config::AgentConfig;
use crate::tokenizer::Vocabulary;

/// What the files of the engine's model say, or why they do not.
#[derive(Debug)]
pub(crate) struct Model {
    /// The bytes of its tokens.
    pub(crate) vocabulary: Result<Arc<Vocabulary>, Arc<str>>,
    /// The template that chats are rendered with.
    pub(crate) chat_template: Result<Arc<ChatTemplate>, Arc<str>>,
}

impl Model {
    /// Reads the files of an engine's model.
    pub(crate) async fn of(config: &AgentConfig, info: &EngineInfo) -> Self {
        let tokenizer = match &config.tokenizer {
            Some(path) => path.clone(),
            None if info.tokenizer.is_empty() => return Self::unknown("the engine names no tokenizer"),
            None => PathBuf::from(&info.tokenizer),
        };
        let files = ModelFiles { tokenizer, template: config.chat_template.clone() };
        let chats = info.chats.clone();
        // Megabytes of JSON.
        let read = tokio::task::spawn_blocking(move || {
            let vocabulary = match Vocabulary::read(&files.tokenizer) {
                Ok(vocabulary) => vocabulary,
                Err(error) => return Self::unknown(&error.to_string()),
            };
            let chat_template = ChatTemplate::read(&chats, &files, &vocabulary);
            let chat_template = chat_template.map(Arc::new).map_err(|error| error.to_string().into());
            Self { vocabulary: Ok(Arc::new(vocabulary)), chat_template }
        });
        read.await.unwrap_or_else(|_| Self::unknown("the tokenizer was not read to its end"))
    }

    /// Without the tokenizer there is no text, and so no chat as text.
    fn unknown(reason: &str) -> Self {
        Self { vocabulary: Err(reason.into()), chat_template: Err(reason.into()) }
    }
}
