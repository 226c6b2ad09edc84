//! What a stream has generated, and how the events of the worker that goes on with it are told as its own.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::decode::RouteKind;
use crate::events;

/// What has been generated so far.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    kind: RouteKind,
    text: String,
    ids: Vec<u32>,
    tokens: u64,
    /// Of the request, by the engine.
    id: Option<String>,
    created: Option<Value>,
    /// The last token has been told.
    finished: bool,
    /// Something was told that is not understood, or more than is known here.
    unclear: bool,
}

/// An event of `/generate`.
#[derive(Deserialize)]
struct Native<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    output_ids: Vec<u32>,
    meta_info: MetaInfo<'a>,
}

#[derive(Deserialize)]
struct MetaInfo<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    completion_tokens: u64,
    finish_reason: Option<IgnoredAny>,
}

/// An event of `/v1/completions`.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    created: Value,
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
    #[serde(default)]
    usage: Option<Counted>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    finish_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Counted {
    completion_tokens: u64,
}

/// What an engine shows of bytes that are no whole letter yet.
const HALF_A_LETTER: char = '\u{fffd}';

impl Progress {
    /// Nothing yet.
    pub(super) fn of(kind: RouteKind) -> Self {
        let (text, ids, finished, unclear) = (String::new(), Vec::new(), false, false);
        Self { kind, text, ids, tokens: 0, id: None, created: None, finished, unclear }
    }

    /// The ids of all tokens, if they are known.
    pub(super) fn ids(&self) -> Option<&[u32]> {
        let known = !self.unclear && self.ids.len() as u64 == self.tokens;
        known.then_some(&self.ids)
    }

    /// All text, if it is known.
    pub(super) fn text(&self) -> Option<&str> {
        let known = !self.unclear && !self.text.ends_with(HALF_A_LETTER);
        known.then_some(&self.text)
    }

    /// How many there are. An OpenAI stream that does not count them is taken to have one in each event.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Nothing more is generated.
    pub(super) fn is_finished(&self) -> bool {
        self.finished && !self.unclear
    }

    /// Takes in whole events that pass to the client.
    pub(super) fn see(&mut self, whole: &[u8]) {
        for data in events::each(whole).filter_map(events::data) {
            if data != b"[DONE]" && self.take(data).is_none() {
                self.unclear = true;
            }
        }
    }

    fn take(&mut self, data: &[u8]) -> Option<()> {
        if self.kind == RouteKind::Generate {
            let event: Native<'_> = serde_json::from_slice(data).ok()?;
            let said = event.meta_info.completion_tokens;
            let text = event.text.unwrap_or_default();
            // Engines tell either all that there is, or what is new, in text and tokens alike.
            if event.output_ids.len() as u64 == said {
                (self.ids, self.text) = (event.output_ids, text.into_owned());
            } else {
                (self.ids.len() + event.output_ids.len() == usize::try_from(said).ok()?).then_some(())?;
                self.ids.extend(event.output_ids);
                self.text.push_str(&text);
            }
            self.tokens = said;
            self.finished |= event.meta_info.finish_reason.is_some();
            self.id.get_or_insert_with(|| event.meta_info.id.into_owned());
            return Some(());
        }
        let chunk: Chunk<'_> = serde_json::from_slice(data).ok()?;
        for choice in &chunk.choices {
            self.text.push_str(&choice.text);
            self.tokens += u64::from(!choice.text.is_empty());
            self.finished |= choice.finish_reason.is_some();
        }
        if let Some(usage) = chunk.usage {
            self.tokens = usage.completion_tokens;
        }
        self.id.get_or_insert_with(|| chunk.id.into_owned());
        self.created.get_or_insert(chunk.created);
        Some(())
    }

    /// Tells whole events of the worker that goes on as those of one generation. What is not understood passes as it is.
    pub(super) fn join(&self, whole: &[u8]) -> Vec<u8> {
        let mut told = Vec::with_capacity(whole.len() + 256);
        for event in events::each(whole) {
            match events::data(event).and_then(|data| self.joined(data)) {
                Some(data) => told.extend_from_slice(format!("data: {data}\n\n").as_bytes()),
                None => told.extend_from_slice(event),
            }
        }
        told
    }

    fn joined(&self, data: &[u8]) -> Option<Value> {
        let mut event: Value = serde_json::from_slice(data).ok()?;
        if self.kind == RouteKind::Generate {
            let said = event.get("meta_info")?.get("completion_tokens")?.as_u64()?;
            let ids = event.get("output_ids")?.as_array()?;
            if ids.len() as u64 == said {
                let ids: Vec<Value> =
                    self.ids.iter().map(|id| json!(id)).chain(ids.iter().cloned()).collect();
                event["output_ids"] = ids.into();
                if let Some(text) = event.get("text").and_then(Value::as_str) {
                    event["text"] = format!("{}{text}", self.text).into();
                }
            }
            let meta_info = &mut event["meta_info"];
            self.recount(meta_info);
            meta_info["id"] = self.id.clone().into();
            if let Some(length) = meta_info["finish_reason"].get_mut("length") {
                *length = json!(length.as_u64()? + self.tokens);
            }
            return Some(event);
        }
        event.get("choices")?;
        event["id"] = self.id.clone().into();
        event["created"] = self.created.clone().into();
        if event["usage"].is_object() {
            self.recount(&mut event["usage"]);
        }
        Some(event)
    }

    /// What was generated before was no part of the prompt, whatever the worker thinks that went on.
    fn recount(&self, counts: &mut Value) {
        let count = |name: &str| counts.get(name).and_then(Value::as_u64);
        let prompt = count("prompt_tokens").map(|tokens| tokens.saturating_sub(self.tokens));
        let completion = count("completion_tokens").map(|tokens| tokens + self.tokens);
        let cached = count("cached_tokens");
        if let (Some(prompt), Some(completion)) = (prompt, completion) {
            counts["prompt_tokens"] = prompt.into();
            counts["completion_tokens"] = completion.into();
            if let Some(cached) = cached {
                counts["cached_tokens"] = cached.min(prompt).into();
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What is known after some tokens of `/generate`.
    pub(in super::super) fn native_of(ids: &[u32]) -> Progress {
        let mut progress = Progress::of(RouteKind::Generate);
        progress.see(native(ids, ids.len(), "a", None).as_bytes());
        progress
    }

    /// What is known after some events of `/v1/completions`.
    pub(in super::super) fn completions_of(texts: &[&str]) -> Progress {
        let mut progress = Progress::of(RouteKind::Completions);
        texts.iter().for_each(|text| progress.see(chunk("first", text, None).as_bytes()));
        progress
    }

    fn native(ids: &[u32], count: usize, text: &str, finish: Option<&str>) -> String {
        let finish = finish.map(|kind| json!({"type": kind, "length": count}));
        let meta_info = json!({"id": "x", "prompt_tokens": 10, "completion_tokens": count, "cached_tokens": 11,
            "finish_reason": finish});
        format!("data: {}\n\n", json!({"text": text, "output_ids": ids, "meta_info": meta_info}))
    }

    fn chunk(id: &str, text: &str, usage: Option<u64>) -> String {
        let usage = usage.map(
            |tokens| json!({"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}),
        );
        let choice = json!({"index": 0, "text": text, "finish_reason": null});
        format!("data: {}\n\n", json!({"id": id, "created": 5, "choices": [choice], "usage": usage}))
    }

    fn events_of(told: &[u8]) -> Vec<Value> {
        let data = events::each(told).filter_map(events::data);
        data.map(|data| serde_json::from_slice(data).expect("it is JSON")).collect()
    }

    #[test]
    fn events_that_tell_all_and_events_that_tell_what_is_new_come_to_the_same() {
        let mut all = Progress::of(RouteKind::Generate);
        all.see((native(&[1], 1, "a", None) + &native(&[1, 2, 3], 3, "abc", None)).as_bytes());
        let mut new = Progress::of(RouteKind::Generate);
        new.see((native(&[1], 1, "a", None) + &native(&[2, 3], 3, "bc", None)).as_bytes());
        for progress in [&all, &new] {
            assert_eq!((progress.ids(), progress.text()), (Some(&[1, 2, 3][..]), Some("abc")));
            assert_eq!((progress.tokens(), progress.is_finished()), (3, false));
        }
        all.see((native(&[1, 2, 3, 4], 4, "abcd", Some("length")) + "data: [DONE]\n\n").as_bytes());
        assert!(all.is_finished());
    }

    #[test]
    fn gaps_and_errors_are_not_gone_on_from() {
        let mut gap = native_of(&[1]);
        gap.see(native(&[3], 3, "c", None).as_bytes());
        assert_eq!((gap.ids(), gap.text()), (None, None));
        let mut error = native_of(&[1]);
        error.see(b"data: {\"error\": {\"message\": \"no\"}}\n\n");
        assert_eq!((error.ids(), error.is_finished()), (None, false));
    }

    #[test]
    fn what_goes_on_is_told_as_one_generation() {
        let progress = native_of(&[1, 2]);
        let told = progress.join(native(&[3], 1, "b", Some("length")).as_bytes());
        let event = &events_of(&told)[0];
        assert_eq!((&event["text"], &event["output_ids"]), (&json!("ab"), &json!([1, 2, 3])));
        let meta_info = &event["meta_info"];
        assert_eq!((&meta_info["prompt_tokens"], &meta_info["completion_tokens"]), (&json!(8), &json!(3)));
        assert_eq!(meta_info["cached_tokens"], 8, "no more than there is");
        assert_eq!(meta_info["finish_reason"], json!({"type": "length", "length": 3}));

        let new = progress.join(native(&[4], 2, "c", None).as_bytes());
        assert_eq!(events_of(&new)[0]["output_ids"], json!([4]), "an engine that tells what is new");
    }

    #[test]
    fn chunks_keep_the_first_id_and_count_on() {
        let progress = completions_of(&["a", "b"]);
        let told = progress.join((chunk("second", "c", Some(1)) + "data: [DONE]\n\n").as_bytes());
        assert!(told.ends_with(b"data: [DONE]\n\n"));
        let event: Value =
            serde_json::from_slice(events::each(&told).find_map(events::data).expect("an event"))
                .expect("JSON");
        assert_eq!((&event["id"], &event["usage"]["completion_tokens"]), (&json!("first"), &json!(3)));
        assert_eq!(
            (&event["usage"]["prompt_tokens"], &event["usage"]["total_tokens"]),
            (&json!(7), &json!(10))
        );
    }
}
