//! What a program can check of `CONTRIBUTING.md`.
//!
//! Each rule names the place and what to do. A line that must break a rule says why in the allow list here, not in place.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a source file before its tests, at most.
const MOST_LINES: usize = 400;

/// A rule over one source file: the findings as (line number, what is wrong).
type Rule = fn(&Source) -> Vec<(usize, String)>;

const RULES: [Rule; 7] = [
    header,
    length,
    words,
    errors,
    the_core_is_pure,
    arc_swap_stays_in_its_cell,
    generated_types_stop_at_convert,
];

/// What would do I/O, start something, read a clock or log. Its user hands the core time and randomness.
const IMPURE: [&str; 17] = [
    "std::net",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "thread::spawn",
    "thread::Builder",
    "thread::sleep",
    "Instant::now",
    "SystemTime",
    "println!",
    "eprintln!",
    "print!",
    "dbg!",
    "tracing::",
    "log::",
    "tokio",
];

/// Files of the router that may name generated types beside `convert.rs`: those that serve or call the generated services.
const SERVICES: [&str; 6] = [
    "router-grpc/src/admin.rs",
    "router-grpc/src/cli/client.rs",
    "router-grpc/src/session/mod.rs",
    "router-grpc/src/session/opening.rs",
    "router-grpc/src/session/reports.rs",
    "router-grpc/src/start.rs",
];

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

/// Checks every tracked file.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut findings = Vec::new();
    for path in tracked(&root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        let source = Source { path: path.display().to_string(), text };
        findings.extend(machine_paths(&source).into_iter().map(|found| place(&source, found)));
        if source.path.ends_with(".rs") && !source.path.contains("/generated/") {
            let found = RULES.iter().flat_map(|rule| rule(&source));
            findings.extend(found.map(|found| place(&source, found)));
        }
    }
    findings.extend(undocumented_dependencies(&root)?);
    if findings.is_empty() {
        return Ok(());
    }
    Err(format!("{} findings\n{}", findings.len(), findings.join("\n")).into())
}

fn place(source: &Source, (line, what): (usize, String)) -> String {
    format!("  {}:{line}: {what}", source.path)
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(list).current_dir(root).output()?;
    if !output.status.success() {
        return Err("git could not list the files; run this in a checkout".into());
    }
    let names = String::from_utf8(output.stdout)?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

impl Source {
    fn is_test(&self) -> bool {
        let tests = ["tests/", "/tests/", "_tests.rs", "/tests.rs", "/benches/"];
        self.path.starts_with(tests[0]) || tests[1..].iter().any(|part| self.path.contains(part))
    }

    /// Numbered lines before the file's own tests.
    fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.take_while(|(_, line)| {
            *line != "#[cfg(test)]" || !self.text.contains("#[cfg(test)]\nmod tests {")
        })
    }
}

/// A file says its job in its first line.
fn header(source: &Source) -> Vec<(usize, String)> {
    let says = source.text.lines().next().is_some_and(|line| line.starts_with("//! "));
    if says { Vec::new() } else { vec![(1, "say the file's one job in a first `//!` line".into())] }
}

fn length(source: &Source) -> Vec<(usize, String)> {
    let lines = source.production().count();
    if lines <= MOST_LINES || source.is_test() {
        return Vec::new();
    }
    vec![(lines, format!("{lines} lines before its tests: look for the second job past {MOST_LINES}"))]
}

/// Words that say nothing about what a thing is.
fn words(source: &Source) -> Vec<(usize, String)> {
    let empty = ["manager", "helper", "utils"];
    let named = |line: &str| {
        let name = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        let name =
            ["struct ", "enum ", "trait ", "mod ", "fn "].iter().find_map(|kind| name.strip_prefix(kind))?;
        let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next()?.to_lowercase();
        empty.iter().find(|word| name.contains(**word)).map(|word| (*word).to_owned())
    };
    let found = source.production().filter_map(|(line, text)| Some((line, named(text)?)));
    found.map(|(line, word)| (line, format!("`{word}` says nothing; name what it is"))).collect()
}

fn errors(source: &Source) -> Vec<(usize, String)> {
    if source.is_test() {
        return Vec::new();
    }
    let stringly = |line: &str| line.contains("Result<") && line.contains(", String>");
    let found = source.production().filter(|(_, line)| stringly(line) && !line.contains("stringly"));
    found
        .map(|(line, _)| (line, "an error is an enum or a struct with a source, not a String".into()))
        .collect()
}

fn the_core_is_pure(source: &Source) -> Vec<(usize, String)> {
    if !source.path.starts_with("router-core/src/") || source.is_test() {
        return Vec::new();
    }
    let code = source.production().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let found = code.filter_map(|(line, text)| Some((line, IMPURE.iter().find(|word| has(text, word))?)));
    found
        .map(|(line, word)| {
            (line, format!("`{word}`: the core does no I/O, spawns nothing, reads no clock, logs nothing (invariant 1)"))
        })
        .collect()
}

/// Whether a line has a word that does not go on before it.
fn has(line: &str, word: &str) -> bool {
    let own = |at: usize| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
    line.match_indices(word).any(|(at, _)| own(at))
}

fn arc_swap_stays_in_its_cell(source: &Source) -> Vec<(usize, String)> {
    let inside = source.path == "router-core/src/snapshot/cell.rs" || source.path.starts_with("xtask/");
    let named = |line: &&str| line.contains("arc_swap") || line.contains("ArcSwap");
    if inside || !source.path.starts_with("router-core/src") {
        return Vec::new();
    }
    let lines = source.text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let found = lines.filter(|(_, line)| named(line));
    found.map(|(index, _)| (index + 1, "only snapshot/cell.rs names arc_swap (invariant 3)".into())).collect()
}

fn generated_types_stop_at_convert(source: &Source) -> Vec<(usize, String)> {
    let ours = ["router-core/", "router-http/", "router-grpc/", "worker-agent/"];
    let converts = ["/convert.rs", "/convert/"].iter().any(|part| source.path.contains(part));
    let allowed = converts || SERVICES.contains(&&*source.path) || source.is_test();
    if allowed || !ours.iter().any(|path| source.path.starts_with(path)) {
        return Vec::new();
    }
    let found = source.production().filter(|(_, line)| line.contains("espalier_proto"));
    found.map(|(line, _)| (line, "generated types stop at convert.rs (invariant 11)".into())).collect()
}

/// No path of a machine stands in the repository.
fn machine_paths(source: &Source) -> Vec<(usize, String)> {
    if source.path.ends_with(".lock") || source.path == "xtask/src/tidy.rs" {
        return Vec::new();
    }
    let bad = ["/home/", "/root/", "/Users/"];
    let found =
        source.text.lines().enumerate().filter(|(_, line)| bad.iter().any(|path| line.contains(path)));
    found.map(|(index, _)| (index + 1, "a path of somebody's machine".into())).collect()
}

/// Every dependency of the workspace is recorded with a reason.
fn undocumented_dependencies(root: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let recorded = fs::read_to_string(root.join("docs/dependencies.md"))?;
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap_or("");
    let section = section.split("\n[").next().unwrap_or("");
    let names =
        section.lines().filter(|line| !line.contains("path =")).filter_map(|line| line.split_once(" = "));
    let missing = names.filter(|(name, _)| !recorded.contains(&format!("`{name}`")));
    Ok(missing.map(|(name, _)| format!("  docs/dependencies.md: `{name}` is not recorded")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_core_that_reads_a_clock_is_found() {
        let lines = |path: &str, text: &str| -> Vec<usize> {
            the_core_is_pure(&source(path, text)).into_iter().map(|(line, _)| line).collect()
        };
        let text = "//! Time is an argument; Instant::now() is not.\nlet a = 1;\nlet t = Instant::now();\n\
            use tokio::sync;\neprintln!(\"x\");\n#[cfg(test)]\nmod tests {\n    std::thread::sleep(t);\n";
        assert_eq!(lines("router-core/src/time.rs", text), [3, 4, 5]);
        assert_eq!(lines("router-core/src/time.rs", "catalog::Entry; println!();"), [1]);
        assert_eq!(lines("router-core/src/time.rs", "catalog::Entry;"), [0; 0]);
        for elsewhere in
            ["router-core/src/writer/tests.rs", "router-core/benches/a.rs", "router-http/src/a.rs"]
        {
            assert_eq!(lines(elsewhere, text), [0; 0]);
        }
    }

    #[test]
    fn generated_types_are_found_outside_their_places() {
        let found =
            |path: &str| generated_types_stop_at_convert(&source(path, "use espalier_proto as p;")).len();
        for inside in
            ["worker-agent/src/session/convert/call.rs", "router-grpc/src/admin/convert.rs", "tests/a.rs"]
        {
            assert_eq!(found(inside), 0, "{inside}");
        }
        for outside in
            ["worker-agent/src/session/stream.rs", "router-grpc/src/probe.rs", "router-core/src/lib.rs"]
        {
            assert_eq!(found(outside), 1, "{outside}");
        }
    }
}
