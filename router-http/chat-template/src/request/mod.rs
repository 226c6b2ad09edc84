//! What SGLang's front end takes of a chat request, and makes of it before it renders.
//!
//! Its protocol drops what it does not know, and writes out what was left unsaid; templates that print a whole tool or call show both.

mod message;
mod messages;
mod ollama;
mod responses;
mod tool;

use minijinja::Value;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::RenderError;
use crate::content_format::ContentFormat;
use crate::system_place::SystemPlace;
use message::{Content, Message};
use tool::{Choice, Tool};

/// A chat as a template gets it.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) messages: Value,
    /// `None` if there are none.
    pub(crate) tools: Value,
    /// Further variables.
    pub(crate) kwargs: Vec<(String, Value)>,
    /// The request says how much to reason.
    pub(crate) has_effort: bool,
    /// What the answer is to go on with.
    pub(crate) prefix: Option<String>,
}

#[derive(Default, Deserialize)]
struct Body {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    #[serde(default)]
    tool_choice: Option<Choice>,
    /// In the order given: templates can see it.
    #[serde(default)]
    chat_template_kwargs: Option<Value>,
    #[serde(default)]
    reasoning_effort: Option<Effort>,
    #[serde(default)]
    continue_final_message: Option<bool>,
    /// OpenRouter's way to say what `reasoning_effort` does.
    #[serde(default)]
    reasoning: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Effort {
    Level(String),
    Share(f64),
}

/// Levels of effort that SGLang knows.
const LEVELS: [&str; 8] = ["none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max"];

/// Arguments of `apply_chat_template` and variables of its own, which no further variable can stand for.
const RESERVED: [&str; 19] = [
    "messages",
    "conversation",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
    "self",
    "chat",
    "conversations",
];

/// How a request says its chat.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Api {
    /// As `/v1/chat/completions` takes it.
    Chat,
    /// As Anthropic's `/v1/messages` takes it.
    Messages,
    /// As OpenAI's `/v1/responses` takes it.
    Responses(SystemPlace),
    /// As Ollama's `/api/chat` takes it.
    Ollama,
}

impl Chat {
    pub(crate) fn read(api: Api, body: &[u8], format: ContentFormat) -> Result<Self, RenderError> {
        let body = match api {
            Api::Chat => serde_json::from_slice(body).map_err(|_| RenderError::Form)?,
            Api::Messages => messages::read(body)?,
            Api::Responses(place) => responses::read(body, place)?,
            Api::Ollama => return ollama::read(body),
        };
        Self::of(body, format)
    }

    fn of(body: Body, format: ContentFormat) -> Result<Self, RenderError> {
        if body.reasoning.is_some() {
            return Err(RenderError::Fields);
        }
        let (kwargs, has_effort) = kwargs(body.chat_template_kwargs, body.reasoning_effort)?;
        let mut messages = body.messages;
        let prefix = settle_last(&mut messages, body.continue_final_message.unwrap_or(false), format)?;
        let rendered = messages.into_iter().map(|message| message.value(format));
        let messages: Vec<Value> = rendered.collect::<Result<_, _>>()?;
        if messages.is_empty() {
            return Err(RenderError::Form);
        }
        let tools = tool::offered(body.tools, body.tool_choice)?;
        Ok(Self { messages: Value::from(messages), tools, kwargs, has_effort, prefix })
    }
}

/// A last message of the assistant's becomes the user's, or what the answer is to go on with.
fn settle_last(
    messages: &mut Vec<Message>,
    goes_on: bool,
    format: ContentFormat,
) -> Result<Option<String>, RenderError> {
    let Some(last) = messages.last().filter(|last| last.is_assistants()) else { return Ok(None) };
    let Some(text) = last.text(format)? else { return Ok(None) };
    // What else it says must be in order all the same.
    last.clone().value(format)?;
    messages.pop();
    if goes_on {
        return Ok(Some(text));
    }
    messages.push(Message::of("user", Some(Content::Text(text))));
    Ok(None)
}

/// The variable that templates read the effort from.
const EFFORT: &str = "reasoning_effort";

fn kwargs(given: Option<Value>, effort: Option<Effort>) -> Result<(Vec<(String, Value)>, bool), RenderError> {
    let mut kwargs: Vec<(String, Value)> = Vec::new();
    let effort = match effort {
        None => None,
        Some(Effort::Level(level)) if LEVELS.contains(&&*level) => Some(Value::from(level)),
        Some(Effort::Share(share)) if (0.0..=0.99).contains(&share) => Some(Value::from(share)),
        Some(_) => return Err(RenderError::Form),
    };
    kwargs.extend(effort.clone().map(|effort| (EFFORT.to_owned(), effort)));
    if let Some(given) = given.filter(|given| !given.is_none()) {
        if given.kind() != minijinja::value::ValueKind::Map {
            return Err(RenderError::Form);
        }
        for name in given.try_iter().map_err(|_| RenderError::Form)? {
            let value = given.get_item(&name).map_err(|_| RenderError::Form)?;
            let name = name.as_str().ok_or(RenderError::Form)?;
            if RESERVED.contains(&name) {
                return Err(RenderError::Fields);
            }
            // No other name can be there already.
            if name == EFFORT {
                kwargs.retain(|(known, _)| known != name);
            }
            kwargs.push((name.to_owned(), value));
        }
    }
    if let Some(effort) = &effort {
        // Models read one or the other.
        let thinks = Value::from(effort.as_str() != Some("none"));
        for name in ["thinking", "enable_thinking"] {
            if kwargs.iter().all(|(known, _)| known != name) {
                kwargs.push((name.to_owned(), thinks.clone()));
            }
        }
    }
    Ok((kwargs, effort.is_some()))
}
