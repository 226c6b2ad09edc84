//! Repository chores that must run anywhere: `cargo xtask proto | tidy | bench | dist`.

mod bench;
mod commands;
mod dist;
mod proto;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use bench::Programs;
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
        /// The build of the router that is measured, instead of one that is built for it.
        #[arg(long, value_name = "PROGRAM")]
        router: Option<PathBuf>,
        /// Another build of the router, measured in the same rounds; of `proxy` alone.
        #[arg(long, value_name = "PROGRAM")]
        beside: Option<PathBuf>,
        /// Print one JSON document instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Builds the router as it is meant to be installed, optimised for what it did under load: a quarter of an hour; prints its path.
    Dist,
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Proto { check } => proto::run(check),
        Chore::Tidy => tidy::run(),
        Chore::Bench { name, quick, only, router, beside, json } => {
            let programs = Programs { router: router.as_deref(), beside: beside.as_deref() };
            bench::run(name.as_deref(), quick, only.as_deref(), programs, json)
        }
        Chore::Dist => dist::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
