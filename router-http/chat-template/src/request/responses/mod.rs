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

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::content_format::ContentFormat;
    use crate::python::{JsonStyle, json as written};
    use crate::request::{Api, Chat};

    /// The messages that a template gets, as text: in the order of their members.
    fn messages(api: Api, body: &str) -> Result<String, RenderError> {
        let chat = Chat::read(api, body.as_bytes(), ContentFormat::Parts)?;
        Ok(written(&chat.messages, &JsonStyle::default()).unwrap())
    }

    fn of_items(place: SystemPlace, items: &str) -> Result<String, RenderError> {
        messages(Api::Responses(place), &format!(r#"{{"model":"m","input":{items}}}"#))
    }

    fn chat(of: &str) -> String {
        messages(Api::Chat, &format!(r#"{{"messages":{of}}}"#)).unwrap()
    }

    fn refused(fields: &Json) -> RenderError {
        let mut body = json!({"model": "m", "input": "u"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        messages(Api::Responses(SystemPlace::First), &body.to_string()).unwrap_err()
    }

    // The fixtures hold everything else against SGLang's own code.
    #[test]
    fn a_turn_of_the_assistants_is_one_message() {
        let items = r#"[
            {"role":"user","content":"q"},
            {"type":"reasoning","summary":[{"type":"summary_text","text":"r"}]},
            {"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"}],"phase":"commentary"},
            {"type":"function_call","call_id":"1","name":"f","arguments":"{\"b\":1}"},
            {"type":"message","role":"assistant","content":"b","phase":"commentary"},
            {"type":"function_call_output","call_id":"1","output":"o"}]"#;
        let expected = chat(
            r#"[
            {"role":"user","content":"q"},
            {"role":"assistant","content":[{"type":"text","text":"a"}],"phase":"commentary","reasoning_content":"r"},
            {"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":{"b":1}}}]},
            {"role":"assistant","content":"b","phase":"commentary"},
            {"role":"tool","tool_call_id":"1","content":"o"}]"#,
        );
        assert_eq!(of_items(SystemPlace::Own, items).unwrap(), expected);
    }

    /// Were each item copied with all before it, this would take minutes.
    #[test]
    fn a_turn_may_be_long() {
        const ITEMS: usize = 60_000;
        let text = "x".repeat(32);
        for (item, between) in [
            (json!({"role": "assistant", "content": text}), "\\n\\n"),
            (json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}), "\\n"),
        ] {
            let items =
                format!(r#"[{},{{"role":"user","content":"u"}}]"#, vec![item.to_string(); ITEMS].join(","));
            let messages = of_items(SystemPlace::Own, &items).unwrap();
            assert!(messages.contains(&vec![&*text; ITEMS].join(between)));
        }
        let names: serde_json::Map<String, Json> = (0..ITEMS).map(|i| (format!("n{i}"), json!(i))).collect();
        let body = json!({"model": "m", "input": "u", "chat_template_kwargs": names, "reasoning": {"effort": "low"}});
        let api = Api::Responses(SystemPlace::Own);
        let chat = Chat::read(api, body.to_string().as_bytes(), ContentFormat::Parts).unwrap();
        assert!(chat.kwargs.len() > ITEMS);
    }

    #[test]
    fn it_must_be_known_where_the_system_speaks_only_if_it_does_not_speak_first() {
        let later = r#"[{"role":"system","content":"a"},{"role":"user","content":"u"},{"role":"developer","content":"b"}]"#;
        let own = chat(
            r#"[{"role":"system","content":"a"},{"role":"user","content":"u"},{"role":"system","content":"Developer instructions:\nb"}]"#,
        );
        let first = chat(
            r#"[{"role":"system","content":"a\n\nDeveloper instructions:\nb"},{"role":"user","content":"u"}]"#,
        );
        assert_eq!(of_items(SystemPlace::Own, later).unwrap(), own);
        assert_eq!(of_items(SystemPlace::First, later).unwrap(), first);
        let parts = r#"[{"role":"system","content":[{"type":"input_text","text":"a"}]},{"role":"user","content":"u"}]"#;
        let named = r#"[{"role":"system","content":"a","name":"n"},{"role":"user","content":"u"}]"#;
        for unknown in [later, parts, named] {
            assert_eq!(of_items(SystemPlace::Unknown, unknown), Err(RenderError::Systems), "{unknown}");
        }
        for plain in [r#""u""#, r#"[{"role":"system","content":"a"},{"role":"user","content":"u"}]"#] {
            let known = of_items(SystemPlace::Own, plain).unwrap();
            assert_eq!(of_items(SystemPlace::First, plain).as_ref(), Ok(&known));
            assert_eq!(of_items(SystemPlace::Unknown, plain).as_ref(), Ok(&known));
        }
    }

    #[test]
    fn what_is_not_known_to_come_out_alike_is_not_rendered() {
        let packed = json!({"type": "reasoning", "encrypted_content": "sglang-reasoning-v1.eJwDAAAAAAE="});
        let cut = json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"a\":"});
        let image = json!({"role": "user", "content": [{"type": "input_image", "image_url": "u"}]});
        let of_developer = json!({"type": "reasoning", "role": "developer", "content": [{"text": "a"}]});
        // SGLang would take a thought with further members for more than one.
        let marked = json!({"role": "assistant", "reasoning_content": "r", "extra": 1});
        let typed = json!({"properties": {"p": {"type": "varchar"}}});
        for (fields, reason) in [
            (json!({"previous_response_id": "resp_1"}), RenderError::History),
            (json!({"reasoning": {"reasoning_effort": "none"}}), RenderError::Fields),
            (json!({"chat_template_kwargs": {"tokenize": true}}), RenderError::Fields),
            (json!({"tools": [{"type": "function", "name": "f", "parameters": typed}]}), RenderError::Fields),
            (json!({"input": [{"type": "item_reference", "id": "x"}]}), RenderError::Items),
            (json!({"input": [packed]}), RenderError::Items),
            (json!({"input": [of_developer]}), RenderError::Items),
            (json!({"input": [marked, {"role": "user", "content": "u"}]}), RenderError::Items),
            (json!({"input": [image]}), RenderError::Parts),
            (json!({"input": [cut]}), RenderError::Form),
            (json!({"input": []}), RenderError::Form),
            (json!({"input": null}), RenderError::Form),
            (json!({"model": null}), RenderError::Form),
            (json!({"tools": [{"type": "shell"}]}), RenderError::Form),
        ] {
            assert_eq!(refused(&fields), reason, "{fields}");
        }
    }
}
