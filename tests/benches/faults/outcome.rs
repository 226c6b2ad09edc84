//! What came of requests, and what it says.

use std::time::Duration;

use tokio::time::Instant;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) sent: Instant,
    pub(crate) stream: bool,
    pub(crate) ended: Ended,
    /// The worker that answered.
    pub(crate) worker: Option<String>,
    /// Until the first byte of its body.
    pub(crate) first: Option<Duration>,
    /// Prompt tokens, and those that were cached.
    pub(crate) usage: (u64, u64),
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ended {
    Answered,
    /// Its answer broke off: nobody can take back what a client has read.
    Cut,
    /// It looks complete, and is not.
    Incomplete,
    /// The router answered with an error.
    Refused(String),
    /// No answer at all.
    Lost,
    /// The client had waited too long.
    Late,
}

impl Outcome {
    pub(crate) fn new(sent: Instant, stream: bool) -> Self {
        Self { sent, stream, ended: Ended::Lost, worker: None, first: None, usage: (0, 0) }
    }

    /// It failed, and nothing of its answer had come.
    pub(crate) fn failed_unbegun(&self) -> bool {
        self.ended != Ended::Answered && !self.broke_off()
    }

    /// It failed after its answer had begun.
    pub(crate) fn broke_off(&self) -> bool {
        matches!(self.ended, Ended::Cut | Ended::Incomplete)
            || self.ended == Ended::Late && self.first.is_some()
    }
}

/// Share of the prompt tokens that was cached, in percent.
pub(crate) fn hit_rate<'o>(outcomes: impl Iterator<Item = &'o Outcome>) -> f64 {
    let (prompt, cached) =
        outcomes.fold((0, 0), |sum, outcome| (sum.0 + outcome.usage.0, sum.1 + outcome.usage.1));
    100.0 * cached as f64 / (prompt as f64).max(1.0)
}

/// A quantile of the time to the first byte of streams, in seconds.
pub(crate) fn ttft<'o>(outcomes: impl Iterator<Item = &'o Outcome>, quantile: f64) -> f64 {
    let streams = outcomes.filter(|outcome| outcome.stream);
    let mut times: Vec<f64> = streams.filter_map(|outcome| Some(outcome.first?.as_secs_f64())).collect();
    times.sort_unstable_by(f64::total_cmp);
    let at = ((times.len() as f64 - 1.0) * quantile).round().max(0.0) as usize;
    times.get(at).copied().unwrap_or(f64::NAN)
}

/// From the fault on: the time after which, for two seconds, nothing fails and streams begin about as fast as `before` it.
/// `None` if that never comes.
pub(crate) fn balanced_after(outcomes: &[Outcome], before: f64, fault: Instant, end: Instant) -> Option<f64> {
    const WINDOW: Duration = Duration::from_secs(2);
    let mut at = fault;
    while at + WINDOW <= end {
        let window = outcomes.iter().filter(|outcome| (at..at + WINDOW).contains(&outcome.sent));
        if window.clone().all(|outcome| outcome.ended == Ended::Answered)
            && ttft(window, 0.9) <= 2.0 * before + 0.05
        {
            return Some((at - fault).as_secs_f64());
        }
        at += Duration::from_millis(250);
    }
    None
}
