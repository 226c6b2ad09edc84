//! A bit of everything, for a router that counts what it does: `cargo xtask dist` builds it anew for those counts.
//!
//! Requests of every kind, whole and streamed, with the machine full and at a rate that leaves it idle in between. They have sizes of their
//! own: none that `cells.rs` measures has been trained for.

use std::net::SocketAddr;
use std::path::Path;

use crate::Fault;
use crate::cells::{CONNECTIONS, Field};
use crate::contestants::{Contestant, Log, OURS};
use crate::link::{Drive, Job, Role};
use crate::rows::Plan;
use crate::shape::{Shape, Unit};

/// Seconds of each kind of load, and of the quick run's.
const SECONDS: f64 = 2.0;
const QUICK_SECONDS: f64 = 0.1;

/// How prompts are written.
const UNITS: [Unit; 3] = [Unit::Text, Unit::Ids, Unit::Chat];

/// Bytes of prompts. Short ones are what most requests are.
const PROMPT_BYTES: [usize; 4] = [700, 1500, 18_000, 150_000];

/// Requests a second, far fewer than the machine bears.
const PER_SECOND: f64 = 2000.0;

/// Streams at once, and the time between two events of one.
const STREAMS: usize = 40;
const STEP_MS: u64 = 7;

/// Sends all of it through one router, which is then told to end.
pub(crate) fn run(plan: &Plan, router: &Path) -> Result<(), Fault> {
    let seconds = if plan.quick { QUICK_SECONDS } else { SECONDS };
    let mut workers = Role::start("workers")?;
    let addresses: Vec<SocketAddr> = workers.hear()?;
    let load = Role::start("load")?;
    let ours = Contestant::ours(OURS, router, &addresses, Log::Requests)?;
    let mut field = Field::new(vec![ours], load, workers);
    field.admit(plan)?;
    field.workers.say(&STEP_MS)?;
    for unit in UNITS {
        let mut send = |what: &str, prompt_bytes, drive, connections| {
            let stream = matches!(drive, Drive::Streams);
            let job = field.next_job(Shape { unit, prompt_bytes, stream });
            let job = Job { seconds, drive, connections, ..job };
            let (outcome, _) = field.round(plan, 0, &job)?.ok_or(format!("no {what} of {unit:?} came"))?;
            plan.progress(&format!("{unit:?}, {prompt_bytes} bytes: {} {what}", outcome.count));
            Ok::<_, Fault>(())
        };
        for prompt_bytes in PROMPT_BYTES {
            send("requests", prompt_bytes, Drive::Closed, CONNECTIONS)?;
        }
        let rate = Drive::Open { per_second: PER_SECOND };
        send("requests, one now and then", PROMPT_BYTES[0], rate, CONNECTIONS)?;
        send("events", PROMPT_BYTES[0], Drive::Streams, STREAMS)?;
    }
    field.finish()
}
