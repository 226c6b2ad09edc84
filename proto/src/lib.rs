//! Generated types and services of package `espalier.v1`; the contract is in the `.proto` files.
//!
//! `cargo xtask proto` writes `src/generated`, and `cargo xtask proto --check` compares it. Nothing but the `convert`
//! modules of the crates that speak the protocol should name these types.

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    include!("generated/espalier.v1.rs");
}

pub use generated::*;

/// The encoded `FileDescriptorSet` of the package, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
