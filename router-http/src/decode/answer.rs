//! What an answer generated, found without reading the rest of it. What is not as expected is `None`.

use std::borrow::Cow;

use super::quick::optional_string;
use super::scan::{Members, ids};
use super::text::string;

/// An answer of `/generate`, or one of its events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Native<'a> {
    pub(crate) text: Option<Cow<'a, str>>,
    pub(crate) ids: Option<Vec<u32>>,
    pub(crate) completion_tokens: Option<u64>,
}

/// Reads an answer of `/generate`.
pub(crate) fn native(json: &[u8]) -> Option<Native<'_>> {
    let (mut members, mut native) = (Members::of(json)?, Native::default());
    while let Some(key) = members.key()? {
        match &*key {
            b"text" => native.text = optional_string(&mut members)?,
            b"output_ids" => native.ids = ids(members.value()?),
            b"meta_info" => {
                let tokens = member(members.value()?, b"completion_tokens")?;
                native.completion_tokens = std::str::from_utf8(tokens).ok()?.parse().ok();
            }
            _ => _ = members.value()?,
        }
    }
    Some(native)
}

/// The text of the only choice of an answer of `/v1/completions` or `/v1/chat/completions`, if that is all it generated: what an
/// engine takes out of a chat's text is not known as it was.
pub(crate) fn only_choice(json: &[u8]) -> Option<Cow<'_, str>> {
    let choice = member(json, b"choices")?.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let (mut members, mut text) = (Members::of(choice)?, None);
    while let Some(key) = members.key()? {
        match &*key {
            b"text" => text = optional_string(&mut members)?,
            b"message" => text = Some(content(members.value()?)?),
            _ => _ = members.value()?,
        }
    }
    text
}

/// A text, of JSON that is nothing else.
pub(crate) fn text(json: &[u8]) -> Option<Cow<'_, str>> {
    string(json, 0).filter(|(_, end)| *end == json.len()).map(|(text, _)| text)
}

/// The content of a message that has nothing else.
fn content(message: &[u8]) -> Option<Cow<'_, str>> {
    let (mut members, mut content) = (Members::of(message)?, None);
    while let Some(key) = members.key()? {
        match &*key {
            b"content" => content = optional_string(&mut members)?,
            b"reasoning_content" | b"tool_calls" if members.value()? != b"null" => return None,
            b"reasoning_content" | b"tool_calls" => {}
            _ => _ = members.value()?,
        }
    }
    content
}

/// A member of an object, as it stands there.
fn member<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut members = Members::of(object)?;
    while let Some(key) = members.key()? {
        let value = members.value()?;
        if *key == *name {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_generated_is_found() {
        let json = br#"{ "text": "a\n", "output_ids": [1, 2], "meta_info": {"x": {"completion_tokens": 9}, "completion_tokens": 2} }"#;
        let expected = Native { text: Some("a\n".into()), ids: Some(vec![1, 2]), completion_tokens: Some(2) };
        assert_eq!(native(json), Some(expected));
        assert_eq!(native(br#"{"error":{}}"#), Some(Native::default()));
        assert_eq!(only_choice(br#"{"id": "x", "choices": [ {"text": "a"} ], "usage"#), Some("a".into()));
        let message = br#"{"choices":[{"message":{"content":"a","tool_calls":null}}]}"#;
        assert_eq!(only_choice(message), Some("a".into()));
        assert_eq!(text(br#""a\"""#), Some("a\"".into()));
    }

    #[test]
    fn what_is_not_all_or_not_one_is_not_taken() {
        for json in [
            &br#"{"choices":[{"text":"a"},{"text":"b"}]}"#[..],
            br#"{"choices":[]}"#,
            br#"{"choices":[{"text":null}]}"#,
            br#"{"choices":[{"message":{"content":"a","tool_calls":[{}]}}]}"#,
            br#"{"choices":[{"message":{"content":"a","reasoning_content":"b"}}]}"#,
            br#"{"choices":[{"message":{"content":null}}]}"#,
            br#"{"error":{}}"#,
            b"",
        ] {
            assert_eq!(only_choice(json), None, "{}", json.escape_ascii());
        }
        assert_eq!(text(br#""a" "#), None);
        assert_eq!(native(br#"{"meta_info":{}}"#), None);
    }
}
