//! The command line: `router-grpc serve | check | explain | workers`.

mod check;
mod client;
mod file;
mod serve;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use file::FileError;

use crate::config::{PolicyName, RouterConfig};

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
    let parsed = command.try_get_matches_from(&arguments).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((notes(&matches, &cli.command), cli))
    });
    let (notes, cli) = match parsed {
        Ok(parsed) => parsed,
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
            Command::Serve(config) => serve::run(*config, &notes).await,
            Command::Check(config) => check::run(*config, &notes).await,
            Command::Explain(arguments) => client::explain(arguments).await,
            Command::Workers(arguments) => client::workers(arguments).await,
        }
    })
}

/// What is given and has no effect.
fn notes(matches: &ArgMatches, command: &Command) -> Vec<&'static str> {
    let (Command::Serve(config) | Command::Check(config)) = command else { return Vec::new() };
    let any_given = |ids: &[&str]| {
        matches.subcommand().is_some_and(|(_, matches)| {
            let source = |id: &&str| matches.value_source(id);
            ids.iter()
                .any(|id| matches!(source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable)))
        })
    };
    let mut notes = Vec::new();
    let thresholds = any_given(&["cache_threshold", "balance_abs_threshold", "balance_rel_threshold"]);
    if config.policy != PolicyName::Threshold && (thresholds || config.has_unused_thresholds()) {
        notes.push(
            "--cache-threshold and --balance-…-threshold have no effect with this policy; give --policy threshold for the rule \
             that they belong to",
        );
    }
    let queue = any_given(&["queue_size", "queue_timeout_secs", "tenant_header", "tenant_weights"]);
    if queue && !config.admission.has_limits() {
        notes.push(
            "--queue-… and --tenant-… have no effect without a bound: give --max-concurrent-requests or \
             --max-concurrent-requests-per-target",
        );
    }
    notes
}

/// Says on standard error what went wrong.
pub(crate) fn complain(what: &str) -> ExitCode {
    let _ = writeln!(io::stderr().lock(), "router-grpc: {what}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_that_have_no_effect_are_noticed() {
        let noted = |arguments: &[&str]| {
            let arguments = ["router-grpc", "serve"].iter().chain(arguments);
            let matches = Cli::command().try_get_matches_from(arguments).unwrap();
            let cli = Cli::from_arg_matches(&matches).unwrap();
            !notes(&matches, &cli.command).is_empty()
        };
        assert!(!noted(&[]));
        assert!(noted(&["--cache-threshold", "0.3"]), "also where it is the default");
        assert!(noted(&["--balance-abs-threshold", "1", "--policy", "round_robin"]));
        assert!(!noted(&["--balance-rel-threshold", "2", "--policy", "threshold"]));
    }
}
