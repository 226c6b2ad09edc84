//! Traffic as others have published results for: P1, P2 and P4.

use std::time::Duration;

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

/// Tenants of P2, and users of each.
const B2B_TENANTS: usize = 150;
const B2B_USERS: usize = 5;

/// Requests that P2 begins with: every user's prompt once.
pub(super) const B2B_WARM_UP: usize = B2B_TENANTS * B2B_USERS;

/// They come at this rate, and what is measured a minute after the last of them.
const B2B_WARM_UP_PER_S: f64 = 15.0;
const B2B_PAUSE: Duration = Duration::from_secs(60);

/// P2: 150 tenants' contexts of 6,000 tokens, five users each with a question of 1,200 that they ask again and again, answers of
/// 1,000: llm-d's b2b profile. Every prompt comes once, then, after a pause, all of them in turn in an order drawn once.
pub(super) fn b2b(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let tenants = draw.names(B2B_TENANTS);
    let questions = draw.names(B2B_WARM_UP);
    let mut order: Vec<usize> = (0..B2B_WARM_UP).collect();
    draw.rng.shuffle(&mut order);
    let prompt = |number: usize| {
        let prompt = order[number % B2B_WARM_UP];
        [(tenants[prompt / B2B_USERS], 6_000), (questions[prompt], 1_200)]
    };
    let mut sessions = Vec::new();
    let mut now = Duration::ZERO;
    for number in 0..B2B_WARM_UP {
        now += Duration::from_secs_f64(-(1.0 - draw.rng.f64()).ln() / B2B_WARM_UP_PER_S);
        sessions.push(DraftSession { offset: now, ..draw.again(0.0, &prompt(number), 1_000) });
    }
    for number in 0..requests {
        let starts = draw.rng.f64();
        sessions.push(DraftSession { offset: now + B2B_PAUSE, ..draw.again(starts, &prompt(number), 1_000) });
    }
    sessions
}

/// P4: 600 prefixes of 1,024 tokens in equal numbers, 256 tokens of each request's own and answers of 128, in any order: vLLM's
/// `prefix_repetition` with its defaults where SMG does not say otherwise.
pub(super) fn gateways(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let prefixes = draw.names(600);
    // In an order drawn once: gateways take sessions in turn, and each would have every second prefix to itself.
    let mut used: Vec<u64> = prefixes.into_iter().cycle().take(requests).collect();
    draw.rng.shuffle(&mut used);
    let request = |prefix: u64| {
        let starts = draw.rng.f64();
        draw.single(starts, &[(prefix, 1_024)], 256, 128)
    };
    used.into_iter().map(request).collect()
}
