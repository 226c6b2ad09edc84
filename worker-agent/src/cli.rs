//! The command line of the `worker-agent` binary.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::agent::Agent;
use crate::check::{Severity, check};
use crate::config::{AgentConfig, Level};

/// Runs beside one SGLang server and reports its cache and load to the routers.
///
/// The engine's event, replay and load sockets are discovered from its base URL. Connections to routers and engine are
/// plain HTTP; TLS is not supported yet.
#[derive(Debug, Parser)]
#[command(name = "worker-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

/// What to do instead of running.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Look at the engine's setup and say what should be changed; fails when its KV events are off.
    Check,
}

/// Everything that can be said on the command line.
#[derive(Debug, Args)]
struct Options {
    /// How this agent reaches the engine.
    #[arg(long, env = "ESPALIER_AGENT_WORKER_URL", default_value = "http://127.0.0.1:30000", global = true)]
    worker_url: String,
    /// How routers must reach the engine; the worker's name everywhere [default: the worker URL].
    #[arg(long, env = "ESPALIER_AGENT_ADVERTISE_URL", global = true)]
    advertise_url: Option<String>,
    /// Control-plane address of a router, like http://10.0.0.1:50051; repeat it, or separate several by commas.
    #[arg(long = "router", env = "ESPALIER_AGENT_ROUTER", value_delimiter = ',', global = true)]
    routers: Vec<String>,
    /// The most that is reported.
    #[arg(long, env = "ESPALIER_AGENT_REPORT_LEVEL", value_enum, default_value = "full", global = true)]
    report_level: Level,
    /// File with the engine's API key.
    #[arg(long, env = "ESPALIER_AGENT_API_KEY_FILE", global = true)]
    api_key_file: Option<PathBuf>,
    /// File with the engine's admin key.
    #[arg(long, env = "ESPALIER_AGENT_ADMIN_API_KEY_FILE", global = true)]
    admin_api_key_file: Option<PathBuf>,
    /// File with the bearer token for the routers.
    #[arg(long, env = "ESPALIER_AGENT_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
    /// The model's tokenizer.json, or its directory, by which prompts given as text are reported [default: where the engine
    /// says that it has it].
    #[arg(long, env = "ESPALIER_AGENT_TOKENIZER", global = true)]
    tokenizer: Option<PathBuf>,
    /// The file that the server was given as --chat-template [default: the template beside the tokenizer].
    #[arg(long, env = "ESPALIER_AGENT_CHAT_TEMPLATE", global = true)]
    chat_template: Option<PathBuf>,
    /// Most pages to track for each dp rank [default: four times the rank's capacity].
    #[arg(long, env = "ESPALIER_AGENT_MAX_PAGES", global = true)]
    max_pages: Option<usize>,
    /// What to log, like info or worker_agent=debug.
    #[arg(long, env = "ESPALIER_AGENT_LOG", default_value = "info", global = true)]
    log: EnvFilter,
}

impl Cli {
    /// Does what the command line says, until a signal to stop.
    pub async fn run(self) -> ExitCode {
        let Self { command, options } = self;
        let (config, log) = options.split();
        tracing_subscriber::fmt().with_env_filter(log).with_writer(std::io::stderr).init();
        match command {
            Some(Command::Check) => run_check(config).await,
            None => run_agent(config).await,
        }
    }
}

impl Options {
    fn split(self) -> (AgentConfig, EnvFilter) {
        let config = AgentConfig {
            worker_url: self.worker_url,
            advertise_url: self.advertise_url,
            routers: self.routers,
            report_level: self.report_level,
            api_key_file: self.api_key_file,
            admin_api_key_file: self.admin_api_key_file,
            token_file: self.token_file,
            tokenizer: self.tokenizer,
            chat_template: self.chat_template,
            max_pages: self.max_pages,
            ..AgentConfig::default()
        };
        (config, self.log)
    }
}

async fn run_agent(config: AgentConfig) -> ExitCode {
    let agent = match Agent::start(config) {
        Ok(agent) => agent,
        Err(errors) => {
            for error in errors.0 {
                say(&mut std::io::stderr(), &format!("worker-agent: {error}"));
            }
            return ExitCode::from(2);
        }
    };
    stop_signal().await;
    tracing::info!("stopping");
    agent.shutdown().await;
    ExitCode::SUCCESS
}

async fn run_check(config: AgentConfig) -> ExitCode {
    match check(config).await {
        Ok(findings) => {
            let mut out = std::io::stdout().lock();
            for finding in &findings {
                say(&mut out, &finding.to_string());
            }
            let faulty = findings.iter().any(|finding| finding.severity == Severity::Fault);
            if faulty { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            say(&mut std::io::stderr(), &format!("worker-agent: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Writes a line; nobody reading it is no reason to fail.
fn say(to: &mut impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

/// Waits for ctrl-c or, where there is such a thing, SIGTERM.
async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_means_the_defaults() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from([
            "worker-agent",
            "--router",
            "http://a:1,http://b:1",
            "--router",
            "http://c:1",
        ]);
        let (config, _) = cli.unwrap().options.split();
        assert_eq!(config.routers.len(), 3);
        let defaults = AgentConfig::default();
        assert_eq!((config.worker_url, config.report_level), (defaults.worker_url, defaults.report_level));
        let cli = Cli::try_parse_from(["worker-agent", "check", "--worker-url", "http://w:1"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Check)));
        assert_eq!(cli.options.worker_url, "http://w:1");
    }
}
