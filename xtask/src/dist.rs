//! `cargo xtask dist`: the router as it is meant to be installed, optimised for what it did under load (profile-guided optimisation).
//!
//! It is built twice: first so that it counts how often each branch is taken, for a minute of load, and then for these counts. The
//! load is `tests/benches/proxy/train.rs`, and conversations with an agent beside each engine (`long-prefix-bench http`). Counts are
//! kept by what was counted and who sent the load, so that a second run of the chore has nothing to do.

use std::env::VarError;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::commands::{built, output, succeed};

/// The program, and the profile it is built with.
const PROGRAM: &str = "router-grpc";
const PROFILE: &str = "dist";

/// Where all of it is put, in the target directory.
const DIRECTORY: &str = "profiled";

/// Someone who sends load through a router.
struct Trainer {
    name: &'static str,
    arguments: &'static [&'static str],
}

const TRAINERS: [Trainer; 2] = [
    Trainer { name: "proxy", arguments: &["--train"] },
    // A short cell, with engines that have an agent each.
    Trainer {
        name: "long-prefix-bench",
        arguments: &[
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
        ],
    },
];

/// Builds both.
const BUILD_TRAINERS: &[&str] =
    &["build", "--release", "--workspace", "--bench", "proxy", "--bin", "long-prefix-bench"];

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
    let (compiler, merger) = needs()?;
    let dir = target_directory()?.join(DIRECTORY);
    let raw = dir.join("raw");
    eprintln!("xtask: building {PROGRAM} so that it counts");
    let counting = compiler.build(&dir.join("counting"), "-Cprofile-generate=", &raw)?;
    eprintln!("xtask: building who sends it load");
    let trainers = TRAINERS.iter().map(|trainer| built(BUILD_TRAINERS, trainer.name));
    let trainers: Vec<PathBuf> = trainers.collect::<Result<_, _>>()?;
    let counts = dir.join(format!("{:016x}.profdata", hash_of(trainers.iter().chain([&counting]))?));
    if !counts.exists() {
        forget(&dir)?;
        for (trainer, program) in TRAINERS.iter().zip(&trainers) {
            eprintln!("xtask: training it with {}", trainer.name);
            trainer.train(program, &counting, &raw)?;
        }
        merge(&merger, &raw, &counts)?;
    }
    eprintln!("xtask: building {PROGRAM} for what it counted");
    let optimised = compiler.build(&dir.join("optimised"), "-Cprofile-use=", &counts)?;
    let program = dir.join(PROGRAM);
    // One that runs cannot be written over, but replaced.
    let new = program.with_extension("new");
    at(&new, fs::copy(&optimised, &new))?;
    at(&program, fs::rename(&new, &program))?;
    Ok(program)
}

/// Whether the machine has what this takes.
pub(crate) fn is_possible() -> Result<(), Box<dyn Error>> {
    needs().map(drop)
}

/// What this takes: the compiler, and what merges its programs' counts.
fn needs() -> Result<(Compiler, PathBuf), Box<dyn Error>> {
    if !cfg!(target_os = "linux") {
        return Err("the load for it is sent on Linux only".into());
    }
    let compiler = Compiler::installed()?;
    let merger = compiler.merger()?;
    Ok((compiler, merger))
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

    /// `llvm-profdata` of the same LLVM: of another one either it cannot read what was counted, or the compiler not what it wrote, which
    /// is no more than a warning.
    fn merger(&self) -> Result<PathBuf, Box<dyn Error>> {
        let major = self.llvm_major;
        let is_of_it = |tool: &PathBuf| {
            let said = output(Command::new(tool).arg("--version").stderr(Stdio::null())).ok();
            said.and_then(|said| llvm_major(&said)) == Some(major)
        };
        if let Some(given) = std::env::var_os("LLVM_PROFDATA").map(PathBuf::from) {
            let error =
                format!("LLVM_PROFDATA is {}, which is no llvm-profdata of LLVM {major}", given.display());
            return if is_of_it(&given) { Ok(given) } else { Err(error.into()) };
        }
        let sysroot = PathBuf::from(output(rustc().args(["--print", "sysroot"]))?.trim());
        let own = sysroot.join("lib/rustlib").join(&self.host).join("bin/llvm-profdata");
        let known = [own, format!("llvm-profdata-{major}").into(), "llvm-profdata".into()];
        known.into_iter().find(is_of_it).ok_or_else(|| {
            format!(
                "this takes llvm-profdata of LLVM {major}: `rustup component add llvm-tools`, \
                 or a distribution's llvm-{major} package, or its path in LLVM_PROFDATA"
            )
            .into()
        })
    }

    /// Builds the program with one more flag, which ends in a path, into a target directory of its own. What runs while it is built is built
    /// without, and flags of cargo's configuration files do not apply.
    fn build(&self, directory: &Path, flag: &str, path: &Path) -> Result<PathBuf, Box<dyn Error>> {
        // Unlike `RUSTFLAGS` it may hold spaces.
        let mut flags = match (std::env::var_os("CARGO_ENCODED_RUSTFLAGS"), std::env::var("RUSTFLAGS")) {
            (Some(flags), _) => flags,
            (None, Err(VarError::NotPresent)) => OsString::new(),
            (None, flags) => {
                let flags = flags.map_err(|error| format!("RUSTFLAGS: {error}"))?;
                flags.split_whitespace().collect::<Vec<_>>().join("\x1f").into()
            }
        };
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push(flag);
        flags.push(path);
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--package", PROGRAM, "--profile", PROFILE, "--target", &self.host]);
        cargo.arg("--target-dir").arg(directory).env("CARGO_ENCODED_RUSTFLAGS", flags);
        succeed(&mut cargo)?;
        Ok(directory.join(&self.host).join(PROFILE).join(PROGRAM))
    }
}

impl Trainer {
    /// Has a router do what routers do. It writes what it counted when it ends.
    fn train(&self, program: &Path, counting: &Path, raw: &Path) -> Result<(), Box<dyn Error>> {
        let counted = raw.join(self.name);
        at(raw, fs::create_dir_all(raw))?;
        let mut training = Command::new(program);
        // Whatever it writes besides is out of the way.
        training.args(self.arguments).arg("--router").arg(counting).current_dir(raw).stdout(Stdio::null());
        training.env("LLVM_PROFILE_FILE", counted.join("%p.profraw"));
        succeed(&mut training)?;
        let mut written = fs::read_dir(&counted).into_iter().flatten().flatten();
        match written.any(|file| file.metadata().is_ok_and(|file| file.len() > 0)) {
            true => Ok(()),
            false => {
                Err(format!("the router ended without writing to {} what it counted", counted.display())
                    .into())
            }
        }
    }
}

/// Removes what was counted before.
fn forget(dir: &Path) -> Result<(), Box<dyn Error>> {
    for entry in at(dir, fs::read_dir(dir))? {
        let path = at(dir, entry)?.path();
        if path.extension() == Some("profdata".as_ref()) {
            at(&path, fs::remove_file(&path))?;
        } else if path.ends_with("raw") {
            at(&path, fs::remove_dir_all(&path))?;
        }
    }
    Ok(())
}

/// Puts together what was counted.
fn merge(merger: &Path, raw: &Path, counts: &Path) -> Result<(), Box<dyn Error>> {
    // Half a file is none.
    let unfinished = counts.with_extension("unfinished");
    let mut merging = Command::new(merger);
    merging
        .arg("merge")
        .arg("--output")
        .arg(&unfinished)
        .args(TRAINERS.map(|trainer| raw.join(trainer.name)));
    succeed(&mut merging)?;
    at(counts, fs::rename(unfinished, counts))
}

fn hash_of<'f>(files: impl IntoIterator<Item = &'f PathBuf>) -> Result<u64, Box<dyn Error>> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        hasher.write(&at(file, fs::read(file))?);
    }
    for trainer in TRAINERS {
        trainer.arguments.iter().for_each(|argument| hasher.write(argument.as_bytes()));
    }
    Ok(hasher.finish())
}

/// An error that says which file it is about.
fn at<T>(path: &Path, done: std::io::Result<T>) -> Result<T, Box<dyn Error>> {
    done.map_err(|error| format!("{}: {error}", path.display()).into())
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
}
