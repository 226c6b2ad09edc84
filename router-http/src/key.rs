//! From a request's facts to its key.

use router_core::Router;
use router_core::key::{PrefixKey, Salt, Unit};

use crate::decode::{Facts, Prompt, RouteKind};

/// The key of a request's prompt; `None` if it has none that routing understands.
pub fn key(router: &Router, facts: &Facts<'_>) -> Option<PrefixKey> {
    let [lora, cache_salt, extra_key] = &facts.salts;
    let salt = Salt::new(lora, cache_salt, extra_key);
    match &facts.prompt {
        Prompt::None => None,
        Prompt::Tokens(tokens) => Some(router.key_space(Unit::Token).key_of_tokens(salt, tokens)),
        Prompt::Text(text) => {
            let key = router.key_space(Unit::Text).key_of_text(salt, text.as_bytes());
            // Elsewhere the engine makes the prompt by the model's template, and a chat is serialised here in the router's own
            // way: no agent can name its blocks.
            let is_prompt =
                matches!(facts.kind, RouteKind::Generate | RouteKind::Completions | RouteKind::Vertex);
            Some(if is_prompt { key } else { key.unnamed() })
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
        let kind = |kind, body: &str| {
            let facts = facts(kind, &HeaderMap::new(), body.as_bytes()).unwrap();
            key(&router, &facts).map(|key| key.kind())
        };
        let chat = r#"{"messages":[{"role":"user","content":"a"}]}"#;
        assert_eq!(kind(RouteKind::Chat, chat), Some(BlockKind::UnnamedText));
        assert_eq!(kind(RouteKind::Generate, r#"{"text":"a"}"#), Some(BlockKind::Text));
        assert_eq!(kind(RouteKind::Completions, r#"{"prompt":"a"}"#), Some(BlockKind::Text));
        assert_eq!(
            kind(RouteKind::Generate, r#"{"text":"a","extra_key":"e"}"#),
            Some(BlockKind::UnnamedText)
        );
        assert_eq!(kind(RouteKind::Generate, r#"{"input_ids":[1]}"#), Some(BlockKind::Tokens));
    }
}
