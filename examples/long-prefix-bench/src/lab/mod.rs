//! The laboratory: a fleet of engines, their clients and a router, in virtual time.
//!
//! [`Contestant`] says who routes, [`Setting`] what the fleet is, and [`run`] what became of every request; [`replay`] does what a run over
//! HTTP did. The router is
//! `router-core` itself, its writer driven by the same clock as the engines; decisions, predictions, responses and agents' reports take
//! their usual ways through it.

mod contestant;
mod exact;
mod fault;
mod outcome;
mod ring;
mod side;
mod world;

pub use contestant::{Contestant, Kind, contestants};
pub use fault::{Fault, Moment};
pub use outcome::{Clients, Outcome, Poll, Request, Returned, Sample, Setting};
pub use side::LabError;
pub(crate) use side::{MOST_BLOCKS, Side, as_time};
pub use world::{replay, run};
