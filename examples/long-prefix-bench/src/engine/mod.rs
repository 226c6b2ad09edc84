//! One engine in virtual time: the scheduler of `sglang-sim`, over block hashes and with decode steps jumped over.
//!
//! First come, first served; chunked prefill before decode; memory in pages of 64 tokens with a radix cache; outputs cached at the end;
//! retraction when memory runs out. Its rules are those of [`sglang_sim::Scheduler`], and a test drives both with the same
//! requests and compares times, hits and evictions. Two things make it fast enough for hours of a fleet: a prompt is its block
//! hashes, not its tokens, and while nothing waits a whole stretch of decode steps is one event, cut short when a request comes.

mod cache;
mod estimate;
mod fault;
mod live;
mod memory;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use cache::Change;
use live::Live;
pub use memory::Memory;
use sglang_sim::Timing;

use crate::sequence::{BLOCK_TOKENS, Sequence};

/// Names a request within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u32);

/// What an engine can do at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// New tokens in one prefill pass.
    pub chunk_tokens: usize,
    /// Requests in the running batch.
    pub max_running: usize,
}

/// Something a client or the measurement sees of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// The request.
    pub id: RequestId,
    /// Its first token came.
    pub first: bool,
    /// Its last token came.
    pub last: bool,
    /// Prompt tokens that were cached when it was scheduled first.
    pub cached_tokens: usize,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Prompt tokens computed.
    pub prefilled_tokens: u64,
    /// Requests put back for lack of memory.
    pub retracted: u64,
    /// Decode steps.
    pub decode_steps: u64,
}

/// See the module. Several engines may share one memory: then they stand for a fleet with one pooled cache.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    timing: Timing,
    memory: Rc<RefCell<Memory>>,
    waiting: VecDeque<Live>,
    running: Vec<Live>,
    under_way: Option<Pass>,
    passes: usize,
    totals: Totals,
    /// How much longer than usual everything takes.
    pace: f64,
    is_paused: bool,
}

/// What an engine is doing.
#[derive(Debug)]
struct Pass {
    began: Duration,
    ends: Duration,
    /// As it was when the pass began.
    pace: f64,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Prefill {
        produced: Vec<Produced>,
    },
    /// So many steps of all that decode.
    Decode {
        steps: usize,
        batch: usize,
        context: usize,
    },
}

/// One request's part of a prefill pass.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// Its place in the running batch.
    index: usize,
    tokens: usize,
}

/// Passes between two touches of what waiting requests have cached.
const TOUCH_PASSES: usize = 32;

/// Waiting requests that are touched, from the head of the queue.
const MOST_TOUCHED: usize = 128;

impl Default for Limits {
    /// SGLang's chunk on large GPUs, and a batch that long prompts do not fill.
    fn default() -> Self {
        Self { chunk_tokens: 8_192, max_running: 256 }
    }
}

impl Engine {
    /// An idle engine.
    pub fn new(limits: Limits, timing: Timing, memory: Rc<RefCell<Memory>>) -> Self {
        Self {
            limits,
            timing,
            memory,
            waiting: VecDeque::new(),
            running: Vec::new(),
            under_way: None,
            passes: 0,
            totals: Totals::default(),
            pace: 1.0,
            is_paused: false,
        }
    }

    /// Queues a request that is expected to find so many tokens of its prompt; only [`backlog`](Self::backlog) looks at that.
    pub fn submit(&mut self, id: RequestId, sequence: Arc<Sequence>, expected_tokens: usize) {
        self.waiting.push_back(Live::new(id, sequence, expected_tokens));
    }

    /// Begins a pass if there is work and none is under way; says when it ends.
    pub fn begin(&mut self, now: Duration) -> Option<Duration> {
        let has_work = !self.waiting.is_empty() || !self.running.is_empty();
        if self.under_way.is_some() || self.is_paused || !has_work {
            return None;
        }
        self.passes += 1;
        if self.passes.is_multiple_of(TOUCH_PASSES) {
            self.touch_waiting();
        }
        let chunks = self.plan_prefill();
        let (work, takes) = if chunks.is_empty() { self.plan_decode() } else { self.prefill(&chunks) };
        let (pace, ends) = (self.pace, now + takes.mul_f64(self.pace));
        self.under_way = Some(Pass { began: now, ends, pace, work });
        Some(ends)
    }

    /// Something has come: a stretch of decode steps ends with the step that is under way. The new end, if there is one.
    pub fn interrupt(&mut self, now: Duration) -> Option<Duration> {
        let pass = self.under_way.as_mut()?;
        let Work::Decode { steps, batch, context } = &mut pass.work else { return None };
        let (began, pace, batch, context) = (pass.began, pass.pace, *batch, *context);
        let ends = |steps| began + stretch(&self.timing, steps, batch, context).mul_f64(pace);
        let (mut fewer, mut most) = (0, *steps);
        while most - fewer > 1 {
            let middle = fewer.midpoint(most);
            if ends(middle) >= now { most = middle } else { fewer = middle }
        }
        if most == *steps {
            return None;
        }
        *steps = most;
        pass.ends = ends(most);
        Some(pass.ends)
    }

    /// When the pass under way ends.
    pub fn ends(&self) -> Option<Duration> {
        self.under_way.as_ref().map(|pass| pass.ends)
    }

    /// Ends the pass under way: what it produced that anyone looks at, and how long it prefilled.
    pub fn end(&mut self) -> (Vec<Produced>, Duration) {
        let Some(pass) = self.under_way.take() else { return Default::default() };
        match pass.work {
            Work::Prefill { produced } => (produced, pass.ends - pass.began),
            Work::Decode { steps, batch, .. } => (self.decode(steps, batch), Duration::ZERO),
        }
    }

    /// Counters since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The memory.
    pub fn memory(&self) -> &Rc<RefCell<Memory>> {
        &self.memory
    }

    /// Requests that wait, and requests that run.
    pub fn requests(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Keeps what waiting requests will find from being evicted before their turn; the first of them ends up youngest.
    fn touch_waiting(&mut self) {
        let head = self.waiting.len().min(MOST_TOUCHED);
        let mut memory = self.memory.borrow_mut();
        for live in self.waiting.range(..head).rev() {
            memory.touch(&live.sequence, live.matchable());
        }
    }

    /// Fills a prefill pass; admits what it has room for.
    fn plan_prefill(&mut self) -> Vec<Chunk> {
        let mut budget = self.limits.chunk_tokens;
        let mut chunks = Vec::new();
        // A request that was cut goes on before anyone new.
        for index in 0..self.running.len() {
            if self.running[index].is_prefilling() {
                chunks.extend(self.cut(index, &mut budget));
            }
        }
        while budget > 0 && self.running.len() < self.limits.max_running && self.admit() {
            chunks.extend(self.cut(self.running.len() - 1, &mut budget));
        }
        chunks
    }

    /// As much of a request's prompt as the budget and the memory allow.
    fn cut(&self, index: usize, budget: &mut usize) -> Option<Chunk> {
        let live = &self.running[index];
        let (computed, rest) = (live.hold.computed(), live.to_prefill());
        let available = self.memory.borrow().available().saturating_mul(BLOCK_TOKENS);
        let mut tokens = rest.min(*budget).min(available);
        if tokens < rest {
            // A cut is made at the end of a page, and ends the pass.
            tokens = (computed + tokens) / BLOCK_TOKENS * BLOCK_TOKENS - computed;
            *budget = 0;
        } else {
            *budget -= tokens;
        }
        (tokens > 0).then_some(Chunk { index, tokens })
    }

    /// Moves the first waiting request to the running batch, if its tokens fit.
    fn admit(&mut self) -> bool {
        let Some(mut live) = self.waiting.pop_front() else { return false };
        let mut memory = self.memory.borrow_mut();
        live.hold = memory.hold(&live.sequence, live.matchable());
        live.prefill_end = live.tokens();
        let reserved: f64 = self.running.iter().map(Live::reserved).sum();
        let needed = live.to_prefill().next_multiple_of(BLOCK_TOKENS) + live.most_to_come() + BLOCK_TOKENS;
        let available = memory.available() as f64 * BLOCK_TOKENS as f64;
        if !self.running.is_empty() && needed as f64 + reserved > available {
            live.put_back(&mut memory);
            self.waiting.push_front(live);
            return false;
        }
        live.found.get_or_insert(live.hold.computed());
        self.running.push(live);
        true
    }

    fn prefill(&mut self, chunks: &[Chunk]) -> (Work, Duration) {
        let (mut takes, mut produced) = (Duration::ZERO, Vec::new());
        let mut memory = self.memory.borrow_mut();
        // Asked for in one piece, with a page for each request that may begin one.
        let extend: usize = chunks.iter().map(|chunk| chunk.tokens).sum();
        memory.make_room((extend + chunks.len() * BLOCK_TOKENS).div_ceil(BLOCK_TOKENS));
        for chunk in chunks {
            let live = &mut self.running[chunk.index];
            takes += self.timing.prefill(chunk.tokens, live.hold.computed());
            self.totals.prefilled_tokens += chunk.tokens as u64;
            memory.grow(&mut live.hold, chunk.tokens);
            if !live.is_prefilling() {
                let first = live.produced == 0;
                live.produced += 1;
                let (last, cached_tokens) = (live.to_come() == 0, live.found.unwrap_or(0));
                // After a retraction it goes on where it was: nobody sees a first token again.
                if first || last {
                    produced.push(Produced { id: live.id, first, last, cached_tokens });
                }
            }
        }
        // Stored when the pass is over: requests of one batch do not find each other's pages.
        for chunk in chunks {
            let live = &mut self.running[chunk.index];
            memory.store(&mut live.hold, &live.sequence);
        }
        drop(memory);
        self.finish();
        (Work::Prefill { produced }, takes)
    }

    /// Plans as many decode steps as nothing else can happen in.
    fn plan_decode(&mut self) -> (Work, Duration) {
        let least = self.running.iter().map(Live::to_come).min().unwrap_or(0);
        // Whoever waits is tried again at every pass.
        let may_jump = self.waiting.is_empty() && !self.running.iter().any(Live::is_prefilling);
        let mut steps = if may_jump { least } else { 1 };
        if self.blocks_begun(steps) > self.memory.borrow().available() {
            steps = 1;
            while self.blocks_begun(1) > self.memory.borrow().available() && self.running.len() > 1 {
                self.retract();
            }
        }
        let decoding = self.running.iter().filter(|live| !live.is_prefilling());
        let (batch, context) =
            decoding.fold((0, 0), |(batch, context), live| (batch + 1, context + live.tokens()));
        // With nobody to decode and no room to prefill a pass goes by.
        let takes = stretch(&self.timing, steps, batch, context);
        (Work::Decode { steps, batch, context }, takes)
    }

    fn decode(&mut self, steps: usize, batch: usize) -> Vec<Produced> {
        if batch == 0 {
            return Vec::new();
        }
        self.passes += steps - 1;
        self.totals.decode_steps += steps as u64;
        let mut produced = Vec::new();
        let blocks = self.blocks_begun(steps);
        let mut memory = self.memory.borrow_mut();
        memory.make_room(blocks);
        for live in self.running.iter_mut().filter(|live| !live.is_prefilling()) {
            // The KV of the token produced last is computed now.
            memory.grow(&mut live.hold, steps);
            live.produced += steps;
            if live.to_come() == 0 {
                let cached_tokens = live.found.unwrap_or(0);
                produced.push(Produced { id: live.id, first: false, last: true, cached_tokens });
            }
        }
        drop(memory);
        self.finish();
        produced
    }

    /// Blocks that so many decode steps begin.
    fn blocks_begun(&self, steps: usize) -> usize {
        let decoding = self.running.iter().filter(|live| !live.is_prefilling());
        decoding.map(|live| live.hold.begins(steps)).sum()
    }

    /// Lets go of the requests that have produced their last token.
    fn finish(&mut self) {
        let mut memory = self.memory.borrow_mut();
        for live in self.running.extract_if(.., |live| live.to_come() == 0) {
            memory.release(live.hold, &live.sequence);
        }
    }

    /// Puts back the running request that loses least: the fewest outputs, the longest prompt among those.
    fn retract(&mut self) {
        let loss = |live: &Live| (live.produced, usize::MAX - live.sequence.prompt_tokens());
        let Some(at) = (0..self.running.len()).min_by_key(|index| loss(&self.running[*index])) else {
            return;
        };
        let mut live = self.running.remove(at);
        live.put_back(&mut self.memory.borrow_mut());
        self.totals.retracted += 1;
        self.waiting.push_front(live);
    }
}

/// Time of so many decode steps of a batch whose context grows by a token a step and request: the sum of [`Timing::decode`].
fn stretch(timing: &Timing, steps: usize, batch: usize, context: usize) -> Duration {
    let fixed = timing.decode_base + timing.decode_per_request * u32::try_from(batch).unwrap_or(u32::MAX);
    let (steps, batch) = (steps as f64, batch as f64);
    let tokens = steps * context as f64 + batch * steps * (steps - 1.0) / 2.0;
    let nanos = steps * fixed.as_nanos() as f64 + tokens * timing.decode_per_token_ns;
    Duration::from_nanos(nanos as u64)
}
