//! From a request's facts to its key.

use router_core::Router;
use router_core::key::{PrefixKey, Salt, Unit};

use crate::decode::{Facts, Prompt};

/// The key of a request's prompt; `None` if it has none that routing understands.
pub fn key(router: &Router, facts: &Facts<'_>) -> Option<PrefixKey> {
    let [lora, cache_salt, extra_key] = &facts.salts;
    let salt = Salt::new(lora, cache_salt, extra_key);
    match &facts.prompt {
        Prompt::None => None,
        Prompt::Tokens(tokens) => Some(router.key_space(Unit::Token).key_of_tokens(salt, tokens)),
        Prompt::Text(text) => Some(router.key_space(Unit::Text).key_of_text(salt, text.as_bytes())),
    }
}
