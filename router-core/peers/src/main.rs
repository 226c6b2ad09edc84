//! Our index beside the published crates of its peers, on the same work, with the results compared.
//!
//! `cargo run --release --manifest-path router-core/peers/Cargo.toml -- [--quick] [--only SUBSTRING]`. The files of the
//! benchmark itself are those of `router-core/benches/index`; this package adds the peers and counts their memory. Each is
//! driven in the fastest way that its public interface allows: in this thread, without a runtime, with its hashes and its
//! events made before the clock starts.

mod aes;
mod allocator;
#[path = "../../benches/index/cells.rs"]
mod cells;
#[path = "../../benches/index/contest.rs"]
mod contest;
mod dynamo;
#[path = "../../benches/index/ours.rs"]
mod ours;
#[path = "../../benches/index/predictions.rs"]
mod predictions;
#[path = "../../benches/index/rows.rs"]
mod rows;
mod smg;
#[path = "../../benches/index/storm.rs"]
mod storm;
#[path = "../../benches/index/timing.rs"]
mod timing;
#[path = "../../benches/index/updates.rs"]
mod updates;
#[path = "../../benches/index/work.rs"]
mod work;

use contest::Contestant;
use work::Work;

fn main() {
    let plan = rows::Plan::from_arguments();
    let contest = cells::Contest {
        enter,
        peer_hashes: dynamo::hashes,
        allocated_by: Some(allocator::allocated_by),
        judged: true,
    };
    smg::assert_same_hashes(dynamo::hashes);
    cells::run(&plan, &contest);
    aes::run(&plan);
}

fn enter(work: &Work) -> Vec<Box<dyn Contestant>> {
    let targets = work.cell.targets;
    vec![
        Box::new(ours::Ours::new(work.space.clone())),
        Box::new(dynamo::Radix::new()),
        Box::new(dynamo::Compressed::start()),
        Box::new(dynamo::Positional::new()),
        Box::new(smg::Chain::new(targets)),
        Box::new(smg::Tokens::new(targets)),
    ]
}
