//! Runs other programs, and says which one failed.

use std::error::Error;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The program of a target among what cargo builds when it is told to.
pub(crate) fn built(build: &[&str], target: &str) -> Result<PathBuf, Box<dyn Error>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(build).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let messages = output(&mut cargo)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == target);
    let program = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.ok_or_else(|| failed(&cargo, &format!("it built no program `{target}`")))
}

/// What a command writes to its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let output = command.output().map_err(|error| failed(command, &error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(failed(command, &output.status.to_string())),
    }
}

pub(crate) fn succeed(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status = command.status().map_err(|error| failed(command, &error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(command, &status.to_string())) }
}

fn failed(command: &Command, why: &str) -> Box<dyn Error> {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    format!("`{}`: {why}", words.join(" ")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_is_named() {
        for run in [succeed, |command: &mut Command| output(command).map(drop)] {
            let error = run(Command::new("no-such-program").arg("x")).unwrap_err().to_string();
            assert!(error.starts_with("`no-such-program x`: "), "{error}");
            let error = run(Command::new(env!("CARGO")).arg("no-such-chore").stderr(Stdio::null()));
            assert!(error.unwrap_err().to_string().contains("no-such-chore`: exit status: "));
        }
    }
}
