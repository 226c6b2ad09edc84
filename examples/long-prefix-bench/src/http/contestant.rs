//! Who is measured over HTTP, and the command by which each is started.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::{Answer, Client, Failure};
use super::events::Api;
use super::process::{Process, ProcessError, version};
use super::scale::Scale;
use crate::recording::Choices;
use crate::sequence::BLOCK_TOKENS;

/// One of the comparison. Names are those of the lab where the lab has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Contestant {
    /// Ours with an agent beside each worker.
    CacheAware,
    /// Ours without agents.
    CacheAwareNoAgents,
    /// SGLang's router.
    SglangRouter,
    /// Shepherd Model Gateway.
    Smg,
    /// The driver itself, straight to the workers: a session stays with its first worker.
    SessionSticky,
    /// The driver itself, straight to the workers: in turn.
    RoundRobin,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This one, which is the workers too.
    pub own: PathBuf,
    /// Ours.
    pub router: PathBuf,
    /// SGLang's router.
    pub sglang_router: PathBuf,
    /// Shepherd Model Gateway.
    pub smg: PathBuf,
}

/// Addresses of a router that is not started yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    http: u16,
    control: u16,
    metrics: u16,
}

/// A router that cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// Its process does not start or has ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No port is free.
    #[error("no port is free for a router: {0}")]
    Port(#[from] std::io::Error),
    /// It does not answer a small request.
    #[error(
        "{url} does not answer a generation of one token: {failure}; is the router up, with workers that are ready?"
    )]
    Down {
        /// Its address.
        url: String,
        /// Why.
        failure: Failure,
    },
}

/// What is said of its index to a router of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index {
    pub(super) scale: Scale,
    /// Blocks at most, where a cell bounds them.
    pub(super) most_blocks: Option<u64>,
}

/// A router that has been started.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) url: String,
    pub(super) process: Process,
}

/// Longest wait for a router to serve.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at what is awaited.
const LOOK: Duration = Duration::from_millis(100);

/// A router that serves may not have looked at all of its workers yet; all get the same time.
const SETTLE: Duration = Duration::from_secs(2);

/// A generation of one token takes no longer.
const PROBE: Duration = Duration::from_secs(10);

impl Contestant {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CacheAware => "cache_aware",
            Self::CacheAwareNoAgents => "cache_aware, no agents",
            Self::SglangRouter => "sglang-router",
            Self::Smg => "smg",
            Self::SessionSticky => "session_sticky",
            Self::RoundRobin => "round_robin",
        }
    }

    /// What it is, in words.
    pub fn what(self) -> &'static str {
        match self {
            Self::CacheAware => "router-grpc, with an agent beside each worker",
            Self::CacheAwareNoAgents => "router-grpc, corrected by responses alone",
            Self::SglangRouter => "SGLang's router, from PyPI",
            Self::Smg => "Shepherd Model Gateway, from PyPI",
            Self::SessionSticky => "the driver itself: a session stays with its first worker",
            Self::RoundRobin => "the driver itself: the workers in turn",
        }
    }

    /// Its agents report to it.
    pub(super) fn has_agents(self) -> bool {
        self == Self::CacheAware
    }

    /// The program to start; nothing for what the driver does itself.
    pub(super) fn program(self, programs: &Programs) -> Option<&Path> {
        match self {
            Self::CacheAware | Self::CacheAwareNoAgents => Some(&programs.router),
            Self::SglangRouter => Some(&programs.sglang_router),
            Self::Smg => Some(&programs.smg),
            Self::SessionSticky | Self::RoundRobin => None,
        }
    }

    /// By whose choices the lab repeats its run. The driver's own rules are there to compare engines: by their own choices one swap of
    /// two requests would decide all that comes after.
    pub(super) fn choices_of_replays(self) -> &'static [Choices] {
        match self {
            Self::SessionSticky | Self::RoundRobin => &[Choices::Recorded],
            Self::CacheAware | Self::CacheAwareNoAgents => &[Choices::Own, Choices::Recorded],
            Self::SglangRouter | Self::Smg => &[],
        }
    }

    /// It is ours, and its index takes a bound.
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::CacheAware | Self::CacheAwareNoAgents)
    }

    /// What its program says of its version, where it has one; `Err` with the program if it cannot be run.
    pub fn version(self, programs: &Programs) -> Result<Option<String>, PathBuf> {
        let Some(program) = self.program(programs) else { return Ok(None) };
        version(program).map(Some).ok_or_else(|| program.to_owned())
    }

    /// What it is started with: its defaults for prefix caching, its log kept small, and of ours the bound that a cell is about.
    pub(super) fn arguments(self, ports: Ports, workers: &[String], index: Index) -> Vec<String> {
        let Ports { http, control, metrics } = ports;
        let mut arguments = match self {
            Self::CacheAware | Self::CacheAwareNoAgents => {
                let mut all =
                    words("serve --host 127.0.0.1 --prometheus-port 0 --policy cache_aware --log-level warn");
                all.extend(words(&format!("--port {http} --grpc-port {control}")));
                if index.scale.block_tokens() != BLOCK_TOKENS {
                    all.extend(words(&format!("--block-size {}", index.scale.block_tokens())));
                }
                if let Some(blocks) = index.most_blocks {
                    all.extend(words(&format!("--max-blocks {blocks}")));
                }
                all
            }
            Self::SglangRouter | Self::Smg => {
                let mut all = words("launch --host 127.0.0.1 --policy cache_aware --log-level warn");
                all.extend(words(&format!("--port {http} --prometheus-port {metrics}")));
                if self == Self::Smg {
                    // It would look for the simulated model's tokenizer elsewhere.
                    all.extend(words("--disable-tokenizer-autoload"));
                }
                all
            }
            Self::SessionSticky | Self::RoundRobin => return Vec::new(),
        };
        arguments.push("--worker-urls".to_owned());
        arguments.extend_from_slice(workers);
        arguments
    }

    /// The command as people would write it where a cell bounds no index, and the version, for the record.
    pub(super) fn settings(self, programs: &Programs, scale: Scale) -> String {
        let Some(program) = self.program(programs) else { return "straight to the workers".to_owned() };
        let name =
            program.file_name().map_or_else(|| program.to_string_lossy(), |name| name.to_string_lossy());
        let ports = Ports { http: 8000, control: 50_051, metrics: 29_000 };
        let index = Index { scale, most_blocks: None };
        let arguments = self.arguments(ports, &["URL …".to_owned()], index).join(" ");
        let version = version(program).unwrap_or_default();
        format!("{name} {arguments} ({version})")
    }
}

impl Ports {
    pub(super) fn free() -> Result<Self, RouterError> {
        // Held together, so that they differ.
        let all = [
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        ];
        let port = |place: usize| all[place].local_addr().map(|address| address.port());
        Ok(Self { http: port(0)?, control: port(1)?, metrics: port(2)? })
    }

    /// Where agents report to.
    pub(super) fn control_url(self) -> String {
        format!("http://127.0.0.1:{}", self.control)
    }
}

impl Router {
    /// Starts a contestant; `None` for what the driver does itself.
    pub(super) fn start(
        contestant: Contestant,
        programs: &Programs,
        ports: Ports,
        workers: &[String],
        index: Index,
    ) -> Result<Option<Self>, RouterError> {
        let Some(program) = contestant.program(programs) else { return Ok(None) };
        let arguments = contestant.arguments(ports, workers, index);
        let process = Process::start(program, &arguments, Stdio::null(), false)?;
        Ok(Some(Self { url: format!("http://127.0.0.1:{}", ports.http), process }))
    }

    /// Waits until it serves.
    pub(super) async fn ready(&mut self, client: &Client) -> Result<(), RouterError> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            self.process.check()?;
            match probe(client, &self.url, Api::Generate, "").await {
                Ok(()) => break,
                Err(error) if Instant::now() > give_up => return Err(error),
                Err(_) => sleep(LOOK).await,
            }
        }
        sleep(SETTLE).await;
        Ok(())
    }
}

/// An error unless one token of a small generation comes.
pub(super) async fn probe(client: &Client, url: &str, api: Api, model: &str) -> Result<(), RouterError> {
    let mut answer = Answer::default();
    // Tokens that no prompt of a workload has.
    let body = api.body(model, &[1, 2, 3], 1);
    let asked = client.generate(url, api, body, Instant::now() + PROBE, &mut answer, || ()).await;
    asked.map_err(|failure| RouterError::Down { url: url.to_owned(), failure })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_scaled_for_ours_and_nobody_else_is_tuned() {
        let ports = Ports { http: 1, control: 2, metrics: 3 };
        let bounded = |contestant: Contestant, scale: &str, most_blocks| {
            let index = Index { scale: scale.parse().unwrap(), most_blocks };
            contestant.arguments(ports, &["http://w".to_owned()], index).join(" ")
        };
        let of = |contestant, scale| bounded(contestant, scale, None);
        assert!(of(Contestant::CacheAware, "16").contains("--block-size 4 --worker-urls http://w"));
        assert!(!of(Contestant::CacheAware, "1").contains("--block-size"));
        assert!(
            bounded(Contestant::CacheAware, "1", Some(4_096)).contains("--max-blocks 4096 --worker-urls")
        );
        assert!(!of(Contestant::CacheAware, "1").contains("--max-blocks"));
        assert_eq!(of(Contestant::SglangRouter, "1"), bounded(Contestant::SglangRouter, "16", Some(4_096)));
        assert!(of(Contestant::RoundRobin, "1").is_empty());
    }
}
