//! Repository chores that must run anywhere: `cargo xtask proto | tidy | bench`.

mod proto;

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
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Proto { check } => proto::run(check),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
