//! The engine beside hand-computed cases and beside the scheduler that it is a fast form of.

use proptest::prelude::*;
use rustc_hash::FxHashSet;
use sglang_sim::{Eviction, Job, Limits as SimLimits, Namespace, RequestId as SimId, Scheduler};

use super::*;
use crate::sequence::Hasher;

fn engine(capacity_blocks: usize, chunk_tokens: usize, max_running: usize) -> Engine {
    let memory = Rc::new(RefCell::new(Memory::new(capacity_blocks, false)));
    Engine::new(Limits { chunk_tokens, max_running }, Timing::default(), memory)
}

fn tokens(name: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| name * 100_000 + i).collect()
}

fn sequence(prompt: &[u32], output: usize) -> Arc<Sequence> {
    Arc::new(Hasher::new().sequence(prompt, &tokens(77, output)))
}

/// Runs until nothing is left: what was produced, and when.
fn drain(engine: &mut Engine, mut now: Duration) -> (Vec<Produced>, Duration) {
    let mut produced = Vec::new();
    while let Some(ends) = engine.begin(now) {
        now = ends;
        produced.extend(engine.end().0);
    }
    (produced, now)
}

/// 10,000 tokens in chunks of 8,192 and 1,808, then 3 decode steps over 10,001, 10,002 and 10,003 tokens.
#[test]
fn times_are_the_model_s() {
    let mut engine = engine(1_000, 8_192, 8);
    engine.submit(RequestId(1), sequence(&tokens(1, 10_000), 4), 0);
    let chunk = |new: f64, context: f64| new / 10_000.0 * (1.0 + (context + new / 2.0) / 53_000.0);
    let first = engine.begin(Duration::ZERO).unwrap().as_secs_f64();
    assert!((first - chunk(8_192.0, 0.0)).abs() < 1e-6);
    assert_eq!(engine.end().0, []);
    let second = engine.begin(Duration::ZERO).unwrap().as_secs_f64();
    assert!((second - chunk(1_808.0, 8_192.0)).abs() < 1e-6);
    let expected = [Produced { id: RequestId(1), first: true, last: false, cached_tokens: 0 }];
    assert_eq!(engine.end().0, expected);
    let decode = engine.begin(Duration::ZERO).unwrap();
    assert_eq!(decode, Duration::from_nanos(3 * 12_200_000 + 20 * (10_001 + 10_002 + 10_003)));
    assert!(engine.end().0[0].last);
    assert_eq!(engine.begin(Duration::ZERO), None);
}

#[test]
fn an_arrival_cuts_a_stretch_at_the_end_of_its_step() {
    let mut engine = engine(1_000, 8_192, 8);
    engine.submit(RequestId(1), sequence(&tokens(1, 64), 101), 0);
    let began = engine.begin(Duration::ZERO).unwrap();
    engine.end();
    let all = engine.begin(began).unwrap();
    let step = |n: u64| Duration::from_nanos(n * 12_200_000 + 20 * (n * 65 + n * (n - 1) / 2));
    assert_eq!(all, began + step(100));
    engine.submit(RequestId(2), sequence(&tokens(2, 64), 1), 0);
    assert_eq!(engine.interrupt(began + step(7) + Duration::from_nanos(1)), Some(began + step(8)));
    assert_eq!(engine.interrupt(began + step(7) + Duration::from_nanos(1)), None, "it is cut already");
    assert_eq!(engine.end().0, []);
    engine.begin(began + step(8)).unwrap();
    assert_eq!(engine.end().0[0].id, RequestId(2), "the new request is prefilled first");
    let rest = drain(&mut engine, Duration::ZERO).0;
    assert_eq!((rest.len(), rest[0].last, engine.totals().decode_steps), (1, true, 100));
}

#[test]
fn outputs_are_cached_and_an_abort_keeps_what_was_computed() {
    let mut engine = engine(100, 512, 8);
    let all = tokens(1, 400);
    engine.submit(RequestId(1), Arc::new(Hasher::new().sequence(&all[..100], &all[100..200])), 0);
    drain(&mut engine, Duration::ZERO);
    assert_eq!(engine.memory().borrow().cached_blocks(), 3, "199 tokens have KV");
    engine.submit(RequestId(2), sequence(&all, 1), 0);
    assert_eq!(drain(&mut engine, Duration::ZERO).0[0].cached_tokens, 192);
    engine.submit(RequestId(3), sequence(&tokens(3, 1_000), 5), 0);
    engine.begin(Duration::ZERO);
    engine.abort(RequestId(3));
    engine.end();
    assert_eq!((engine.requests(), engine.memory().borrow().held_blocks()), ((0, 0), 0));
    assert_eq!(engine.memory().borrow().cached_of(&sequence(&tokens(3, 1_000), 1)), 8);
}

#[test]
fn what_is_queued_counts_as_a_match_to_come() {
    let mut engine = engine(1_000, 8_192, 8);
    let long = tokens(1, 6_400);
    engine.submit(RequestId(1), sequence(&long, 1), 0);
    let mut other = long[..3_200].to_vec();
    other.extend(tokens(2, 640));
    assert_eq!(engine.will_match_tokens(&sequence(&other, 1)), 3_200);
    assert_eq!(engine.backlog(Duration::ZERO), Timing::default().prefill(6_400, 0));
    assert_eq!(engine.queued_tokens(), 6_400);
    engine.submit(RequestId(2), sequence(&other, 1), 3_200);
    let both = Timing::default().prefill(6_400, 0) + Timing::default().prefill(640, 3_200);
    assert_eq!(engine.backlog(Duration::ZERO), both, "it will find what the first one leaves");
}

#[test]
fn a_pass_under_way_counts_with_what_is_left_of_it() {
    let mut engine = engine(1_000, 8_192, 8);
    engine.submit(RequestId(1), sequence(&tokens(1, 6_400), 1), 0);
    let ends = engine.begin(Duration::ZERO).unwrap();
    assert_eq!(engine.backlog(Duration::ZERO), ends);
    assert_eq!(engine.backlog(ends / 2), ends - ends / 2);
}

#[test]
fn a_dead_engine_forgets_everything() {
    let mut engine = engine(1_000, 8_192, 8);
    engine.submit(RequestId(1), sequence(&tokens(1, 640), 1), 0);
    let (_, now) = drain(&mut engine, Duration::ZERO);
    engine.submit(RequestId(2), sequence(&tokens(2, 640), 100), 0);
    engine.begin(now);
    engine.die(true);
    assert_eq!((engine.requests(), engine.ends()), ((0, 0), None));
    let memory = engine.memory().borrow();
    assert_eq!((memory.held_blocks(), memory.cached_blocks()), (0, 0));
}

#[test]
fn new_weights_compute_what_runs_anew() {
    let mut engine = engine(1_000, 8_192, 8);
    engine.submit(RequestId(1), sequence(&tokens(1, 640), 101), 0);
    let first = engine.begin(Duration::ZERO).unwrap();
    engine.end();
    engine.begin(first);
    let cut = engine.pause(first + Duration::from_millis(20)).unwrap();
    assert!(cut < first + Duration::from_millis(40), "the pause comes at the end of a step: {cut:?}");
    engine.end();
    assert_eq!(engine.begin(cut), None, "it is paused");
    let before = engine.totals().prefilled_tokens;
    engine.resume(true);
    assert_eq!(engine.memory().borrow().cached_blocks(), 0);
    let (produced, _) = drain(&mut engine, cut);
    assert_eq!(produced.len(), 1, "nobody sees a first token again");
    let all = 640 + 1 + 2;
    assert_eq!(engine.totals().prefilled_tokens - before, all, "the prompt and what had been produced");
}

#[test]
fn a_slow_engine_takes_as_many_times_as_long() {
    let mut engine = engine(1_000, 8_192, 8);
    engine.submit(RequestId(1), sequence(&tokens(1, 640), 101), 0);
    let prefill = engine.begin(Duration::ZERO).unwrap();
    engine.end();
    let usual = engine.begin(prefill).unwrap() - prefill;
    let cut = engine.slow_down(3.0, prefill).unwrap();
    engine.end();
    let rest = engine.begin(cut).unwrap() - cut;
    let one = cut - prefill;
    let expected = (usual - one) * 3;
    assert!(rest.abs_diff(expected) < Duration::from_micros(1), "{rest:?} {expected:?}");
}

/// A request of the comparison: when it comes, what it shares, how long it is.
#[derive(Clone, Debug)]
struct Case {
    gap_ms: u64,
    family: u32,
    shared: usize,
    own: usize,
    output: usize,
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    let case = (0..400_u64, 0..4_u32, 0..1_200_usize, 1..600_usize, 1..200_usize);
    let case =
        case.prop_map(|(gap_ms, family, shared, own, output)| Case { gap_ms, family, shared, own, output });
    proptest::collection::vec(case, 1..40)
}

/// First tokens and ends as (request, is it the last, cached, time).
type Seen = Vec<(u64, bool, usize, Duration)>;

fn prompts(cases: &[Case]) -> Vec<Vec<u32>> {
    let prompt = |(number, case): (usize, &Case)| {
        let mut prompt = tokens(case.family, case.shared);
        prompt.extend(tokens(100 + number as u32, case.own));
        prompt
    };
    cases.iter().enumerate().map(prompt).collect()
}

fn arrivals(cases: &[Case]) -> Vec<Duration> {
    let sum = |at: &mut Duration, case: &Case| {
        *at += Duration::from_millis(case.gap_ms);
        Some(*at)
    };
    cases.iter().scan(Duration::ZERO, sum).collect()
}

/// The simulator's scheduler, a step at a time.
fn by_the_simulator(cases: &[Case], limits: SimLimits) -> (Seen, u64, u64) {
    let mut scheduler = Scheduler::new(limits, Timing::default());
    let (arrivals, prompts) = (arrivals(cases), prompts(cases));
    let (mut now, mut next, mut seen) = (Duration::ZERO, 0, Vec::new());
    let mut begun = vec![false; cases.len()];
    loop {
        while next < cases.len() && arrivals[next] <= now {
            scheduler.submit(Job {
                id: SimId(next as u64),
                namespace: Namespace::default(),
                prompt: prompts[next].clone(),
                output_tokens: cases[next].output,
                received: false,
                priority: 0,
            });
            next += 1;
        }
        if scheduler.is_idle() {
            let Some(at) = arrivals.get(next) else { break };
            now = *at;
            continue;
        }
        let step = scheduler.step();
        now += step.duration;
        for produced in step.produced {
            let first = !std::mem::replace(&mut begun[produced.id.0 as usize], true);
            if first || produced.last {
                seen.push((produced.id.0, produced.last, produced.cached_tokens, now));
            }
        }
    }
    (seen, scheduler.totals().evicted_tokens, scheduler.totals().retracted)
}

fn by_the_lab(cases: &[Case], limits: SimLimits) -> (Seen, u64, u64) {
    let capacity = limits.max_total_tokens / BLOCK_TOKENS;
    let mut engine = engine(capacity, limits.chunked_prefill_size, limits.max_running_requests);
    let hasher = Hasher::new();
    let arrivals = arrivals(cases);
    let submit = |engine: &mut Engine, next: usize, prompt: &[u32]| {
        // What the simulator answers is shared with nobody, like this.
        let sequence = hasher.sequence(prompt, &tokens(1_000 + next as u32, cases[next].output));
        engine.submit(RequestId(next as u32), Arc::new(sequence), 0);
    };
    let (mut next, mut seen, prompts) = (0, Vec::new(), prompts(cases));
    let mut now = Duration::ZERO;
    loop {
        while next < cases.len() && arrivals[next] <= now {
            submit(&mut engine, next, &prompts[next]);
            next += 1;
        }
        let Some(_) = engine.begin(now) else {
            let Some(at) = arrivals.get(next) else { break };
            now = *at;
            continue;
        };
        while next < cases.len() && engine.ends().is_some_and(|ends| arrivals[next] < ends) {
            engine.interrupt(arrivals[next]);
            submit(&mut engine, next, &prompts[next]);
            next += 1;
        }
        now = engine.ends().unwrap();
        for produced in engine.end().0 {
            seen.push((u64::from(produced.id.0), produced.last, produced.cached_tokens, now));
        }
    }
    let evicted = engine.memory().borrow().evicted_blocks() * BLOCK_TOKENS as u64;
    (seen, evicted, engine.totals().retracted)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Roomy, tight enough to evict, and so tight that requests are put back.
    #[test]
    fn it_does_what_the_simulator_s_scheduler_does(cases in cases(), capacity_blocks in 40..400_usize) {
        let limits = SimLimits {
            page_size: BLOCK_TOKENS,
            max_total_tokens: capacity_blocks * BLOCK_TOKENS,
            chunked_prefill_size: 512,
            max_running_requests: 6,
            decode_log_interval: 1,
            steps_per_token: 1,
            eviction: Eviction::Lru,
            overlap_schedule: false,
            host: None,
        };
        prop_assert_eq!(by_the_lab(&cases, limits), by_the_simulator(&cases, limits));
    }

    #[test]
    fn memory_is_never_exceeded_and_comes_back(cases in cases()) {
        let mut engine = engine(48, 512, 6);
        for (number, prompt) in prompts(&cases).iter().enumerate() {
            engine.submit(RequestId(number as u32), sequence(prompt, cases[number].output), 0);
        }
        let mut now = Duration::ZERO;
        while let Some(ends) = engine.begin(now) {
            now = ends;
            engine.end();
            let memory = engine.memory().borrow();
            prop_assert!(memory.held_blocks().max(memory.cached_blocks()) <= 48);
        }
        prop_assert_eq!(engine.memory().borrow().held_blocks(), 0);
    }
}

#[test]
fn a_request_that_is_given_up_in_its_prefill_says_nothing_when_the_pass_ends() {
    let mut engine = engine(1_000, 8_192, 8);
    engine.submit(RequestId(1), sequence(&tokens(1, 640), 4), 0);
    engine.submit(RequestId(2), sequence(&tokens(2, 640), 4), 0);
    engine.begin(Duration::ZERO).unwrap();
    engine.abort(RequestId(1));
    let ids: Vec<RequestId> = engine.end().0.iter().map(|produced| produced.id).collect();
    assert_eq!(ids, [RequestId(2)]);
}

#[test]
fn what_is_stored_is_told_in_runs_that_follow_each_other() {
    let mut engine = engine(1_000, 8_192, 8);
    let long = tokens(1, 640);
    let mut other = long[..320].to_vec();
    other.extend(tokens(2, 320));
    for (id, prompt) in [(1, &long), (2, &other), (3, &tokens(3, 128))] {
        engine.submit(RequestId(id), sequence(prompt, 1), 0);
        drain(&mut engine, Duration::ZERO);
    }
    let mut told = FxHashSet::default();
    for run in engine.memory().borrow().stored() {
        assert!(run.parent.is_none_or(|parent| told.contains(&parent)), "a parent comes first");
        assert!(run.hashes.into_iter().all(|hash| told.insert(hash)), "each block once");
    }
    let mut held = FxHashSet::default();
    engine.memory().borrow().collect(&mut held);
    assert_eq!(told, held);
    assert_eq!(held.len(), 10 + 5 + 2);
}
