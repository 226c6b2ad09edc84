//! Random requests on a rank with a host tier: what its events tell is what there is, on each tier, after every pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::HashSet;

use sglang_sim::{
    CacheEvent, Eviction, HostTier, Job, Limits, Namespace, Pause, RequestId, Scheduler, Tier, Timing,
    WritePolicy,
};

const PAGE: usize = 4;
const REQUESTS: u64 = 150;
/// Passes between two looks at every block.
const LOOK_EVERY: usize = 16;

/// What a rank's events tell.
#[derive(Debug, Default)]
struct Told {
    device: HashSet<i64>,
    host: HashSet<i64>,
    from_host: usize,
}

impl Told {
    fn tier(&mut self, tier: Tier) -> &mut HashSet<i64> {
        match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
        }
    }

    fn hear(&mut self, event: CacheEvent) {
        match event {
            CacheEvent::Stored { tier, hashes, parent, tokens, .. } => {
                let is_known = |hash: &i64| self.device.contains(hash) || self.host.contains(hash);
                assert!(parent.as_ref().is_none_or(is_known), "a path has no holes");
                assert_eq!(tokens.len(), hashes.len() * PAGE);
                for hash in hashes {
                    self.from_host += usize::from(tier == Tier::Device && self.host.contains(&hash));
                    assert!(self.tier(tier).insert(hash), "stored twice on {tier:?}");
                }
            }
            CacheEvent::Removed { tier, hashes } => {
                for hash in hashes {
                    assert!(self.tier(tier).remove(&hash), "removed from {tier:?} where it was not");
                }
            }
            CacheEvent::Cleared => {
                self.device.clear();
                self.host.clear();
            }
        }
    }
}

struct Rank {
    scheduler: Scheduler,
    told: Told,
    capacity: (usize, usize),
    passes: usize,
}

impl Rank {
    fn check(&mut self) {
        let events = self.scheduler.take_events();
        events.into_iter().for_each(|event| self.told.hear(event));
        let (device, host) = (self.scheduler.cached_tokens(), self.scheduler.host_tokens());
        assert!(device <= self.capacity.0 && host <= self.capacity.1, "{device}, {host}");
        assert_eq!(self.told.device.len() * PAGE, device);
        let acknowledged = self.told.host.len() * PAGE;
        assert!(acknowledged <= host && (acknowledged == host || !self.scheduler.is_idle()));
        self.passes += 1;
        if !self.passes.is_multiple_of(LOOK_EVERY) {
            return;
        }
        let paths = self.scheduler.cached_paths();
        let ends = |path: &[u32]| {
            (1..=path.len() / PAGE).map(|pages| path[..pages * PAGE].to_vec()).collect::<Vec<_>>()
        };
        let held: HashSet<Vec<u32>> = paths.iter().flat_map(|(_, path)| ends(path)).collect();
        assert_eq!(self.told.device.union(&self.told.host).count(), held.len());
    }
}

/// A generator of numbers, the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn job(id: u64, numbers: &mut Numbers) -> Job {
    let mut prompt = Vec::new();
    for depth in 0..=numbers.below(4) as u32 {
        let which = numbers.below(5) as u32;
        prompt.extend((0..20 + which * 7).map(|i| depth * 10_000 + which * 1_000 + i));
    }
    Job {
        id: RequestId(id),
        namespace: Namespace::default(),
        prompt,
        output_tokens: 1 + numbers.below(40) as usize,
        received: false,
        priority: numbers.below(3) as i64,
    }
}

/// Returns pages that the device got and the host had, and requests put back.
fn live_through(
    write_policy: WritePolicy,
    eviction: Eviction,
    host_tokens: usize,
    overlap_schedule: bool,
) -> (usize, u64) {
    let host = HostTier { capacity_tokens: host_tokens, write_policy };
    let limits = Limits {
        page_size: PAGE,
        max_total_tokens: 400,
        chunked_prefill_size: 64,
        max_running_requests: 6,
        decode_log_interval: 1,
        steps_per_token: 1,
        eviction,
        overlap_schedule,
        host: Some(host),
    };
    let scheduler = Scheduler::new(limits, Timing::default());
    let mut rank = Rank { scheduler, told: Told::default(), capacity: (400, host_tokens), passes: 0 };
    let mut numbers = Numbers(1 + host_tokens as u64);
    for id in 0..REQUESTS {
        match numbers.below(20) {
            0 => _ = rank.scheduler.abort(RequestId(id - id.min(numbers.below(4)))),
            1 => _ = rank.scheduler.pause(Pause::Retract),
            2 if numbers.below(10) == 0 => _ = rank.scheduler.flush(),
            _ => rank.scheduler.resume(),
        }
        rank.scheduler.submit(job(id, &mut numbers));
        for _ in 0..numbers.below(16) {
            if rank.scheduler.has_work() {
                rank.scheduler.step();
                rank.check();
            }
        }
    }
    rank.scheduler.resume();
    while rank.scheduler.has_work() {
        rank.scheduler.step();
        rank.check();
    }
    assert_eq!(rank.scheduler.load(0).tokens, 0, "nothing is held");
    let totals = rank.scheduler.totals();
    assert_eq!(totals.finished + totals.aborted, REQUESTS);
    (rank.told.from_host, totals.retracted)
}

#[test]
fn what_is_told_of_two_tiers_is_what_they_hold() {
    let (mut from_host, mut retracted) = (0, 0);
    for write_policy in
        [WritePolicy::WriteThrough, WritePolicy::WriteThroughSelective, WritePolicy::WriteBack]
    {
        for eviction in [Eviction::Lru, Eviction::Lfu, Eviction::Priority, Eviction::Tlru { tail_tokens: 40 }]
        {
            for (host_tokens, overlap_schedule) in
                [40, 300, 1_200].into_iter().flat_map(|tokens| [(tokens, true), (tokens, false)])
            {
                let (came, put_back) = live_through(write_policy, eviction, host_tokens, overlap_schedule);
                from_host += came;
                retracted += put_back;
            }
        }
    }
    assert!(from_host > 1_000 && retracted > 100, "{from_host} pages, {retracted} requests");
}
