//! What is sent: kinds of traffic that share prefixes in different ways, at random times.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::CAPACITY_TOKENS;

/// Ids of tokens; the lowest are left to special tokens.
const VOCABULARY: std::ops::Range<u32> = 100..32_000;

/// Tokens of a document that is asked about again and again.
const DOCUMENT_TOKENS: usize = 4_096;

/// Turns of a session at most.
const MOST_TURNS: u32 = 12;

/// Kinds of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One of some system prompts, by Zipf's law, and a question.
    SystemPrompts,
    /// Sessions whose every turn repeats all before it, answers included.
    MultiTurn,
    /// Documents, any as likely as any other, that together fill so many percent of the fleet's cache.
    Churn {
        /// Their tokens relative to what all engines can hold.
        percent: u32,
    },
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<u32>,
    pub(crate) output_tokens: usize,
    /// The session that goes on when it is answered.
    pub(crate) session: Option<Session>,
}

/// What is known of a session besides its prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    turn: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Workload {
    kind: Kind,
    rng: fastrand::Rng,
    /// Mean time between two requests.
    gap: Duration,
    /// Names of what is shared: system prompts or documents.
    shared: usize,
    /// Prompts of sessions that wait for their next turn, each with its answer, the longest waiting first.
    waiting: VecDeque<(Session, Vec<u32>)>,
}

impl Kind {
    /// All that are measured.
    pub(crate) const ALL: [Self; 5] = [
        Self::SystemPrompts,
        Self::MultiTurn,
        Self::Churn { percent: 50 },
        Self::Churn { percent: 100 },
        Self::Churn { percent: 200 },
    ];

    /// As rows name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SystemPrompts => "system prompts",
            Self::MultiTurn => "multi-turn",
            Self::Churn { percent: ..=50 } => "churn at 0.5 x",
            Self::Churn { percent: ..=100 } => "churn at 1 x",
            Self::Churn { .. } => "churn at 2 x",
        }
    }

    pub(crate) fn is_churn(self) -> bool {
        matches!(self, Self::Churn { .. })
    }
}

impl Workload {
    /// Traffic for so many engines.
    pub(crate) fn new(kind: Kind, engines: usize, seed: u64) -> Self {
        let fleet_tokens = engines * CAPACITY_TOKENS;
        let (shared, gap_ms) = match kind {
            // More of them than fit, so that the rare ones come and go.
            Kind::SystemPrompts => (fleet_tokens / 2_048, 60),
            Kind::MultiTurn => (0, 120),
            Kind::Churn { percent } => (fleet_tokens * percent as usize / 100 / DOCUMENT_TOKENS, 150),
        };
        let gap = Duration::from_millis(gap_ms) * 4 / engines as u32;
        Self { kind, rng: fastrand::Rng::with_seed(seed), gap, shared, waiting: VecDeque::new() }
    }

    /// Time to the next request: exponential, so that they come as they please.
    pub(crate) fn next_gap(&mut self) -> Duration {
        self.gap.mul_f64(-(1.0 - self.rng.f64()).ln())
    }

    /// The next request.
    pub(crate) fn request(&mut self) -> Request {
        match self.kind {
            Kind::SystemPrompts => {
                let group = self.zipf();
                let own = self.rng.usize(64..768);
                self.asking(text(group as u64, 2_048), own)
            }
            Kind::Churn { .. } => {
                let document = self.rng.usize(..self.shared);
                let own = self.rng.usize(32..128);
                self.asking(text(document as u64, DOCUMENT_TOKENS), own)
            }
            Kind::MultiTurn => self.turn(),
        }
    }

    /// A session's turn was answered.
    pub(crate) fn answered(&mut self, session: Session, said: Vec<u32>) {
        if session.turn < MOST_TURNS {
            self.waiting.push_back((session, said));
        }
    }

    fn asking(&mut self, mut prompt: Vec<u32>, own: usize) -> Request {
        let question = self.rng.u64(..);
        prompt.extend(text(question, own));
        Request { prompt, output_tokens: self.rng.usize(16..160), session: None }
    }

    /// Two of three requests go on with the session that has waited longest, if one waits.
    fn turn(&mut self) -> Request {
        let goes_on = self.rng.u8(..3) > 0;
        let (turn, said) = match self.waiting.pop_front().filter(|_| goes_on) {
            Some((session, said)) => (session.turn + 1, said),
            None => (1, Vec::new()),
        };
        let own = if turn == 1 { 1_024 } else { 128 };
        let own = self.rng.usize(own / 2..own * 2);
        let mut request = self.asking(said, own);
        request.session = Some(Session { turn });
        request
    }

    /// A number below `shared`, the n-th with probability about 1/n.
    fn zipf(&mut self) -> usize {
        let most = (self.shared as f64 + 1.0).ln();
        ((self.rng.f64() * most).exp() - 1.0) as usize % self.shared
    }
}

/// So many tokens of a text that its name alone determines.
fn text(name: u64, tokens: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(name ^ 0x00E5_9A11_E200_0001);
    (0..tokens).map(|_| rng.u32(VOCABULARY)).collect()
}
