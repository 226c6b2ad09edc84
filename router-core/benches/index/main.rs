//! The index beside router-core's own specification of it, and what only ours is held against: `cargo bench --bench index`.
//!
//! `cargo xtask bench index [--quick]` runs it; `--only SUBSTRING` picks rows. The peers' crates are driven on the same
//! work by the package in `router-core/peers`, which shares the files of this folder.
//!
//! Every round measures all contestants one after the other, so that drift of the machine meets all of them. `timing.rs`
//! says how a lookup is timed, `updates.rs` what an update's figure includes, `storm.rs` what a storm is made of.

mod alone;
mod cells;
mod contest;
mod naive;
mod ours;
mod predictions;
mod route;
mod rows;
mod scale;
mod sketches;
mod storm;
mod timing;
mod updates;
mod work;

fn main() {
    let plan = rows::Plan::from_arguments();
    if plan.scale {
        return scale::run(&plan);
    }
    let contest = cells::Contest {
        enter: |work| {
            let naive = naive::Naive::new(work.space.clone(), work.cell.targets);
            vec![Box::new(ours::Ours::new(work.space.clone())), Box::new(naive)]
        },
        peer_hashes: |_| (Vec::new(), Vec::new()),
        allocated_by: None,
        judged: false,
    };
    cells::run(&plan, &contest);
    alone::run(&plan);
    route::run(&plan);
    sketches::run(&plan);
}
