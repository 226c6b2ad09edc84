//! What becomes of requests when workers fail: `cargo xtask bench faults`.
//!
//! Eight simulated engines, each a process of its own with its agent, behind `router-grpc serve`, under an open-loop load of
//! which two thirds are streams. One fault at a time is made, held, and healed (`scenario.rs`); what is counted is in
//! `outcome.rs`. The program starts itself as `worker` for each engine. Linux and macOS: workers are stopped by `kill -STOP`.
//!
//! `--only SUBSTRING` picks scenarios.

mod fleet;
mod load;
mod outcome;
#[allow(dead_code, reason = "shared with the index benchmark, which needs more of it")]
#[path = "../../../router-core/benches/index/rows.rs"]
mod rows;
mod scenario;

use std::error::Error;
use std::path::PathBuf;

/// Whatever ends a measurement.
type Fault = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|role| role == "worker") {
        return fleet::work(&arguments[1..]);
    }
    let at = arguments.iter().position(|argument| argument == "--router");
    let router = at.and_then(|at| arguments.get(at + 1)).map(PathBuf::from);
    let router = router.ok_or("--router PATH is missing; `cargo xtask bench faults` gives it")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(scenario::run(&rows::Plan::from_arguments(), &router))
}
