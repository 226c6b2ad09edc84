//! Requests whose streams can go on elsewhere, and how the rest of one is asked for.
//!
//! A request qualifies only if all that it says is known here, and none of it needs what the lost worker kept of the generation
//! beside the tokens: no log probabilities, no grammars, no penalties for what was generated, no seed, no session. It must say
//! how long its answer may become, since an engine's default may be any.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::progress::Progress;
use crate::decode::RouteKind;

/// What is known of a request that may go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Original {
    kind: RouteKind,
    prompt: Prompt,
    /// What was used may be told after the last token.
    tells_usage: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prompt {
    Text,
    Tokens,
}

/// The members of an object, unread.
type Members<'a> = BTreeMap<Cow<'a, str>, Cow<'a, RawValue>>;

const SAMPLING: &str = "sampling_params";

impl Original {
    /// `None` if the rest of the answer could not be asked for.
    pub(super) fn of(kind: RouteKind, body: &[u8]) -> Option<Self> {
        let members = members(body)?;
        let (prompt, sampling) = match kind {
            RouteKind::Generate => {
                let prompt = match (members.get("text"), members.get("input_ids")) {
                    (Some(text), None) if is_text(text) => Prompt::Text,
                    (None, Some(ids)) if is_list_of_ids(ids) => Prompt::Tokens,
                    _ => return None,
                };
                (prompt, Some(self::members(members.get(SAMPLING)?.get().as_bytes())?))
            }
            RouteKind::Completions if is_text(members.get("prompt")?) => (Prompt::Text, None),
            _ => return None,
        };
        let limits = sampling.as_ref().unwrap_or(&members);
        let known = members.iter().all(|(name, value)| is_request_member(kind, name, value.get()));
        let known_sampling = limits.iter().all(|(name, value)| {
            sampling.is_none() && is_request_member(kind, name, value.get())
                || is_sampling_member(kind, name, value.get())
        });
        let complete = members.contains_key("stream") && limits.contains_key(most(kind));
        let known = match sampling {
            Some(_) => known && known_sampling,
            None => known_sampling,
        };
        let tells_usage = members.get("stream_options").is_some_and(|options| options.get() != "null");
        (known && complete).then_some(Self { kind, prompt, tells_usage })
    }

    /// Nothing but the end follows the event that has the last token.
    pub(super) fn ends_with_its_last_token(self) -> bool {
        !self.tells_usage
    }

    /// The body of a request for what comes after `progress`; `None` if it could not be the same generation.
    pub(super) fn rest(self, body: &[u8], progress: &Progress) -> Option<Vec<u8>> {
        let mut members = members(body)?;
        let name = match (self.kind, self.prompt) {
            (RouteKind::Generate, Prompt::Tokens) => "input_ids",
            (RouteKind::Generate, Prompt::Text) => "text",
            _ => "prompt",
        };
        let prompt = members.get(name)?;
        let longer = match self.prompt {
            Prompt::Tokens => longer_list(prompt.get(), progress.ids()?),
            Prompt::Text => longer_text(prompt.get(), progress.text()?),
        }?;
        members.insert(name.into(), Cow::Owned(longer));
        if self.kind == RouteKind::Generate {
            let sampling = members.get(SAMPLING)?.get().to_owned();
            let mut sampling = self::members(sampling.as_bytes())?;
            shorten(self.kind, &mut sampling, progress.tokens())?;
            let sampling = serde_json::value::to_raw_value(&sampling).ok()?;
            members.insert(SAMPLING.into(), Cow::Owned(sampling));
        } else {
            shorten(self.kind, &mut members, progress.tokens())?;
        }
        serde_json::to_vec(&members).ok()
    }
}

fn members(body: &[u8]) -> Option<Members<'_>> {
    #[derive(serde::Deserialize)]
    #[serde(transparent)]
    struct Borrowed<'a>(#[serde(borrow)] BTreeMap<Name<'a>, &'a RawValue>);
    let Borrowed(members) = serde_json::from_slice(body).ok()?;
    Some(members.into_iter().map(|(name, value)| (name.0, Cow::Borrowed(value))).collect())
}

/// A name that is borrowed where it has no escapes.
#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The member that says how many tokens there may be.
fn most(kind: RouteKind) -> &'static str {
    if kind == RouteKind::Generate { "max_new_tokens" } else { "max_tokens" }
}

fn least(kind: RouteKind) -> &'static str {
    if kind == RouteKind::Generate { "min_new_tokens" } else { "min_tokens" }
}

/// So many tokens have been generated already. `None` if that is all of them.
fn shorten(kind: RouteKind, members: &mut Members<'_>, by: u64) -> Option<()> {
    let bound =
        |members: &Members<'_>, name| members.get(name).and_then(|bound| bound.get().parse::<u64>().ok());
    let raw = |bound: u64| serde_json::value::to_raw_value(&bound).ok().map(Cow::Owned);
    let left = bound(members, most(kind))?.checked_sub(by).filter(|left| *left > 0)?;
    members.insert(most(kind).into(), raw(left)?);
    if let Some(bound) = bound(members, least(kind)) {
        members.insert(least(kind).into(), raw(bound.saturating_sub(by))?);
    }
    Some(())
}

fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

/// One prompt, not several.
fn is_list_of_ids(value: &RawValue) -> bool {
    let inside = value.get().strip_prefix('[').map(str::trim_ascii_start);
    inside.is_some_and(|inside| inside.starts_with(|first: char| first.is_ascii_digit()))
}

/// The request may say it, and the rest of it can be asked for all the same.
fn is_request_member(kind: RouteKind, name: &str, value: &str) -> bool {
    match name {
        "stream" => value == "true",
        "model" | "rid" | "lora_path" | "cache_salt" | "extra_key" | "priority" | "routed_dp_rank"
        | "data_parallel_rank" | "custom_labels" => true,
        "return_logprob"
        | "return_hidden_states"
        | "return_text_in_logprobs"
        | "return_token_ids"
        | "echo" => {
            matches!(value, "false" | "null")
        }
        "text" | "input_ids" | SAMPLING | "log_metrics" => kind == RouteKind::Generate,
        "prompt" | "user" | "stream_options" => kind == RouteKind::Completions,
        "n" | "best_of" if kind == RouteKind::Completions => matches!(value, "1" | "null"),
        _ => value == "null",
    }
}

/// Sampling may depend on it, but not on what was generated under it before.
fn is_sampling_member(kind: RouteKind, name: &str, value: &str) -> bool {
    let number = || value.parse::<f64>().ok();
    match name {
        "temperature"
        | "top_p"
        | "top_k"
        | "min_p"
        | "stop"
        | "stop_token_ids"
        | "ignore_eos"
        | "logit_bias"
        | "skip_special_tokens"
        | "spaces_between_special_tokens"
        | "no_stop_trim" => true,
        "frequency_penalty" | "presence_penalty" => number() == Some(0.0),
        "repetition_penalty" => number() == Some(1.0),
        "n" => value == "1",
        _ if name == most(kind) || name == least(kind) => value.parse::<u64>().is_ok(),
        _ => value == "null",
    }
}

/// A JSON list with more at its end.
fn longer_list(list: &str, more: &[u32]) -> Option<Box<RawValue>> {
    let mut list = list.strip_suffix(']')?.to_owned();
    for id in more {
        // It was not empty, or there would have been nothing to generate from.
        list.push(',');
        list.push_str(&id.to_string());
    }
    list.push(']');
    RawValue::from_string(list).ok()
}

/// A JSON string with more at its end.
fn longer_text(text: &str, more: &str) -> Option<Box<RawValue>> {
    let more = serde_json::to_string(more).ok()?;
    let text = format!("{}{}", text.strip_suffix('"')?, more.strip_prefix('"')?);
    RawValue::from_string(text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::continuation::progress::tests::{completions_of, native_of};

    fn original(kind: RouteKind, body: &Value) -> Option<Original> {
        Original::of(kind, body.to_string().as_bytes())
    }

    fn native(member: &str, value: Value) -> Value {
        let mut body = json!({"input_ids": [1, 2], "stream": true, "sampling_params": {"max_new_tokens": 9}});
        match member.strip_prefix("sampling_params.") {
            Some(member) => body[SAMPLING][member] = value,
            None => body[member] = value,
        }
        body
    }

    #[test]
    fn the_rest_is_what_was_asked_for_after_what_there_is() {
        let mut body = native("sampling_params.temperature", json!(0.5));
        body[SAMPLING]["min_new_tokens"] = 2.into();
        let bytes = body.to_string().into_bytes();
        let original = Original::of(RouteKind::Generate, &bytes).expect("it can go on");
        let rest = original.rest(&bytes, &native_of(&[7, 8, 9])).expect("there is more to come");
        let rest: Value = serde_json::from_slice(&rest).expect("it is JSON");
        let sampling = json!({"temperature": 0.5, "max_new_tokens": 6, "min_new_tokens": 0});
        assert_eq!(rest, json!({"input_ids": [1, 2, 7, 8, 9], "stream": true, "sampling_params": sampling}));
        assert_eq!(original.rest(&bytes, &native_of(&[0; 9])), None, "all have been generated");
    }

    #[test]
    fn text_is_followed_by_text() {
        let body = br#"{"prompt": "say \"a\\", "max_tokens": 5, "stream": true, "min_tokens": 4}"#;
        let original = Original::of(RouteKind::Completions, body).expect("it can go on");
        let rest = original.rest(body, &completions_of(&["\"b", "\n"])).expect("there is more to come");
        let rest: Value = serde_json::from_slice(&rest).expect("it is JSON");
        assert_eq!(
            rest,
            json!({"prompt": "say \"a\\\"b\n", "max_tokens": 3, "stream": true, "min_tokens": 2})
        );
        assert_eq!(original.rest(body, &completions_of(&["half a letter \u{fffd}"])), None);
    }

    #[test]
    fn what_cannot_be_the_same_generation_does_not_go_on() {
        let good = [
            ("model", json!("m")),
            ("rid", json!("r")),
            ("return_logprob", json!(false)),
            ("image_data", json!(null)),
            ("sampling_params.stop", json!(["x"])),
            ("sampling_params.frequency_penalty", json!(0.0)),
            ("sampling_params.regex", json!(null)),
        ];
        for (member, value) in good {
            assert!(original(RouteKind::Generate, &native(member, value)).is_some(), "{member}");
        }
        let bad = [
            ("stream", json!(false)),
            ("input_ids", json!([[1, 2], [3]])),
            ("text", json!("and ids")),
            ("return_logprob", json!(true)),
            ("image_data", json!("u")),
            ("session_params", json!({"id": "s"})),
            ("sampling_params", json!([{"max_new_tokens": 9}])),
            ("sampling_params.max_new_tokens", json!(null)),
            ("sampling_params.n", json!(2)),
            ("sampling_params.regex", json!("a+")),
            ("sampling_params.sampling_seed", json!(1)),
            ("sampling_params.presence_penalty", json!(0.5)),
            ("sampling_params.repetition_penalty", json!(1.1)),
            ("what_nobody_knows", json!(1)),
        ];
        for (member, value) in bad {
            assert_eq!(original(RouteKind::Generate, &native(member, value)), None, "{member}");
        }
        let ids = json!({"prompt": [1, 2], "max_tokens": 5, "stream": true});
        assert_eq!(original(RouteKind::Completions, &ids), None, "what is generated is text");
        let echo = json!({"prompt": "a", "max_tokens": 5, "stream": true, "echo": true});
        assert_eq!(original(RouteKind::Completions, &echo), None);
        let unbounded = json!({"prompt": "a", "stream": true});
        assert_eq!(original(RouteKind::Completions, &unbounded), None);
        assert_eq!(original(RouteKind::Chat, &native("model", json!("m"))), None);
    }
}
