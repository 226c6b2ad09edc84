//! Has cargo build something, and says where it put it.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The program of a target among what a command builds.
pub(crate) fn built(build: &[&str], target: &str) -> Result<PathBuf, Box<dyn Error>> {
    let mut command = Command::new(env!("CARGO"));
    command.args(build).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("`cargo {}` ended with {}", build.join(" "), output.status).into());
    }
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == target);
    let program = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.ok_or_else(|| format!("`cargo {}` built no program `{target}`", build.join(" ")).into())
}
