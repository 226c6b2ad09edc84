//! The lines between this program and the two that it starts: one JSON value each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::Fault;
use crate::shape::Shape;

/// What the clients are to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Where connections go, in turn.
    pub(crate) targets: Vec<SocketAddr>,
    pub(crate) shape: Shape,
    /// Number of the first request; each has its own.
    pub(crate) first: u64,
    pub(crate) connections: usize,
    pub(crate) drive: Drive,
    pub(crate) seconds: f64,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Drive {
    /// On each connection as soon as the one before is answered.
    Closed,
    /// At random times of a rate, whether or not the ones before are answered.
    Open { per_second: f64 },
    /// One on each connection, answered with events without end.
    Streams,
}

/// What the clients say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Connections are up, and each has had an answer or the first event of one: the job begins with the next line.
    Ready,
    /// It came to nothing.
    Failed(String),
    /// All has been counted. Connections are still up, and what their streams bring is not read, until the next line.
    Done(Outcome),
    /// They have been closed.
    Closed,
}

/// What came of a job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Requests answered, or events.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) failures: u64,
    /// What the first failure was.
    pub(crate) failure: Option<String>,
    /// From when a request was due to its last byte, in µs. Of [`Drive::Open`] and [`Drive::Closed`].
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// This program, started once more for another role.
#[derive(Debug)]
pub(crate) struct Role {
    child: Child,
    /// Closed at the end, which ends the role.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Role {
    pub(crate) fn start(name: &str) -> Result<Self, Fault> {
        let program = std::env::current_exe()?;
        let mut command = unlimited(program);
        command.arg(name).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("the output is piped")?);
        Ok(Self { child, input, output })
    }

    pub(crate) fn say(&mut self, value: &impl Serialize) -> Result<(), Fault> {
        let line = serde_json::to_string(value)?;
        Ok(writeln!(self.input.as_mut().ok_or("the input is piped")?, "{line}")?)
    }

    pub(crate) fn hear<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, Fault> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.input.take());
        // It has nothing left to say to.
        let _ = self.child.wait();
    }
}

/// A command with as many open files as the system allows: a thousand streams are two thousand connections.
pub(crate) fn unlimited(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n "$(ulimit -Hn)"; exec "$0" "$@""#]).arg(program);
    command
}
