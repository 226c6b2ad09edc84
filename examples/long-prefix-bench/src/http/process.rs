//! Processes that are measured or needed: started in a group of their own, heard, and ended with all below them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// A running process. Dropping it kills its whole group.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    program: PathBuf,
    said: File,
}

/// A process that does not start or ends too early.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// What was to be started.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has ended.
    #[error("{program} ended with {status}; it said: {said}")]
    Ended {
        /// What has ended.
        program: PathBuf,
        /// How.
        status: ExitStatus,
        /// The end of its output.
        said: String,
    },
}

/// Time for a process to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most of its output that is shown, from its end.
const MOST_SHOWN: u64 = 2_048;

/// What is set for routers elsewhere is not measured here.
const OTHERS_SETTINGS: [&str; 4] = ["ESPALIER_", "OTEL_", "RUST_", "SMG_"];

impl Process {
    /// Starts a program; it reads from `stdin` and what it says goes to a file, but for standard output where that is piped.
    pub(super) fn start(
        program: &Path,
        arguments: &[String],
        stdin: Stdio,
        piped: bool,
    ) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::Start { program: program.to_owned(), source };
        let said = tempfile::tempfile().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(stdin).stderr(said.try_clone().map_err(failed)?);
        if piped {
            command.stdout(Stdio::piped());
        } else {
            command.stdout(said.try_clone().map_err(failed)?);
        }
        let is_others = |name: &OsString| {
            let name = name.to_string_lossy();
            OTHERS_SETTINGS.iter().any(|prefix| name.starts_with(prefix))
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_others(name)) {
            command.env_remove(name);
        }
        // A terminal's Ctrl-C is for us alone; we end it when we have what we need.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(failed)?;
        Ok(Self { child, program: program.to_owned(), said })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// An error if it has ended.
    pub(super) fn check(&mut self) -> Result<(), ProcessError> {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                Err(ProcessError::Ended { program: self.program.clone(), status, said: self.said() })
            }
            _ => Ok(()),
        }
    }

    /// Ends it as it is meant to be ended, and kills what is left after a while.
    pub(super) async fn stop(mut self) {
        self.signal("-TERM");
        let give_up = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < give_up {
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, name: &str) {
        let group = format!("-{}", self.child.id());
        let mut kill = Command::new("kill");
        kill.args([name, "--", &group]).stdout(Stdio::null()).stderr(Stdio::null());
        // Nothing is left of it where this fails.
        let _ = kill.status();
    }

    fn said(&mut self) -> String {
        let mut said = Vec::new();
        let length = self.said.metadata().map_or(0, |of| of.len());
        let from = io::SeekFrom::Start(length.saturating_sub(MOST_SHOWN));
        // Nothing is said where nothing can be read.
        let _ = self.said.seek(from).and_then(|_| self.said.read_to_end(&mut said));
        String::from_utf8_lossy(&said).lines().map(str::trim).collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal("-KILL");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line that a program says when it is asked for its version; nothing if it cannot be run.
pub(super) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).lines().next().map(|line| line.trim().to_owned());
    said.filter(|_| output.status.success())
}
