//! One dp rank's scheduler: first come, first served, chunked prefill before decode, as SGLang does by default.
//!
//! A pure state machine: [`Scheduler::step`] does one pass and says how long it takes and what came of it; whoever drives it
//! decides whether that time is real. What it simplifies against SGLang is listed at the head of the crate.

mod batch;
mod job;
mod live;
mod memory;
mod plan;
mod settle;

use std::collections::VecDeque;

use crate::events::{CacheEvent, LoadStat};
use crate::radix::Namespace;
use crate::timing::Timing;
use batch::Batch;
pub use job::{Job, Limits, Pause, Produced, RequestId, Step, Totals};
use live::Live;
use memory::Memory;

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    timing: Timing,
    memory: Memory,
    waiting: VecDeque<Live>,
    running: Vec<Live>,
    /// Planned while the batch before it was computed.
    ahead: Option<Batch>,
    passes: usize,
    decode_steps: usize,
    paused: Option<Pause>,
    totals: Totals,
}

impl Scheduler {
    /// An idle rank with an empty cache.
    pub fn new(limits: Limits, timing: Timing) -> Self {
        Self {
            limits,
            timing,
            memory: Memory::new(limits.page_size, limits.max_total_tokens, limits.eviction, limits.host),
            waiting: VecDeque::new(),
            running: Vec::new(),
            ahead: None,
            passes: 0,
            decode_steps: 0,
            paused: None,
            totals: Totals::default(),
        }
    }

    /// Queues a request.
    pub fn submit(&mut self, job: Job) {
        self.waiting.push_back(Live::new(job));
    }

    /// Ends a request early; what it computed stays cached. `false` if it is not there.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let waiting = self.waiting.iter().position(|live| live.id == id);
        let running = self.running.iter().position(|live| live.id == id);
        let live = match (waiting, running) {
            (Some(at), _) => self.waiting.remove(at),
            (_, Some(at)) => Some(self.running.remove(at)),
            (None, None) => None,
        };
        let Some(live) = live else { return false };
        self.release(live);
        self.totals.aborted += 1;
        true
    }

    /// Stops scheduling until [`resume`](Self::resume); returns the requests that this ended.
    pub fn pause(&mut self, pause: Pause) -> Vec<RequestId> {
        self.paused = Some(pause);
        if pause != Pause::InPlace {
            // Nobody whom it was planned for is there any more.
            self.ahead = None;
        }
        match pause {
            Pause::Abort => {
                let live = self.running.iter().chain(&self.waiting).map(|live| live.id);
                let ended: Vec<_> = live.collect();
                for id in &ended {
                    self.abort(*id);
                }
                ended
            }
            Pause::Retract => {
                // The first to run is the first in the queue again.
                while let Some(live) = self.running.pop() {
                    self.put_back(live);
                }
                Vec::new()
            }
            Pause::InPlace => Vec::new(),
        }
    }

    /// Ends a pause.
    pub fn resume(&mut self) {
        self.paused = None;
    }

    /// Nothing is scheduled.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Empties the cache; `false`, and nothing happens, unless the rank is idle or a pause has put back whatever ran.
    pub fn flush(&mut self) -> bool {
        let may = self.is_idle() || (self.paused == Some(Pause::Retract) && self.running.is_empty());
        if may {
            self.memory.clear();
        }
        may
    }

    /// Nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// There is something to do.
    pub fn has_work(&self) -> bool {
        self.paused.is_none() && !self.is_idle()
    }

    /// One pass: prefill if anything can be admitted or is half prefilled, else a decode step.
    ///
    /// Under [`Limits::overlap_schedule`] it was planned at the beginning of the step before, and the next one is planned, its
    /// memory made room for, before the result of this one counts: what the next one evicts is published when this one ends.
    pub fn step(&mut self) -> Step {
        let ahead = self.ahead.take().filter(|batch| self.concerns_anybody(batch));
        let Some(batch) = ahead.or_else(|| self.plan()) else { return Step::default() };
        if self.limits.overlap_schedule {
            self.ahead = self.plan();
        }
        let mut step = self.settle(batch);
        step.publish |= self.is_idle();
        step
    }

    /// Cache changes since it was last asked.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        if self.is_idle() {
            // No pass is to come that would.
            self.memory.acknowledge_copies();
        }
        self.memory.take_events()
    }

    /// Counters since the start.
    pub fn totals(&self) -> Totals {
        Totals { evicted_tokens: self.memory.evicted(), ..self.totals }
    }

    /// The load as SGLang publishes it.
    pub fn load(&self, dp_rank: u32) -> LoadStat {
        let tokens = self.memory.held() as u64;
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
        self.memory.paths()
    }

    /// Tokens in the cache, on the device.
    pub fn cached_tokens(&self) -> usize {
        self.memory.cached()
    }

    /// Tokens on the host.
    pub fn host_tokens(&self) -> usize {
        self.memory.on_host()
    }

    /// Tokens in the cache that no live request holds.
    pub fn evictable_tokens(&self) -> usize {
        self.memory.evictable()
    }

    /// Puts a running request at the head of the queue; what is not cached of it is computed again.
    fn put_back(&mut self, mut live: Live) {
        self.memory.give_up(&mut live.hold);
        live.put_back();
        self.waiting.push_front(live);
        self.totals.retracted += 1;
    }

    /// Ends a request: what it has computed stays, up to its last whole page.
    fn release(&mut self, live: Live) {
        self.memory.release(live.hold, &live.owner, &live.tokens);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::radix::{Eviction, HostTier, WritePolicy};

    fn limits() -> Limits {
        Limits {
            page_size: 16,
            max_total_tokens: 4_096,
            chunked_prefill_size: 512,
            max_running_requests: 8,
            decode_log_interval: 40,
            steps_per_token: 1,
            eviction: Eviction::Lru,
            overlap_schedule: false,
            host: None,
        }
    }

    fn scheduler() -> Scheduler {
        Scheduler::new(limits(), Timing::default())
    }

    fn overlapping(limits: Limits) -> Scheduler {
        Scheduler::new(Limits { overlap_schedule: true, ..limits }, Timing::default())
    }

    /// One that overlaps and one that does not.
    fn both() -> [Scheduler; 2] {
        [scheduler(), overlapping(limits())]
    }

    fn job(id: u64, prompt: Vec<u32>, output_tokens: usize) -> Job {
        Job {
            id: RequestId(id),
            namespace: Namespace::default(),
            prompt,
            output_tokens,
            received: false,
            priority: 0,
        }
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

    #[test]
    fn what_was_evicted_to_the_host_is_found_and_takes_the_time_of_its_way_back() {
        let host = HostTier { capacity_tokens: 8_192, write_policy: WritePolicy::WriteThrough };
        let limits = Limits { host: Some(host), chunked_prefill_size: 4_096, ..limits() };
        let timing = Timing { load_back_tokens_per_s: 100.0, ..Timing::default() };
        let mut scheduler = Scheduler::new(limits, timing);
        for first in 1..=4 {
            assert_eq!(serve(&mut scheduler, job(u64::from(first), prompt(first, 2_000), 1)), 0);
        }
        assert_eq!((scheduler.cached_tokens(), scheduler.host_tokens()), (4_000, 8_000));
        scheduler.submit(job(5, prompt(1, 2_000), 1));
        let step = scheduler.step();
        let produced = step.produced[0];
        assert_eq!((produced.cached_tokens, produced.cached_on_host), (1_984, 1_984));
        assert_eq!(step.duration, Duration::from_secs_f64(19.84));
        scheduler.submit(job(6, prompt(1, 2_000), 1));
        let produced = scheduler.step().produced[0];
        assert_eq!((produced.cached_tokens, produced.cached_on_host), (1_984, 0), "it is on the device now");
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

    /// A chunk is stored when the next one is planned: with overlap while it is computed, without when it is over. What is told at
    /// once of one prompt is one event.
    #[test]
    fn prompts_are_prefilled_in_chunks_and_each_is_stored() {
        let stored: [[&[usize]; 3]; 2] = [[&[], &[512], &[688]], [&[512], &[512], &[176]]];
        for (mut scheduler, stored) in both().into_iter().zip(stored) {
            scheduler.take_events();
            scheduler.submit(job(1, prompt(1, 1_200), 1));
            for (expected, done) in stored.into_iter().zip([false, false, true]) {
                let step = scheduler.step();
                assert!(step.prefill && step.publish);
                assert_eq!(!step.produced.is_empty(), done);
                let events = scheduler.take_events();
                let tokens = events.iter().map(|event| match event {
                    CacheEvent::Stored { tokens, .. } => tokens.len(),
                    event => panic!("{event:?}"),
                });
                assert_eq!(tokens.collect::<Vec<_>>(), expected);
            }
            assert!(scheduler.is_idle());
        }
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
        for mut scheduler in both() {
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
                let used = scheduler.evictable_tokens() + scheduler.memory.held();
                assert!(used <= limits().max_total_tokens, "{used}");
            }
            assert_eq!(finished, 60);
            assert_eq!(scheduler.memory.held(), 0);
            assert!(scheduler.totals().evicted_tokens > 0);
        }
    }

    #[test]
    fn without_memory_the_running_are_put_back_and_still_finish() {
        for mut scheduler in both() {
            for id in 0..8 {
                scheduler.submit(job(id, prompt(id as u32, 100), 1_500));
            }
            let (produced, _) = drain(&mut scheduler);
            assert!(scheduler.totals().retracted > 0);
            for id in 0..8 {
                let own = produced.iter().filter(|produced| produced.id == RequestId(id)).count();
                assert_eq!(own, 1_500, "no token is lost or produced twice");
            }
            let most = produced.iter().map(|produced| produced.retractions).max();
            let last: u32 =
                produced.iter().filter(|produced| produced.last).map(|produced| produced.retractions).sum();
            assert!(most > Some(0));
            assert_eq!(u64::from(last), scheduler.totals().retracted);
        }
    }

    /// Kinds of the events that a step leaves to be published: removals, stores.
    fn kinds(scheduler: &mut Scheduler) -> (usize, usize) {
        let events = scheduler.take_events();
        let removed = events.iter().filter(|event| matches!(event, CacheEvent::Removed { .. })).count();
        let stored = events.iter().filter(|event| matches!(event, CacheEvent::Stored { .. })).count();
        (removed, stored)
    }

    /// While something decodes, what a prefill evicts is told when the step before it ends, and what it stores when it does.
    #[test]
    fn with_overlap_evictions_are_told_before_the_prefill_that_needs_them() {
        for (overlap_schedule, told) in [(true, [(1, 0), (0, 1)]), (false, [(1, 1), (0, 0)])] {
            let limits = Limits { max_total_tokens: 1_024, overlap_schedule, ..limits() };
            let mut scheduler = Scheduler::new(limits, Timing::default());
            serve(&mut scheduler, job(1, prompt(1, 480), 1));
            scheduler.submit(job(2, prompt(2, 160), 100));
            scheduler.step();
            scheduler.step();
            scheduler.take_events();
            scheduler.submit(job(3, prompt(3, 480), 2));
            let steps = [(); 2].map(|()| (scheduler.step(), kinds(&mut scheduler)));
            assert_eq!(steps.each_ref().map(|(_, kinds)| *kinds), told, "overlap {overlap_schedule}");
            let prefill = steps.each_ref().map(|(step, _)| step.prefill);
            assert_eq!(prefill, if overlap_schedule { [false, true] } else { [true, false] });
        }
    }

    /// On an idle rank nothing ends before the prefill does.
    #[test]
    fn on_an_idle_rank_evictions_are_told_with_what_is_stored() {
        for overlap_schedule in [true, false] {
            let limits = Limits { max_total_tokens: 1_024, overlap_schedule, ..limits() };
            let mut scheduler = Scheduler::new(limits, Timing::default());
            serve(&mut scheduler, job(1, prompt(1, 480), 1));
            serve(&mut scheduler, job(2, prompt(2, 480), 1));
            scheduler.take_events();
            scheduler.submit(job(3, prompt(3, 480), 2));
            assert!(scheduler.step().prefill);
            assert_eq!(kinds(&mut scheduler), (1, 1), "overlap {overlap_schedule}");
        }
    }

    /// Planned before the one before it is over, a prefill cannot find what that one computes, but for the chunks of one prompt.
    #[test]
    fn with_overlap_what_is_being_computed_is_not_found_yet() {
        for (overlap_schedule, found) in [(true, 0), (false, 496)] {
            let limits = Limits { max_running_requests: 2, overlap_schedule, ..limits() };
            let mut scheduler = Scheduler::new(limits, Timing::default());
            scheduler.submit(job(1, prompt(1, 512), 1));
            scheduler.submit(job(2, prompt(1, 512), 1));
            let (produced, _) = drain(&mut scheduler);
            assert_eq!(produced[1].cached_tokens, found, "overlap {overlap_schedule}");
        }
        let mut scheduler = overlapping(limits());
        scheduler.submit(job(1, prompt(1, 600), 1));
        scheduler.submit(job(2, prompt(1, 600), 1));
        assert_eq!(
            drain(&mut scheduler).0[1].cached_tokens,
            512,
            "the first chunk is found, the second is not"
        );
    }

    /// The step after its last token is not planned for a request whose end is known.
    #[test]
    fn with_overlap_no_step_is_wasted_and_none_is_missing() {
        let steps = both().map(|mut scheduler| {
            for id in 0..5 {
                scheduler.submit(job(id, prompt(id as u32, 90), 3 + 7 * id as usize));
            }
            let (mut produced, steps) = drain(&mut scheduler);
            produced.sort_by_key(|produced| produced.id);
            assert!(scheduler.ahead.is_none());
            (produced.iter().map(|produced| (produced.id, produced.token)).collect::<Vec<_>>(), steps.len())
        });
        assert_eq!(steps[0], steps[1]);
    }

    /// A pass that was planned for somebody who is gone does not take time from those who come.
    #[test]
    fn with_overlap_an_abort_takes_its_pass_with_it() {
        let mut scheduler = overlapping(limits());
        scheduler.submit(job(1, prompt(1, 600), 50));
        scheduler.step();
        assert!(scheduler.ahead.is_some());
        assert!(scheduler.abort(RequestId(1)));
        assert_eq!((scheduler.is_idle(), scheduler.memory.held()), (true, 0));
        scheduler.submit(job(2, prompt(2, 100), 2));
        let step = scheduler.step();
        assert!(step.prefill);
        assert_eq!(step.produced.iter().map(|produced| produced.id).collect::<Vec<_>>(), [RequestId(2)]);
    }

    #[test]
    fn with_overlap_a_pause_drops_what_was_planned() {
        for pause in [Pause::Retract, Pause::Abort] {
            let mut scheduler = overlapping(limits());
            scheduler.submit(job(1, prompt(1, 100), 5));
            scheduler.step();
            scheduler.pause(pause);
            assert!(scheduler.flush(), "nothing holds memory");
            scheduler.resume();
            let (produced, _) = drain(&mut scheduler);
            assert_eq!(produced.len(), if pause == Pause::Retract { 4 } else { 0 });
            assert_eq!(scheduler.memory.held(), 0);
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
        assert_eq!((scheduler.cached_tokens(), scheduler.memory.held()), (512, 0));
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

    /// 96 tokens of the pool of 128 are cached; a prompt of 31 asks for 31 + 16, of which 32 are free.
    #[test]
    fn a_prefill_asks_for_a_page_more_than_it_needs() {
        let mut scheduler = Scheduler::new(Limits { max_total_tokens: 128, ..limits() }, Timing::default());
        serve(&mut scheduler, job(1, prompt(1, 48), 1));
        serve(&mut scheduler, job(2, prompt(2, 48), 1));
        assert_eq!((scheduler.cached_tokens(), scheduler.totals().evicted_tokens), (96, 0));
        serve(&mut scheduler, job(3, prompt(3, 31), 1));
        assert_eq!(scheduler.totals().evicted_tokens, 48);
    }

    /// Two prompts are cached. The older one goes first, unless a request waits for it.
    #[test]
    fn waiting_keeps_what_is_waited_for_young() {
        for waits in [true, false] {
            let mut scheduler = Scheduler::new(
                Limits { max_total_tokens: 1_024, max_running_requests: 1, ..limits() },
                Timing::default(),
            );
            serve(&mut scheduler, job(1, prompt(1, 320), 1));
            serve(&mut scheduler, job(2, prompt(2, 320), 1));
            scheduler.submit(job(3, prompt(3, 160), 300));
            scheduler.step();
            if waits {
                scheduler.submit(job(4, prompt(1, 320), 1));
            }
            drain(&mut scheduler);
            assert_eq!(scheduler.totals().evicted_tokens, 320);
            let cached = serve(&mut scheduler, job(5, prompt(1, 320), 1));
            assert_eq!(cached, if waits { 304 } else { 0 });
        }
    }

    /// Four tokens of one scheduler are one of the other's: 800 to prefill and 64 decode steps for both.
    #[test]
    fn a_token_that_stands_for_several_takes_their_time() {
        let took = |scheduler: &mut Scheduler, prompt_tokens, output_tokens| {
            scheduler.submit(job(1, prompt(1, prompt_tokens), output_tokens));
            let (produced, steps) = drain(scheduler);
            assert_eq!(produced.len(), output_tokens);
            let decode: Duration = steps.iter().filter(|step| !step.prefill).map(|step| step.duration).sum();
            let prefill: Duration = steps.iter().filter(|step| step.prefill).map(|step| step.duration).sum();
            (prefill.as_micros(), decode.as_micros(), steps.len())
        };
        let whole = took(&mut scheduler(), 800, 65);
        let limits = Limits {
            page_size: 4,
            max_total_tokens: 1_024,
            chunked_prefill_size: 128,
            steps_per_token: 4,
            ..limits()
        };
        let scaled = took(&mut Scheduler::new(limits, Timing::default().scaled(4)), 200, 17);
        assert_eq!((whole.0, whole.2), (scaled.0, scaled.2));
        // The context grows in larger steps.
        assert!(whole.1.abs_diff(scaled.1) <= whole.1 / 1_000, "{whole:?} {scaled:?}");
    }

    #[test]
    fn a_pause_ends_puts_back_or_freezes() {
        for (pause, ended, waiting, running, may_flush) in
            [(Pause::Abort, 2, 0, 0, true), (Pause::Retract, 0, 2, 0, true), (Pause::InPlace, 0, 0, 2, false)]
        {
            let mut scheduler = scheduler();
            scheduler.submit(job(1, prompt(1, 100), 5));
            scheduler.submit(job(2, prompt(2, 100), 5));
            scheduler.step();
            assert_eq!(scheduler.pause(pause).len(), ended);
            let load = scheduler.load(0);
            assert_eq!((load.waiting, load.running), (waiting, running));
            assert!(!scheduler.has_work());
            assert_eq!(scheduler.flush(), may_flush);
            scheduler.submit(job(3, prompt(3, 100), 5));
            assert!(!scheduler.has_work(), "new requests wait");
            scheduler.resume();
            let (produced, _) = drain(&mut scheduler);
            let of = |id| produced.iter().filter(|produced| produced.id == RequestId(id)).count();
            assert_eq!((of(1), of(3)), (if ended > 0 { 0 } else { 4 }, 5), "the output goes on where it was");
        }
    }
}
