//! Chats as one text, so that a conversation's later turns begin with its earlier ones.
//!
//! The tools come first, as engines' templates have them; then every message in order: role, text, whatever else it has as
//! JSON with sorted keys, and an end mark. White space and the order of keys in the client's JSON do not matter. The marks are
//! control characters; a chat whose content has them can at worst be keyed like another chat.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::value::Text;

/// The messages, rendered.
pub(super) struct Chat(String);

/// Begins a message, ends its role, ends its text, ends it.
const MARKS: [char; 4] = ['\u{1c}', '\u{1d}', '\u{1e}', '\u{1f}'];

/// What the Responses API takes for a chat: messages, or what one user says.
pub(super) struct Input(pub(super) Chat);

/// A system message as the Messages API has it, beside the chat.
pub(super) struct System(pub(super) Chat);

struct ChatVisitor;
struct InputVisitor;

/// One message.
struct Message<'a> {
    role: Option<Cow<'a, str>>,
    content: Option<Value>,
    rest: Vec<(String, Value)>,
}

struct MessageVisitor;

impl Chat {
    /// One message of text.
    pub(super) fn of_text(role: &'static str, text: String) -> Self {
        Self::of(role, Value::String(text))
    }

    fn of(role: &'static str, content: Value) -> Self {
        let mut out = String::new();
        Message { role: Some(Cow::Borrowed(role)), content: Some(content), rest: Vec::new() }
            .render(&mut out);
        Self(out)
    }

    /// This one, and then another.
    pub(super) fn then(mut self, other: Self) -> Self {
        self.0.push_str(&other.0);
        self
    }

    /// The whole prompt.
    pub(super) fn render(self, tools: Option<&Value>) -> String {
        match tools {
            // `Value` sorts its keys.
            Some(tools) => format!("{tools}{}{}", MARKS[3], self.0),
            None => self.0,
        }
    }
}

impl Message<'_> {
    fn render(&mut self, out: &mut String) {
        out.push(MARKS[0]);
        out.push_str(self.role.as_deref().unwrap_or(""));
        out.push(MARKS[1]);
        match &self.content {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => out.push_str(text),
            Some(Value::Array(parts)) => parts.iter().for_each(|part| render_part(part, out)),
            Some(other) => out.push_str(&other.to_string()),
        }
        out.push(MARKS[2]);
        self.rest.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, value) in self.rest.iter().filter(|(_, value)| !value.is_null()) {
            out.push_str(name);
            out.push_str(&value.to_string());
        }
        out.push(MARKS[3]);
    }
}

/// Text parts read as text, so that a message in one part equals the same message as a string.
fn render_part(part: &Value, out: &mut String) {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => out.push_str(text),
        _ => out.push_str(&part.to_string()),
    }
}

impl<'de> Deserialize<'de> for Chat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ChatVisitor)
    }
}

impl<'de> Visitor<'de> for ChatVisitor {
    type Value = Chat;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut messages: A) -> Result<Chat, A::Error> {
        let mut out = String::new();
        while let Some(mut message) = messages.next_element::<Message<'de>>()? {
            message.render(&mut out);
        }
        Ok(Chat(out))
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor).map(Input)
    }
}

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Chat;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of objects")
    }

    fn visit_str<E>(self, text: &str) -> Result<Chat, E> {
        Ok(Chat::of_text("user", text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Chat, A::Error> {
        ChatVisitor.visit_seq(items)
    }
}

impl<'de> Deserialize<'de> for System {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Chat::of("system", Value::deserialize(deserializer)?)))
    }
}

impl<'de> Deserialize<'de> for Message<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MessageVisitor)
    }
}

impl<'de> Visitor<'de> for MessageVisitor {
    type Value = Message<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message<'de>, A::Error> {
        let mut message = Message { role: None, content: None, rest: Vec::new() };
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match &*key.0 {
                "role" => message.role = Some(map.next_value::<Text<'de>>()?.0),
                "content" => message.content = Some(map.next_value()?),
                _ => message.rest.push((key.0.into_owned(), map.next_value()?)),
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(messages: &str, tools: Option<&str>) -> String {
        let tools: Option<Value> = tools.map(|tools| serde_json::from_str(tools).unwrap());
        serde_json::from_str::<Chat>(messages).unwrap().render(tools.as_ref())
    }

    #[test]
    fn a_later_turn_begins_with_the_earlier_ones() {
        let first = r#"[{"role":"system","content":"s"},{"role":"user","content":"u"}]"#;
        let second = r#"[{"role":"system","content":"s"},{"role":"user","content":"u"},
            {"role":"assistant","content":"a","tool_calls":[{"id":"1"}]},{"role":"tool","content":"t"}]"#;
        let tools = Some(r#"[{"name":"f"}]"#);
        assert!(render(second, tools).starts_with(&render(first, tools)));
        assert!(!render(second, None).starts_with(&render(first, tools)));
    }

    #[test]
    fn what_one_user_says_begins_the_chat_that_follows() {
        let input = |json: &str| serde_json::from_str::<Input>(json).unwrap().0.render(None);
        let later = r#"[{"role":"user","content":"hi"},{"type":"function_call","name":"f"},{"role":"user","content":"b"}]"#;
        assert!(input(later).starts_with(&input(r#""hi""#)));
        let system = |json: &str| serde_json::from_str::<System>(json).unwrap().0.render(None);
        assert_eq!(system(r#""s""#), system(r#"[{"type":"text","text":"s"}]"#));
        assert_eq!(
            Chat::of_text("system", "s".into()).then(Chat::of_text("user", "u".into())).render(None),
            render(r#"[{"role":"system","content":"s"},{"role":"user","content":"u"}]"#, None)
        );
    }

    #[test]
    fn spelling_does_not_matter_and_meaning_does() {
        let plain = render(r#"[{"role":"user","content":"hi","name":"n","x":{"a":1,"b":2}}]"#, None);
        let other = render(
            r#"[ { "x": {"b": 2, "a": 1}, "name": "n", "content": "h\u0069", "role": "user" } ]"#,
            None,
        );
        let parts = render(
            r#"[{"role":"user","content":[{"type":"text","text":"hi"}],"name":"n","x":{"a":1,"b":2}}]"#,
            None,
        );
        assert_eq!(plain, other);
        assert_eq!(plain, parts);
        assert_ne!(
            render(r#"[{"role":"user","content":"a"}]"#, None),
            render(r#"[{"role":"system","content":"a"}]"#, None)
        );
        let two = render(r#"[{"role":"user","content":"a"},{"role":"user","content":"b"}]"#, None);
        assert_ne!(two, render(r#"[{"role":"user","content":"ab"}]"#, None));
    }
}
