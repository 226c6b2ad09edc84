//! What readers and the writer share memory with. `tests/loom.rs` puts loom's in the place of these, and tries every order.

pub(super) use std::sync::Arc;
pub(super) use std::sync::atomic::AtomicU64;
pub(super) use std::sync::atomic::Ordering::Relaxed;
