//! The long-prefix benchmark: which router sends prompts where, and what that is worth.
//!
//! Whole fleets are simulated in virtual time: [`workload`] says what is asked, [`engine`] what engines do with it, [`lab`] puts
//! `router-core` itself between the two, and [`metrics`] says what came of it, [`aftermath`] what faults leave behind. [`mod@reference`] is what a cache could have held,
//! [`grid`] the cells that are run, [`runner`] runs them, [`mod@http`] runs them in real time against any router, and [`recording`] lets the lab
//! repeat that. [`result`] is what is kept and [`report`] what people read. Definitions and results are in `docs/benchmark.md`.
//!
//! Everything follows from the seeds: two runs of one version give the same document, whatever the number of threads.

pub mod aftermath;
pub mod engine;
pub mod grid;
pub mod http;
pub mod jitter;
pub mod lab;
pub mod metrics;
pub mod recording;
pub mod reference;
pub mod report;
pub mod result;
pub mod rows;
pub mod runner;
pub mod sequence;
pub mod stats;
pub mod workload;
