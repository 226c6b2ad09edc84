//! What readers and the writer share memory with. `tests/loom.rs` puts loom's in the place of these, and tries every order.

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::AtomicU64;
pub(crate) use std::sync::atomic::Ordering::Relaxed;
