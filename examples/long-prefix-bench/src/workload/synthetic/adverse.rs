//! Traffic that is made to break a rule: A1 to A8.

use std::time::Duration;

use super::super::DraftSession;
use super::draw::Draw;
use super::standard;

/// A1: lengths around 3k tokens, nothing shared. The price of being cache-aware.
pub(super) fn no_sharing(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let request = |_| {
        let own = draw.lognormal(3_000.0, 1.0).clamp(64.0, 64_000.0) as usize;
        let (starts, output) = (draw.rng.f64(), draw.output(160.0));
        draw.single(starts, &[], own, output)
    };
    (0..requests).map(request).collect()
}

/// A2: 4k tokens that all share and 1k of each request's own. Longest match and hashes of the first blocks collapse on one worker.
pub(super) fn one_prompt(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let prompt = (draw.name(), 4_096);
    let request = |_| {
        let (starts, output) = (draw.rng.f64(), draw.output(100.0));
        draw.single(starts, &[prompt], 1_024, output)
    };
    (0..requests).map(request).collect()
}

/// A3: 16 prefixes of 12k tokens by Zipf's law (s = 1.6); eight times in a run the hottest is replaced by a new one.
pub(super) fn moving_hot(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    const PHASES: usize = 8;
    let hottest = draw.names(PHASES);
    let others = draw.names(15);
    let request = |_| {
        let starts = draw.rng.f64();
        let name = match draw.zipf(16, 1.6) {
            0 => hottest[(starts * PHASES as f64) as usize % PHASES],
            other => others[other - 1],
        };
        let (own, output) = (draw.between(64, 512), draw.output(120.0));
        draw.single(starts, &[(name, 12_288)], own, output)
    };
    (0..requests).map(request).collect()
}

/// A4: documents of 16k tokens; at any time half of all are in use, a new one comes as an old one goes.
pub(super) fn sliding(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let documents = draw.names((requests / 5).max(20));
    let window = documents.len() as f64 / 2.0;
    let request = |_| {
        let starts = draw.rng.f64();
        let place = starts * (documents.len() as f64 - window) + draw.rng.f64() * window;
        let name = documents[(place as usize).min(documents.len() - 1)];
        let (own, output) = (draw.between(64, 512), draw.output(120.0));
        draw.single(starts, &[(name, 16_384)], own, output)
    };
    (0..requests).map(request).collect()
}

/// A5: 48 requests within 50 ms about 16k tokens that nobody has seen, again and again, among small ones.
pub(super) fn herd(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    const CROWD: usize = 48;
    let mut sessions = Vec::new();
    while sessions.len() < requests {
        let (topic, starts) = ((draw.name(), 16_384), draw.rng.f64());
        for _ in 0..CROWD {
            let (own, output) = (draw.between(32, 256), draw.output(100.0));
            let mut session = draw.single(starts, &[topic], own, output);
            session.offset = Duration::from_micros(draw.rng.u64(..50_000));
            sessions.push(session);
        }
        for _ in 0..CROWD / 2 {
            let (starts, own, output) = (draw.rng.f64(), draw.between(256, 2_048), draw.output(160.0));
            sessions.push(draw.single(starts, &[], own, output));
        }
    }
    sessions
}

/// A7: sessions that begin within the first tenth, each with 20k to 40k tokens of its own and 25 turns after it. All live at once; the
/// cell's capacity is set by what they come to.
pub(super) fn cliff(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    const TURNS: usize = 25;
    let sessions = requests.div_ceil(TURNS);
    let session = |_| {
        let mut session = draw.growing();
        let context = draw.between(20_480, 40_960);
        session.hear(draw.name(), context);
        while session.turns() < TURNS {
            let think = if session.turns() == 0 { Duration::ZERO } else { draw.seconds(8.0, 0.5) };
            let output = draw.output(120.0);
            draw.ask(&mut session, think, output);
            let said = draw.between(100, 800);
            session.hear(draw.name(), said);
        }
        session.from(0.1 * draw.rng.f64())
    };
    (0..sessions).map(session).collect()
}

/// Requests of A6 and A8 for each one that disturbs them.
pub(super) const SHORT_FOR_EACH_LONG: usize = 200;
pub(super) const ORDINARY_FOR_EACH_POISON: usize = 30;

/// A6: prompts of 2k tokens in the mean, and for every 200 of them one of 400k. Nothing is shared.
pub(super) fn head_of_line(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let request = |number: usize| {
        let is_long = number % (SHORT_FOR_EACH_LONG + 1) == SHORT_FOR_EACH_LONG / 2;
        let own = if is_long { 400_000 } else { draw.between(1_024, 3_072) };
        let (starts, output) = (draw.rng.f64(), draw.output(160.0));
        DraftSession { intrudes: is_long, ..draw.single(starts, &[], own, output) }
    };
    (0..requests).map(request).collect()
}

/// A8: chats of eight tenants, each under a system prompt of its own (2k tokens), and one tenant more that sends prompts of 100k
/// tokens which nobody sends again, one for every 30 of the others' requests.
pub(super) fn poisoned(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let tenants = draw.names(8);
    let (mut sessions, mut asked) = (Vec::new(), 0);
    let poisons = requests / (ORDINARY_FOR_EACH_POISON + 1);
    while asked < requests - poisons {
        let tenant = tenants[draw.rng.usize(..tenants.len())];
        let session = standard::conversation(draw, (tenant, 2_048));
        asked += session.turns.len();
        sessions.push(session);
    }
    for _ in 0..poisons {
        let (starts, output) = (draw.rng.f64(), draw.output(40.0));
        let session = draw.single(starts, &[], 100_000, output);
        sessions.push(DraftSession { intrudes: true, ..session });
    }
    sessions
}
