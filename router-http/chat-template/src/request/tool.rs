//! The tools that a template is told of.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::message::fields;
use crate::RenderError;

/// A tool as it is sent.
#[derive(Debug, Deserialize)]
pub(super) struct Tool {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// Read in the order in which it is given.
    function: Value,
    /// Some models are told of such tools later.
    #[serde(default)]
    defer_loading: Option<IgnoredAny>,
}

/// The types that JSON Schema has.
const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "object", "array", "null"];

/// Which of them may be called.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Choice {
    Mode(String),
    One { function: Chosen },
}

#[derive(Debug, Deserialize)]
pub(super) struct Chosen {
    #[serde(default)]
    name: Option<String>,
}

/// The tools that a template is told of; `None`, in Python's sense, if there are none.
pub(super) fn offered(tools: Option<Vec<Tool>>, choice: Option<Choice>) -> Result<Value, RenderError> {
    // All are read, because one that is not in order makes the request fail.
    let tools = tools.unwrap_or_default().into_iter().map(Tool::value);
    let mut tools: Vec<(String, Value)> = tools.collect::<Result<_, _>>()?;
    match choice {
        None => {}
        Some(Choice::Mode(mode)) => match &*mode {
            "auto" | "required" => {}
            "none" => tools.clear(),
            _ => return Err(RenderError::Form),
        },
        Some(Choice::One { function }) => tools.retain(|(name, _)| function.name.as_ref() == Some(name)),
    }
    let tools: Vec<Value> = tools.into_iter().map(|(_, tool)| tool).collect();
    Ok(if tools.is_empty() { Value::from(()) } else { Value::from(tools) })
}

impl Choice {
    /// One that must be called.
    pub(super) fn of(name: String) -> Self {
        Self::One { function: Chosen { name: Some(name) } }
    }
}

impl Tool {
    /// A function of these members.
    pub(super) fn of(function: Value) -> Self {
        Self { kind: None, function, defer_loading: None }
    }

    /// Its name, and as a template gets it.
    fn value(self) -> Result<(String, Value), RenderError> {
        let function = self.function;
        if self.defer_loading.is_some() {
            return Err(RenderError::Fields);
        }
        if function.kind() != ValueKind::Map {
            return Err(RenderError::Form);
        }
        let (mut name, mut members) = (None, Vec::new());
        for key in function.try_iter().map_err(|_| RenderError::Form)? {
            let value = function.get_item(&key).map_err(|_| RenderError::Form)?;
            match (key.as_str().unwrap_or_default(), value.kind()) {
                ("name", ValueKind::String) => {
                    name = value.as_str().map(str::to_owned);
                    members.push(("name", value));
                }
                ("description", ValueKind::String | ValueKind::None) => members.push(("description", value)),
                ("parameters", _) if names_other_types(&value) => return Err(RenderError::Fields),
                ("parameters", _) => members.push(("parameters", value)),
                ("strict", ValueKind::Bool) => members.push(("strict", value)),
                ("strict" | "defer_loading", ValueKind::None) => {}
                ("defer_loading", _) => return Err(RenderError::Fields),
                ("name" | "description" | "strict", _) => return Err(RenderError::Form),
                _ => {}
            }
        }
        // What the client left out stands behind what it said.
        for missing in ["description", "parameters"] {
            if members.iter().all(|(known, _)| *known != missing) {
                members.push((missing, Value::from(())));
            }
        }
        let kind = self.kind.unwrap_or_else(|| "function".to_owned());
        let tool =
            [("type", Value::from(kind)), ("function", fields(members)), ("defer_loading", Value::from(()))];
        Ok((name.ok_or(RenderError::Form)?, fields(tool)))
    }
}

/// Whether a schema may name types that JSON Schema does not have: SGLang writes others for some of them.
fn names_other_types(schema: &Value) -> bool {
    let is_other = |named: &Value| named.as_str().is_some_and(|name| !TYPES.contains(&name));
    match schema.kind() {
        ValueKind::Map => schema.try_iter().is_ok_and(|mut keys| {
            keys.any(|key| {
                let Ok(value) = schema.get_item(&key) else { return true };
                let names = key.as_str() == Some("type");
                let items = || value.try_iter().is_ok_and(|mut items| items.any(|item| is_other(&item)));
                let is_list = value.kind() == ValueKind::Seq;
                (names && (is_other(&value) || is_list && items())) || names_other_types(&value)
            })
        }),
        ValueKind::Seq => schema.try_iter().is_ok_and(|mut items| items.any(|item| names_other_types(&item))),
        _ => false,
    }
}
