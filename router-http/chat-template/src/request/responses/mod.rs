//! What SGLang makes of a request to OpenAI's `/v1/responses`: a chat request, which goes the way of all others.
//!
//! Items become messages, and those of one turn of the assistant's become one; then it is settled where the system speaks.
//! Tools that an engine would run by itself are no part of a prompt, as models that it speaks Harmony with, which have other ways, are
//! offered no template for.

mod item;
mod offer;
mod turns;

use minijinja::Value;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::message::{Content, Message};
use super::{Body, Effort};
use crate::RenderError;
use crate::system_place::SystemPlace;
use offer::{Chosen, Offer};

#[derive(Deserialize)]
struct Asked<'a> {
    /// SGLang has it optional, and then refuses requests without one.
    #[serde(rename = "model")]
    _model: String,
    /// What one user says, or items.
    #[serde(borrow)]
    input: &'a RawValue,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    tools: Vec<Offer>,
    #[serde(default)]
    tool_choice: Chosen,
    #[serde(default)]
    reasoning: Option<Reasoning>,
    /// In the order given.
    #[serde(default)]
    chat_template_kwargs: Option<Value>,
    #[serde(default)]
    previous_response_id: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Reasoning {
    #[serde(default = "medium")]
    effort: Option<String>,
    /// Another name, which counts for some of what the first one does.
    #[serde(default)]
    reasoning_effort: Option<IgnoredAny>,
}

/// Who speaks of reasoning, and not of its effort, gets this one.
#[expect(clippy::unnecessary_wraps, reason = "the default of a field that can be null")]
fn medium() -> Option<String> {
    Some("medium".to_owned())
}

/// The chat request that a body comes to.
pub(super) fn read(body: &[u8], place: SystemPlace) -> Result<Body, RenderError> {
    let asked: Asked<'_> = serde_json::from_slice(body).map_err(|_| RenderError::Form)?;
    if asked.previous_response_id.is_some() {
        return Err(RenderError::History);
    }
    if asked.reasoning.as_ref().is_some_and(|reasoning| reasoning.reasoning_effort.is_some()) {
        return Err(RenderError::Fields);
    }
    let of_text = |role: &str, text: String| Message::of(role, Some(Content::Text(text)));
    let mut messages: Vec<Message> = Vec::new();
    let instructions = asked.instructions.filter(|text| !text.is_empty());
    messages.extend(instructions.map(|text| of_text("system", text)));
    if asked.input.get().starts_with('"') {
        let text = serde_json::from_str(asked.input.get()).map_err(|_| RenderError::Form)?;
        messages.push(of_text("user", text));
    } else {
        let items: Vec<&RawValue> = serde_json::from_str(asked.input.get()).map_err(|_| RenderError::Form)?;
        for item in items {
            messages.extend(item::message(item)?);
        }
    }
    let messages = turns::placed(turns::merged(messages), place)?;
    let (tools, tool_choice) = offer::taken(asked.tools, asked.tool_choice)?;
    let reasoning_effort = asked.reasoning.and_then(|reasoning| reasoning.effort).map(Effort::Level);
    let chat_template_kwargs = asked.chat_template_kwargs;
    Ok(Body {
        messages,
        tools: Some(tools),
        tool_choice: Some(tool_choice),
        chat_template_kwargs,
        reasoning_effort,
        ..Body::default()
    })
}
