//! Key derivation, lookup and decision, each beside something that does the same work in the same run.
//!
//! `cargo xtask bench index [--quick]`. Prints one JSON row a line. Every round measures ours and the reference one after
//! the other, so that drift of the machine meets both; a row is the median over the rounds of the round's medians.

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use router_core::index::{Index, Matches, NaiveIndex};
use router_core::key::{PrefixKey, Salt, Unit};
use router_core::{
    Done, FleetUpdate, RouteRequest, Router, Settings, Slot, Time, Update, WorkerProfile, Writer,
};

const WORKERS: u16 = 64;
const PROMPT_TOKENS: usize = 8_192;

/// Prompts of the shared-prefix workload; half of each is one of a few shared prefixes.
struct Workload {
    tokens: Vec<Vec<u32>>,
    keys: Vec<PrefixKey>,
}

/// One row: rounds of ours and of the reference.
struct Measured {
    row: &'static str,
    unit: &'static str,
    reference_name: &'static str,
    ours: Vec<f64>,
    reference: Vec<f64>,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = if quick { 5 } else { 15 };
    let settings = Settings::new(1);
    let workload = workload(&settings, if quick { 200 } else { 1_000 });
    let (router, _writer) = router_with(&workload, settings.clone());
    let (index, naive) = indexes(&workload);
    let rows = [
        hashing(&workload, &settings, rounds),
        lookup(&workload, &index, &naive, rounds),
        decision(&workload, &router, &index, rounds),
    ];
    for row in rows {
        writeln!(std::io::stdout(), "{}", row.json()).expect("standard output takes the rows");
    }
}

fn workload(settings: &Settings, prompts: usize) -> Workload {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut random = |len: usize| -> Vec<u32> { (0..len).map(|_| rng.u32(..128_000)).collect() };
    let shared: Vec<_> = (0..20).map(|_| random(PROMPT_TOKENS / 2)).collect();
    let prompt = |index: usize, tail: Vec<u32>| [shared[index % shared.len()].clone(), tail].concat();
    let tokens: Vec<_> = (0..prompts).map(|index| prompt(index, random(PROMPT_TOKENS / 2))).collect();
    let keys =
        tokens.iter().map(|tokens| settings.token_space.key_of_tokens(Salt::default(), tokens)).collect();
    Workload { tokens, keys }
}

/// Both indexes with every prompt held by one worker, and its shared half by four more.
fn indexes(workload: &Workload) -> (Index, NaiveIndex) {
    let (mut index, mut naive) = (Index::default(), NaiveIndex::default());
    // The naive one keeps whole prefixes: what is enough to walk it is enough to compare.
    let few = 32;
    for (number, key) in workload.keys.iter().enumerate() {
        for holder in 0..5_u16 {
            let slot = Slot::new((number as u16 * 7 + holder * 13) % WORKERS);
            let held = if holder == 0 { key.hashes() } else { &key.hashes()[..key.hashes().len() / 2] };
            index.insert(Unit::Token, held, slot);
            if number < few {
                naive.claim(held, slot);
            }
        }
    }
    (index, naive)
}

fn router_with(workload: &Workload, settings: Settings) -> (Router, Writer) {
    let (router, mut writer) = Router::new(settings);
    let send = |update| router.updates().try_send(update).expect("the queue is larger than the fleet");
    let now = Time::from_micros(1);
    for worker in 0..WORKERS {
        let url = format!("http://worker-{worker}").into();
        send(Update::Fleet(FleetUpdate::Add { url, done: Done::ignore() }));
    }
    writer.turn(now);
    for worker in &router.snapshot().fleet.workers {
        let profile = WorkerProfile { capacity_tokens: 1 << 30, ..WorkerProfile::default() };
        send(Update::Fleet(FleetUpdate::Profile { worker: worker.id, profile, done: Done::ignore() }));
        send(Update::Fleet(FleetUpdate::Health { worker: worker.id, reachable: true, reason: "".into() }));
    }
    writer.turn(now);
    let mut rng = fastrand::Rng::with_seed(1);
    for key in &workload.keys {
        let request = RouteRequest { key: Some(key), ..RouteRequest::default() };
        let mut routed = router.route(&request, now, &mut rng).expect("every worker is ready");
        routed.first_token(now);
        routed.complete(now);
        writer.turn(now);
    }
    (router, writer)
}

/// Hashing a prompt into block hashes, beside hashing its bytes in one go.
fn hashing(workload: &Workload, settings: &Settings, rounds: usize) -> Measured {
    let flat = |tokens: &Vec<u32>| xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(tokens));
    let chain = |tokens: &Vec<u32>| settings.token_space.key_of_tokens(Salt::default(), tokens);
    Measured::rounds("hash 8k tokens", "ns", "xxh3 of all bytes", rounds, || {
        (
            median_ns(&workload.tokens, |tokens| _ = black_box(chain(tokens))),
            median_ns(&workload.tokens, |tokens| _ = black_box(flat(tokens))),
        )
    })
}

/// Finding the match of all workers, beside asking the specification for each.
fn lookup(workload: &Workload, index: &Index, naive: &NaiveIndex, rounds: usize) -> Measured {
    let tree = index.snapshot();
    let mut matches = Matches::default();
    let slots: Vec<_> = (0..WORKERS).map(Slot::new).collect();
    let few = &workload.keys[..32];
    for key in few {
        tree.match_prefix(key.hashes(), &mut matches);
        let known = slots.iter().filter(|slot| naive.match_prefix(key.hashes(), **slot) > 0).count();
        let found = slots.iter().filter(|slot| matches.blocks(**slot) > 0).count();
        assert!(found >= known, "both find the same holders, and the real one holds more prompts");
    }
    Measured::rounds("lookup 8k tokens, 64 workers", "ns", "naive index", rounds, || {
        (
            median_ns(&workload.keys, |key| tree.match_prefix(black_box(key.hashes()), &mut matches)),
            median_ns(&few[..4], |key| {
                slots.iter().for_each(|slot| _ = black_box(naive.match_prefix(key.hashes(), *slot)));
            }),
        )
    })
}

/// A whole decision with its in-flight accounting, beside the lookup alone.
fn decision(workload: &Workload, router: &Router, index: &Index, rounds: usize) -> Measured {
    let tree = index.snapshot();
    let mut matches = Matches::default();
    let mut rng = fastrand::Rng::with_seed(2);
    let now = Time::from_micros(2);
    Measured::rounds("route 8k tokens, 64 workers", "ns", "lookup alone", rounds, || {
        (
            median_ns(&workload.keys, |key| {
                let request = RouteRequest { key: Some(key), ..RouteRequest::default() };
                drop(black_box(router.route(&request, now, &mut rng)));
            }),
            median_ns(&workload.keys, |key| tree.match_prefix(black_box(key.hashes()), &mut matches)),
        )
    })
}

fn median_ns<T>(inputs: &[T], mut work: impl FnMut(&T)) -> f64 {
    let mut times: Vec<Duration> = Vec::with_capacity(inputs.len());
    for input in inputs {
        let began = Instant::now();
        work(input);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64
}

impl Measured {
    fn rounds(
        row: &'static str,
        unit: &'static str,
        reference_name: &'static str,
        rounds: usize,
        mut round: impl FnMut() -> (f64, f64),
    ) -> Self {
        round();
        let (ours, reference) = (0..rounds).map(|_| round()).unzip();
        Self { row, unit, reference_name, ours, reference }
    }

    fn json(&self) -> serde_json::Value {
        let median = |values: &[f64]| {
            let mut sorted = values.to_vec();
            sorted.sort_unstable_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        let (ours, reference) = (median(&self.ours), median(&self.reference));
        serde_json::json!({
            "row": self.row, "unit": self.unit, "ours": ours, "reference": reference,
            "reference_name": self.reference_name, "ratio": reference / ours, "target": null, "met": null,
            "min": self.ours.iter().copied().fold(f64::INFINITY, f64::min),
            "max": self.ours.iter().copied().fold(0.0, f64::max),
            "runs": self.ours.len(),
        })
    }
}
