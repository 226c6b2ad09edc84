//! Requests that are answered in one piece, one after the other on each connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Open;
use super::connection::Connection;
use super::open::Arrivals;
use crate::Fault;
use crate::link::{Drive, Job, Outcome};
use crate::shape::Requests;

/// What the connections of a job share.
#[derive(Debug)]
struct Shared {
    requests: Requests,
    next: AtomicU64,
}

/// When a connection sends its next request.
#[derive(Clone, Debug)]
enum Times {
    /// At once, until then.
    Until(Instant),
    /// When one is due and no other connection has taken it.
    Due(Arc<Arrivals>),
}

/// What came on one connection.
#[derive(Debug, Default)]
struct Tally {
    took_us: Vec<u32>,
    failures: Vec<String>,
}

pub(super) async fn perform(
    job: &Job,
    requests: Requests,
    begin: impl FnOnce() -> Result<(), Fault>,
) -> Result<(Outcome, Requests, Open), Fault> {
    let shared = Arc::new(Shared { requests, next: AtomicU64::new(job.first) });
    let mut connections = Vec::new();
    for (_, target) in (0..job.connections).zip(job.targets.iter().cycle()) {
        let mut connection = Connection::open(*target).await?;
        shared.exchange(&mut connection).await?;
        connections.push(connection);
    }
    begin()?;
    let began = Instant::now();
    let time = Duration::from_secs_f64(job.seconds);
    let times = match job.drive {
        Drive::Open { per_second } => Times::Due(Arc::new(Arrivals::start(began, time, per_second))),
        Drive::Closed | Drive::Streams => Times::Until(began + time),
    };
    let mut sending = JoinSet::new();
    for connection in connections {
        sending.spawn(shared.clone().send(connection, times.clone()));
    }
    let (tallies, open): (Vec<_>, Vec<_>) = sending.join_all().await.into_iter().unzip();
    let mut outcome = outcome(tallies);
    outcome.seconds = began.elapsed().as_secs_f64();
    let shared = Arc::into_inner(shared).ok_or("every connection has ended")?;
    Ok((outcome, shared.requests, Box::new(open)))
}

impl Shared {
    async fn exchange(&self, connection: &mut Connection) -> Result<(), Fault> {
        let body = self.requests.body(self.next.fetch_add(1, Relaxed));
        connection.exchange(self.requests.path(), body).await
    }

    /// Sends what is due; gives the connection back.
    async fn send(self: Arc<Self>, mut connection: Connection, times: Times) -> (Tally, Connection) {
        let mut tally = Tally::default();
        while let Some(due) = times.next().await {
            match self.exchange(&mut connection).await {
                Ok(()) => {
                    let took = due.elapsed().as_micros();
                    tally.took_us.push(u32::try_from(took).unwrap_or(u32::MAX));
                }
                Err(fault) => tally.failures.push(fault.to_string()),
            }
        }
        (tally, connection)
    }
}

impl Times {
    /// When the next request is due, once it is.
    async fn next(&self) -> Option<Instant> {
        match self {
            Self::Until(end) => Some(Instant::now()).filter(|now| now < end),
            Self::Due(arrivals) => arrivals.next().await,
        }
    }
}

fn outcome(tallies: Vec<Tally>) -> Outcome {
    let mut took_us: Vec<u32> = tallies.iter().flat_map(|tally| &tally.took_us).copied().collect();
    took_us.sort_unstable();
    let share = |share: f64| {
        let at = (took_us.len() as f64 * share) as usize;
        took_us.get(at).copied().map_or(0.0, f64::from)
    };
    let (p50_us, p99_us) = (share(0.5), share(0.99));
    let mut failures = tallies.into_iter().flat_map(|tally| tally.failures);
    let failure = failures.next();
    Outcome {
        count: took_us.len() as u64,
        failures: u64::from(failure.is_some()) + failures.count() as u64,
        failure,
        p50_us,
        p99_us,
        ..Outcome::default()
    }
}
