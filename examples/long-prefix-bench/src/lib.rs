//! The long-prefix benchmark.

pub mod engine;
pub mod reference;
pub mod sequence;
pub mod workload;
