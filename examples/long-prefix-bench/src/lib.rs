//! The long-prefix benchmark.

pub mod engine;
pub mod sequence;
