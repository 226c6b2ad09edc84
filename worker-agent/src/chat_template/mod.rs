//! The template that an engine renders chats with, as routers are offered it.
//!
//! Nothing is rendered here. The template is looked for where Hugging Face's library does, beside the tokenizer, and is offered only if
//! nothing that the engine says of itself (`setup`) and nothing in the model's configuration speaks for another way from chats to
//! prompts.

mod files;
mod setup;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::tokenizer::Vocabulary;
pub use setup::ChatSetup;

/// Largest template that is offered: what routers take, and far less than a message may have.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Special tokens by their names: `bos_token` and its like.
pub type SpecialTokens = BTreeMap<String, String>;

/// A model's chat template.
#[derive(Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    /// In Jinja.
    pub source: String,
    /// Special tokens that it may name.
    pub special_tokens: SpecialTokens,
    /// The text of what the tokenizer puts before every text by itself.
    pub leading: String,
}

/// Where the files of a model are.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// `tokenizer.json`, or its directory.
    pub tokenizer: PathBuf,
    /// The template that the server was given as a file, if the agent has it.
    pub template: Option<PathBuf>,
}

/// Why no template is offered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The engine renders in another way.
    #[error("{0}")]
    Setup(Arc<str>),
    /// The model's configuration speaks for another way.
    #[error("{0}, for which SGLang has a way of its own")]
    Model(String),
    /// The model takes more than text.
    #[error("the model takes more than text")]
    Media,
    /// A file cannot be read, or there is none.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The model has none.
    #[error("there is no chat template beside the tokenizer ({})", .0.display())]
    None(PathBuf),
    /// The server was told to use one of several, which is not there.
    #[error("the model has no chat template named {0:?}")]
    Named(String),
    /// It is larger than routers take.
    #[error("the chat template has more than {MAX_SOURCE_BYTES} bytes")]
    Size,
    /// Its tokenizer begins texts with something that is not text.
    #[error("what the tokenizer puts before every text is not text")]
    Leading,
}

impl ChatTemplate {
    /// The template that an engine with this setup renders chats with.
    ///
    /// # Errors
    /// There is none, or the engine may use another one.
    pub fn read(
        setup: &ChatSetup,
        files: &ModelFiles,
        vocabulary: &Vocabulary,
    ) -> Result<Self, TemplateError> {
        setup.check(files.template.is_some())?;
        let directory = files::directory(&files.tokenizer);
        files::check_model(setup, &directory)?;
        let config = files::tokenizer_config(&directory)?;
        let source = match &files.template {
            Some(path) => setup.as_given(files::text(path)?),
            None => files::source(&directory, &config, setup.named.as_deref())?,
        };
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::Size);
        }
        let leading = vocabulary.leading().iter().map(|token| vocabulary.bytes(*token));
        let leading = leading.collect::<Option<Vec<_>>>().ok_or(TemplateError::Leading)?.concat();
        let leading = String::from_utf8(leading).map_err(|_| TemplateError::Leading)?;
        let special_tokens = files::special_tokens(&directory, &config)?;
        Ok(Self { source, special_tokens, leading })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}
