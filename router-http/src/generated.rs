//! What an answer generated: its target holds that as it holds the prompt, and the next turn of a conversation begins with both.
//!
//! Token ids are read from the answers of `/generate`, of a stream's last event alone, since each tells all so far. Text is taken out of
//! the passing events without reading the rest of them. A chat's answer follows the chat, by whichever API it came, where that was
//! rendered as the engine does it. What is not understood, or too long, is not claimed.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memchr;
use router_core::Router;
use router_core::key::{PrefixKey, Salt};

use crate::decode::answer::{self, Native, Told};
use crate::decode::{Facts, Prompt, RouteKind, said};
use crate::events::{self, Events};
use crate::key::Keyed;

/// Bytes of an answer that are kept at most.
const MOST_BYTES: usize = 1 << 20;

/// Room for an answer of some words: to make more takes as long as all else that is done with one.
const FEW_WORDS_BYTES: usize = 512;

/// Bytes that the last token of an answer has at most, nearly always. Nothing has been computed on it.
const LAST_TOKEN_BYTES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Generated {
    router: Router,
    salt: Salt,
    key: PrefixKey,
    /// What of the prompt follows its last full block.
    tail: Tail,
    route: RouteKind,
    so_far: SoFar,
}

#[derive(Debug)]
enum Tail {
    Tokens(Vec<u32>),
    Text(Vec<u8>),
}

/// What has passed.
#[derive(Debug)]
enum SoFar {
    Nothing,
    /// An answer in one piece, which mostly comes in one, too.
    Whole(Whole),
    /// A stream each of whose events tells all so far: the last one.
    Last(Events, Bytes),
    /// A stream whose events tell what is new: the texts as they stand in JSON, and where the last one begins.
    Texts(Events, Vec<u8>, usize),
    /// Ollama's answers, in one line or in many that tell what is new: what follows the last line's end, and the text so far.
    Lines(Vec<u8>, String),
    /// It is not understood, or too long.
    Lost,
}

/// The pieces of a body, put together once there is a second one.
#[derive(Debug, Default)]
struct Whole {
    first: Bytes,
    all: Vec<u8>,
}

impl Whole {
    fn push(&mut self, data: &Bytes) {
        if self.len() == 0 {
            self.first = data.clone();
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(data);
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn bytes(&self) -> &[u8] {
        if self.all.is_empty() { &self.first } else { &self.all }
    }
}

impl Generated {
    /// For the answer to a request; `None` if nothing of it could be claimed.
    pub(crate) fn of(router: &Router, facts: &Facts<'_>, keyed: &Keyed) -> Option<Box<Self>> {
        let key = keyed.key.clone().filter(|_| !facts.several)?;
        let rest = |len: usize| {
            let full = key.hashes().len() * router.key_space(key.unit()).block_size() as usize;
            full.min(len)
        };
        let tail_of_text = |text: &[u8]| {
            let tail = &text[rest(text.len())..];
            let mut with_room = Vec::with_capacity(tail.len() + FEW_WORDS_BYTES);
            with_room.extend_from_slice(tail);
            Tail::Text(with_room)
        };
        let tail = match (&facts.prompt, facts.kind) {
            (Prompt::Tokens(ids), RouteKind::Generate) => Tail::Tokens(ids[rest(ids.len())..].to_vec()),
            (Prompt::Text(text), RouteKind::Generate | RouteKind::Completions) => tail_of_text(text),
            (
                Prompt::Text(_),
                RouteKind::Chat | RouteKind::Messages | RouteKind::Responses | RouteKind::OllamaChat,
            ) => Tail::Text(keyed.rendered_tail.clone()?),
            _ => return None,
        };
        let [lora, cache_salt, extra_key] = &facts.salts;
        let salt = Salt::new(lora, cache_salt, extra_key);
        let (router, route) = (router.clone(), facts.kind);
        Some(Box::new(Self { router, salt, key, tail, route, so_far: SoFar::Nothing }))
    }

    /// Data passes.
    pub(crate) fn look(&mut self, data: &Bytes, streaming: bool) {
        if let SoFar::Nothing = self.so_far {
            self.so_far = match (streaming, self.route) {
                (_, RouteKind::OllamaChat) => SoFar::Lines(Vec::new(), String::new()),
                (false, _) => SoFar::Whole(Whole::default()),
                (true, RouteKind::Generate) => SoFar::Last(Events::default(), Bytes::new()),
                (true, _) => SoFar::Texts(Events::default(), Vec::new(), 0),
            };
        }
        let kept = match &mut self.so_far {
            SoFar::Nothing | SoFar::Lost => return,
            SoFar::Whole(body) => {
                body.push(data);
                body.len()
            }
            SoFar::Last(events, last) => {
                let whole = events.push(data.clone());
                let is_told = |event: &&[u8]| events::data(event).is_some_and(|data| data != b"[DONE]");
                if let Some(event) = events::each(&whole).filter(is_told).last() {
                    *last = whole.slice_ref(event);
                }
                last.len()
            }
            SoFar::Texts(events, texts, last) => {
                let whole = events.push(data.clone());
                for event in events::each(&whole) {
                    match said::told(self.route, event) {
                        Told::Nothing => {}
                        Told::Text(text) => {
                            *last = texts.len();
                            texts.extend_from_slice(text);
                        }
                        Told::Unclear => {
                            self.so_far = SoFar::Lost;
                            return;
                        }
                    }
                }
                texts.len()
            }
            SoFar::Lines(rest, text) => {
                let mut data = &data[..];
                while let Some(end) = memchr(b'\n', data) {
                    rest.extend_from_slice(&data[..end]);
                    data = &data[end + 1..];
                    let Some(new) = said::line(rest) else {
                        self.so_far = SoFar::Lost;
                        return;
                    };
                    text.push_str(&new);
                    rest.clear();
                }
                rest.extend_from_slice(data);
                rest.len() + text.len()
            }
        };
        if kept > MOST_BYTES {
            self.so_far = SoFar::Lost;
        }
    }

    /// The key of the prompt with what was generated, if that has more blocks; the answer is complete. At most once.
    pub(crate) fn key(&mut self) -> Option<PrefixKey> {
        let space = self.router.key_space(self.key.unit());
        let key = match (&mut self.tail, &self.so_far) {
            (Tail::Tokens(ids), SoFar::Whole(body)) => {
                ids.extend(ids_of(body.bytes())?);
                space.key_followed_by_tokens(self.salt, &self.key, ids)
            }
            (Tail::Tokens(ids), SoFar::Last(_, event)) => {
                ids.extend(ids_of(events::data(event)?)?);
                space.key_followed_by_tokens(self.salt, &self.key, ids)
            }
            (Tail::Text(text), so_far) => {
                put_generated(text, self.route, so_far)?;
                space.key_followed_by_text(self.salt, &self.key, text)
            }
            _ => return None,
        };
        (key.hashes().len() > self.key.hashes().len()).then_some(key)
    }
}

/// All token ids but the last.
fn ids_of(json: &[u8]) -> Option<Vec<u32>> {
    let Native { ids, completion_tokens, .. } = answer::native(json)?;
    let mut ids = ids?;
    // An engine that tells what is new has told more before.
    (Some(ids.len() as u64) == completion_tokens).then_some(())?;
    ids.pop()?;
    Some(ids)
}

/// Puts all text but that of the last token after the prompt's.
fn put_generated(prompt: &mut Vec<u8>, route: RouteKind, so_far: &SoFar) -> Option<()> {
    let text = match (route, so_far) {
        (RouteKind::Generate, SoFar::Last(_, event)) => {
            let Native { text, ids, completion_tokens } = answer::native(events::data(event)?)?;
            (Some(ids?.len() as u64) == completion_tokens).then(|| answer::text(text?))??
        }
        (RouteKind::Generate, SoFar::Whole(body)) => answer::text(answer::native(body.bytes())?.text?)?,
        (_, SoFar::Whole(body)) => said::only_text(route, body.bytes())?,
        (_, SoFar::Lines(rest, text)) => Cow::Owned(text.clone() + &said::line(rest)?),
        (_, SoFar::Texts(_, texts, last)) => {
            let json = [b"\"", &texts[..*last], b"\""].concat();
            prompt.extend_from_slice(answer::text(&json)?.as_bytes());
            return Some(());
        }
        _ => return None,
    };
    prompt.extend_from_slice(&text.as_bytes()[..text.len().saturating_sub(LAST_TOKEN_BYTES)]);
    Some(())
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use router_core::Settings;
    use router_core::key::Unit;
    use serde_json::{Value, json};

    use super::*;
    use crate::decode::facts;

    const BLOCK: u32 = 4;

    fn router() -> Router {
        let settings = Settings::new(1);
        let space = |unit| router_core::key::KeySpace::new(unit, BLOCK, 1).unwrap();
        let (token_space, text_space) = (space(Unit::Token), space(Unit::Text));
        Router::new(Settings { token_space, text_space, ..settings }).0
    }

    /// The key after an answer that came in some pieces.
    fn key_after(kind: RouteKind, request: &Value, answer: &str, pieces: usize) -> Option<PrefixKey> {
        let router = router();
        let request = request.to_string();
        let facts = facts(kind, &HeaderMap::new(), request.as_bytes()).unwrap();
        let mut keyed = crate::key::key(&router, &facts, request.as_bytes());
        let is_chat = ![RouteKind::Generate, RouteKind::Completions].contains(&kind);
        if let (true, Prompt::Text(_)) = (is_chat, &facts.prompt) {
            // As if there were a template that says the first message alone.
            let request = serde_json::from_str::<Value>(&request).unwrap();
            let said = request.pointer("/messages/0/content").or(request.get("input"));
            let said = said.and_then(Value::as_str).unwrap();
            let key = router.key_space(Unit::Text).key_of_text(Salt::default(), said.as_bytes());
            keyed.rendered_tail = Some(said.as_bytes()[key.hashes().len() * BLOCK as usize..].to_vec());
            keyed.key = Some(key);
        }
        let mut generated = Generated::of(&router, &facts, &keyed)?;
        for piece in answer.as_bytes().chunks(answer.len().div_ceil(pieces)) {
            generated.look(&Bytes::copy_from_slice(piece), answer.starts_with("data:"));
        }
        generated.key()
    }

    fn native(text: &str, ids: &[u32], count: usize) -> Value {
        json!({"text": text, "output_ids": ids, "meta_info": {"completion_tokens": count, "finish_reason": null}})
    }

    fn hashes(key: Option<PrefixKey>) -> Vec<u64> {
        key.map(|key| key.hashes().iter().map(|hash| hash.get()).collect()).unwrap_or_default()
    }

    #[test]
    fn token_ids_follow_the_prompts() {
        let request = json!({"input_ids": [1, 2, 3, 4, 5, 6]});
        let expected =
            router().key_space(Unit::Token).key_of_tokens(Salt::default(), &[1, 2, 3, 4, 5, 6, 7, 8]);
        let whole = native("x", &[7, 8, 9], 3).to_string();
        let stream = format!(
            "data: {}\n\ndata: {}\n\ndata: [DONE]\n\n",
            native("x", &[7], 1),
            native("x", &[7, 8, 9], 3)
        );
        for answer in [&whole, &stream] {
            for pieces in [1, 2, 7] {
                let key = key_after(RouteKind::Generate, &request, answer, pieces);
                assert_eq!(hashes(key), hashes(Some(expected.clone())), "{answer}");
            }
        }
        let too_short = native("x", &[7, 8], 2).to_string();
        assert!(key_after(RouteKind::Generate, &request, &too_short, 1).is_none(), "no block is new");
        let new_only = format!("data: {}\n\n", native("x", &[8, 9], 3));
        assert!(key_after(RouteKind::Generate, &request, &new_only, 1).is_none());
        assert!(key_after(RouteKind::Generate, &request, "data: {\"error\":{}}\n\n", 1).is_none());
    }

    #[test]
    fn text_follows_text() {
        let request = json!({"prompt": "0123456", "max_tokens": 5});
        let event = |index: u32, text: &str| {
            format!("data: {}\n\n", json!({"choices": [{"index": index, "text": text, "logprobs": null}]}))
        };
        let stream = event(0, "7\"\\") + &event(0, "text\":\"") + &event(0, "last") + "data: [DONE]\n\n";
        let expected = router().key_space(Unit::Text).key_of_text(Salt::default(), b"01234567\"\\text\":\"");
        for pieces in [1, 3, 40] {
            let key = key_after(RouteKind::Completions, &request, &stream, pieces);
            assert_eq!(hashes(key), hashes(Some(expected.clone())));
        }
        let two = event(0, "7890") + &event(1, "abcd") + &event(0, "x");
        assert!(key_after(RouteKind::Completions, &request, &two, 1).is_none());

        let answer = format!("{}{}", "7".repeat(9), "end of 16 bytes.");
        let whole = json!({"choices": [{"index": 0, "text": answer}]}).to_string();
        let expected = router().key_space(Unit::Text).key_of_text(Salt::default(), b"0123456777777777");
        assert_eq!(
            hashes(key_after(RouteKind::Completions, &request, &whole, 2)),
            hashes(Some(expected.clone()))
        );
        let request = json!({"text": "0123456"});
        let whole = native(&answer, &[1, 2], 2).to_string();
        assert_eq!(hashes(key_after(RouteKind::Generate, &request, &whole, 2)), hashes(Some(expected)));
    }

    #[test]
    fn what_is_too_long_or_has_several_prompts_is_not_kept() {
        let request = json!({"prompt": ["a", "b"]});
        assert!(key_after(RouteKind::Completions, &request, "{}", 1).is_none());
        let long = json!({"choices": [{"index": 0, "text": "x".repeat(MOST_BYTES)}]}).to_string();
        assert!(key_after(RouteKind::Completions, &json!({"prompt": "abcdefgh"}), &long, 3).is_none());
    }

    #[test]
    fn a_chats_answer_follows_the_chat_as_it_was_rendered() {
        let request = json!({"messages": [{"role": "user", "content": "0123456"}]});
        let event = |delta: Value| {
            format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta, "logprobs": null}]}))
        };
        let said = |text: &str| event(json!({"role": null, "content": text, "reasoning_content": null}));
        let stream =
            event(json!({"role": "assistant", "content": ""})) + &said("78") + &said("9ab") + &said("last");
        let expected = router().key_space(Unit::Text).key_of_text(Salt::default(), b"0123456789ab");
        assert_eq!(hashes(key_after(RouteKind::Chat, &request, &stream, 3)), hashes(Some(expected.clone())));
        let message = |more: Value| {
            let mut message =
                json!({"role": "assistant", "content": "789abend of 16 bytes.", "tool_calls": null});
            message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"choices": [{"index": 0, "message": message}]}).to_string()
        };
        let whole = message(json!({}));
        assert_eq!(hashes(key_after(RouteKind::Chat, &request, &whole, 1)), hashes(Some(expected)));
        let thought = event(json!({"reasoning_content": "hm"})) + &stream;
        let called = message(json!({"tool_calls": [{"id": "x"}]}));
        for unclear in [thought, called] {
            assert!(key_after(RouteKind::Chat, &request, &unclear, 1).is_none(), "{unclear}");
        }
    }

    #[test]
    fn an_answer_follows_the_chat_by_whichever_api_it_came() {
        let messages = json!({"messages": [{"role": "user", "content": "0123456"}]});
        let input = json!({"model": "m", "input": "0123456"});
        let text = "789abend of 16 bytes.";
        let expected = router().key_space(Unit::Text).key_of_text(Salt::default(), b"0123456789ab");
        let part = json!([{"annotations": [], "text": text, "type": "output_text", "logprobs": null}]);
        let line = |text: &str| json!({"message": {"role": "assistant", "content": text}}).to_string();
        for (kind, request, answer) in [
            (
                RouteKind::Messages,
                &messages,
                json!({"content": [{"type": "text", "text": text}]}).to_string(),
            ),
            (RouteKind::Responses, &input, json!({"output": [{"content": part}]}).to_string()),
            (RouteKind::OllamaChat, &messages, line(text)),
            (
                RouteKind::OllamaChat,
                &messages,
                [line("789ab"), line("end of 16 bytes."), line("")].join("\n"),
            ),
        ] {
            for pieces in [1, 3] {
                assert_eq!(hashes(key_after(kind, request, &answer, pieces)), hashes(Some(expected.clone())));
            }
        }
        let event = |kind: &str, data: String| format!("event: {kind}\ndata: {data}\n\n");
        let block = |text| {
            let data = format!(r#"{{"index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}"#);
            event("content_block_delta", data)
        };
        let delta = |text| {
            let data = format!(r#"{{"content_index":0,"delta":"{text}","output_index":0,"type":"x"}}"#);
            event("response.output_text.delta", data)
        };
        let pieces = ["7", "89", "ab", "last"];
        for (kind, request, stream) in [
            (
                RouteKind::Messages,
                &messages,
                event("message_start", "{}".into()) + &pieces.map(block).concat(),
            ),
            (
                RouteKind::Responses,
                &input,
                event("response.created", "{}".into()) + &pieces.map(delta).concat(),
            ),
        ] {
            let stream = format!("data: {{}}\n\n{stream}");
            for pieces in [1, 3, 40] {
                assert_eq!(hashes(key_after(kind, request, &stream, pieces)), hashes(Some(expected.clone())));
            }
        }
    }
}
