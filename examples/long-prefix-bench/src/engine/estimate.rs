//! What an observer that sees everything says of an engine: what a prompt will find, and how much work waits.

use std::time::Duration;

use super::Engine;
use super::live::Live;
use crate::sequence::{BLOCK_TOKENS, Sequence};

impl Engine {
    /// Tokens of a prompt that will be found when everything before it has been prefilled.
    pub fn will_match_tokens(&self, sequence: &Sequence) -> usize {
        let cached = self.memory.borrow().cached_of(sequence);
        let queued = self.waiting.iter().chain(self.running.iter().filter(|live| live.is_prefilling()));
        queued.map(|live| live.in_common(sequence)).fold(cached, usize::max) * BLOCK_TOKENS
    }

    /// Time until all is prefilled: the rest of a prefill pass under way, what runs and is not prefilled after it, and what waits, each
    /// request finding what is cached now or what it was expected to find.
    pub fn backlog(&self, now: Duration) -> Duration {
        let memory = self.memory.borrow();
        let waiting = self.waiting.iter().map(|live| {
            let cached = live.expected.max(memory.cached_of(&live.sequence) * BLOCK_TOKENS);
            self.timing.prefill(live.tokens() - cached, cached)
        });
        let running = self.running.iter().filter(|live| live.is_prefilling());
        let running = running.map(|live| self.timing.prefill(live.to_prefill(), live.hold.computed()));
        self.pass_rest(now) + waiting.chain(running).sum::<Duration>()
    }

    /// Uncached tokens that wait, each request as if it found what is cached now.
    pub fn queued_tokens(&self) -> usize {
        let memory = self.memory.borrow();
        let waiting =
            self.waiting.iter().map(|live| live.tokens() - memory.cached_of(&live.sequence) * BLOCK_TOKENS);
        waiting.sum::<usize>() + self.running.iter().map(Live::to_prefill).sum::<usize>()
    }
}
