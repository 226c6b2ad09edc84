//! Generates the Rust code of `proto/espalier/v1` without `protoc`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 3] = ["espalier/v1/common.proto", "espalier/v1/agent.proto", "espalier/v1/admin.proto"];
const GENERATED: &str = "src/generated";

/// Writes the generated code, or with `check` fails if it differs from what is checked in.
pub(crate) fn run(check: bool) -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let descriptors = protox::compile(FILES, [&root])?;
    let fresh = tempdir()?;
    tonic_prost_build::configure()
        // `Agent.Connect` would clash with the transport's own `connect`; clients are built on a channel.
        .build_transport(false)
        .out_dir(&fresh)
        .compile_fds(descriptors.clone())?;
    fs::write(fresh.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let generated = root.join(GENERATED);
    fs::create_dir_all(&generated)?;
    let mut stale = Vec::new();
    for entry in fs::read_dir(&fresh)? {
        let entry = entry?;
        let target = generated.join(entry.file_name());
        let new = fs::read(entry.path())?;
        if fs::read(&target).ok().as_deref() != Some(&new) {
            stale.push(target.display().to_string());
            if !check {
                fs::write(&target, &new)?;
            }
        }
    }
    fs::remove_dir_all(&fresh)?;
    if check && !stale.is_empty() {
        return Err(
            format!("{} is not what proto/ generates; run `cargo xtask proto`", stale.join(", ")).into()
        );
    }
    Ok(())
}

/// A new, empty folder inside the target folder.
fn tempdir() -> std::io::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("espalier-proto-{}", std::process::id()));
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
