//! Runs beside one SGLang server and reports its cache and load to the routers.

use std::process::ExitCode;

use clap::Parser;
use worker_agent::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().run().await
}
