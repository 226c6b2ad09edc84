//! The command line: `router-grpc serve | check | explain | workers`.

mod check;
mod client;
mod file;
mod serve;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use file::FileError;

use crate::config::RouterConfig;

/// Routes LLM requests to SGLang workers by the prefixes in their KV caches.
#[derive(Debug, Parser)]
#[command(name = "router-grpc", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients, and agents and administration over gRPC
    Serve(Box<RouterConfig>),
    /// Say what is wrong with a configuration and its workers, without serving
    Check(Box<RouterConfig>),
    /// Show how a running router would decide a request, and why
    Explain(ExplainArguments),
    /// List the workers of a running router
    Workers(AdminArguments),
}

/// Which router to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct AdminArguments {
    /// The router's gRPC address
    #[arg(long, env = "ESPALIER_ADMIN", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub(crate) admin: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which request to explain.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArguments {
    #[command(flatten)]
    pub(crate) admin: AdminArguments,
    /// Path the request would be sent to
    #[arg(long, default_value = "/generate")]
    pub(crate) path: String,
    /// File with the request's JSON body; - reads standard input
    pub(crate) file: PathBuf,
}

/// Runs the command line and says how it went.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let command = match file::apply(Cli::command(), &arguments) {
        Ok(command) => command,
        Err(error) => return complain(&error.to_string()),
    };
    let parsed = command.try_get_matches_from(&arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("the runtime cannot be started: {error}")),
    };
    runtime.block_on(async {
        match cli.command {
            Command::Serve(config) => serve::run(*config).await,
            Command::Check(config) => check::run(*config).await,
            Command::Explain(arguments) => client::explain(arguments).await,
            Command::Workers(arguments) => client::workers(arguments).await,
        }
    })
}

/// Says on standard error what went wrong.
pub(crate) fn complain(what: &str) -> ExitCode {
    let _ = writeln!(io::stderr().lock(), "router-grpc: {what}");
    ExitCode::FAILURE
}
