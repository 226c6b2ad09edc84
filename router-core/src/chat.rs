//! Chat templates, as the core knows them: something that turns a chat into the text that an engine's tokenizer gets.
//!
//! Agents offer them, whoever runs the sessions compiles them, and the snapshot carries them to the data plane. The core compares them
//! and renders nothing.

use std::fmt;
use std::sync::Arc;

use crate::fleet::{Fleet, Role, WorkerState};

/// A compiled template. Rendering must not wait for anything.
pub trait ChatTemplate: fmt::Debug + Send + Sync {
    /// Names it among all that are in use: two of the same name render alike.
    fn id(&self) -> u64;

    /// The prompt that a chat request's body comes to, without the special tokens that the tokenizer puts before every text by itself.
    ///
    /// # Errors
    /// It is not known to be rendered as the engine does.
    fn render(&self, body: &[u8]) -> Result<String, NotRendered>;

    /// The same of a request to Anthropic's `/v1/messages`.
    ///
    /// # Errors
    /// It is not known to be rendered as the engine does.
    fn render_messages(&self, body: &[u8]) -> Result<String, NotRendered>;

    /// The same of a request to OpenAI's `/v1/responses`.
    ///
    /// # Errors
    /// It is not known to be rendered as the engine does.
    fn render_responses(&self, body: &[u8]) -> Result<String, NotRendered>;

    /// The same of a request to Ollama's `/api/chat`.
    ///
    /// # Errors
    /// It is not known to be rendered as the engine does.
    fn render_ollama(&self, body: &[u8]) -> Result<String, NotRendered>;
}

/// Why a chat is not rendered, for people; nothing of the chat is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotRendered(pub Arc<str>);

/// Why there is no template for a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTemplate {
    /// A worker that serves the model has none.
    #[error("a worker that serves the model offers no template: its agent says why")]
    NotOffered,
    /// Workers that serve the model have different ones.
    #[error("the workers that serve the model offer different templates")]
    Different,
    /// No worker that could be asked serves the model.
    #[error("no worker that can be reached serves the model")]
    NoWorker,
}

impl Fleet {
    /// The template that every worker renders a model's chats with; without a model, every worker. Workers that cannot be reached, and
    /// those that only decode, have no say.
    ///
    /// # Errors
    /// They do not agree.
    pub fn chat_template(&self, model: Option<&str>) -> Result<&Arc<dyn ChatTemplate>, NoTemplate> {
        let mut agreed: Option<&Arc<dyn ChatTemplate>> = None;
        let has_say = |state, role| state != WorkerState::Unreachable && role != Role::Decode;
        for worker in self.workers.iter().filter(|worker| has_say(worker.state, worker.role)) {
            if model.is_some_and(|model| !worker.serves(model)) {
                continue;
            }
            let template = worker.chat_template.as_ref().ok_or(NoTemplate::NotOffered)?;
            if agreed.is_some_and(|agreed| agreed.id() != template.id()) {
                return Err(NoTemplate::Different);
            }
            agreed = Some(template);
        }
        agreed.ok_or(NoTemplate::NoWorker)
    }
}
