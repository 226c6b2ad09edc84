//! What the next pass computes: who goes on, who is admitted, who is put back, and what is evicted for it.

use std::time::Duration;

use super::batch::{Batch, Chunk, Work};
use super::{Live, Scheduler};

/// Passes between two touches of what waiting requests have cached.
const TOUCH_PASSES: usize = 32;

/// Waiting requests that are touched, from the head of the queue.
const MOST_TOUCHED: usize = 128;

/// So many tokens of the request at a place of the running batch.
#[derive(Clone, Copy, Debug)]
struct Part {
    index: usize,
    tokens: usize,
}

impl Scheduler {
    /// The next pass, its memory taken; none if nothing can be computed now.
    pub(super) fn plan(&mut self) -> Option<Batch> {
        self.passes += 1;
        self.memory.acknowledge_copies();
        if self.passes.is_multiple_of(TOUCH_PASSES) {
            self.touch_waiting();
        }
        let parts = self.fill_prefill();
        if parts.is_empty() { self.plan_decode() } else { Some(self.plan_prefill(&parts)) }
    }

    /// Keeps what waiting requests will find from being evicted before their turn; the first of them ends up youngest.
    fn touch_waiting(&mut self) {
        let head = self.waiting.len().min(MOST_TOUCHED);
        for live in self.waiting.range(..head).rev() {
            self.memory.touch(&live.owner.namespace, live.matchable());
        }
    }

    /// Fills a prefill pass; admits what it has room for.
    fn fill_prefill(&mut self) -> Vec<Part> {
        let mut budget = self.limits.chunked_prefill_size;
        let mut parts = Vec::new();
        // A request that was cut goes on before anyone new.
        for index in 0..self.running.len() {
            let live = &mut self.running[index];
            if live.is_prefilling() {
                // What is being computed of it can be found before its result is there: it will be when it is read.
                self.memory.store_new(&mut live.hold, &live.owner, &live.tokens);
                parts.extend(self.cut(index, &mut budget));
            }
        }
        while budget > 0 && self.running.len() < self.limits.max_running_requests && self.admit() {
            parts.extend(self.cut(self.running.len() - 1, &mut budget));
        }
        parts
    }

    /// As much of a request's prompt as the budget and the memory allow.
    fn cut(&self, index: usize, budget: &mut usize) -> Option<Part> {
        let (live, page) = (&self.running[index], self.limits.page_size);
        let (computed, rest) = (live.hold.computed(), live.to_prefill());
        let mut tokens = rest.min(*budget).min(self.memory.available());
        if tokens < rest {
            // A cut is made at the end of a page, and ends the pass.
            tokens = (computed + tokens) / page * page - computed;
            *budget = 0;
        } else {
            *budget -= tokens;
        }
        (tokens > 0).then_some(Part { index, tokens })
    }

    /// Moves the first waiting request to the running batch, if its tokens fit.
    fn admit(&mut self) -> bool {
        let Some(mut live) = self.waiting.pop_front() else { return false };
        live.hold = self.memory.hold(&live.owner.namespace, live.matchable());
        live.prefill_end = live.tokens.len();
        let reserved: f64 = self.running.iter().map(|live| live.reserved(&self.memory)).sum();
        let needed = self.memory.whole_pages(live.to_prefill()) + live.most_to_come() + self.limits.page_size;
        if !self.running.is_empty() && needed as f64 + reserved > self.memory.available() as f64 {
            self.memory.give_up(&mut live.hold);
            self.waiting.push_front(live);
            return false;
        }
        self.memory.load_back(&mut live.hold);
        if live.found.is_none() {
            let found = live.hold.computed();
            live.found = Some(found);
            live.found_on_host = live.hold.loaded();
            self.totals.prompt_tokens += live.owner.prompt_len as u64;
            self.totals.cached_tokens += found as u64;
        }
        self.running.push(live);
        true
    }

    fn plan_prefill(&mut self, parts: &[Part]) -> Batch {
        // Asked for in one piece, with a page for each request that may begin one.
        let extend: usize = parts.iter().map(|part| part.tokens).sum();
        self.memory.make_room(extend + parts.len() * self.limits.page_size);
        let mut duration = Duration::ZERO;
        let mut chunks = Vec::with_capacity(parts.len());
        for part in parts {
            let live = &mut self.running[part.index];
            if !live.received {
                duration += self.timing.prefill(part.tokens, live.hold.computed());
            }
            self.memory.grow(&mut live.hold, part.tokens);
            let last = !live.is_prefilling();
            if last {
                live.expect_token();
            }
            let end = live.hold.computed();
            chunks.push(Chunk { id: live.id, tokens: part.tokens, end, last, received: live.received });
        }
        // Layer by layer while those before compute.
        duration = duration.max(self.timing.load_back(self.memory.take_loaded()));
        Batch { work: Work::Prefill(chunks), duration }
    }

    fn plan_decode(&mut self) -> Option<Batch> {
        while self.decode_pages() * self.limits.page_size > self.memory.available() && self.running.len() > 1
        {
            if self.running.iter().any(Live::is_ending) {
                // The batch under way will leave more memory than there is now.
                return None;
            }
            self.retract();
        }
        self.memory.make_room(self.decode_pages() * self.limits.page_size);
        let (mut batch, mut due, mut context) = (Vec::new(), Vec::new(), 0);
        for live in self.running.iter_mut().filter(|live| live.is_decoding()) {
            batch.push(live.id);
            context += live.context();
            if live.decode(self.limits.steps_per_token) {
                // The KV of the token produced last is computed now.
                self.memory.grow(&mut live.hold, 1);
                live.expect_token();
                due.push(live.id);
            }
        }
        let duration = self.timing.decode(batch.len(), context);
        (!batch.is_empty()).then_some(Batch { work: Work::Decode { batch, due }, duration })
    }

    /// Pages that the next decode step begins.
    fn decode_pages(&self) -> usize {
        let steps_per_token = self.limits.steps_per_token;
        let begins = |live: &&Live| live.is_due(steps_per_token) && live.hold.is_full();
        self.running.iter().filter(|live| live.is_decoding()).filter(begins).count()
    }

    /// Puts back the running request that loses least: the fewest outputs, the longest prompt among those.
    fn retract(&mut self) {
        let loss = |live: &Live| (live.produced(), usize::MAX - live.owner.prompt_len);
        let Some(at) = (0..self.running.len()).min_by_key(|index| loss(&self.running[*index])) else {
            return;
        };
        let live = self.running.remove(at);
        self.put_back(live);
    }
}
