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

struct ChatVisitor;

/// One message.
struct Message<'a> {
    role: Option<Cow<'a, str>>,
    content: Option<Value>,
    rest: Vec<(String, Value)>,
}

struct MessageVisitor;

impl Chat {
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
