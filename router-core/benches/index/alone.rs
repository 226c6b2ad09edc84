//! What only ours is held against, and itself: hashing, reader threads, and an index ten times as large.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use router_core::key::Salt;

use crate::cells::Effort;
use crate::contest::{Contestant, Pace, Reader, TICK, load};
use crate::ours::Ours;
use crate::rows::{Better, Plan, Reference, median};
use crate::storm::{EndsReading, Storm};
use crate::timing::{Timed, Times, time_lookups, times_of};
use crate::work::{Cell, Prompt, Work};

/// How long readers read in one round.
const READING: Duration = Duration::from_millis(100);
/// Prompts they read: few, so that what is measured is what readers share, and not the machine's memory.
const READ_PROMPTS: usize = 64;
/// Times the blocks of the other cells.
const LARGER: usize = 10;

const HASH: &str = "hash, 8k tokens";
const READERS: &str = "lookups/s of 2 threads, 8k, 64 targets";
const LARGE_LOOKUP: &str = "lookup p50, 10 M blocks, 8k, 512 targets";
const LARGE_PUBLICATION: &str = "publication p99, 10 M blocks, 8k, 512 targets";

/// Measures all of it.
pub(crate) fn run(plan: &Plan) {
    let effort = Effort::of(plan);
    if plan.wants(HASH) || plan.wants(READERS) {
        plan.progress("hashing and reader threads");
        let (work, ours) =
            loaded(Cell { prompt_blocks: 512, targets: 64, blocks: effort.blocks }, effort, true);
        hashing(plan, &work, effort);
        readers(plan, &work, &ours, effort);
    }
    // A larger index takes its time.
    if !plan.quick && (plan.wants(LARGE_LOOKUP) || plan.wants(LARGE_PUBLICATION)) {
        plan.progress("10 M blocks");
        larger(plan, effort);
    }
}

/// A workload and ours with all of it.
pub(crate) fn loaded(cell: Cell, effort: Effort, keep_tokens: bool) -> (Work, Ours) {
    let work = Work::new(cell, effort.lookups, |_| (Vec::new(), Vec::new()), keep_tokens);
    let mut ours = Ours::new(work.space.clone());
    load(&mut ours, &work);
    ours.prepare_for_events();
    (work, ours)
}

/// Hashing a prompt into block hashes, beside hashing its bytes in one go.
fn hashing(plan: &Plan, work: &Work, effort: Effort) {
    let mut key = Vec::new();
    let (mut chained, mut flat) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        chained.push(times_of(&work.lookups, |prompt| {
            key.clear();
            work.space.extend_with_tokens(Salt::default(), None, &prompt.tokens, &mut key);
        }));
        flat.push(times_of(&work.lookups, |prompt| {
            black_box(xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&prompt.tokens)));
        }));
    }
    let flat = Reference { name: "xxh3 of all bytes", value: median(&flat) };
    plan.row(HASH, "ns", &chained, flat, Better::Less, None);
}

/// Lookups that two threads do at once, beside those of one.
fn readers(plan: &Plan, work: &Work, ours: &Ours, effort: Effort) {
    let rounds =
        (0..effort.rounds).map(|_| (lookups_per_second(1, work, ours), lookups_per_second(2, work, ours)));
    let (one, two): (Vec<f64>, Vec<f64>) = rounds.unzip();
    let one = Reference { name: "1 thread", value: median(&one) };
    plan.row(READERS, "1/s", &two, one, Better::More, Some(1.9));
}

fn lookups_per_second(threads: usize, work: &Work, ours: &Ours) -> f64 {
    thread::scope(|scope| {
        let reading: Vec<_> = (0..threads)
            .map(|number| {
                let mut reader = ours.shared_reader().expect("ours is read by any thread");
                // Each begins elsewhere, so that they are not at the same place all the time.
                let prompts = work.lookups[..READ_PROMPTS].iter().cycle().skip(number * READ_PROMPTS / 2);
                scope.spawn(move || count_lookups(reader.as_mut(), prompts))
            })
            .collect();
        reading.into_iter().map(|thread| thread.join().expect("readers do not panic")).sum()
    })
}

fn count_lookups<'a>(reader: &mut dyn Reader, prompts: impl Iterator<Item = &'a Arc<Prompt>>) -> f64 {
    let began = Instant::now();
    let mut lookups = 0_u32;
    for prompt in prompts {
        reader.lookup(black_box(prompt));
        lookups += 1;
        if lookups.is_multiple_of(64) && began.elapsed() >= READING {
            break;
        }
    }
    f64::from(lookups) / began.elapsed().as_secs_f64()
}

/// Lookups and publications in a large index, beside lookups in the usual one.
fn larger(plan: &Plan, effort: Effort) {
    let cell = Cell { prompt_blocks: 512, targets: 512, blocks: effort.blocks };
    let (work, ours) = loaded(cell, effort, false);
    let (mut large_work, mut large) = loaded(Cell { blocks: LARGER * cell.blocks, ..cell }, effort, false);
    let (mut usual_ns, mut large_ns) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        usual_ns.push(time_lookups(ours.reader().as_mut(), &work.lookups, Timed::Lookup).p50());
        large_ns.push(time_lookups(large.reader().as_mut(), &large_work.lookups, Timed::Lookup).p50());
    }
    let usual = Reference { name: "1 M blocks", value: median(&usual_ns) };
    plan.row(LARGE_LOOKUP, "ns", &large_ns, usual, Better::Less, Some(1.0 / 1.5));
    let storm = Storm::new(&mut large_work, 1_000_000);
    let publications: Vec<_> = (0..3).map(|_| publication_p99_us(&storm, &large_work, &mut large)).collect();
    plan.bound(LARGE_PUBLICATION, "µs", &publications, 1_000.0);
}

/// Publications of a paced storm, while a reader holds one snapshot after the other.
pub(crate) fn publication_p99_us(storm: &Storm, work: &Work, large: &mut Ours) -> f64 {
    let over = AtomicBool::new(false);
    let mut reader = large.shared_reader().expect("ours is read by any thread");
    large.stage(&storm.operations);
    thread::scope(|scope| {
        let _ends = EndsReading(&over);
        scope.spawn(|| {
            let mut prompts = work.lookups.iter().cycle();
            while !over.load(Ordering::Relaxed) {
                prompts.next().into_iter().for_each(|prompt| reader.lookup(prompt));
            }
        });
        let pace = Pace::start();
        let mut times = Vec::with_capacity(storm.ticks.len());
        for (tick, &count) in storm.ticks.iter().enumerate() {
            pace.wait(tick);
            large.edit_staged(count);
            times.push(large.publish().min(TICK * 1_000).as_nanos() as u32);
        }
        Times::new(times, 0).p99() / 1_000.0
    })
}
