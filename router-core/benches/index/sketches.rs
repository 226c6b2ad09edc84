//! What it costs to find where two large sets differ: bytes beside a baseline's, and a core's time on each side.

use std::time::{Duration, Instant};

use router_core::key::BlockHash;
use router_core::reconcile::{Decoder, Encoder, Progress, SYMBOL_BYTES};

use crate::rows::{Better, Plan, Reference};

/// Hashes of each set.
const SET: u64 = 1_000_000;

/// Symbols that a round begins with, as the coordinator has it.
const FIRST_SYMBOLS: u32 = 32;

/// Bytes of a block in a baseline.
const BASELINE_BYTES: f64 = 8.0;

/// Of a thousand differences: most bytes, and most ms of a core on each side.
const MOST_BYTES: f64 = 24.0 * 1024.0;
const MOST_MS: f64 = 50.0;

const BYTES: &str = "reconciliation of 1 M hashes, 1,000 differ, bytes";
const ROUTER: &str = "reconciliation of 1 M hashes, 1,000 differ, router";
const AGENT: &str = "reconciliation of 1 M hashes, 1,000 differ, agent";
const FEW: &str = "reconciliation of 1 M hashes, 10 differ, bytes";

/// What one reconciliation took.
struct Cost {
    bytes: f64,
    router: Duration,
    agent: Duration,
}

/// Measures all of it.
pub(crate) fn run(plan: &Plan) {
    if ![BYTES, ROUTER, AGENT, FEW].iter().any(|row| plan.wants(row)) {
        return;
    }
    plan.progress("reconciliation");
    let rounds = if plan.quick { 3 } else { 9 };
    let all = |differing| (0..rounds).map(move |salt| reconcile(differing, salt + 1)).collect::<Vec<_>>();
    let bytes = |costs: &[Cost]| costs.iter().map(|cost| cost.bytes).collect::<Vec<_>>();
    let baseline = Reference { name: "a baseline", value: SET as f64 * BASELINE_BYTES };
    let thousand = all(1_000);
    plan.row(BYTES, "B", &bytes(&thousand), baseline, Better::Less, Some(baseline.value / MOST_BYTES));
    let ms = |side: fn(&Cost) -> Duration| {
        thousand.iter().map(|cost| side(cost).as_secs_f64() * 1e3).collect::<Vec<_>>()
    };
    plan.bound(ROUTER, "ms", &ms(|cost| cost.router), MOST_MS);
    plan.bound(AGENT, "ms", &ms(|cost| cost.agent), MOST_MS);
    plan.row(FEW, "B", &bytes(&all(10)), baseline, Better::Less, None);
}

/// Two sets that differ in so many hashes, half of them on each side.
fn reconcile(differing: u64, salt: u64) -> Cost {
    let set = |from: u64, to: u64| {
        (from..to).filter_map(|name| BlockHash::new(xxhash_rust::xxh3::xxh3_64(&name.to_le_bytes())))
    };
    let theirs: Vec<_> = set(0, SET).collect();
    let ours: Vec<_> = set(differing / 2, SET + differing / 2).collect();
    let (mut router, mut agent, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    let began = Instant::now();
    let mut encoder = Encoder::new(salt, theirs);
    router += began.elapsed();
    let began = Instant::now();
    let mut decoder = Decoder::new(salt, encoder.len(), ours);
    agent += began.elapsed();
    let mut until = FIRST_SYMBOLS;
    loop {
        let began = Instant::now();
        let symbols = encoder.symbols_to(until);
        router += began.elapsed();
        bytes += symbols.len() * SYMBOL_BYTES;
        let began = Instant::now();
        let progress = decoder.take(&symbols).expect("they are of one salt");
        agent += began.elapsed();
        match progress {
            Progress::More { symbols } => until = symbols,
            Progress::Complete(found) => {
                assert_eq!((found.theirs.len() + found.ours.len()) as u64, differing);
                return Cost { bytes: bytes as f64, router, agent };
            }
        }
    }
}
