//! Generated workloads: S1 to S7 stand for common traffic, A1 to A8 are made to break a rule, P1, P2 and P4 are as others have published.

mod adverse;
mod draw;
mod published;
mod standard;

use draw::Draw;
pub use published::{EQUAL_PROMPT_TOKENS, EQUAL_PROMPTS};

use super::Draft;

/// A generated workload. What each catches is in `docs/benchmark.md`. New ones come last: the place of a pattern is part of its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// System prompts by Zipf's law, 1k to 16k tokens.
    SystemPrompts,
    /// Chats of several turns under one system prompt.
    Chat,
    /// Agents with tools: vendor, tenant, session; the context is compacted now and then, sub-agents branch off.
    Agents,
    /// Questions about long documents.
    Documents,
    /// Many continuations of one prompt at once, round after round.
    Branching,
    /// No two prompts share anything.
    NoSharing,
    /// One long prompt before everybody's own.
    OnePrompt,
    /// A hot prefix that is another one every few minutes.
    MovingHot,
    /// A working set that slides along.
    Sliding,
    /// Crowds that ask about something unseen within 50 ms.
    Herd,
    /// As many long sessions at once as the fleet can hold, or a few more.
    Cliff,
    /// Groups of equal size and popularity, as SGLang's own benchmark has them.
    Equal,
    /// Retrieved passages in any order.
    Passages,
    /// Retrieved passages in one order for all.
    OrderedPassages,
    /// Chats, agents and prompts that share nothing, in proportions that change.
    Mixture,
    /// A very long prompt now and then among short ones.
    HeadOfLine,
    /// Long prompts that nobody sends again, from one tenant beside others' chats.
    Poisoned,
    /// Tenants with users that ask again, as llm-d has published.
    B2b,
    /// Many prefixes used three times each, as SMG has published.
    Gateways,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::SystemPrompts,
        Self::Chat,
        Self::Agents,
        Self::Documents,
        Self::Branching,
        Self::Passages,
        Self::OrderedPassages,
        Self::Mixture,
        Self::NoSharing,
        Self::OnePrompt,
        Self::MovingHot,
        Self::Sliding,
        Self::Herd,
        Self::HeadOfLine,
        Self::Cliff,
        Self::Poisoned,
        Self::Equal,
        Self::B2b,
        Self::Gateways,
    ];

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SystemPrompts => "S1 system prompts",
            Self::Chat => "S2 chat",
            Self::Agents => "S3 agents",
            Self::Documents => "S4 documents",
            Self::Branching => "S5 branching",
            Self::NoSharing => "A1 no sharing",
            Self::OnePrompt => "A2 one prompt",
            Self::MovingHot => "A3 moving hot prefix",
            Self::Sliding => "A4 sliding set",
            Self::Herd => "A5 herd",
            Self::Cliff => "A7 cliff",
            Self::Equal => "P1 equal prompts",
            Self::Passages => "S6 passages",
            Self::OrderedPassages => "S6 ordered passages",
            Self::Mixture => "S7 mixture",
            Self::HeadOfLine => "A6 head of line",
            Self::Poisoned => "A8 poisoned tree",
            Self::B2b => "P2 llm-d b2b",
            Self::Gateways => "P4 SMG gateways",
        }
    }
}

/// About so many requests of a pattern.
pub fn draft(pattern: Pattern, requests: usize, seed: u64) -> Draft {
    let mut draw = Draw::new(seed ^ (pattern as u64) << 32);
    let sessions = match pattern {
        Pattern::SystemPrompts => standard::system_prompts(&mut draw, requests),
        Pattern::Chat => standard::chat(&mut draw, requests),
        Pattern::Agents => standard::agents(&mut draw, requests),
        Pattern::Documents => standard::documents(&mut draw, requests),
        Pattern::Branching => standard::branching(&mut draw, requests),
        Pattern::NoSharing => adverse::no_sharing(&mut draw, requests),
        Pattern::OnePrompt => adverse::one_prompt(&mut draw, requests),
        Pattern::MovingHot => adverse::moving_hot(&mut draw, requests),
        Pattern::Sliding => adverse::sliding(&mut draw, requests),
        Pattern::Herd => adverse::herd(&mut draw, requests),
        Pattern::Cliff => adverse::cliff(&mut draw, requests),
        Pattern::Equal => published::equal_prompts(&mut draw, requests),
        Pattern::Passages => standard::passages(&mut draw, requests, false),
        Pattern::OrderedPassages => standard::passages(&mut draw, requests, true),
        Pattern::Mixture => standard::mixture(&mut draw, requests),
        Pattern::HeadOfLine => adverse::head_of_line(&mut draw, requests),
        Pattern::Poisoned => adverse::poisoned(&mut draw, requests),
        Pattern::B2b => published::b2b(&mut draw, requests),
        Pattern::Gateways => published::gateways(&mut draw, requests),
    };
    let warm_up = match pattern {
        Pattern::B2b => Some(published::B2B_WARM_UP),
        // As published: engines are cold, and everything counts.
        Pattern::Gateways => Some(0),
        _ => None,
    };
    Draft { sessions, warm_up, recorded: None }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::DraftSession;
    use super::*;
    use crate::reference::Accesses;
    use crate::sequence::Sequence;

    #[test]
    fn the_seed_decides_everything() {
        for pattern in Pattern::ALL {
            let hash = |seed| draft(pattern, 120, seed).schedule(Duration::from_secs(100)).hash;
            assert_eq!(hash(1), hash(1), "{}", pattern.name());
            assert_ne!(hash(1), hash(2), "{}", pattern.name());
        }
    }

    #[test]
    fn patterns_are_about_as_large_as_asked_for() {
        for pattern in Pattern::ALL {
            let len = draft(pattern, 400, 3).measured();
            assert!((300..=560).contains(&len), "{}: {len}", pattern.name());
        }
    }

    /// What an infinite cache would find tells the patterns apart.
    #[test]
    fn patterns_share_what_they_are_made_to_share() {
        let ideal = |pattern| ideal(pattern, 400);
        assert_eq!(ideal(Pattern::NoSharing), 0.0);
        assert_eq!(ideal(Pattern::HeadOfLine), 0.0);
        assert!((0.7..0.85).contains(&ideal(Pattern::OnePrompt)));
        for pattern in [Pattern::Agents, Pattern::Cliff, Pattern::Branching] {
            let ideal = ideal(pattern);
            assert!((0.8..0.99).contains(&ideal), "{}: {ideal}", pattern.name());
        }
        for pattern in [Pattern::SystemPrompts, Pattern::Chat, Pattern::Documents, Pattern::Sliding] {
            let ideal = ideal(pattern);
            assert!((0.4..0.98).contains(&ideal), "{}: {ideal}", pattern.name());
        }
    }

    fn ideal(pattern: Pattern, requests: usize) -> f64 {
        let traffic = draft(pattern, requests, 5).schedule(Duration::from_secs(400));
        let found: usize = Accesses::new(&traffic.requests).infinite().iter().sum();
        found as f64 / traffic.prompt_tokens() as f64
    }

    fn prompt_tokens(session: &DraftSession) -> usize {
        session.turns[0].requests[0].prompt_tokens()
    }

    #[test]
    fn passages_in_one_order_share_more() {
        let (permuted, ordered) = (ideal(Pattern::Passages, 2_000), ideal(Pattern::OrderedPassages, 2_000));
        assert!((0.2..0.4).contains(&permuted), "{permuted}");
        assert!(ordered > 1.5 * permuted, "{ordered}");
        let lens: Vec<_> = draft(Pattern::Passages, 500, 5).sessions.iter().map(prompt_tokens).collect();
        // Instructions and a question, and eight passages.
        let bounds = 512 + 24 + 8 * 200..=512 + 200 + 8 * 600;
        assert!(lens.iter().all(|len| bounds.contains(len)), "{lens:?}");
    }

    #[test]
    fn the_mixture_drifts() {
        let sessions = draft(Pattern::Mixture, 4_000, 5).sessions;
        let first = |session: &DraftSession| session.turns[0].requests[0].block(0);
        // Chats begin alike, agents too and with tools, and the rest are alone.
        let kind = |session: &DraftSession| {
            let alike = || sessions.iter().filter(|other| first(other) == first(session));
            match (alike().count(), alike().map(prompt_tokens).min()) {
                (1, _) => 2,
                (_, Some(7_000..)) => 1,
                _ => 0,
            }
        };
        let mut asked = [[0.0; standard::PHASES]; 3];
        for session in &sessions {
            let phase = (session.starts * standard::PHASES as f64) as usize;
            asked[kind(session)][phase] += session.turns.len() as f64;
        }
        let all: f64 = asked.iter().flatten().sum();
        for (number, (of_phases, mean)) in asked.iter().zip([0.5, 0.3, 0.2]).enumerate() {
            let share = of_phases.iter().sum::<f64>() / all;
            assert!((share - mean).abs() < 0.03, "kind {number}: {share}");
            for (of_phase, meant) in of_phases.iter().zip(standard::MIX[number]) {
                let share = standard::PHASES as f64 * of_phase / all;
                assert!((share - meant).abs() < 0.08, "kind {number}: {share} for {meant}");
            }
        }
    }

    #[test]
    fn one_in_so_many_disturbs_the_others() {
        let cases = [
            (Pattern::HeadOfLine, 400_000, adverse::SHORT_FOR_EACH_LONG),
            (Pattern::Poisoned, 100_000, adverse::ORDINARY_FOR_EACH_POISON),
        ];
        for (pattern, tokens, others) in cases {
            let all = draft(pattern, 2_010, 5);
            let (intruders, asked) = (all.sessions.iter().filter(|of| of.intrudes), all.len());
            let lens: Vec<usize> = intruders.map(prompt_tokens).collect();
            assert!(lens.iter().all(|len| *len == tokens), "{}", pattern.name());
            assert_eq!(lens.len(), 2_010 / (others + 1), "{}", pattern.name());
            let quiet = all.without_intruders();
            assert_eq!(quiet.len() + lens.len(), asked);
            let longest = quiet.schedule(Duration::from_secs(100)).longest_tokens();
            assert!(longest < tokens / 2, "{}: {longest}", pattern.name());
        }
        let short = draft(Pattern::HeadOfLine, 2_010, 5).without_intruders();
        let mean = short.sessions.iter().map(prompt_tokens).sum::<usize>() / short.len();
        assert!((1_950..2_150).contains(&mean), "{mean}");
    }

    #[test]
    fn users_of_the_b2b_profile_ask_again() {
        let traffic = draft(Pattern::B2b, 1_500, 5).schedule(Duration::from_secs(100));
        let (warm_up, measured) = traffic.requests.split_at(traffic.warm_up);
        let prompts = |requests: &[Arc<Sequence>]| {
            let key = |of: &Arc<Sequence>| of.prompt().hashes().last().copied();
            requests.iter().map(key).collect::<HashSet<_>>()
        };
        assert_eq!((warm_up.len(), prompts(warm_up).len()), (750, 750), "everybody asks once");
        assert_eq!(prompts(measured), prompts(warm_up), "and then the same");
        let tenants: HashSet<_> = measured.iter().map(|of| of.block(6_000 / 64 - 1)).collect();
        assert_eq!(tenants.len(), 150);
        assert!(measured.iter().all(|of| (of.prompt_tokens(), of.output_tokens()) == (7_200, 1_000)));
        // What a pooled cache has to hold, of which 73 % of eight engines' 307,328 tokens is meant.
        let resident = 150 * 6_000 + 750 * 1_200;
        assert!((resident as f64 / (8.0 * 307_328.0) - 0.732).abs() < 0.001);
    }

    /// Three requests for each prefix: the second and the third can find it.
    #[test]
    fn three_requests_share_a_gateway_s_prefix() {
        let ideal = ideal(Pattern::Gateways, 1_800);
        assert!((ideal - 2.0 / 3.0 * 1_024.0 / 1_280.0).abs() < 0.001, "{ideal}");
    }
}
