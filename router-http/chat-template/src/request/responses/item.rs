//! One item of a request's input.

use std::collections::BTreeMap;

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::turns;
use crate::RenderError;
use crate::request::message::{Call, Content, Message, Part, fields};

#[derive(Deserialize)]
struct Kind {
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

/// A call of a function, with its arguments, or of a tool that takes one text.
#[derive(Deserialize)]
struct Called {
    #[serde(default)]
    call_id: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    /// JSON in a text, or an object.
    #[serde(default)]
    arguments: Option<Value>,
    #[serde(default)]
    input: Option<String>,
    #[serde(default)]
    content: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Answered {
    #[serde(default)]
    call_id: Option<String>,
    #[serde(default = "nothing")]
    output: Option<Output>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Output {
    Text(String),
    Parts(Vec<Value>),
}

#[derive(Deserialize)]
struct Thought {
    #[serde(default)]
    summary: Option<Vec<Value>>,
    #[serde(default)]
    content: Option<Vec<Value>>,
    #[serde(default)]
    encrypted_content: Option<Value>,
    #[serde(default)]
    role: Option<IgnoredAny>,
}

/// What a developer says begins with this, because it is said by the system then.
const DEVELOPER: &str = "Developer instructions:";

/// The member under which a template gets the text that a tool takes.
pub(super) const INPUT: &str = "input";

/// What SGLang has packed begins with this.
const PACKED: &str = "sglang-reasoning-v1.";

#[expect(clippy::unnecessary_wraps, reason = "the default of a field that can be null")]
fn nothing() -> Option<Output> {
    Some(Output::Text(String::new()))
}

/// The message that an item comes to; `None` if it says nothing.
pub(super) fn message(item: &RawValue) -> Result<Option<Message>, RenderError> {
    let Kind { kind } = read(item)?;
    match kind.as_deref() {
        None | Some("message") => {
            let message = said(read(item)?)?;
            if turns::is_thought(&message) && !is_bare(item)? {
                return Err(RenderError::Items);
            }
            Ok(Some(message))
        }
        Some("function_call") => {
            let called: Called = read(item)?;
            let arguments = arguments(called.arguments.as_ref())?;
            Ok(Some(called.message(arguments)))
        }
        Some("custom_tool_call") => {
            let mut called: Called = read(item)?;
            let input = called.input.take().unwrap_or_default();
            Ok(Some(called.message(fields([(INPUT, Value::from(input))]))))
        }
        Some("function_call_output" | "custom_tool_call_output") => answered(read(item)?).map(Some),
        Some("reasoning") => thought(read(item)?),
        Some(_) => Err(RenderError::Items),
    }
}

fn read<'a, T: Deserialize<'a>>(item: &'a RawValue) -> Result<T, RenderError> {
    serde_json::from_str(item.get()).map_err(|_| RenderError::Form)
}

/// It has no members but those that reasoning has. SGLang takes it for more than a thought then, whatever they are.
fn is_bare(item: &RawValue) -> Result<bool, RenderError> {
    let members: BTreeMap<String, IgnoredAny> = read(item)?;
    Ok(members.keys().all(|name| ["role", "reasoning_content"].contains(&name.as_str())))
}

fn said(mut message: Message) -> Result<Message, RenderError> {
    if message.role == "developer" {
        "system".clone_into(&mut message.role);
        message.content = message.content.map(labelled);
    }
    if let Some(Content::Parts(parts)) = &mut message.content {
        for part in parts {
            if ["input_text", "output_text"].contains(&&*part.kind) {
                "text".clone_into(&mut part.kind);
            }
            if part.kind != "text" {
                return Err(RenderError::Parts);
            }
        }
    }
    Ok(message)
}

/// A developer's content.
fn labelled(content: Content) -> Content {
    match content {
        Content::Text(text) => Content::Text(format!("{DEVELOPER}\n{text}")),
        Content::Parts(mut parts) => {
            match parts.iter_mut().find_map(|part| part.text.as_mut()) {
                Some(text) => *text = format!("{DEVELOPER}\n{text}"),
                None => parts.insert(0, Part::of(DEVELOPER.to_owned())),
            }
            Content::Parts(parts)
        }
    }
}

impl Called {
    fn message(self, arguments: Value) -> Message {
        // An item with a content has lost its id before.
        let id = self.id.filter(|_| self.content.is_none());
        let id = self.call_id.filter(|id| !id.is_empty()).or(id);
        Message::of("assistant", None).calling(vec![Call::new(id, self.name, arguments)])
    }
}

/// What a function is called with: nothing, where that is no object.
fn arguments(given: Option<&Value>) -> Result<Value, RenderError> {
    let none = || fields([]);
    Ok(match given {
        Some(object) if object.kind() == ValueKind::Map => object.clone(),
        Some(given) => match given.as_str().filter(|text| !text.is_empty()) {
            // What cannot be read is nothing there, too; but more can be read there.
            Some(text) => {
                let value: Value = serde_json::from_str(text).map_err(|_| RenderError::Form)?;
                if value.kind() == ValueKind::Map { value } else { none() }
            }
            None => none(),
        },
        None => none(),
    })
}

fn answered(answered: Answered) -> Result<Message, RenderError> {
    let content = match answered.output {
        None => None,
        Some(Output::Text(text)) => Some(text),
        Some(Output::Parts(parts)) => {
            let texts = parts.iter().map(|part| Ok(text_of(part)?.unwrap_or_default()));
            Some(texts.collect::<Result<String, RenderError>>()?)
        }
    };
    Ok(Message::of_tool(answered.call_id, content.map(Content::Text)))
}

fn thought(thought: Thought) -> Result<Option<Message>, RenderError> {
    if thought.role.is_some() {
        return Err(RenderError::Items);
    }
    let mut texts = thoughts(thought.summary)?;
    if texts.is_empty() {
        texts = thoughts(thought.content)?;
    }
    if texts.is_empty() {
        let packed = thought
            .encrypted_content
            .is_some_and(|packed| packed.as_str().is_some_and(|packed| packed.starts_with(PACKED)));
        return if packed { Err(RenderError::Items) } else { Ok(None) };
    }
    let reasoning_content = Some(texts.join("\n"));
    Ok(Some(Message { reasoning_content, ..Message::of("assistant", None) }))
}

fn thoughts(parts: Option<Vec<Value>>) -> Result<Vec<String>, RenderError> {
    let text = |part: &Value| text_of(part).transpose();
    let texts: Vec<String> = parts.iter().flatten().filter_map(text).collect::<Result<_, _>>()?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

/// The text of a part, if it is an object that has one.
fn text_of(part: &Value) -> Result<Option<String>, RenderError> {
    if part.kind() != ValueKind::Map {
        return Ok(None);
    }
    let text = part.get_attr("text").map_err(|_| RenderError::Form)?;
    match text.as_str() {
        Some(text) => Ok(Some(text.to_owned())),
        None if text.is_undefined() => Ok(None),
        None => Err(RenderError::Form),
    }
}
