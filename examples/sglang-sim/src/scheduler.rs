//! One dp rank's scheduler: first come, first served, chunked prefill before decode, as SGLang does by default.
//!
//! A pure state machine: [`Scheduler::step`] does one pass and says how long it takes and what came of it; whoever drives it
//! decides whether that time is real. Simplified against SGLang: a prefill pass holds chunks of as many requests as fit its
//! budget and decodes nothing; admission reserves each request's whole remaining output times a fixed ratio.

use std::collections::VecDeque;
use std::time::Duration;

use crate::events::{CacheEvent, LoadStat};
use crate::radix::{Namespace, NodeId, RadixCache};
use crate::timing::Timing;

/// Names a request within its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Bounds of a rank.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens in a page.
    pub page_size: usize,
    /// KV tokens there are.
    pub max_total_tokens: usize,
    /// New tokens in one prefill pass.
    pub chunked_prefill_size: usize,
    /// Requests in the running batch.
    pub max_running_requests: usize,
    /// Decode steps between two publications of events.
    pub decode_log_interval: usize,
}

/// A request for a rank.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub id: RequestId,
    /// What it may share a cache with.
    pub namespace: Namespace,
    /// The prompt; not empty, and shorter than the pool.
    pub prompt: Vec<u32>,
    /// Tokens to produce, at least 1.
    pub output_tokens: usize,
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct Step {
    /// How long it takes.
    pub duration: Duration,
    /// Tokens produced, in order.
    pub produced: Vec<Produced>,
    /// The step ends a stretch after which SGLang publishes its events.
    pub publish: bool,
    /// It was a prefill pass.
    pub prefill: bool,
}

/// One token of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// The request.
    pub id: RequestId,
    /// The token.
    pub token: u32,
    /// Prompt tokens that were cached when the request was scheduled first.
    pub cached_tokens: usize,
    /// It was the last.
    pub last: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    timing: Timing,
    cache: RadixCache,
    waiting: VecDeque<Live>,
    running: Vec<Live>,
    /// Held by live requests and not in the cache.
    private_tokens: usize,
    decode_steps: usize,
    paused: bool,
    totals: Totals,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Prompt tokens of requests that were scheduled.
    pub prompt_tokens: u64,
    /// Of these, tokens found in the cache.
    pub cached_tokens: u64,
    /// Tokens evicted.
    pub evicted_tokens: u64,
    /// Tokens produced.
    pub output_tokens: u64,
    /// Requests finished.
    pub finished: u64,
    /// Requests aborted.
    pub aborted: u64,
    /// Requests put back for lack of memory.
    pub retracted: u64,
    /// Prompt tokens computed.
    pub prefilled_tokens: u64,
    /// Time spent on them, in microseconds.
    pub prefill_busy_us: u64,
}

/// A request that waits or runs.
#[derive(Debug)]
struct Live {
    id: RequestId,
    namespace: Namespace,
    /// Prompt, then what was produced.
    tokens: Vec<u32>,
    prompt_len: usize,
    output_tokens: usize,
    /// Tokens whose KV exists.
    computed: usize,
    /// Tokens of it that stand in the cache, under `last`.
    cached: usize,
    last: Option<NodeId>,
    /// Prompt tokens cached at its first admission.
    found: Option<usize>,
}

/// Share of the output still to come that admission reserves memory for. SGLang's ratio starts at 0.7 and decays to 0.098.
const NEW_TOKEN_RATIO: f64 = 0.4;

/// Output tokens that are reserved for at most, as in SGLang.
const MOST_RESERVED: usize = 4096;

impl Scheduler {
    /// An idle rank with an empty cache.
    pub fn new(limits: Limits, timing: Timing) -> Self {
        Self {
            limits,
            timing,
            cache: RadixCache::new(limits.page_size),
            waiting: VecDeque::new(),
            running: Vec::new(),
            private_tokens: 0,
            decode_steps: 0,
            paused: false,
            totals: Totals::default(),
        }
    }

    /// Queues a request.
    pub fn submit(&mut self, job: Job) {
        self.waiting.push_back(Live {
            id: job.id,
            namespace: job.namespace,
            prompt_len: job.prompt.len(),
            tokens: job.prompt,
            output_tokens: job.output_tokens.max(1),
            computed: 0,
            cached: 0,
            last: None,
            found: None,
        });
    }

    /// Ends a request early; what it computed stays cached. `false` if it is not there.
    pub fn abort(&mut self, id: RequestId) -> bool {
        if let Some(at) = self.waiting.iter().position(|live| live.id == id) {
            if let Some(live) = self.waiting.remove(at) {
                self.release(live);
            }
        } else if let Some(at) = self.running.iter().position(|live| live.id == id) {
            let live = self.running.remove(at);
            self.release(live);
        } else {
            return false;
        }
        self.totals.aborted += 1;
        true
    }

    /// Stops or resumes scheduling; requests in between are kept.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Empties the cache; `false`, and nothing happens, unless the rank is idle.
    pub fn flush(&mut self) -> bool {
        let idle = self.is_idle();
        if idle {
            self.cache.clear();
        }
        idle
    }

    /// Nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// There is something to do.
    pub fn has_work(&self) -> bool {
        !self.paused && !self.is_idle()
    }

    /// One pass: prefill if anything can be admitted or is half prefilled, else a decode step.
    pub fn step(&mut self) -> Step {
        let mut step = self.prefill();
        if !step.prefill {
            step = self.decode();
        }
        step.publish |= self.is_idle();
        step
    }

    /// Cache changes since it was last asked.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.cache.take_events()
    }

    /// Counters since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The load as SGLang publishes it.
    pub fn load(&self, dp_rank: u32) -> LoadStat {
        let tokens = (self.cache.protected_tokens() + self.private_tokens) as u64;
        let waiting_tokens = self.waiting.iter().map(|live| live.tokens.len() as u64).sum::<u64>();
        LoadStat {
            running: self.running.len() as u64,
            waiting: self.waiting.len() as u64,
            tokens,
            max_total_tokens: self.limits.max_total_tokens as u64,
            dp_rank: u64::from(dp_rank),
            waiting_uncached_tokens: waiting_tokens,
            total_tokens: tokens + waiting_tokens,
            max_running: self.limits.max_running_requests as u64,
            prefill_uncached_total: self.totals.prefilled_tokens,
            prefill_busy_us_total: self.totals.prefill_busy_us,
        }
    }

    /// Every cached sequence, from the root to a leaf.
    pub fn cached_paths(&self) -> Vec<(Namespace, Vec<u32>)> {
        self.cache.paths()
    }

    /// Tokens in the cache.
    pub fn cached_tokens(&self) -> usize {
        self.cache.evictable_tokens() + self.cache.protected_tokens()
    }

    /// Tokens neither cached nor held by a request.
    fn free_tokens(&self) -> usize {
        self.limits.max_total_tokens.saturating_sub(self.cached_tokens() + self.private_tokens)
    }

    fn prefill(&mut self) -> Step {
        let mut step = Step::default();
        let mut budget = self.limits.chunked_prefill_size;
        let mut chunks = Vec::new();
        // A request that was cut goes on before anyone new.
        for index in 0..self.running.len() {
            if self.running[index].computed < self.running[index].prompt_end() && budget > 0 {
                self.prefill_chunk(index, &mut budget, &mut step);
                chunks.push(index);
            }
        }
        while budget > 0 && self.running.len() < self.limits.max_running_requests && self.admit() {
            self.prefill_chunk(self.running.len() - 1, &mut budget, &mut step);
            chunks.push(self.running.len() - 1);
        }
        // Stored when the pass is over: requests of one batch do not find each other's pages.
        chunks.into_iter().for_each(|index| self.store(index));
        if step.prefill {
            step.publish = true;
            self.totals.prefill_busy_us += step.duration.as_micros() as u64;
            self.finish(&step.produced);
        }
        step
    }

    /// Moves the first waiting request to the running batch, if its tokens fit.
    fn admit(&mut self) -> bool {
        let Some(mut live) = self.waiting.pop_front() else { return false };
        // The last token is always computed.
        let found = self.cache.match_prefix(&live.namespace, &live.tokens[..live.tokens.len() - 1]);
        self.cache.lock(found.last);
        let reserved: f64 = self.running.iter().map(Live::reserved).sum();
        let needed =
            live.tokens.len() - found.tokens + self.limits.page_size + live.to_come().min(MOST_RESERVED);
        let room = self.free_tokens() + self.cache.evictable_tokens();
        if !self.running.is_empty() && needed as f64 + reserved > room as f64 {
            self.cache.unlock(found.last);
            self.waiting.push_front(live);
            return false;
        }
        if live.found.is_none() {
            live.found = Some(found.tokens);
            self.totals.prompt_tokens += live.prompt_len as u64;
            self.totals.cached_tokens += found.tokens as u64;
        }
        live.computed = found.tokens;
        live.cached = found.tokens;
        live.last = found.last;
        self.running.push(live);
        true
    }

    /// Computes as much of a request's prompt as the budget allows, and stores it.
    fn prefill_chunk(&mut self, index: usize, budget: &mut usize, step: &mut Step) {
        let (computed, end) = (self.running[index].computed, self.running[index].prompt_end());
        let mut new = (end - computed).min(*budget);
        if computed + new < end {
            // A cut is made at the end of a page.
            new = (computed + new) / self.limits.page_size * self.limits.page_size - computed;
        }
        if new == 0 {
            *budget = 0;
            return;
        }
        self.make_room(new);
        *budget -= new;
        step.prefill = true;
        step.duration += self.timing.prefill(new, computed);
        self.totals.prefilled_tokens += new as u64;
        self.private_tokens += new;
        self.running[index].computed += new;
        let live = &mut self.running[index];
        if live.computed == end {
            step.produced.push(live.produce());
        }
    }

    fn decode(&mut self) -> Step {
        let mut step = Step::default();
        if self.running.is_empty() {
            return step;
        }
        while self.free_tokens() + self.cache.evictable_tokens() < self.running.len()
            && self.running.len() > 1
        {
            self.retract();
        }
        self.make_room(self.running.len());
        let context = self.running.iter().map(|live| live.tokens.len()).sum();
        step.duration = self.timing.decode(self.running.len(), context);
        for live in &mut self.running {
            // The KV of the token produced last is computed now.
            live.computed += 1;
            step.produced.push(live.produce());
        }
        self.private_tokens += self.running.len();
        self.decode_steps += 1;
        step.publish = self.decode_steps.is_multiple_of(self.limits.decode_log_interval.max(1));
        self.finish(&step.produced);
        step
    }

    /// Lets go of the requests that have produced their last token.
    fn finish(&mut self, produced: &[Produced]) {
        self.totals.output_tokens += produced.len() as u64;
        for done in produced.iter().filter(|produced| produced.last) {
            if let Some(at) = self.running.iter().position(|live| live.id == done.id) {
                let live = self.running.remove(at);
                self.release(live);
                self.totals.finished += 1;
            }
        }
    }

    /// Puts back the running request that loses least: the fewest outputs, the longest prompt among those.
    fn retract(&mut self) {
        let loss = |live: &Live| (live.tokens.len() - live.prompt_len, usize::MAX - live.prompt_len);
        let Some(at) = (0..self.running.len()).min_by_key(|index| loss(&self.running[*index])) else {
            return;
        };
        let mut live = self.running.remove(at);
        self.private_tokens -= live.computed - live.cached;
        self.cache.unlock(live.last.take());
        (live.computed, live.cached) = (0, 0);
        self.waiting.push_front(live);
        self.totals.retracted += 1;
    }

    /// Puts the whole pages that a running request has computed into the cache.
    fn store(&mut self, index: usize) {
        let live = &mut self.running[index];
        let stored = self.cache.insert(&live.namespace, &live.tokens[..live.computed]);
        let whole = live.computed / self.limits.page_size * self.limits.page_size;
        // What another request had stored meanwhile is kept once; either way it is the cache's now.
        self.private_tokens -= whole - live.cached;
        self.cache.lock(stored.last);
        self.cache.unlock(live.last);
        live.cached = whole;
        live.last = stored.last;
    }

    /// Ends a request: what it has computed stays, up to its last whole page.
    fn release(&mut self, live: Live) {
        if live.computed > 0 {
            self.cache.insert(&live.namespace, &live.tokens[..live.computed]);
        }
        self.private_tokens -= live.computed - live.cached;
        self.cache.unlock(live.last);
    }

    fn make_room(&mut self, tokens: usize) {
        let missing = tokens.saturating_sub(self.free_tokens());
        if missing > 0 {
            self.totals.evicted_tokens += self.cache.evict(missing) as u64;
        }
    }
}

impl Live {
    /// Tokens to be prefilled: the prompt, and after a retraction what was produced before it.
    fn prompt_end(&self) -> usize {
        match self.tokens.len() {
            // While it decodes, the last token produced has no KV yet.
            len if len > self.prompt_len && self.computed + 1 >= len => self.computed,
            len => len,
        }
    }

    fn to_come(&self) -> usize {
        self.output_tokens - (self.tokens.len() - self.prompt_len)
    }

    fn reserved(&self) -> f64 {
        self.to_come().min(MOST_RESERVED) as f64 * NEW_TOKEN_RATIO
            + (self.prompt_end() - self.computed) as f64
    }

    fn produce(&mut self) -> Produced {
        let token = crate::tokenizer::next_token(&self.tokens);
        self.tokens.push(token);
        let last = self.tokens.len() - self.prompt_len >= self.output_tokens;
        Produced { id: self.id, token, cached_tokens: self.found.unwrap_or(0), last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            page_size: 16,
            max_total_tokens: 4_096,
            chunked_prefill_size: 512,
            max_running_requests: 8,
            decode_log_interval: 40,
        }
    }

    fn scheduler() -> Scheduler {
        Scheduler::new(limits(), Timing::default())
    }

    fn job(id: u64, prompt: Vec<u32>, output_tokens: usize) -> Job {
        Job { id: RequestId(id), namespace: Namespace::default(), prompt, output_tokens }
    }

    fn prompt(first: u32, len: usize) -> Vec<u32> {
        (0..len as u32).map(|i| if i == 0 { first } else { i }).collect()
    }

    /// Runs until nothing is left; returns all that was produced and the steps.
    fn drain(scheduler: &mut Scheduler) -> (Vec<Produced>, Vec<Step>) {
        let mut produced = Vec::new();
        let mut steps = Vec::new();
        while scheduler.has_work() {
            let mut step = scheduler.step();
            produced.append(&mut step.produced);
            steps.push(step);
            assert!(steps.len() < 100_000, "it comes to an end");
        }
        (produced, steps)
    }

    fn serve(scheduler: &mut Scheduler, job: Job) -> usize {
        scheduler.submit(job);
        drain(scheduler).0.last().unwrap().cached_tokens
    }

    #[test]
    fn the_last_token_is_never_cached() {
        let mut scheduler = scheduler();
        assert_eq!(serve(&mut scheduler, job(1, prompt(1, 96), 1)), 0);
        assert_eq!(serve(&mut scheduler, job(2, prompt(1, 96), 1)), 80);
        assert_eq!(serve(&mut scheduler, job(3, prompt(1, 100), 1)), 96);
    }

    /// 65 prompt tokens and 40 outputs leave 104 tokens with KV, of which 96 are whole pages.
    #[test]
    fn outputs_are_cached_at_the_end() {
        let mut scheduler = scheduler();
        scheduler.submit(job(1, prompt(1, 65), 40));
        let (produced, _) = drain(&mut scheduler);
        assert_eq!(produced.len(), 40);
        assert_eq!(scheduler.cached_tokens(), 96);
        let mut next = prompt(1, 65);
        next.extend(produced.iter().map(|produced| produced.token));
        next.push(7);
        assert_eq!(serve(&mut scheduler, job(2, next, 1)), 96);
    }

    #[test]
    fn prompts_are_prefilled_in_chunks_and_events_come_with_each() {
        let mut scheduler = scheduler();
        scheduler.take_events();
        scheduler.submit(job(1, prompt(1, 1_200), 1));
        for (expected, done) in [(512, false), (512, false), (176, true)] {
            let step = scheduler.step();
            assert!(step.prefill && step.publish);
            assert_eq!(!step.produced.is_empty(), done);
            let [CacheEvent::Stored { tokens, .. }] = &scheduler.take_events()[..] else {
                panic!("one store a chunk")
            };
            assert_eq!(tokens.len(), expected);
        }
        assert!(scheduler.is_idle());
    }

    #[test]
    fn requests_of_one_batch_do_not_share() {
        let mut scheduler = scheduler();
        scheduler.submit(job(1, prompt(1, 100), 1));
        scheduler.submit(job(2, prompt(1, 100), 1));
        let (produced, _) = drain(&mut scheduler);
        assert_eq!(produced.iter().map(|p| p.cached_tokens).collect::<Vec<_>>(), [0, 0]);
        assert_eq!(scheduler.cached_tokens(), 96, "kept once");
    }

    #[test]
    fn memory_is_never_exceeded_and_comes_back() {
        let mut scheduler = scheduler();
        for id in 0..60 {
            scheduler.submit(job(
                id,
                prompt(id as u32 % 7, 200 + 37 * (id as usize % 9)),
                1 + id as usize * 5,
            ));
        }
        let mut finished = 0;
        while scheduler.has_work() {
            finished += scheduler.step().produced.iter().filter(|produced| produced.last).count();
            let used = scheduler.cached_tokens() + scheduler.private_tokens;
            assert!(used <= limits().max_total_tokens, "{used}");
        }
        assert_eq!(finished, 60);
        assert_eq!((scheduler.private_tokens, scheduler.cache.protected_tokens()), (0, 0));
        assert!(scheduler.totals().evicted_tokens > 0);
    }

    #[test]
    fn without_memory_the_running_are_put_back_and_still_finish() {
        let mut scheduler = scheduler();
        for id in 0..8 {
            scheduler.submit(job(id, prompt(id as u32, 100), 1_500));
        }
        let (produced, _) = drain(&mut scheduler);
        assert!(scheduler.totals().retracted > 0);
        for id in 0..8 {
            let own = produced.iter().filter(|produced| produced.id == RequestId(id)).count();
            assert_eq!(own, 1_500, "no token is lost or produced twice");
        }
    }

    #[test]
    fn an_abort_keeps_what_was_computed() {
        let mut scheduler = scheduler();
        scheduler.submit(job(1, prompt(1, 600), 50));
        scheduler.step();
        assert!(scheduler.abort(RequestId(1)));
        assert!(!scheduler.abort(RequestId(1)));
        assert!(scheduler.is_idle());
        assert_eq!((scheduler.cached_tokens(), scheduler.private_tokens), (512, 0));
    }

    #[test]
    fn a_flush_needs_an_idle_rank() {
        let mut scheduler = scheduler();
        scheduler.submit(job(1, prompt(1, 100), 5));
        scheduler.step();
        assert!(!scheduler.flush());
        drain(&mut scheduler);
        scheduler.take_events();
        assert!(scheduler.flush());
        assert_eq!(scheduler.take_events(), [CacheEvent::Cleared]);
        assert_eq!(scheduler.cached_tokens(), 0);
    }
}
