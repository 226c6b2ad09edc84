//! One message.

use minijinja::Value;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::RenderError;
use crate::content_format::ContentFormat;

/// As it is sent.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Message {
    pub(super) role: String,
    #[serde(default)]
    pub(super) content: Option<Content>,
    #[serde(default)]
    pub(super) tool_call_id: Option<String>,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) phase: Option<String>,
    #[serde(default)]
    pub(super) reasoning_content: Option<String>,
    #[serde(default)]
    pub(super) tool_calls: Option<Vec<Call>>,
    /// Tools that come with a message, and a mark of some models, have effects of their own.
    #[serde(default)]
    pub(super) tools: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) prefix: Option<IgnoredAny>,
}

/// What it says.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Part {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) text: Option<String>,
}

/// A tool call of the assistant's.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Call {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    index: Option<i64>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    function: Function,
}

#[derive(Clone, Debug, Deserialize)]
struct Function {
    #[serde(default)]
    name: Option<String>,
    /// JSON in a text, or an object.
    #[serde(default)]
    arguments: Option<Value>,
}

/// Roles beside the user's, in any case.
const ROLES: [&str; 7] = ["system", "assistant", "tool", "function", "developer", "latest_reminder", "root"];

impl Message {
    /// Somebody's.
    pub(super) fn of(role: &str, content: Option<Content>) -> Self {
        Self {
            role: role.to_owned(),
            content,
            tool_call_id: None,
            name: None,
            phase: None,
            reasoning_content: None,
            tool_calls: None,
            tools: None,
            prefix: None,
        }
    }

    /// What came of a call.
    pub(super) fn of_tool(call: Option<String>, content: Option<Content>) -> Self {
        Self { tool_call_id: call, ..Self::of("tool", content) }
    }

    /// The same, and calls tools.
    pub(super) fn calling(self, calls: Vec<Call>) -> Self {
        Self { tool_calls: Some(calls), ..self }
    }

    pub(super) fn is_assistants(&self) -> bool {
        self.role.eq_ignore_ascii_case("assistant")
    }

    /// Its content, where a template gets it as text.
    pub(super) fn text(&self, format: ContentFormat) -> Result<Option<String>, RenderError> {
        match &self.content {
            None => Ok(Some(String::new())),
            Some(Content::Text(text)) => Ok(Some(text.clone())),
            Some(Content::Parts(parts)) => {
                let tools = self.role.eq_ignore_ascii_case("tool");
                Ok((format == ContentFormat::Text || tools).then_some(texts(parts)?.join(" ")))
            }
        }
    }

    /// As a template gets it: in the order of the protocol's fields, without those that are not set.
    pub(super) fn value(self, format: ContentFormat) -> Result<Value, RenderError> {
        if self.tools.is_some() || self.prefix.is_some() {
            return Err(RenderError::Fields);
        }
        let content = match (self.text(format)?, &self.content) {
            (Some(text), _) => Value::from(text),
            (None, Some(Content::Parts(parts))) => {
                let part = |text: &str| fields([("type", Value::from("text")), ("text", Value::from(text))]);
                Value::from(texts(parts)?.into_iter().map(part).collect::<Vec<_>>())
            }
            (None, _) => return Err(RenderError::Form),
        };
        let is_list = content.as_str().is_none();
        if self.role == "user" {
            // Only what the protocol gives to a user's message.
            return match self.content {
                None => Err(RenderError::Form),
                Some(_) => Ok(fields([("role", Value::from("user")), ("content", content)])),
            };
        }
        let role = self.role.to_lowercase();
        if !ROLES.contains(&&*role) {
            return Err(RenderError::Form);
        }
        let parses = role == "assistant";
        let calls = self.tool_calls.map(|calls| {
            calls.into_iter().map(|call| call.value(parses)).collect::<Result<Vec<_>, _>>().map(Value::from)
        });
        if self.phase.as_ref().is_some_and(|phase| !["commentary", "final_answer"].contains(&&**phase)) {
            return Err(RenderError::Form);
        }
        let others = [
            ("tool_call_id", self.tool_call_id.map(Value::from)),
            ("name", self.name.map(Value::from)),
            ("phase", self.phase.map(Value::from)),
            ("reasoning_content", self.reasoning_content.map(Value::from)),
            ("tool_calls", calls.transpose()?),
        ];
        let others = others.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let role = std::iter::once(("role", Value::from(role)));
        let content = std::iter::once(("content", content));
        // A list of parts is put together anew, and put last.
        Ok(if is_list {
            fields(role.chain(others).chain(content))
        } else {
            fields(role.chain(content).chain(others))
        })
    }
}

impl Content {
    /// A text alone is itself, and several are parts.
    pub(super) fn of_texts(mut texts: Vec<String>) -> Self {
        match texts.pop() {
            Some(only) if texts.is_empty() => Self::Text(only),
            last => Self::Parts(texts.into_iter().chain(last).map(Part::of).collect()),
        }
    }

    /// Its parts; of a text, unless it is empty, one.
    pub(super) fn into_parts(self) -> Vec<Part> {
        match self {
            Self::Parts(parts) => parts,
            Self::Text(text) if text.is_empty() => Vec::new(),
            Self::Text(text) => vec![Part::of(text)],
        }
    }
}

impl Call {
    /// Of a function, with an object.
    pub(super) fn new(id: Option<String>, name: Option<String>, arguments: Value) -> Self {
        let function = Function { name, arguments: Some(arguments) };
        Self { id, index: None, kind: None, function }
    }

    /// `parses`: arguments in a text are an object to the template.
    fn value(self, parses: bool) -> Result<Value, RenderError> {
        let kind = self.kind.unwrap_or_else(|| "function".to_owned());
        if kind != "function" {
            return Err(RenderError::Form);
        }
        let arguments = match self.function.arguments {
            Some(arguments) if parses && arguments.as_str().is_some() => {
                let text = arguments.as_str().unwrap_or_default();
                let parsed = serde_json::from_str::<Value>(text).map_err(|_| RenderError::Form)?;
                (parsed.kind() == minijinja::value::ValueKind::Map)
                    .then_some(parsed)
                    .ok_or(RenderError::Form)?
            }
            arguments => arguments.unwrap_or(Value::from(())),
        };
        let function = fields([("name", or_none(self.function.name)), ("arguments", arguments)]);
        Ok(fields([
            ("id", or_none(self.id)),
            ("index", or_none(self.index)),
            ("type", Value::from(kind)),
            ("function", function),
        ]))
    }
}

/// The texts of parts that are all text.
pub(super) fn texts(parts: &[Part]) -> Result<Vec<&str>, RenderError> {
    parts.iter().map(|part| part.text().ok_or(RenderError::Parts)).collect()
}

impl Part {
    pub(super) fn of(text: String) -> Self {
        Self { kind: "text".to_owned(), text: Some(text) }
    }

    fn text(&self) -> Option<&str> {
        self.text.as_deref().filter(|_| self.kind == "text")
    }
}

fn or_none<T: Into<Value>>(value: Option<T>) -> Value {
    value.map_or(Value::from(()), Into::into)
}

/// An object with its members in this order.
pub(super) fn fields<'n>(members: impl IntoIterator<Item = (&'n str, Value)>) -> Value {
    Value::from_pairs(members)
}
