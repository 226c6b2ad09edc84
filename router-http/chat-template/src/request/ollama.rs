//! What SGLang makes of a request to Ollama's `/api/chat`: the roles and texts of its messages go to the template as they are, and
//! nothing else does.

use minijinja::Value;
use serde::Deserialize;

use super::Chat;
use super::message::fields;
use crate::RenderError;

#[derive(Deserialize)]
struct Asked {
    messages: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

pub(super) fn read(body: &[u8]) -> Result<Chat, RenderError> {
    let asked: Asked = serde_json::from_slice(body).map_err(|_| RenderError::Form)?;
    if asked.messages.is_empty() {
        return Err(RenderError::Form);
    }
    let message =
        |said: Said| fields([("role", Value::from(said.role)), ("content", Value::from(said.content))]);
    let messages: Vec<Value> = asked.messages.into_iter().map(message).collect();
    Ok(Chat {
        messages: Value::from(messages),
        tools: Value::from(()),
        kwargs: Vec::new(),
        has_effort: false,
        prefix: None,
    })
}
