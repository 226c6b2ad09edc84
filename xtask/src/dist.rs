//! `cargo xtask dist`: the router as it is meant to be installed, optimised for what it did under load (profile-guided optimisation).
//!
//! It is built twice: first so that it counts how often each branch is taken, for two minutes of load, and then for these counts. The
//! load is `tests/benches/proxy/train.rs`, and conversations with an agent beside each engine (`long-prefix-bench http`). Counts are
//! kept by what was counted, so that a second run of the chore has nothing to do.

use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program, and the profile it is built with.
const PROGRAM: &str = "router-grpc";
const PROFILE: &str = "dist";

/// Where all of it is put, in the target directory.
const DIRECTORY: &str = "profiled";

/// Who sends the load.
const TRAINERS: &[&str] = &["build", "--release", "--workspace", "--bin", CONVERSATIONS, "--bench", "proxy"];
const CONVERSATIONS: &str = "long-prefix-bench";

/// A short cell of its, with engines that have an agent each.
const CELL: [&str; 11] = [
    "http",
    "--only",
    "A1",
    "--requests",
    "150",
    "--seeds",
    "1",
    "--scale",
    "16",
    "--routers",
    "cache-aware",
];

/// The compiler that is used.
#[derive(Debug, PartialEq, Eq)]
struct Compiler {
    host: String,
    /// Of the LLVM that it has within.
    llvm_major: u32,
}

/// Builds it and says where it is.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    println!("{}", build()?.display());
    Ok(())
}

/// Builds it, if that has not been done.
pub(crate) fn build() -> Result<PathBuf, Box<dyn Error>> {
    let compiler = Compiler::installed()?;
    let merger = compiler.merger()?;
    let target = target_directory()?;
    let dir = target.join(DIRECTORY);
    let raw = dir.join("raw");
    eprintln!("xtask: building {PROGRAM} so that it counts");
    let counting = compiler.build(&dir.join("counting"), "-Cprofile-generate=", &raw)?;
    let counts = dir.join(format!("{:016x}.profdata", hash_of(&counting)?));
    if !counts.exists() {
        forget(&dir)?;
        eprintln!("xtask: training it");
        train(&counting, &target)?;
        merge(&merger, &raw, &counts)?;
    }
    eprintln!("xtask: building {PROGRAM} for what it counted");
    let optimised = compiler.build(&dir.join("optimised"), "-Cprofile-use=", &counts)?;
    let program = dir.join(optimised.file_name().unwrap_or(PROGRAM.as_ref()));
    fs::copy(&optimised, &program)?;
    Ok(program)
}

/// Whether the machine has what this takes.
pub(crate) fn is_possible() -> Result<(), Box<dyn Error>> {
    Compiler::installed()?.merger().map(drop)
}

impl Compiler {
    fn installed() -> Result<Self, Box<dyn Error>> {
        let said = output(rustc().arg("-vV"))?;
        Self::read(&said).ok_or_else(|| format!("rustc does not say what it is, but:\n{said}").into())
    }

    fn read(said: &str) -> Option<Self> {
        let host = said.lines().find_map(|line| line.strip_prefix("host: "))?.to_owned();
        Some(Self { host, llvm_major: llvm_major(said)? })
    }

    /// `llvm-profdata` that can read what this compiler's programs count: one of its own LLVM, or of a later one.
    fn merger(&self) -> Result<PathBuf, Box<dyn Error>> {
        let sysroot = PathBuf::from(output(rustc().args(["--print", "sysroot"]))?.trim());
        let own = sysroot.join("lib/rustlib").join(&self.host).join("bin/llvm-profdata");
        let major = self.llvm_major;
        let given = std::env::var_os("LLVM_PROFDATA").map(PathBuf::from);
        let known = [own, format!("llvm-profdata-{major}").into(), "llvm-profdata".into()];
        let is_recent = |tool: &PathBuf| {
            let said = output(Command::new(tool).arg("--version").stderr(Stdio::null())).ok();
            said.and_then(|said| llvm_major(&said)).is_some_and(|its| its >= major)
        };
        if let Some(given) = given {
            return match is_recent(&given) {
                true => Ok(given),
                false => Err(format!(
                    "LLVM_PROFDATA is {}, which is no llvm-profdata of LLVM {major} or later",
                    given.display()
                )
                .into()),
            };
        }
        known.into_iter().find(is_recent).ok_or_else(|| {
            format!(
                "this takes llvm-profdata of LLVM {major} or later: `rustup component add llvm-tools`, \
                 or a distribution's llvm-{major} package, or its path in LLVM_PROFDATA"
            )
            .into()
        })
    }

    /// Builds the program with one more flag, which ends in a path, into a target directory of its own. What runs while it is built is built
    /// without.
    fn build(&self, directory: &Path, flag: &str, path: &Path) -> Result<PathBuf, Box<dyn Error>> {
        // Unlike `RUSTFLAGS` it may hold spaces.
        let mut flags = std::env::var_os("CARGO_ENCODED_RUSTFLAGS").unwrap_or_else(|| {
            let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
            flags.split_whitespace().collect::<Vec<_>>().join("\x1f").into()
        });
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push(flag);
        flags.push(path);
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--package", PROGRAM, "--profile", PROFILE, "--target", &self.host]);
        cargo.arg("--target-dir").arg(directory).env("CARGO_ENCODED_RUSTFLAGS", flags);
        succeed(&mut cargo)?;
        let name = format!("{PROGRAM}{}", std::env::consts::EXE_SUFFIX);
        Ok(directory.join(&self.host).join(PROFILE).join(name))
    }
}

/// Has it do what routers do. It writes what it counted when it ends.
fn train(counting: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    succeed(Command::new(env!("CARGO")).args(TRAINERS))?;
    let mut load = Command::new(env!("CARGO"));
    load.args(["bench", "--quiet", "--workspace", "--bench", "proxy", "--", "--train", "--router"]);
    succeed(load.arg(counting))?;
    let mut conversations = Command::new(target.join("release").join(CONVERSATIONS));
    conversations.args(CELL).arg("--out").arg(target.join(DIRECTORY).join("conversations"));
    succeed(conversations.arg("--router").arg(counting).stdout(Stdio::null()))
}

/// Removes what was counted before.
fn forget(dir: &Path) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension() == Some("profdata".as_ref()) {
            fs::remove_file(path)?;
        } else if path.ends_with("raw") {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Puts together what several processes counted.
fn merge(merger: &Path, raw: &Path, counts: &Path) -> Result<(), Box<dyn Error>> {
    if !raw.is_dir() {
        return Err("the router was trained and has written nothing that it counted".into());
    }
    // Half a file is none.
    let unfinished = counts.with_extension("unfinished");
    succeed(Command::new(merger).arg("merge").arg("--output").arg(&unfinished).arg(raw))?;
    Ok(fs::rename(unfinished, counts)?)
}

fn hash_of(file: &Path) -> Result<u64, Box<dyn Error>> {
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(file)?);
    Ok(hasher.finish())
}

/// Where cargo puts what it builds.
fn target_directory() -> Result<PathBuf, Box<dyn Error>> {
    let said = output(Command::new(env!("CARGO")).args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&said)?;
    let directory = metadata["target_directory"].as_str().ok_or("cargo names no target directory")?;
    Ok(directory.into())
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// The first version of LLVM that is named, as `rustc -vV` and LLVM's tools do.
fn llvm_major(said: &str) -> Option<u32> {
    let (_, version) = said.split_once("LLVM version")?;
    version.trim_start_matches([':', ' ']).split('.').next()?.parse().ok()
}

fn output(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let output = command.output().map_err(|error| failed(command, &error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(failed(command, &output.status.to_string())),
    }
}

fn succeed(command: &mut Command) -> Result<(), Box<dyn Error>> {
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
    fn compilers_and_tools_say_which_llvm_they_have() {
        let rustc = "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        let compiler = Compiler { host: "x86_64-unknown-linux-gnu".to_owned(), llvm_major: 22 };
        assert_eq!(Compiler::read(rustc), Some(compiler));
        assert_eq!(llvm_major("Debian LLVM version 22.1.8\n  Optimized build.\n"), Some(22));
        assert_eq!(
            llvm_major("LLVM (http://llvm.org/):\n  LLVM version 21.1.3-rust-1.92.0-stable\n"),
            Some(21)
        );
        assert_eq!(llvm_major("cranelift"), None);
    }

    #[test]
    fn a_command_that_fails_is_named() {
        let error = succeed(Command::new("no-such-program").arg("x")).unwrap_err().to_string();
        assert!(error.starts_with("`no-such-program x`: "), "{error}");
    }
}
