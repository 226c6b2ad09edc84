//! Traffic as others have published results for: P1.

use super::super::DraftSession;
use super::draw::Draw;

/// Prompts of P1.
pub const EQUAL_PROMPTS: usize = 256;

/// Their lengths in tokens, SGLang's default.
pub const EQUAL_PROMPT_TOKENS: usize = 2_048;

/// P1: as many requests for each of 256 prompts of 2,048 tokens, 128 tokens of each request's own and answers of 256, in any order: the
/// generated shared prefixes of SGLang's `bench_serving`.
pub(super) fn equal_prompts(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let prompts = draw.names(EQUAL_PROMPTS);
    let request = |number: usize| {
        let (starts, prompt) = (draw.rng.f64(), prompts[number % EQUAL_PROMPTS]);
        draw.single(starts, &[(prompt, EQUAL_PROMPT_TOKENS)], 128, 256)
    };
    (0..requests).map(request).collect()
}
