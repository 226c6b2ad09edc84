//! The role `load`: the clients, in one thread.
//!
//! A job's connections are opened and used once before it begins, and closed once what it cost has been taken down, so that only
//! what it sends is measured. A request that is not answered 200, or not whole, is a failure.

mod connection;
mod open;
mod requests;
mod streams;

use std::any::Any;
use std::io::{BufRead as _, Write as _};

use crate::Fault;
use crate::link::{Drive, Job, Outcome, Reply};
use crate::shape::{Requests, Shape};

/// Does the jobs that its input names, one a line, until it ends. A job begins at the line after its own, and the one after that ends its
/// connections.
pub(crate) fn run() -> Result<(), Fault> {
    let mut known: Option<(Shape, Requests)> = None;
    let mut lines = std::io::stdin().lock().lines();
    while let Some(line) = lines.next() {
        let job: Job = serde_json::from_str(&line?)?;
        let requests = match known.take() {
            Some((shape, requests)) if shape == job.shape => requests,
            _ => Requests::new(job.shape),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let begin = || {
            say(&Reply::Ready)?;
            lines.next().ok_or("the job was not begun")??;
            Ok(())
        };
        match runtime.block_on(perform(&job, requests, begin)) {
            Ok((outcome, requests, open)) => {
                known = Some((job.shape, requests));
                say(&Reply::Done(outcome))?;
                lines.next().ok_or("the job was not ended")??;
                drop((open, runtime));
                say(&Reply::Closed)?;
            }
            Err(fault) => say(&Reply::Failed(fault.to_string()))?,
        }
    }
    Ok(())
}

/// What a job leaves open, until it is dropped.
type Open = Box<dyn Any>;

fn say(reply: &Reply) -> Result<(), Fault> {
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(reply)?)?)
}

async fn perform(
    job: &Job,
    requests: Requests,
    begin: impl FnOnce() -> Result<(), Fault>,
) -> Result<(Outcome, Requests, Open), Fault> {
    match job.drive {
        Drive::Closed | Drive::Open { .. } => requests::perform(job, requests, begin).await,
        Drive::Streams => streams::perform(job, requests, begin).await,
    }
}
