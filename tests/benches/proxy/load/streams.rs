//! Answers that are streams of events: every connection has one, and events are counted for a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Open;
use super::connection::Connection;
use crate::Fault;
use crate::link::{Job, Outcome};
use crate::shape::Requests;

/// Longest time for all streams to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the streams of a job share.
#[derive(Debug, Default)]
struct Shared {
    events: AtomicU64,
}

/// Permits are streams that have begun.
type Begun = Arc<Semaphore>;

pub(super) async fn perform(
    job: &Job,
    requests: Requests,
    begin: impl FnOnce() -> Result<(), Fault>,
) -> Result<(Outcome, Requests, Open), Fault> {
    let shared = Arc::new(Shared::default());
    let begun = Begun::new(Semaphore::new(0));
    let mut streams = JoinSet::new();
    for (number, target) in (0..job.connections).zip(job.targets.iter().cycle()) {
        let body = requests.body(job.first + number as u64);
        let mut connection = Connection::open(*target).await?;
        let (shared, begun) = (shared.clone(), begun.clone());
        let path = requests.path();
        streams.spawn(async move {
            let response = connection.send(path, body).await?;
            let broken = shared.count(response.into_body(), &begun).await;
            Err::<(), Fault>(broken.unwrap_or_else(|| "a stream ended that has no end".into()))
        });
    }
    let all = begun.acquire_many(u32::try_from(job.connections)?);
    tokio::select! {
        all = tokio::time::timeout(PATIENCE, all) => drop(all??),
        Some(ended) = streams.join_next() => ended??,
    }
    begin()?;
    let (before, began) = (shared.events.load(Relaxed), Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(job.seconds)).await;
    let (count, seconds) = (shared.events.load(Relaxed) - before, began.elapsed().as_secs_f64());
    let mut outcome = Outcome { count, seconds, ..Outcome::default() };
    while let Some(ended) = streams.try_join_next() {
        outcome.failures += 1;
        outcome.failure = ended?.err().map(|fault| fault.to_string());
    }
    Ok((outcome, requests, Box::new(streams)))
}

impl Shared {
    /// Counts the events of a stream for as long as it lasts; returns what broke it.
    async fn count(&self, mut body: hyper::body::Incoming, begun: &Semaphore) -> Option<Fault> {
        let mut first = true;
        // An event ends with an empty line, which may be cut anywhere.
        let mut after_break = false;
        while let Some(frame) = body.frame().await {
            let data = match frame {
                Ok(frame) => frame.into_data().unwrap_or_default(),
                Err(error) => return Some(error.into()),
            };
            let mut events = 0;
            for byte in data {
                let is_break = byte == b'\n';
                events += u64::from(is_break && after_break);
                after_break = is_break && !after_break;
            }
            self.events.fetch_add(events, Relaxed);
            if events > 0 && std::mem::take(&mut first) {
                begun.add_permits(1);
            }
        }
        None
    }
}
