//! What an answer says, by whichever API it came: the text that was generated, if that is all.
//!
//! Of an answer in one piece only the member that has it is read into anything, and it must hold one text and nothing beside it: an
//! engine that takes reasoning or calls out of what was generated puts them there. Events are told by their first lines.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;

use super::RouteKind;
use super::answer::{self, Told};
use super::scan::string_end;

/// A piece of an answer.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    text: Option<String>,
}

/// An answer of Anthropic's API.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: [Part<'a>; 1],
}

/// An answer of the responses API.
#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    output: [Item<'a>; 1],
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    content: [Part<'a>; 1],
}

/// A line of an answer of Ollama's API.
#[derive(Deserialize)]
struct Line {
    message: Content,
}

#[derive(Deserialize)]
struct Content {
    content: String,
}

impl Part<'_> {
    fn text_of(self, kind: &str) -> Option<String> {
        self.text.filter(|_| self.kind == kind)
    }
}

/// The text of a whole answer, if that is all it generated.
pub(crate) fn only_text(route: RouteKind, body: &[u8]) -> Option<Cow<'_, str>> {
    match route {
        RouteKind::Messages => {
            let Message { content: [part] } = serde_json::from_slice(body).ok()?;
            part.text_of("text").map(Cow::Owned)
        }
        RouteKind::Responses => {
            let Response { output: [Item { content: [part] }] } = serde_json::from_slice(body).ok()?;
            part.text_of("output_text").map(Cow::Owned)
        }
        _ => answer::only_text(body, route == RouteKind::Chat),
    }
}

/// The text of a line of Ollama's API: of a whole answer, or what is new; none in an empty one.
pub(crate) fn line(line: &[u8]) -> Option<String> {
    if line.trim_ascii().is_empty() {
        return Some(String::new());
    }
    serde_json::from_slice(line).ok().map(|line: Line| line.message.content)
}

/// What an event of a stream tells of the text.
pub(crate) fn told(route: RouteKind, event: &[u8]) -> Told<'_> {
    let begins =
        |name: &str| event.strip_prefix(b"event: ").is_some_and(|rest| rest.starts_with(name.as_bytes()));
    let has = |needle: &Finder<'_>| needle.find(event).is_some();
    match route {
        RouteKind::Messages if begins("content_block_delta\n") => match has(&FIRST_BLOCK) {
            true => text_after(&TEXT_DELTA, event),
            false => Told::Unclear,
        },
        RouteKind::Messages if begins("content_block_start\n") => match has(&FIRST_BLOCK) && has(&TEXT_BLOCK)
        {
            true => Told::Nothing,
            false => Told::Unclear,
        },
        RouteKind::Responses if begins("response.output_text.delta\n") => match has(&FIRST_ITEM) {
            true => text_after(&DELTA, event),
            false => Told::Unclear,
        },
        RouteKind::Responses if begins("response.output_item.added\n") => {
            match has(&FIRST_ITEM) && has(&MESSAGE) {
                true => Told::Nothing,
                false => Told::Unclear,
            }
        }
        RouteKind::Messages | RouteKind::Responses => Told::Nothing,
        _ => answer::told(event, route == RouteKind::Chat),
    }
}

/// The text whose key the needle ends with; without it something else is told.
fn text_after<'a>(needle: &Finder<'_>, event: &'a [u8]) -> Told<'a> {
    let text = needle.find(event).and_then(|at| {
        let quote = at + needle.needle().len() - 1;
        Some(&event[quote + 1..string_end(event, quote)? - 1])
    });
    text.map_or(Told::Unclear, Told::Text)
}

/// Members as engines write them, without spaces. None of them can stand within a text, where quotes are escaped.
type Needle = LazyLock<Finder<'static>>;

static FIRST_BLOCK: Needle = LazyLock::new(|| Finder::new("\"index\":0,"));
static TEXT_BLOCK: Needle = LazyLock::new(|| Finder::new("\"type\":\"text\""));
static TEXT_DELTA: Needle = LazyLock::new(|| Finder::new("\"type\":\"text_delta\",\"text\":\""));
static FIRST_ITEM: Needle = LazyLock::new(|| Finder::new("\"output_index\":0,"));
static MESSAGE: Needle = LazyLock::new(|| Finder::new("\"type\":\"message\""));
static DELTA: Needle = LazyLock::new(|| Finder::new("\"delta\":\""));

#[cfg(test)]
mod tests {
    use RouteKind::{Messages, Responses};

    use super::*;

    #[test]
    fn the_one_text_of_an_answer_is_found() {
        let message = br#"{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"text","text":"a\n"}],"model":"m","usage":{"input_tokens":1}}"#;
        assert_eq!(only_text(Messages, message).as_deref(), Some("a\n"));
        let response = br#"{"id":"resp_1","tools":[{"text":"no"}],"output":[{"id":"msg_1","content":[{"annotations":[],"text":"a\"b","type":"output_text","logprobs":null}],"role":"assistant","type":"message"}],"text":{"format":{"type":"text"}}}"#;
        assert_eq!(only_text(Responses, response).as_deref(), Some("a\"b"));
        let whole =
            br#"{"model":"m","message":{"role":"assistant","content":"a\nb","images":null},"done":true}"#;
        assert_eq!(line(whole).as_deref(), Some("a\nb"));
        assert_eq!(line(b"\r").as_deref(), Some(""));
        assert_eq!((line(br#"{"error":"no"}"#), line(b"{\"message\"")), (None, None));
    }

    #[test]
    fn what_is_not_all_of_it_is_not_taken() {
        for (route, body) in [
            (Messages, &br#"{"content":[{"type":"thinking","thinking":"t"},{"type":"text","text":"a"}]}"#[..]),
            (Messages, br#"{"content":[{"type":"text","text":"a"},{"type":"tool_use","id":"1","name":"f","input":{}}]}"#),
            (Messages, br#"{"content":[{"type":"thinking","text":"t"}]}"#),
            (Messages, br#"{"content":[]}"#),
            (Messages, br#"{"type":"error","error":{"message":"no"}}"#),
            (Responses, br#"{"output":[{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"r"}]}]}"#),
            (Responses, br#"{"output":[{"type":"reasoning","summary":[]},{"content":[{"type":"output_text","text":"a"}]}]}"#),
            (Responses, br#"{"output":[{"type":"function_call","name":"f","arguments":"{}"}]}"#),
            (Responses, br#"{"output":[],"status":"queued"}"#),
        ] {
            assert_eq!(only_text(route, body), None, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn events_tell_text_and_whatever_else_was_generated() {
        let of_messages =
            |name: &str, rest: &str| format!("event: {name}\ndata: {{\"type\":\"{name}\",{rest}}}\n\n");
        let of_responses =
            |name: &str, rest: &str| format!("event: {name}\ndata: {{{rest},\"type\":\"{name}\"}}\n\n");
        let unclear =
            |route, event: &str| assert_eq!(told(route, event.as_bytes()), Told::Unclear, "{event}");
        let nothing =
            |route, event: &str| assert_eq!(told(route, event.as_bytes()), Told::Nothing, "{event}");
        let delta =
            of_messages("content_block_delta", r#""index":0,"delta":{"type":"text_delta","text":"a\"b"}"#);
        assert_eq!(told(Messages, delta.as_bytes()), Told::Text(br#"a\"b"#));
        nothing(Messages, &of_messages("message_start", r#""message":{"content":[]}"#));
        nothing(
            Messages,
            &of_messages("content_block_start", r#""index":0,"content_block":{"type":"text","text":""}"#),
        );
        for rest in [
            r#""index":0,"content_block":{"type":"thinking","thinking":""}"#,
            r#""index":1,"content_block":{"type":"text","text":""}"#,
            r#""index":0,"content_block":{"type":"tool_use","id":"1","name":"text","input":{}}"#,
        ] {
            unclear(Messages, &of_messages("content_block_start", rest));
        }
        for rest in [
            r#""index":1,"delta":{"type":"text_delta","text":"a"}"#,
            r#""index":0,"delta":{"type":"thinking_delta","thinking":"a"}"#,
            r#""index":0,"delta":{"type":"input_json_delta","partial_json":"{"}"#,
        ] {
            unclear(Messages, &of_messages("content_block_delta", rest));
        }
        let text = "response.output_text.delta";
        let delta = of_responses(
            text,
            r#""content_index":0,"delta":"a","item_id":"m","output_index":0,"sequence_number":4"#,
        );
        assert_eq!(told(Responses, delta.as_bytes()), Told::Text(b"a"));
        unclear(Responses, &of_responses(text, r#""delta":"a","output_index":1,"sequence_number":4"#));
        let item = "response.output_item.added";
        nothing(
            Responses,
            &of_responses(item, r#""item":{"type":"message"},"output_index":0,"sequence_number":2"#),
        );
        unclear(
            Responses,
            &of_responses(item, r#""item":{"type":"reasoning"},"output_index":0,"sequence_number":2"#),
        );
        unclear(
            Responses,
            &of_responses(item, r#""item":{"type":"message"},"output_index":1,"sequence_number":2"#),
        );
        nothing(Responses, &of_responses("response.completed", r#""response":{"output":[{"delta":"x"}]}"#));
    }
}
