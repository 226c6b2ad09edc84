//! One request from its submission to its end: what it has, what it still needs.

use super::memory::{Hold, Memory, Owner};
use super::{Job, Produced, RequestId};

/// Share of the output still to come that admission reserves memory for. SGLang's ratio starts at 0.7 and decays to 0.098.
const NEW_TOKEN_RATIO: f64 = 0.4;

/// Output tokens that are reserved for at most, as in SGLang.
const MOST_RESERVED: usize = 4096;

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: RequestId,
    pub(super) owner: Owner,
    /// Prompt, then what was produced.
    pub(super) tokens: Vec<u32>,
    output_tokens: usize,
    /// The KV of its prompt is not computed here.
    pub(super) received: bool,
    pub(super) hold: Hold,
    /// Tokens to be computed before it decodes: the prompt, and after a retraction what was produced before it.
    pub(super) prefill_end: usize,
    /// Prompt tokens cached at its first admission.
    pub(super) found: Option<usize>,
    /// Of these, tokens that were on the host alone.
    pub(super) found_on_host: usize,
    /// Times it was put back.
    pub(super) retractions: u32,
    /// Decode steps since its last token.
    steps: usize,
    /// Tokens that come of passes whose result is still to come.
    expected: usize,
}

impl Live {
    pub(super) fn new(job: Job) -> Self {
        Self {
            id: job.id,
            owner: Owner { namespace: job.namespace, prompt_len: job.prompt.len(), priority: job.priority },
            prefill_end: job.prompt.len(),
            tokens: job.prompt,
            received: job.received,
            output_tokens: job.output_tokens.max(1),
            hold: Hold::default(),
            found: None,
            found_on_host: 0,
            retractions: 0,
            steps: 0,
            expected: 0,
        }
    }

    /// What may be found in the cache: the last token is always computed.
    pub(super) fn matchable(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    pub(super) fn is_prefilling(&self) -> bool {
        self.hold.computed() < self.prefill_end
    }

    /// Tokens to be computed before it decodes.
    pub(super) fn to_prefill(&self) -> usize {
        self.prefill_end.saturating_sub(self.hold.computed())
    }

    /// Its prompt is computed, and more is to come than the passes under way bring.
    pub(super) fn is_decoding(&self) -> bool {
        !self.is_prefilling() && !self.is_ending()
    }

    /// Its last token comes of the pass under way.
    pub(super) fn is_ending(&self) -> bool {
        self.expected > 0 && self.produced() + self.expected >= self.output_tokens
    }

    /// Tokens that its next one follows.
    pub(super) fn context(&self) -> usize {
        self.tokens.len() + self.expected
    }

    /// Tokens produced so far.
    pub(super) fn produced(&self) -> usize {
        self.tokens.len() - self.owner.prompt_len
    }

    /// Tokens still to come, as far as admission looks ahead.
    pub(super) fn most_to_come(&self) -> usize {
        (self.output_tokens - self.produced()).min(MOST_RESERVED)
    }

    /// Memory that is kept for it while it runs.
    pub(super) fn reserved(&self, memory: &Memory) -> f64 {
        self.most_to_come() as f64 * NEW_TOKEN_RATIO + memory.whole_pages(self.to_prefill()) as f64
    }

    /// Its next token comes with the next decode step.
    pub(super) fn is_due(&self, steps_per_token: usize) -> bool {
        self.steps + 1 >= steps_per_token
    }

    /// Takes part in a decode step; whether that completes a token.
    pub(super) fn decode(&mut self, steps_per_token: usize) -> bool {
        let due = self.is_due(steps_per_token);
        self.steps = if due { 0 } else { self.steps + 1 };
        due
    }

    /// A pass has been planned that brings its next token.
    pub(super) fn expect_token(&mut self) {
        self.expected += 1;
    }

    /// It leaves the running batch and waits again; what passes under way bring is lost.
    pub(super) fn put_back(&mut self) {
        self.retractions += 1;
        self.expected = 0;
    }

    /// Its next token.
    pub(super) fn produce(&mut self) -> Produced {
        self.expected -= 1;
        let token = crate::tokenizer::next_token(&self.tokens);
        self.tokens.push(token);
        Produced {
            id: self.id,
            token,
            cached_tokens: self.found.unwrap_or(0),
            cached_on_host: self.found_on_host,
            retractions: self.retractions,
            last: self.produced() >= self.output_tokens,
        }
    }
}
