//! The command `router-grpc`.

use std::process::ExitCode;

fn main() -> ExitCode {
    router_grpc::cli::run(std::env::args_os())
}
