//! Repository chores that must run anywhere: `cargo xtask proto | tidy | bench`.

mod bench;
mod proto;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
enum Chore {
    /// Writes the generated code of `proto/`, or with --check compares it.
    Proto {
        /// Compare only; fail if the checked-in code is not what would be generated.
        #[arg(long)]
        check: bool,
    },
    /// Checks the rules of CONTRIBUTING.md that a program can check.
    Tidy,
    /// Runs a measurement; without a name, lists them.
    Bench {
        /// The measurement.
        name: Option<String>,
        /// Fewer runs: under two minutes.
        #[arg(long)]
        quick: bool,
        /// Only what has this in its name, of a measurement of several.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Another build of the router, measured in the same rounds; of `proxy` alone.
        #[arg(long, value_name = "PROGRAM")]
        beside: Option<PathBuf>,
        /// Print one JSON document instead of a table.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Proto { check } => proto::run(check),
        Chore::Tidy => tidy::run(),
        Chore::Bench { name, quick, only, beside, json } => {
            bench::run(name.as_deref(), quick, only.as_deref(), beside.as_deref(), json)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
