//! The command `sglang-sim`: one simulated SGLang server.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use sglang_sim::{Sim, SimConfig};

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut sim = match Sim::start(SimConfig::parse()).await {
        Ok(sim) => sim,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "sglang-sim: {error}");
            return ExitCode::FAILURE;
        }
    };
    let _ = writeln!(std::io::stdout(), "{}", sim.url());
    tokio::select! {
        () = sim.run() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    ExitCode::SUCCESS
}
