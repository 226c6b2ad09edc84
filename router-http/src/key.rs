//! From a request's facts to its key.

use std::fmt;
use std::sync::Arc;

use router_core::Router;
use router_core::key::{PrefixKey, Salt, Unit};

use crate::decode::{Facts, Prompt, RouteKind};

/// What a request is decided by, and how that was found.
#[derive(Clone, Debug)]
pub struct Keyed {
    /// The key of its prompt; `None` if it has none that routing understands.
    pub key: Option<PrefixKey>,
    /// How its chat was keyed, if it is one.
    pub chat: Option<ChatKeyed>,
    /// What of a rendered chat follows its last full block.
    pub(crate) rendered_tail: Option<Vec<u8>>,
}

/// How a chat was keyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatKeyed {
    /// As the text that its engine makes of it.
    Rendered,
    /// In the serialisation of the router's own.
    Canonical {
        /// Why; for people.
        reason: Arc<str>,
    },
}

/// The key of a request with this body.
pub fn key(router: &Router, facts: &Facts<'_>, body: &[u8]) -> Keyed {
    let [lora, cache_salt, extra_key] = &facts.salts;
    let salt = Salt::new(lora, cache_salt, extra_key);
    let of_text = |text: &[u8]| router.key_space(Unit::Text).key_of_text(salt, text);
    let text = match &facts.prompt {
        Prompt::None => return Keyed::plain(None),
        Prompt::Tokens(tokens) => {
            return Keyed::plain(Some(router.key_space(Unit::Token).key_of_tokens(salt, tokens)));
        }
        Prompt::Text(text) => text,
    };
    match facts.kind {
        RouteKind::Generate
        | RouteKind::Completions
        | RouteKind::Vertex
        // SGLang's tokenizer gets `system` and `prompt` as they are put together here, without a template.
        | RouteKind::OllamaGenerate => Keyed::plain(Some(of_text(text))),
        // Here the engine makes the prompt by the model's template.
        RouteKind::Chat | RouteKind::Messages | RouteKind::Responses | RouteKind::OllamaChat => {
            match rendered(router, facts, body) {
                Ok(prompt) => {
                    let key = of_text(prompt.as_bytes());
                    let full = key.hashes().len() * router.key_space(Unit::Text).block_size() as usize;
                    let rendered_tail = prompt.as_bytes().get(full..).map(<[u8]>::to_vec);
                    Keyed { key: Some(key), chat: Some(ChatKeyed::Rendered), rendered_tail }
                }
                // In the router's own serialisation: no agent can name its blocks.
                Err(reason) => Keyed {
                    key: Some(of_text(text).unnamed()),
                    chat: Some(ChatKeyed::Canonical { reason }),
                    rendered_tail: None,
                },
            }
        }
        // These have no prompt.
        RouteKind::Session | RouteKind::Fleet | RouteKind::Control | RouteKind::Other => Keyed::plain(None),
    }
}

/// The text that the engine makes of a chat, or why it is not known.
fn rendered(router: &Router, facts: &Facts<'_>, body: &[u8]) -> Result<String, Arc<str>> {
    let template = router.chat_template(facts.model.as_deref()).map_err(|error| error.to_string())?;
    let prompt = match facts.kind {
        RouteKind::Messages => template.render_messages(body),
        RouteKind::Responses => template.render_responses(body),
        RouteKind::OllamaChat => template.render_ollama(body),
        _ => template.render(body),
    };
    prompt.map_err(|error| error.0)
}

impl Keyed {
    fn plain(key: Option<PrefixKey>) -> Self {
        Self { key, chat: None, rendered_tail: None }
    }
}

impl fmt::Display for ChatKeyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rendered => f.write_str("rendered with the model's template"),
            Self::Canonical { reason } => write!(f, "in the router's own serialisation: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use router_core::Settings;
    use router_core::key::BlockKind;

    use super::*;
    use crate::decode::facts;

    #[test]
    fn only_what_the_engine_gets_to_see_can_be_named_by_agents() {
        let (router, _writer) = Router::new(Settings::new(1));
        let keyed = |kind, body: &str| {
            let facts = facts(kind, &HeaderMap::new(), body.as_bytes()).unwrap();
            key(&router, &facts, body.as_bytes())
        };
        let kind = |kind, body: &str| keyed(kind, body).key.map(|key| key.kind());
        let chat = r#"{"messages":[{"role":"user","content":"a"}]}"#;
        assert_eq!(kind(RouteKind::Chat, chat), Some(BlockKind::UnnamedText));
        let how = keyed(RouteKind::Chat, chat).chat.unwrap().to_string();
        assert!(how.contains("no worker"), "{how}");
        assert_eq!(kind(RouteKind::Generate, r#"{"text":"a"}"#), Some(BlockKind::Text));
        assert_eq!(kind(RouteKind::Completions, r#"{"prompt":"a"}"#), Some(BlockKind::Text));
        assert_eq!(
            kind(RouteKind::Generate, r#"{"text":"a","extra_key":"e"}"#),
            Some(BlockKind::UnnamedText)
        );
        assert_eq!(kind(RouteKind::Generate, r#"{"input_ids":[1]}"#), Some(BlockKind::Tokens));
        assert_eq!(keyed(RouteKind::Generate, r#"{"input_ids":[1]}"#).chat, None);
        let hashes = |kind, body: &str| keyed(kind, body).key.unwrap().hashes().to_vec();
        let (system, prompt) = ("s".repeat(400), "p".repeat(400));
        let ollama = format!(r#"{{"model":"m","prompt":"{prompt}","system":"{system}"}}"#);
        assert_eq!(kind(RouteKind::OllamaGenerate, &ollama), Some(BlockKind::Text));
        let text = hashes(RouteKind::Generate, &format!(r#"{{"text":"{system}\n\n{prompt}"}}"#));
        assert!(!text.is_empty());
        assert_eq!(hashes(RouteKind::OllamaGenerate, &ollama), text);
        let input = r#"{"model":"m","input":"a"}"#;
        for (route, body) in
            [(RouteKind::Messages, chat), (RouteKind::OllamaChat, chat), (RouteKind::Responses, input)]
        {
            let other = keyed(route, body);
            assert_eq!(other.key.map(|key| key.kind()), Some(BlockKind::UnnamedText));
            assert!(matches!(other.chat, Some(ChatKeyed::Canonical { .. })));
        }
    }
}
