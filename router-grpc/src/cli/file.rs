//! The configuration file: its keys are the flags' long names, and its values become the flags' defaults.
//!
//! So every knob has one definition, and what is given nearer wins: flag, then environment, then file, then built-in default.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, Command};
use toml::{Table, Value};

/// A configuration file that cannot be used; all that is wrong with it at once.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("--config {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("--config {}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// Some of its keys or values are wrong.
    #[error("--config {}: {}", path.display(), problems.join("; "))]
    Keys {
        /// The file.
        path: PathBuf,
        /// Each.
        problems: Vec<String>,
    },
}

/// Commands that a configuration file is for.
const CONFIGURED: [&str; 2] = ["serve", "check"];

/// The command with the defaults of the file that the arguments or the environment name, if any.
pub(super) fn apply(command: Command, arguments: &[OsString]) -> Result<Command, FileError> {
    let Some(path) = named(arguments) else { return Ok(command) };
    let text = std::fs::read_to_string(&path)
        .map_err(|source| FileError::Unreadable { path: path.clone(), source })?;
    let table: Table =
        toml::from_str(&text).map_err(|source| FileError::Syntax { path: path.clone(), source })?;
    let mut command = command;
    let mut problems = Vec::new();
    for name in CONFIGURED {
        let mut found = Vec::new();
        command = command.mut_subcommand(name, |subcommand| with_defaults(subcommand, &table, &mut found));
        problems = found;
    }
    if problems.is_empty() { Ok(command) } else { Err(FileError::Keys { path, problems }) }
}

/// The file that `--config` names, or the environment.
fn named(arguments: &[OsString]) -> Option<PathBuf> {
    let configured = arguments.iter().any(|argument| CONFIGURED.iter().any(|name| argument == name));
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|argument| argument.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    std::env::var_os("ESPALIER_CONFIG").filter(|path| configured && !path.is_empty()).map(PathBuf::from)
}

fn with_defaults(command: Command, table: &Table, problems: &mut Vec<String>) -> Command {
    let mut command = command;
    for (key, value) in table {
        let flag =
            command.get_arguments().find(|argument| argument.get_long() == Some(key) && key != "config");
        let Some(id) = flag.map(|flag| flag.get_id().clone()) else {
            problems.push(unknown(&command, key));
            continue;
        };
        match values(value) {
            Some(values) => command = command.mut_arg(id, |flag: Arg| flag.default_values(values)),
            None => {
                problems.push(format!("{key} must be a string, a number, true, false, or a list of these"))
            }
        }
    }
    command
}

fn unknown(command: &Command, key: &str) -> String {
    let names = command.get_arguments().filter_map(Arg::get_long);
    let nearest = names.min_by_key(|name| distance(name, key)).filter(|name| distance(name, key) <= 3);
    match nearest {
        Some(nearest) => format!("unknown key {key}; did you mean {nearest}?"),
        None => format!("unknown key {key}; keys are the long names of the flags of `serve`"),
    }
}

fn values(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(on) => Some(vec![on.to_string()]),
        Value::Array(list) => list.iter().map(|item| values(item)?.pop()).collect(),
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let edit = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], edit);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use clap::{CommandFactory as _, FromArgMatches as _};

    use super::super::{Cli, Command as Chosen};
    use super::*;
    use crate::config::{PolicyName, RouterConfig};

    fn parse(toml: &str, more: &[&str]) -> Result<RouterConfig, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(toml.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let arguments: Vec<OsString> =
            ["router-grpc", "serve", "--config", path].iter().chain(more).map(OsString::from).collect();
        let command = apply(Cli::command(), &arguments).map_err(|error| error.to_string())?;
        let matches = command.try_get_matches_from(&arguments).map_err(|error| error.to_string())?;
        match Cli::from_arg_matches(&matches).unwrap().command {
            Chosen::Serve(config) => Ok(*config),
            _ => panic!("serve was asked for"),
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "port = 8000\npolicy = \"round_robin\"\nworker-urls = [\"http://a\", \"http://b\"]\nlog-json = true\n";
        let config = parse(file, &["--port", "9000"]).unwrap();
        assert_eq!((config.port, config.policy), (9000, PolicyName::RoundRobin));
        assert_eq!(config.worker_urls, ["http://a", "http://b"]);
        assert!(config.log_json);
        assert_eq!(config.grpc_port, 50051);
    }

    #[test]
    fn every_wrong_key_is_named_with_the_nearest_right_one() {
        let error = parse("prot = 1\nnonsense-entirely = 2\npolicy = { a = 1 }\n", &[]).unwrap_err();
        for part in
            ["unknown key prot; did you mean port?", "unknown key nonsense-entirely", "policy must be"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(parse("port = \"many\"", &[]).unwrap_err().contains("many"));
        assert!(parse("port = ", &[]).is_err());
    }
}
