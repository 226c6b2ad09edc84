//! The tools that a request offers: functions, and tools that take one text. Others are no part of the prompt.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;

use super::item::INPUT;
use crate::RenderError;
use crate::request::message::fields;
use crate::request::tool::{Choice, Tool};

#[derive(Deserialize)]
pub(super) struct Offer {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
    #[serde(default)]
    strict: bool,
    /// What a text must be like.
    #[serde(default)]
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    syntax: Option<String>,
    #[serde(default)]
    definition: Option<String>,
}

/// Which of them may be called.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Chosen {
    Mode(String),
    One {
        #[serde(default, rename = "type")]
        kind: Option<String>,
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        function: Option<Named>,
    },
}

#[derive(Deserialize)]
pub(super) struct Named {
    #[serde(default)]
    name: Option<String>,
}

/// What an engine does by itself, or leaves alone.
const OTHERS: [&str; 10] = [
    "web_search",
    "web_search_preview",
    "code_interpreter",
    "file_search",
    "image_generation",
    "computer_use_preview",
    "local_shell",
    "mcp",
    "namespace",
    "tool_search",
];

impl Default for Chosen {
    fn default() -> Self {
        Self::Mode("auto".to_owned())
    }
}

/// The tools of the chat request, and which may be called.
pub(super) fn taken(offers: Vec<Offer>, chosen: Chosen) -> Result<(Vec<Tool>, Choice), RenderError> {
    if offers.iter().any(|offer| !offer.can_be_called() && !OTHERS.contains(&&*offer.kind)) {
        return Err(RenderError::Form);
    }
    let choice = chosen.among(&offers)?;
    let tools = offers.into_iter().filter_map(|offer| offer.tool().transpose());
    Ok((tools.collect::<Result<_, _>>()?, choice))
}

impl Chosen {
    fn among(self, offers: &[Offer]) -> Result<Choice, RenderError> {
        let mut callable = offers.iter().filter(|offer| offer.can_be_called());
        let (kind, name) = match self {
            Self::Mode(mode) if mode == "required" && callable.next().is_none() => {
                return Err(RenderError::Form);
            }
            Self::Mode(mode) => return Ok(Choice::Mode(mode)),
            Self::One { kind, name, function } => {
                (kind, is_something(name).or(is_something(function.and_then(|function| function.name))))
            }
        };
        match (kind.as_deref(), name) {
            (Some("function" | "custom"), Some(name)) => callable
                .any(|offer| offer.name.as_ref() == Some(&name))
                .then_some(Choice::of(name))
                .ok_or(RenderError::Form),
            // Others cannot be asked for.
            _ => Ok(Choice::Mode("auto".to_owned())),
        }
    }
}

impl Offer {
    fn can_be_called(&self) -> bool {
        ["function", "custom"].contains(&&*self.kind)
    }

    /// As a chat request has it, if that has it.
    fn tool(self) -> Result<Option<Tool>, RenderError> {
        let of_text = self.kind == "custom";
        let is_in_order = |schema: &Value| schema.kind() == ValueKind::Map;
        if self.parameters.as_ref().is_some_and(|schema| !is_in_order(schema)) {
            return Err(RenderError::Form);
        }
        let name = match is_something(self.name) {
            Some(name) if of_text || self.kind == "function" => name,
            None if self.kind == "function" => return Err(RenderError::Form),
            _ => return Ok(None),
        };
        let (description, parameters) = if of_text {
            (described(self.description, self.format), Some(takes_text()))
        } else {
            (self.description, self.parameters)
        };
        Ok(Some(Tool::of(fields([
            ("name", Value::from(name)),
            ("description", description.map_or(Value::from(()), Value::from)),
            ("parameters", parameters.unwrap_or(Value::from(()))),
            ("strict", Value::from(self.strict)),
        ]))))
    }
}

fn is_something(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// What a tool is for, and what its text must be like.
fn described(description: Option<String>, format: Option<Format>) -> Option<String> {
    let grammar = format.filter(|format| format.kind.as_deref() == Some("grammar")).map(|format| {
        let syntax = is_something(format.syntax).unwrap_or_else(|| "lark".to_owned());
        let definition = format.definition.unwrap_or_default();
        format!("The payload must conform to this {syntax} grammar:\n{definition}")
    });
    let parts: Vec<String> = is_something(description).into_iter().chain(grammar).collect();
    is_something(Some(parts.join("\n\n")))
}

/// The parameters of a function in place of a tool that takes a text.
fn takes_text() -> Value {
    let text = fields([
        ("type", Value::from("string")),
        ("description", Value::from("The freeform text payload for this tool.")),
    ]);
    fields([
        ("type", Value::from("object")),
        ("properties", fields([(INPUT, text)])),
        ("required", Value::from(vec![INPUT])),
        ("additionalProperties", Value::from(false)),
    ])
}
