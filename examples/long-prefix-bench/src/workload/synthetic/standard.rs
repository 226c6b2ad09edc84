//! Common traffic: S1 to S7.

use std::time::Duration;

use super::super::DraftSession;
use super::adverse;
use super::draw::{Draw, zipf_shares};

/// S1: 64 system prompts of 1k to 16k tokens, used by Zipf's law (s = 1.1), and a question of each request's own.
pub(super) fn system_prompts(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let prompts: Vec<(u64, usize)> = (0..64).map(|_| (draw.name(), draw.between(1_024, 16_384))).collect();
    let request = |_| {
        let prompt = prompts[draw.zipf(prompts.len(), 1.1)];
        let (starts, own, output) = (draw.rng.f64(), draw.between(64, 1_024), draw.output(160.0));
        draw.single(starts, &[prompt], own, output)
    };
    (0..requests).map(request).collect()
}

/// S2: chats of eight turns in the mean under one system prompt of 1k tokens; 15 s of thought between turns.
pub(super) fn chat(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let system = draw.name();
    let (mut sessions, mut asked) = (Vec::new(), 0);
    while asked < requests {
        let session = conversation(draw, (system, 1_024));
        asked += session.turns.len();
        sessions.push(session);
    }
    sessions
}

/// One chat under a system prompt.
pub(super) fn conversation(draw: &mut Draw, system: (u64, usize)) -> DraftSession {
    let mut session = draw.growing();
    session.hear(system.0, system.1);
    loop {
        let said = draw.lognormal(180.0, 1.0).clamp(8.0, 8_000.0) as usize;
        session.hear(draw.name(), said);
        let think = if session.turns() == 0 { Duration::ZERO } else { draw.seconds(15.0, 0.8) };
        let output = draw.output(250.0);
        draw.ask(&mut session, think, output);
        if session.turns() >= 30 || draw.rng.f64() < 1.0 / 8.0 {
            break;
        }
    }
    session.from(draw.rng.f64())
}

/// S3: agents under a vendor's 3k tokens and one of twelve tenants' tools (2k to 15k tokens): 20 to 60 calls, 1k tokens of tool results
/// between two, 2 s of tool time. Beyond 60k tokens the context restarts from a summary. One session in four has a
/// sub-agent with the same tools.
pub(super) fn agents(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let vendor = draw.name();
    let tenants: Vec<(u64, usize)> = (0..12).map(|_| (draw.name(), draw.between(2_048, 15_360))).collect();
    let (mut sessions, mut asked) = (Vec::new(), 0);
    while asked < requests {
        let (tenant, starts) = (tenants[draw.zipf(tenants.len(), 0.8)], draw.rng.f64());
        let calls = draw.between(20, 60).min((requests - asked).max(8));
        let branches = if draw.rng.u8(..4) == 0 { 2 } else { 1 };
        for nth in 0..branches {
            // A sub-agent is short.
            let calls = if nth == 0 { calls } else { calls / 4 };
            let session = agent(draw, vendor, tenant, calls, starts);
            asked += session.turns.len();
            sessions.push(session);
        }
    }
    sessions
}

fn agent(draw: &mut Draw, vendor: u64, tenant: (u64, usize), calls: usize, starts: f64) -> DraftSession {
    let mut session = draw.growing();
    session.hear(vendor, 3_072);
    session.hear(tenant.0, tenant.1);
    let tools = session.len();
    session.hear(draw.name(), 2_000);
    while session.turns() < calls {
        let think = if session.turns() == 0 { Duration::ZERO } else { draw.seconds(2.0, 0.9) };
        let output = draw.output(120.0);
        draw.ask(&mut session, think, output);
        let result = draw.lognormal(600.0, 1.1).clamp(20.0, 12_000.0) as usize;
        session.hear(draw.name(), result);
        if session.len() > 60_000 {
            session.compact_to(tools);
            session.hear(draw.name(), 3_000);
        }
    }
    session.from(starts)
}

/// S4: documents of 12k to 40k tokens with 6 to 20 questions each; of one half of the documents the questions come at once, of the other
/// every 20 s.
pub(super) fn documents(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let mut sessions: Vec<DraftSession> = Vec::new();
    while sessions.len() < requests {
        let document = (draw.name(), draw.between(12_288, 40_960));
        let (starts, burst) = (draw.rng.f64(), draw.rng.bool());
        let mut offset = Duration::ZERO;
        for _ in 0..draw.between(6, 20) {
            let (own, output) = (draw.between(24, 200), draw.output(200.0));
            let mut session = draw.single(starts, &[document], own, output);
            offset += if burst { Duration::from_millis(100) } else { draw.seconds(20.0, 0.5) };
            session.offset = offset;
            sessions.push(session);
        }
    }
    sessions
}

/// S5: a prompt of 2k to 8k tokens is continued 8 to 24 times at once; the next of 2 to 4 rounds goes on from one of the answers when
/// all have come.
pub(super) fn branching(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let (mut sessions, mut asked) = (Vec::new(), 0);
    while asked < requests {
        let mut session = draw.growing();
        session.hear(draw.name(), 0);
        let prompt = draw.between(2_048, 8_192);
        session.hear(draw.name(), prompt);
        let breadth = draw.between(8, 24);
        for _ in 0..draw.between(2, 4) {
            draw.branch(&mut session, Duration::from_millis(200), breadth, 250);
            asked += breadth;
        }
        sessions.push(session.from(draw.rng.f64()));
    }
    sessions
}

/// S6: instructions of 512 tokens, then 8 of 1,000 passages (200 to 600 tokens), drawn by Zipf's law (s = 1) without repetition, then a
/// question. Passages come in the order in which they were drawn, which is another one each time, or in one that is the same for
/// all: the most popular first.
pub(super) fn passages(draw: &mut Draw, requests: usize, in_order: bool) -> Vec<DraftSession> {
    const RETRIEVED: usize = 8;
    let instructions = (draw.name(), 512);
    let corpus: Vec<(u64, usize)> = (0..1_000).map(|_| (draw.name(), draw.between(200, 600))).collect();
    let popularity = zipf_shares(corpus.len(), 1.0);
    let request = |_| {
        let mut found: Vec<usize> = Vec::new();
        while found.len() < RETRIEVED {
            let passage = draw.by_shares(&popularity);
            if !found.contains(&passage) {
                found.push(passage);
            }
        }
        // Popular ones tend to be drawn early.
        draw.rng.shuffle(&mut found);
        if in_order {
            found.sort_unstable();
        }
        let mut shared = vec![instructions];
        shared.extend(found.into_iter().map(|passage| corpus[passage]));
        let (starts, own, output) = (draw.rng.f64(), draw.between(24, 200), draw.output(200.0));
        draw.single(starts, &shared, own, output)
    };
    (0..requests).map(request).collect()
}

/// Phases of S7.
pub(super) const PHASES: usize = 4;

/// What part of each phase's requests chats, agents and prompts that share nothing are: 50, 30 and 20 % in the mean.
pub(super) const MIX: [[f64; PHASES]; 3] = [[0.7, 0.6, 0.3, 0.4], [0.2, 0.1, 0.5, 0.4], [0.1, 0.3, 0.2, 0.2]];

/// S7: S2, S3 and A1 together, the mix another one in each quarter of the span. Sessions belong to the phase in which they start.
pub(super) fn mixture(draw: &mut Draw, requests: usize) -> Vec<DraftSession> {
    let part = |shares: &[f64; PHASES]| {
        (requests as f64 * shares.iter().sum::<f64>() / PHASES as f64).round() as usize
    };
    let [chats, agents, unshared] = MIX.each_ref().map(part);
    let kinds = [self::chat(draw, chats), self::agents(draw, agents), adverse::no_sharing(draw, unshared)];
    kinds.into_iter().zip(MIX).flat_map(|(sessions, shares)| drift(sessions, shares)).collect()
}

/// Gives each phase its share of the sessions' requests.
fn drift(mut sessions: Vec<DraftSession>, shares: [f64; PHASES]) -> Vec<DraftSession> {
    let asked: usize = sessions.iter().map(|session| session.turns.len()).sum();
    let share = |phase: usize| shares[..=phase].iter().sum::<f64>() / shares.iter().sum::<f64>();
    let (mut before, mut phase) = (0, 0);
    for session in &mut sessions {
        while phase + 1 < PHASES && before as f64 >= share(phase) * asked as f64 {
            phase += 1;
        }
        session.starts = (phase as f64 + session.starts) / PHASES as f64;
        before += session.turns.len();
    }
    sessions
}
