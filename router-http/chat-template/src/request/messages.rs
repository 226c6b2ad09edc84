//! What SGLang makes of a request to Anthropic's `/v1/messages`: a chat request, which goes the way of all others.
//!
//! What it takes for the chat alone is read; whatever else bears on the prompt is refused.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Body;
use super::message::{Call, Content, Message, fields};
use super::tool::{Choice, Tool};
use crate::RenderError;

#[derive(Deserialize)]
struct Asked {
    messages: Vec<Turn>,
    #[serde(default)]
    system: Option<Said>,
    #[serde(default)]
    tools: Option<Vec<Offer>>,
    #[serde(default)]
    tool_choice: Option<Chosen>,
    /// Both have an effect on how much the model reasons, and so on the prompt.
    #[serde(default)]
    thinking: Option<IgnoredAny>,
    #[serde(default)]
    output_config: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Turn {
    role: Role,
    content: Said,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
    System,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Text(String),
    Blocks(Vec<Block>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        /// In the order given.
        #[serde(default = "nothing")]
        input: Value,
    },
    ToolResult {
        #[serde(default)]
        tool_use_id: Option<String>,
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        content: Option<Said>,
    },
    Image,
    Document,
    Thinking,
    RedactedThinking,
    #[serde(other)]
    Other,
}

/// A tool of the client's.
#[derive(Deserialize)]
struct Offer {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    name: String,
    #[serde(default)]
    description: Option<String>,
    /// The engine's own tools have none.
    #[serde(default)]
    input_schema: Option<Value>,
    #[serde(default)]
    strict: bool,
    #[serde(default)]
    defer_loading: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Chosen {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
}

/// The chat request that a body comes to.
pub(super) fn read(body: &[u8]) -> Result<Body, RenderError> {
    let asked: Asked = serde_json::from_slice(body).map_err(|_| RenderError::Form)?;
    if asked.thinking.is_some() || asked.output_config.is_some() {
        return Err(RenderError::Fields);
    }
    let mut messages: Vec<Message> = Vec::new();
    let system = asked.system.map(system).transpose()?.flatten();
    messages.extend(system.map(|text| Message::of("system", Some(Content::Text(text)))));
    for turn in asked.messages {
        turn.put(&mut messages)?;
    }
    let offers = asked.tools.unwrap_or_default();
    let tool_choice = asked.tool_choice.map(|chosen| chosen.among(&offers)).transpose()?;
    let tools = Some(offers.into_iter().map(Offer::tool).collect::<Result<_, _>>()?);
    Ok(Body { messages, tools, tool_choice, ..Body::default() })
}

fn nothing() -> Value {
    fields([])
}

/// What the first message says; `None` if there is none.
fn system(said: Said) -> Result<Option<String>, RenderError> {
    // Python's white space has four control characters more.
    let is_white = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    match said {
        Said::Text(text) => Ok(Some(text).filter(|text| !text.chars().all(is_white))),
        Said::Blocks(blocks) => {
            let texts = texts(blocks)?;
            Ok((!texts.is_empty()).then(|| texts.join("\n")))
        }
    }
}

/// The texts of blocks that are all text, without empty ones.
fn texts(blocks: Vec<Block>) -> Result<Vec<String>, RenderError> {
    let text = |block: Block| match block {
        Block::Text { text } => Ok(text),
        other => Err(other.refusal()),
    };
    let texts =
        blocks.into_iter().map(text).filter(|text| text.as_ref().map_or(true, |text| !text.is_empty()));
    texts.collect()
}

impl Turn {
    /// Puts the messages that it comes to behind those before.
    fn put(self, messages: &mut Vec<Message>) -> Result<(), RenderError> {
        let role = match self.role {
            Role::User => "user",
            Role::Assistant => "assistant",
            // Models differ in whether it stays where it is or is put first.
            Role::System => return Err(RenderError::Blocks),
        };
        let blocks = match self.content {
            Said::Text(text) => {
                messages.push(Message::of(role, Some(Content::Text(text))));
                return Ok(());
            }
            Said::Blocks(blocks) => blocks,
        };
        let (mut texts, mut calls) = (Vec::new(), Vec::new());
        for block in blocks {
            match (block, self.role) {
                (Block::Text { text }, _) => texts.push(text),
                (Block::ToolUse { id, name, input }, Role::Assistant) => {
                    // One without a name of its own gets one by chance.
                    if id.is_empty() || input.kind() != ValueKind::Map {
                        return Err(RenderError::Form);
                    }
                    calls.push(Call::new(Some(id), Some(name), input));
                }
                (Block::ToolResult { tool_use_id, id, content }, Role::User) => {
                    // What was said before it stays before it.
                    if !texts.is_empty() {
                        let said = Content::of_texts(std::mem::take(&mut texts));
                        messages.push(Message::of(role, Some(said)));
                    }
                    let named = |id: Option<String>| id.filter(|id| !id.is_empty());
                    let call = named(tool_use_id).or(named(id)).unwrap_or_default();
                    messages.push(Message::of_tool(Some(call), Some(result(content)?)));
                }
                (other, _) => return Err(other.refusal()),
            }
        }
        let said = (!texts.is_empty()).then(|| Content::of_texts(texts));
        match (self.role, said) {
            (_, said) if !calls.is_empty() => messages.push(Message::of(role, said).calling(calls)),
            (_, Some(said)) => messages.push(Message::of(role, Some(said))),
            // All that it had were results, if anything.
            (Role::User, None) => {}
            (_, None) => messages.push(Message::of(role, Some(Content::Text(String::new())))),
        }
        Ok(())
    }
}

/// What a tool's message says.
fn result(said: Option<Said>) -> Result<Content, RenderError> {
    Ok(match said {
        None => Content::Text(String::new()),
        Some(Said::Text(text)) => Content::Text(text),
        Some(Said::Blocks(blocks)) => match texts(blocks)? {
            none if none.is_empty() => Content::Text(String::new()),
            texts => Content::of_texts(texts),
        },
    })
}

impl Block {
    /// Why it is not rendered where it stands.
    fn refusal(&self) -> RenderError {
        match self {
            Self::Image | Self::Document | Self::Thinking | Self::RedactedThinking => RenderError::Parts,
            Self::Text { .. } | Self::ToolUse { .. } | Self::ToolResult { .. } | Self::Other => {
                RenderError::Blocks
            }
        }
    }
}

impl Offer {
    fn tool(self) -> Result<Tool, RenderError> {
        if self.defer_loading.is_some() || !matches!(self.kind.as_deref(), None | Some("custom")) {
            return Err(RenderError::Fields);
        }
        let schema = self.input_schema.filter(|schema| schema.kind() == ValueKind::Map);
        let description = self.description.unwrap_or_default();
        Ok(Tool::of(fields([
            ("name", Value::from(self.name)),
            ("description", Value::from(description)),
            ("parameters", of_object(&schema.ok_or(RenderError::Form)?)?),
            ("strict", Value::from(self.strict)),
        ])))
    }
}

/// A schema that says what it is of.
fn of_object(schema: &Value) -> Result<Value, RenderError> {
    let mut members: Vec<(Value, Value)> = Vec::new();
    for key in schema.try_iter().map_err(|_| RenderError::Form)? {
        let value = schema.get_item(&key).map_err(|_| RenderError::Form)?;
        members.push((key, value));
    }
    if members.iter().all(|(key, _)| key.as_str() != Some("type")) {
        members.push((Value::from("type"), Value::from("object")));
    }
    Ok(Value::from_pairs(members))
}

impl Chosen {
    fn among(self, offers: &[Offer]) -> Result<Choice, RenderError> {
        match (&*self.kind, self.name) {
            ("none" | "auto", _) => Ok(Choice::Mode(self.kind)),
            ("any", _) if !offers.is_empty() => Ok(Choice::Mode("required".to_owned())),
            ("tool", Some(name)) if offers.iter().any(|offer| offer.name == name) => Ok(Choice::of(name)),
            _ => Err(RenderError::Form),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::content_format::ContentFormat;
    use crate::python::{JsonStyle, json as written};
    use crate::request::{Api, Chat};

    /// The two things that a template gets, as text: in the order of their members.
    fn read_as(api: Api, body: &str) -> Result<(String, String), RenderError> {
        let chat = Chat::read(api, body.as_bytes(), ContentFormat::Parts)?;
        assert!(chat.kwargs.is_empty() && !chat.has_effort);
        let write = |value| written(value, &JsonStyle::default()).unwrap();
        Ok((write(&chat.messages), write(&chat.tools)))
    }

    /// Those of a chat request with these messages.
    fn chat(messages: &str) -> String {
        read_as(Api::Chat, &format!(r#"{{"messages":{messages}}}"#)).unwrap().0
    }

    fn converted(body: &str) -> String {
        read_as(Api::Messages, body).unwrap().0
    }

    fn refused(body: &Json) -> RenderError {
        read_as(Api::Messages, &body.to_string()).unwrap_err()
    }

    #[test]
    fn the_system_comes_first_unless_it_says_nothing() {
        let of = |system: &str| {
            converted(&format!(r#"{{"system":{system},"messages":[{{"role":"user","content":"u"}}]}}"#))
        };
        let first = |text: &str| {
            chat(&format!(r#"[{{"role":"system","content":{text}}},{{"role":"user","content":"u"}}]"#))
        };
        let none = chat(r#"[{"role":"user","content":"u"}]"#);
        for nothing in ["null", r#""""#, r#"" \n\u001c\u00a0""#, "[]", r#"[{"type":"text","text":""}]"#] {
            assert_eq!(of(nothing), none, "{nothing}");
        }
        assert_eq!(of(r#"" s\n""#), first(r#"" s\n""#));
        let blocks = r#"[{"type":"text","text":" a","cache_control":{"type":"ephemeral"}},{"type":"text","text":""},{"type":"text","text":" "}]"#;
        assert_eq!(of(blocks), first(r#"" a\n ""#));
    }

    #[test]
    fn a_block_of_text_is_text_and_several_are_parts() {
        let of =
            |content: &str| converted(&format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#));
        let said = |content: &str| chat(&format!(r#"[{{"role":"user","content":{content}}}]"#));
        assert_eq!(of(r#"" u ""#), said(r#"" u ""#));
        assert_eq!(of(r#""""#), said(r#""""#));
        assert_eq!(of(r#"[{"type":"text","text":"u","citations":null}]"#), said(r#""u""#));
        assert_eq!(of(r#"[{"type":"text","text":""}]"#), said(r#""""#));
        let two = r#"[{"type":"text","text":"a"},{"type":"text","text":""}]"#;
        assert_eq!(of(two), said(two));
        assert!(of(two).contains(r#"{"type": "text", "text": "a"}, {"type": "text", "text": ""}"#));
    }

    #[test]
    fn calls_and_their_results_are_messages_as_a_chat_has_them() {
        let body = r#"{"messages":[
            {"role":"user","content":"q"},
            {"role":"assistant","content":[
                {"type":"text","text":"t"},
                {"type":"tool_use","id":"1","name":"f","input":{"b":1.50,"a":["ü",null]}},
                {"type":"tool_use","id":"2","name":"g"}]},
            {"role":"user","content":[
                {"type":"tool_result","tool_use_id":"1","content":"r"},
                {"type":"text","text":"between"},
                {"type":"tool_result","tool_use_id":"","id":"2","is_error":true,"content":[{"type":"text","text":""},{"type":"text","text":"x"}]},
                {"type":"tool_result"},
                {"type":"tool_result","tool_use_id":"3","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]},
                {"type":"tool_result","tool_use_id":"4","content":[]},
                {"type":"text","text":"after"},
                {"type":"text","text":"all"}]}]}"#;
        let expected = chat(
            r#"[
            {"role":"user","content":"q"},
            {"role":"assistant","content":"t","tool_calls":[
                {"id":"1","type":"function","function":{"name":"f","arguments":"{\"b\": 1.5, \"a\": [\"\\u00fc\", null]}"}},
                {"id":"2","type":"function","function":{"name":"g","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"1","content":"r"},
            {"role":"user","content":"between"},
            {"role":"tool","tool_call_id":"2","content":"x"},
            {"role":"tool","tool_call_id":"","content":""},
            {"role":"tool","tool_call_id":"3","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}]},
            {"role":"tool","tool_call_id":"4","content":""},
            {"role":"user","content":[{"type":"text","text":"after"},{"type":"text","text":"all"}]}]"#,
        );
        assert_eq!(converted(body), expected);
    }

    #[test]
    fn a_turn_of_nothing_is_none_or_an_empty_one() {
        let body = r#"{"messages":[
            {"role":"user","content":[]},
            {"role":"assistant","content":[]},
            {"role":"assistant","content":[{"type":"tool_use","id":"1","name":"f","input":{}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"r"}]}]}"#;
        let expected = chat(
            r#"[
            {"role":"assistant","content":""},
            {"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{}}}]},
            {"role":"tool","tool_call_id":"1","content":"r"}]"#,
        );
        assert_eq!(converted(body), expected);
        assert_eq!(refused(&json!({"messages": [{"role": "user", "content": []}]})), RenderError::Form);
    }

    #[test]
    fn tools_say_all_that_the_engine_adds_to_them() {
        let tools = |api: Api, more: &str| {
            let body = format!(r#"{{"messages":[{{"role":"user","content":"u"}}],{more}}}"#);
            read_as(api, &body).unwrap().1
        };
        let asked = r#""tools":[
            {"input_schema":{"properties":{"b":{},"a":{}}},"name":"f"},
            {"type":"custom","name":"g","description":"d","strict":true,"input_schema":{"type":null,"x":1},"cache_control":{}}]"#;
        let expected = r#""tools":[
            {"type":"function","function":{"name":"f","description":"","parameters":{"properties":{"b":{},"a":{}},"type":"object"},"strict":false}},
            {"type":"function","function":{"name":"g","description":"d","parameters":{"type":null,"x":1},"strict":true}}]"#;
        assert_eq!(tools(Api::Messages, asked), tools(Api::Chat, expected));
        assert!(tools(Api::Messages, asked).contains(r#""type": "object"}, "strict": false}"#));
        for (choice, same) in [
            (r#"{"type":"auto","disable_parallel_tool_use":true}"#, r#""auto""#),
            (r#"{"type":"any"}"#, r#""required""#),
            (r#"{"type":"none"}"#, r#""none""#),
            (r#"{"type":"tool","name":"g"}"#, r#"{"type":"function","function":{"name":"g"}}"#),
        ] {
            let of = |tools: &str, choice: &str| format!(r#"{tools},"tool_choice":{choice}"#);
            let expected = tools(Api::Chat, &of(expected, same));
            assert_eq!(tools(Api::Messages, &of(asked, choice)), expected, "{choice}");
        }
        assert_eq!(tools(Api::Messages, r#""tools":[],"tool_choice":{"type":"auto"}"#), "null");
    }

    #[test]
    fn what_chats_alone_take_is_of_no_effect() {
        let fields = r#""reasoning":{},"chat_template_kwargs":[1],"reasoning_effort":"much","continue_final_message":true,"thinking":null"#;
        let body = format!(r#"{{"messages":[{{"role":"assistant","content":"a"}}],{fields}}}"#);
        assert_eq!(converted(&body), chat(r#"[{"role":"user","content":"a"}]"#));
    }

    #[test]
    fn whatever_is_turned_into_a_chat_otherwise_is_not_rendered() {
        let said = |role: &str, block: Json| json!({"messages": [{"role": "user", "content": "u"}, {"role": role, "content": [block]}]});
        let image = json!({"type": "image", "source": {"type": "url", "url": "u"}});
        for (role, block, reason) in [
            ("user", image.clone(), RenderError::Parts),
            ("user", json!({"type": "document", "source": {}}), RenderError::Parts),
            ("assistant", json!({"type": "thinking", "thinking": "t"}), RenderError::Parts),
            ("assistant", json!({"type": "redacted_thinking", "data": "d"}), RenderError::Parts),
            ("user", json!({"type": "search_result", "title": "t"}), RenderError::Blocks),
            ("user", json!({"type": "tool_reference", "name": "f"}), RenderError::Blocks),
            ("user", json!({"type": "tool_use", "id": "1", "name": "f", "input": {}}), RenderError::Blocks),
            ("assistant", json!({"type": "tool_result", "content": "r"}), RenderError::Blocks),
            ("system", json!({"type": "text", "text": "s"}), RenderError::Blocks),
            ("user", json!({"type": "tool_result", "content": [image]}), RenderError::Parts),
            (
                "user",
                json!({"type": "tool_result", "content": [{"type": "tool_reference", "tool_name": "f"}]}),
                RenderError::Blocks,
            ),
            ("assistant", json!({"type": "tool_use", "id": "", "name": "f"}), RenderError::Form),
            (
                "assistant",
                json!({"type": "tool_use", "id": "1", "name": "f", "input": []}),
                RenderError::Form,
            ),
            (
                "assistant",
                json!({"type": "tool_use", "id": "1", "name": "f", "input": null}),
                RenderError::Form,
            ),
            ("user", json!({"type": "text", "text": null}), RenderError::Form),
            ("user", json!({"text": "no type"}), RenderError::Form),
            ("tool", json!({"type": "text", "text": "t"}), RenderError::Form),
        ] {
            assert_eq!(refused(&said(role, block.clone())), reason, "{role} {block}");
        }
        let schema = json!({"type": "object"});
        for (fields, reason) in [
            (json!({"thinking": {"type": "disabled"}}), RenderError::Fields),
            (json!({"output_config": {"effort": "low"}}), RenderError::Fields),
            (json!({"system": [image]}), RenderError::Parts),
            (json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), RenderError::Fields),
            (
                json!({"tools": [{"name": "f", "input_schema": schema, "defer_loading": false}]}),
                RenderError::Fields,
            ),
            (
                json!({"tools": [{"name": "f", "input_schema": {"properties": {"p": {"type": "varchar"}}}}]}),
                RenderError::Fields,
            ),
            (json!({"tools": [{"name": "f"}]}), RenderError::Form),
            (json!({"tools": [{"name": "f", "input_schema": schema, "strict": null}]}), RenderError::Form),
            (json!({"tool_choice": {"type": "any"}}), RenderError::Form),
            (json!({"tool_choice": {"type": "perhaps"}}), RenderError::Form),
            (
                json!({"tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "tool", "name": "g"}}),
                RenderError::Form,
            ),
        ] {
            let mut body = json!({"messages": [{"role": "user", "content": "u"}]});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            assert_eq!(refused(&body), reason, "{fields}");
        }
    }
}
