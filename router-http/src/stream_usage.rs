//! Usage in OpenAI's streams, asked for on the client's behalf and kept from it.
//!
//! An OpenAI stream says how much of the prompt was cached only in one more event at its end, and only if the request asks for
//! it. The router needs to know; a client that did not ask must not see it.

use std::sync::LazyLock;

use bytes::{BufMut as _, Bytes, BytesMut};
use memchr::memmem::Finder;

use crate::events::{self, Events};

/// The member that asks.
const ASK: &[u8] = br#""stream_options":{"include_usage":true},"#;

/// What the event has and no other: no choice at all. Within a text its quotes would be escaped. Made once: it takes longer than a
/// search in an event.
static NO_CHOICES: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""choices":[]"#));
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""usage":{"#));

/// The same request, asking for usage. `body` is an object with members, none of which is `stream_options`.
pub(crate) fn asking(body: &Bytes) -> Bytes {
    let Some(open) = body.iter().position(|byte| *byte == b'{') else { return body.clone() };
    let (before, after) = body.split_at(open + 1);
    let mut asking = BytesMut::with_capacity(body.len() + ASK.len());
    asking.put(before);
    asking.put(ASK);
    asking.put(after);
    asking.freeze()
}

/// Takes the event out of a stream; all others pass as they are.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    events: Events,
}

impl Withheld {
    /// What the client gets of some data. That of an event that is not whole yet waits for the rest of it.
    pub(crate) fn pass(&mut self, data: Bytes) -> Option<Bytes> {
        let whole = self.events.push(data);
        let kept = if NO_CHOICES.find(&whole).is_some() { without(&whole) } else { whole };
        (!kept.is_empty()).then_some(kept)
    }

    /// The same of the last data, after which nothing waits.
    pub(crate) fn pass_last(&mut self, data: Bytes) -> Option<Bytes> {
        match (self.pass(data), self.rest()) {
            (Some(whole), Some(rest)) => Some([whole, rest].concat().into()),
            (whole, rest) => whole.or(rest),
        }
    }

    /// What waited, when nothing more comes.
    pub(crate) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.events.take_rest();
        (!rest.is_empty()).then_some(rest)
    }
}

fn without(whole: &[u8]) -> Bytes {
    let is_usage = |event: &[u8]| NO_CHOICES.find(event).is_some() && USAGE.find(event).is_some();
    events::each(whole)
        .filter(|event| !is_usage(event))
        .fold(BytesMut::new(), |mut kept, event| {
            kept.put(event);
            kept
        })
        .freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_request_is_the_same_but_for_what_it_asks() {
        let body = Bytes::from_static(b" {\n\"model\": \"m\", \"prompt\": \"{\", \"stream\": true}");
        let asked: Value = serde_json::from_slice(&asking(&body)).expect("it is JSON");
        let expected =
            json!({"model": "m", "prompt": "{", "stream": true, "stream_options": {"include_usage": true}});
        assert_eq!(asked, expected);
    }

    fn stream(usage: bool) -> String {
        let text = r#"\"choices\":[] \"usage\":{"#;
        let event = |text| format!("data: {{\"choices\":[{{\"text\":\"{text}\"}}],\"usage\":null}}\n\n");
        let usage = if usage { "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}}\n\n" } else { "" };
        // An engine's own event without choices is the client's.
        let own = "data: {\"choices\":[],\"sglext\":{}}\n\n";
        format!("{}{}{own}{usage}data: [DONE]\n\ncut", event("a"), event(text))
    }

    proptest! {
        #[test]
        fn nothing_else_is_missing_wherever_reads_end(
            mut cuts in prop::collection::vec(0..400_usize, 0..9),
            is_last_known: bool,
        ) {
            let sent = stream(true);
            cuts.retain(|cut| *cut < sent.len());
            cuts.sort_unstable();
            cuts.push(sent.len());
            let (mut withheld, mut from, mut got) = (Withheld::default(), 0, Vec::new());
            let mut take = |data: Option<Bytes>| got.extend_from_slice(&data.unwrap_or_default());
            for to in cuts {
                let data = Bytes::copy_from_slice(&sent.as_bytes()[from..to]);
                let is_last = is_last_known && to == sent.len();
                take(if is_last { withheld.pass_last(data) } else { withheld.pass(data) });
                from = to;
            }
            take(withheld.rest());
            prop_assert_eq!(String::from_utf8(got).expect("text"), stream(false));
        }
    }
}
