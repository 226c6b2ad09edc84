//! Lines of a trace's file, compressed or not, each with its number.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::TraceError;

/// The sample that comes with this repository; origin and licence stand beside it.
const SAMPLE: &str = include_str!("../../../../demo/data/mooncake_conversation_sample.jsonl");

/// A whole file.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    text: String,
}

impl Text {
    pub(super) fn of_sample() -> Self {
        Self { path: "mooncake_conversation_sample.jsonl".into(), text: SAMPLE.to_owned() }
    }

    /// The file with this name in a directory, plain or as `.zst`.
    pub(super) fn find(trace: &'static str, dir: &Path, name: &str) -> Result<Self, TraceError> {
        let names = [name.to_owned(), format!("{name}.zst")];
        let Some(path) = names.iter().map(|name| dir.join(name)).find(|path| path.exists()) else {
            return Err(TraceError::Missing { name: trace, dir: dir.to_owned(), looked_for: names.into() });
        };
        match read(&path) {
            Ok(text) => Ok(Self { path, text }),
            Err(source) => Err(TraceError::Unreadable { path, source }),
        }
    }

    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        Self { path: "test.jsonl".into(), text: text.to_owned() }
    }

    /// Every line that is not blank, parsed.
    pub(super) fn rows<T: DeserializeOwned>(
        &self,
    ) -> impl Iterator<Item = Result<(usize, T), TraceError>> + '_ {
        let lines = self.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines.map(|(index, line)| match serde_json::from_str(line) {
            Ok(row) => Ok((index + 1, row)),
            Err(error) => Err(self.bad(index + 1, error.to_string())),
        })
    }

    /// A line that is wrong.
    pub(super) fn bad(&self, line: usize, reason: String) -> TraceError {
        TraceError::Line { path: self.path.clone(), line, reason }
    }

    /// There was no request in it.
    pub(super) fn empty(&self) -> TraceError {
        TraceError::Empty { path: self.path.clone() }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        let mut decoder = zstd::Decoder::new(file)?;
        // Written with a long window.
        decoder.window_log_max(27)?;
        decoder.read_to_string(&mut text)?;
    } else {
        file.read_to_string(&mut text)?;
    }
    Ok(text)
}
