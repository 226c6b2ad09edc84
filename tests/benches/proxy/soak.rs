//! Whether memory grows with the number of requests: `cargo xtask bench soak`.
//!
//! Rounds of small requests, of 64 KB prompts that are all new, and of streams whose clients leave, through our router alone. Its
//! resident memory is looked at after each round. The index is full after the first seconds; what still grows then is kept for
//! every request.

use std::net::SocketAddr;
use std::path::Path;

use crate::Fault;
use crate::cells::{CHURN, Field, SMALL, STREAM};
use crate::contestants::{Contestant, Log, OURS};
use crate::link::{Drive, Job, Role};
use crate::process::memory;
use crate::rows::{Plan, median};

/// Requests of the whole measurement, and of the quick one.
const REQUESTS: u64 = 10_000_000;
const QUICK_REQUESTS: u64 = 200_000;

/// Rounds of each measurement, at least; enough for two quarters to compare.
const LEAST_ROUNDS: usize = 12;

/// Seconds of each kind of load in a round.
const SMALL_SECONDS: f64 = 2.0;
const CHURN_SECONDS: f64 = 0.5;
const STREAM_SECONDS: f64 = 0.2;
const STREAMS: usize = 64;

/// Most that the last quarter's median may be of the second quarter's.
const MOST_GROWTH: f64 = 1.05;

pub(crate) fn run(plan: &Plan, router: &Path) -> Result<(), Fault> {
    let mut workers = Role::start("workers")?;
    let addresses: Vec<SocketAddr> = workers.hear()?;
    let load = Role::start("load")?;
    let ours = Contestant::ours(OURS, router, &addresses, Log::Off)?;
    let process = ours.process().ok_or("our router is a process")?;
    let mut field = Field::new(vec![ours], load, workers);
    field.admit(plan)?;
    let wanted = if plan.quick { QUICK_REQUESTS } else { REQUESTS };
    let (mut done, mut resident) = (0, Vec::new());
    while done < wanted || resident.len() < LEAST_ROUNDS {
        for (shape, seconds) in [(SMALL, SMALL_SECONDS), (CHURN, CHURN_SECONDS)] {
            let job = Job { seconds, ..field.next_job(shape) };
            done += field.round(plan, 0, &job)?.map_or(0, |(outcome, _)| outcome.count);
        }
        let (drive, connections) = (Drive::Streams, STREAMS);
        let job = Job { seconds: STREAM_SECONDS, drive, connections, ..field.next_job(STREAM) };
        field.round(plan, 0, &job)?;
        done += STREAMS as u64;
        resident.push(memory(process).resident);
        if resident.len().is_multiple_of(LEAST_ROUNDS / 4) {
            plan.progress(&format!("{done} requests, {:.1} MB", resident[resident.len() - 1]));
        }
    }
    let quarter = resident.len() / 4;
    let (second, last) =
        (median(&resident[quarter..2 * quarter]), median(&resident[resident.len() - quarter..]));
    plan.bound("growth of memory, last quarter relative to the second", "×", &[last / second], MOST_GROWTH);
    field.finish()?;
    match last / second <= MOST_GROWTH {
        true => Ok(()),
        false => {
            Err(format!("memory grew from {second:.1} MB to {last:.1} MB within {done} requests").into())
        }
    }
}
