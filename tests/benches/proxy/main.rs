//! Our data plane beside other proxies, all in front of the same simulated workers: `cargo xtask bench proxy`.
//!
//! The program starts itself twice more: `workers` is four simulated engines in one process, `load` is the clients. Every
//! contestant is a process of its own between the two; what it costs is read from `/proc`, so that this runs on Linux only.
//! Every round measures all contestants one after the other, so that drift of the machine meets all of them. `cells.rs` says
//! what is measured, `contestants.rs` how each contestant is configured, `shape.rs` what is sent, `workers.rs` what answers.
//!
//! `--soak` sends ten million requests through ours alone instead (`soak.rs`), `--train` a bit of everything (`train.rs`). `--only SUBSTRING`
//! picks rows. `--beside PROGRAM` is another build of ours. Contestants that are not installed are named on standard error and left out.

mod cells;
mod contestants;
mod latency;
mod link;
mod load;
mod process;
#[allow(dead_code, reason = "shared with the index benchmark, which needs more of it")]
#[path = "../../../router-core/benches/index/rows.rs"]
mod rows;
mod shape;
mod soak;
mod train;
mod workers;

use std::error::Error;
use std::path::PathBuf;

/// Whatever ends a measurement.
type Fault = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("workers") => workers::run(),
        Some("load") => load::run(),
        _ if !cfg!(target_os = "linux") => {
            Err("this measurement reads what processes cost from /proc, which only Linux has".into())
        }
        _ => {
            let path = |option: &str| {
                let at = arguments.iter().position(|argument| argument == option)?;
                arguments.get(at + 1).map(PathBuf::from)
            };
            let router = path("--router");
            let router = router.ok_or("--router PATH is missing; `cargo xtask bench proxy` gives it")?;
            let plan = rows::Plan::from_arguments();
            if arguments.iter().any(|argument| argument == "--soak") {
                return soak::run(&plan, &router);
            }
            if arguments.iter().any(|argument| argument == "--train") {
                return train::run(&plan, &router);
            }
            let beside = path("--beside");
            if let Some(beside) = beside.as_ref().filter(|program| !program.is_file()) {
                return Err(format!("--beside {}: there is no such program", beside.display()).into());
            }
            cells::run(&plan, &router, beside.as_deref())
        }
    }
}
