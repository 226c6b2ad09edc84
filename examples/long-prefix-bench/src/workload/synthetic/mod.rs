//! Generated workloads: S1 to S5 stand for common traffic, A1 to A5 and A7 are made to break a rule, P1 is as others have published.

mod adverse;
mod draw;
mod published;
mod standard;

use draw::Draw;
pub use published::{EQUAL_PROMPT_TOKENS, EQUAL_PROMPTS};

use super::Draft;

/// A generated workload. What each catches is in `docs/benchmark.md`.
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
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::SystemPrompts,
        Self::Chat,
        Self::Agents,
        Self::Documents,
        Self::Branching,
        Self::NoSharing,
        Self::OnePrompt,
        Self::MovingHot,
        Self::Sliding,
        Self::Herd,
        Self::Cliff,
        Self::Equal,
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
    };
    Draft { sessions }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
            let len = draft(pattern, 400, 3).len();
            assert!((300..=560).contains(&len), "{}: {len}", pattern.name());
        }
    }

    /// What an infinite cache would find tells the patterns apart.
    #[test]
    fn patterns_share_what_they_are_made_to_share() {
        let ideal = |pattern| {
            let traffic = draft(pattern, 400, 5).schedule(Duration::from_secs(400));
            let found: usize = crate::reference::Accesses::new(&traffic.requests).infinite().iter().sum();
            found as f64 / traffic.prompt_tokens() as f64
        };
        assert_eq!(ideal(Pattern::NoSharing), 0.0);
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
}
