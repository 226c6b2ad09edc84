//! One engine, and what its agent makes of its events.

use std::collections::HashSet;
use std::time::Duration;

use router_core::key::{BlockHash, KeySpace, Salt};
use sglang_sim::{
    EventEncoding, Eviction, Job, Limits, Namespace, RequestId, Scheduler, Step, Timing, encode_batch,
};
use worker_agent::events::EventBatch;
use worker_agent::mirror::Mirror;
use worker_agent::translate::{BlockView, Tell};

/// Tokens in a page.
pub(crate) const PAGE_TOKENS: usize = 16;

/// KV tokens of an engine: a 32B model's on two H100s.
pub(crate) const CAPACITY_TOKENS: usize = 307_328;

/// Pages that a mirror may track: more than there are.
const MOST_PAGES: usize = CAPACITY_TOKENS;

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    scheduler: Scheduler,
    mirror: Mirror,
    /// One for each router that is told of blocks.
    pub(crate) views: Vec<BlockView>,
    /// The step under way.
    step: Option<Step>,
    next: u64,
    /// Bytes of the events as the engine publishes them, token ids and all.
    pub(crate) event_bytes: u64,
}

impl Engine {
    /// An idle engine whose agent tells so many routers.
    pub(crate) fn new(space: &KeySpace, tell: Option<Tell>, routers: usize, overlap_schedule: bool) -> Self {
        let limits = Limits {
            page_size: PAGE_TOKENS,
            max_total_tokens: CAPACITY_TOKENS,
            chunked_prefill_size: 8192,
            max_running_requests: 256,
            // What the agent recommends.
            decode_log_interval: 1,
            steps_per_token: 1,
            eviction: Eviction::Lru,
            overlap_schedule,
            host: None,
        };
        let mirror = Mirror::new(PAGE_TOKENS as u32, MOST_PAGES);
        let views = tell.map_or_else(Vec::new, |tell| {
            let view = || BlockView::new(space.clone(), tell, &mirror).expect("pages fit into the blocks");
            (0..routers).map(|_| view()).collect()
        });
        let scheduler = Scheduler::new(limits, Timing::default());
        Self { scheduler, mirror, views, step: None, next: 0, event_bytes: 0 }
    }

    /// Queues a prompt.
    pub(crate) fn submit(&mut self, prompt: Vec<u32>, output_tokens: usize) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        let namespace = Namespace::default();
        self.scheduler.submit(Job { id, namespace, prompt, output_tokens, received: false, priority: 0 });
        id
    }

    /// Begins a step if there is work and none is under way; says how long it takes.
    pub(crate) fn begin(&mut self) -> Option<Duration> {
        if self.step.is_some() || !self.scheduler.has_work() {
            return None;
        }
        let step = self.scheduler.step();
        let duration = step.duration;
        self.step = Some(step);
        Some(duration)
    }

    /// Ends the step under way. What is published by then reaches the agent.
    pub(crate) fn end(&mut self) -> Step {
        let step = self.step.take().unwrap_or_default();
        if step.publish || self.scheduler.is_idle() {
            self.publish();
        }
        step
    }

    fn publish(&mut self) {
        let events = self.scheduler.take_events();
        if events.is_empty() {
            return;
        }
        let payload = encode_batch(0.0, &events, PAGE_TOKENS, 0, EventEncoding::Map);
        self.event_bytes += payload.len() as u64;
        let batch = EventBatch::decode(&payload).expect("the agent reads what the engine writes");
        let changes = self.mirror.apply(&batch.events);
        self.views.iter_mut().for_each(|view| view.follow(&self.mirror, &changes));
    }

    /// Tokens evicted so far, and tokens cached now, as the agent has seen it.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let stats = self.mirror.stats();
        (stats.evicted_tokens_total, stats.cached_tokens)
    }

    /// The blocks that it holds.
    pub(crate) fn held(&self, space: &KeySpace) -> HashSet<BlockHash> {
        let paths = self.scheduler.cached_paths();
        let keys =
            paths.iter().map(|(_, tokens)| space.key_of_tokens(Salt::default(), tokens).hashes().to_vec());
        keys.flatten().collect()
    }
}
