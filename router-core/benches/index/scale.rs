//! The largest fleet and a large index: 4,096 targets, 100 M blocks. `cargo xtask bench index-scale` runs it; it takes some
//! minutes and 6 GB.

use std::fs;
use std::time::Instant;

use crate::alone::{loaded, publication_p99_us};
use crate::cells::Effort;
use crate::contest::{Contestant, load};
use crate::ours::Ours;
use crate::rows::{Better, Plan, Reference, median};
use crate::storm::Storm;
use crate::timing::{Timed, time_lookups};
use crate::work::{Cell, Work};

const BLOCKS: usize = 100_000_000;
const USUAL_BLOCKS: usize = 1_000_000;
const TARGETS: u16 = 4_096;
const ROUNDS: usize = 5;
/// Bytes in a page of the machine, as it is nearly everywhere.
const PAGE_BYTES: u64 = 4096;

/// Measures it all; a quick run has a tenth of the blocks.
pub(crate) fn run(plan: &Plan) {
    let blocks = if plan.quick { BLOCKS / 10 } else { BLOCKS };
    let effort = Effort { blocks, rounds: ROUNDS, lookups: 4_000 };
    let usual_cell = Cell { prompt_blocks: 512, targets: TARGETS, blocks: USUAL_BLOCKS };
    plan.progress("1 M blocks");
    let (work, ours) = loaded(usual_cell, effort, false);
    plan.progress(&format!("{} M blocks", blocks / 1_000_000));
    let began = Instant::now();
    let mut large_work =
        Work::new(Cell { blocks, ..usual_cell }, effort.lookups, |_| Default::default(), false);
    let mut large = Ours::new(large_work.space.clone());
    let before = resident_bytes();
    load(&mut large, &large_work);
    let predicting = resident_bytes();
    large.prepare_for_events();
    let following = resident_bytes();
    plan.progress(&format!("made and loaded in {:.0} s", began.elapsed().as_secs_f64()));
    let (mut usual_ns, mut large_ns, mut large_p99_ns) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        usual_ns.push(time_lookups(ours.reader().as_mut(), &work.lookups, Timed::Lookup).p50());
        let times = time_lookups(large.reader().as_mut(), &large_work.lookups, Timed::Lookup);
        large_ns.push(times.p50());
        large_p99_ns.push(times.p99());
    }
    let name = large_work.cell.name();
    let millions = blocks / 1_000_000;
    let usual = Reference { name: "1 M blocks", value: median(&usual_ns) };
    plan.row(&format!("lookup p50, {millions} M blocks, {name}"), "ns", &large_ns, usual, Better::Less, None);
    plan.row(
        &format!("lookup p99, {millions} M blocks, {name}"),
        "ns",
        &large_p99_ns,
        usual,
        Better::Less,
        None,
    );
    let storm = Storm::new(&mut large_work, 1_000_000);
    let publications: Vec<_> = (0..3).map(|_| publication_p99_us(&storm, &large_work, &mut large)).collect();
    plan.bound(&format!("publication p99, {millions} M blocks, {name}"), "µs", &publications, 1_000.0);
    let a_block = |after: Option<u64>| {
        let bytes = after.zip(before).map(|(after, before)| after.saturating_sub(before) as f64);
        bytes.map(|bytes| bytes / large_work.distinct_blocks as f64)
    };
    for (what, bytes, bound) in [("predictions only", predicting, 12.0), ("blocks located", following, 24.0)]
    {
        let row = format!("resident bytes a block, {what}, {millions} M blocks, {name}");
        a_block(bytes).iter().for_each(|bytes| plan.bound(&row, "bytes", &[*bytes], bound));
    }
}

/// Memory of this process that is in use; `None` where the system does not say.
fn resident_bytes() -> Option<u64> {
    let pages =
        fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(pages * PAGE_BYTES)
}
