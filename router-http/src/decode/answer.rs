//! What an answer generated, found without reading the rest of it. What is not as expected is `None`.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::ids::ids;
use super::scan::{Members, string_end};
use super::text::string;
use crate::decimal;

/// An answer of `/generate`, or one of its events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Native<'a> {
    /// As it stands in JSON.
    pub(crate) text: Option<&'a [u8]>,
    pub(crate) ids: Option<Vec<u32>>,
    pub(crate) completion_tokens: Option<u64>,
}

/// Reads an answer of `/generate`.
pub(crate) fn native(json: &[u8]) -> Option<Native<'_>> {
    let (mut members, mut native) = (Members::of(json)?, Native::default());
    while let Some(key) = members.key()? {
        match &*key {
            b"text" => native.text = Some(members.value()?),
            b"output_ids" => native.ids = ids(members.value()?),
            b"meta_info" => {
                let tokens = member(members.value()?, b"completion_tokens")?;
                native.completion_tokens = decimal::number(tokens);
            }
            _ => _ = members.value()?,
        }
    }
    Some(native)
}

/// What an answer of `/v1/completions` or `/v1/chat/completions`, or one of its events, tells of its text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told<'a> {
    Nothing,
    /// As it stands in JSON between its quotes.
    Text(&'a [u8]),
    /// There are several answers, or more than text: what an engine takes out of a chat's text is not known as it was.
    Unclear,
}

/// The text of an answer or of one of its events.
pub(crate) fn told(json: &[u8], is_chat: bool) -> Told<'_> {
    match quote(json, is_chat) {
        Ok(None) => Told::Nothing,
        Ok(Some(at)) => string_end(json, at).map_or(Told::Nothing, |end| Told::Text(&json[at + 1..end - 1])),
        Err(Unclear) => Told::Unclear,
    }
}

/// The text of a whole answer, if that is all it generated.
pub(crate) fn only_text(json: &[u8], is_chat: bool) -> Option<Cow<'_, str>> {
    let at = quote(json, is_chat).ok()??;
    let (text, end) = string(json, at)?;
    key(is_chat).find(&json[end..]).is_none().then_some(text)
}

struct Unclear;

/// Where the text begins, which alone is looked for: within a text the quotes of what stands before it would be escaped.
fn quote(json: &[u8], is_chat: bool) -> Result<Option<usize>, Unclear> {
    if is_chat && [&REASONING, &TOOLS].into_iter().any(|name| says(json, name)) {
        return Err(Unclear);
    }
    let Some(at) = key(is_chat).find(json) else { return Ok(None) };
    let is_first = after(&INDEX, json).is_none_or(|index| index.starts_with(b"0"));
    if is_first { Ok(Some(at + key(is_chat).needle().len() - 1)) } else { Err(Unclear) }
}

/// What stands before the text, written without spaces as the engine does it.
fn key(is_chat: bool) -> &'static Finder<'static> {
    if is_chat { &CONTENT } else { &TEXT }
}

/// Made once: it takes longer than a search in a short answer.
type Needle = LazyLock<Finder<'static>>;

static CONTENT: Needle = LazyLock::new(|| Finder::new("\"content\":\""));
static TEXT: Needle = LazyLock::new(|| Finder::new("\"text\":\""));
static INDEX: Needle = LazyLock::new(|| Finder::new("\"index\":"));

/// What an engine takes out of a chat's generated text.
static REASONING: Needle = LazyLock::new(|| Finder::new("\"reasoning_content\":"));
static TOOLS: Needle = LazyLock::new(|| Finder::new("\"tool_calls\":"));

/// What follows the first `name`.
fn after<'j>(name: &Finder<'_>, json: &'j [u8]) -> Option<&'j [u8]> {
    name.find(json).map(|at| &json[at + name.needle().len()..])
}

/// A member is there, and not null.
fn says(json: &[u8], name: &Finder<'_>) -> bool {
    after(name, json).is_some_and(|value| !value.trim_ascii_start().starts_with(b"null"))
}

/// A text, of JSON that is nothing else.
pub(crate) fn text(json: &[u8]) -> Option<Cow<'_, str>> {
    string(json, 0).filter(|(_, end)| *end == json.len()).map(|(text, _)| text)
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
        let expected = Native { text: Some(br#""a\n""#), ids: Some(vec![1, 2]), completion_tokens: Some(2) };
        assert_eq!(native(json), Some(expected));
        assert_eq!(native(br#"{"error":{}}"#), Some(Native::default()));
        assert_eq!(
            only_text(br#"{"id": "x", "choices": [{"text":"a\n","index":0}]}"#, false),
            Some("a\n".into())
        );
        let message = br#"{"choices":[{"message":{"content":"a","tool_calls":null}}]}"#;
        assert_eq!(only_text(message, true), Some("a".into()));
        assert_eq!(told(br#"{"text":"a\"b""#, false), Told::Text(br#"a\"b"#));
        assert_eq!(text(br#""a\"""#), Some("a\"".into()));
    }

    #[test]
    fn what_is_not_all_or_not_one_is_not_taken() {
        for (is_chat, json) in [
            (false, &br#"{"choices":[{"text":"a"},{"text":"b"}]}"#[..]),
            (false, br#"{"choices":[{"index":1,"text":"a"}]}"#),
            (false, br#"{"choices":[]}"#),
            (false, br#"{"choices":[{"text":null}]}"#),
            (true, br#"{"choices":[{"message":{"content":"a","tool_calls":[{}]}}]}"#),
            (true, br#"{"choices":[{"message":{"content":"a","reasoning_content":"b"}}]}"#),
            (true, br#"{"choices":[{"message":{"content":null}}]}"#),
            (true, br#"{"error":{}}"#),
            (true, b""),
        ] {
            assert_eq!(only_text(json, is_chat), None, "{}", json.escape_ascii());
        }
        assert_eq!(text(br#""a" "#), None);
        assert_eq!(native(br#"{"meta_info":{}}"#), None);
    }
}
