//! What the workers themselves say: their load over time, and their counters.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::client::Client;
use crate::lab::Sample;

/// Looks at the workers every second.
#[derive(Debug)]
pub(super) struct Truth {
    client: Client,
    workers: Vec<String>,
    watched: Mutex<Watched>,
}

/// What has been seen over time, in the engines' tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    pub(super) samples: Vec<Sample>,
    /// The worker, when it was seen, and how long it had prefilled since the time before.
    pub(super) prefills: Vec<(usize, Duration, Duration)>,
    busy_us: Vec<Option<u64>>,
}

/// The fleet's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) prompt_tokens: f64,
    pub(super) cached_tokens: f64,
    pub(super) evicted_tokens: f64,
}

#[derive(Deserialize)]
struct Loads {
    loads: Vec<Load>,
}

#[derive(Deserialize)]
struct Load {
    #[serde(default)]
    num_waiting_uncached_tokens: usize,
    #[serde(default)]
    total_prefill_busy_us: u64,
}

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

impl Truth {
    pub(super) fn new(workers: &[String]) -> Self {
        let watched = Watched { busy_us: vec![None; workers.len()], ..Watched::default() };
        Self { client: Client::new(), workers: workers.to_vec(), watched: Mutex::new(watched) }
    }

    /// Looks until it is dropped.
    pub(super) async fn watch(&self, began: Instant) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let loads = join_all(self.workers.iter().map(|worker| self.load(worker))).await;
            self.note(began.elapsed(), &loads);
        }
    }

    pub(super) fn watched(&self) -> Watched {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sums over all workers; `None` unless every worker tells.
    pub(super) async fn counters(&self) -> Option<Counters> {
        let texts = join_all(self.workers.iter().map(async |worker| {
            let url = format!("{worker}/metrics");
            self.client.get(&url).await
        }));
        let mut sum = Counters::default();
        for text in texts.await {
            let text = String::from_utf8_lossy(&text.ok()?).into_owned();
            sum.prompt_tokens += family(&text, "sglang:prompt_tokens_total")?;
            sum.cached_tokens += family(&text, "sglang:cached_tokens_total")?;
            sum.evicted_tokens += family(&text, "sglang:evicted_tokens_total").unwrap_or(0.0);
        }
        (!self.workers.is_empty()).then_some(sum)
    }

    /// Empties every cache; false unless all did.
    pub(super) async fn flush(&self) -> bool {
        let all = join_all(self.workers.iter().map(async |worker| {
            let url = format!("{worker}/flush_cache");
            self.client.post(&url).await
        }));
        all.await.iter().all(Result::is_ok)
    }

    async fn load(&self, worker: &str) -> Option<Load> {
        let body = self.client.get(&format!("{worker}/v1/loads")).await.ok()?;
        let loads: Loads = serde_json::from_slice(&body).ok()?;
        let sum = |of: fn(&Load) -> usize| loads.loads.iter().map(of).sum();
        Some(Load {
            num_waiting_uncached_tokens: sum(|load| load.num_waiting_uncached_tokens),
            total_prefill_busy_us: loads.loads.iter().map(|load| load.total_prefill_busy_us).sum(),
        })
    }

    fn note(&self, at: Duration, loads: &[Option<Load>]) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for (worker, load) in loads.iter().enumerate() {
            let Some(load) = load else { continue };
            let before = watched.busy_us[worker].replace(load.total_prefill_busy_us);
            let busy =
                load.total_prefill_busy_us.saturating_sub(before.unwrap_or(load.total_prefill_busy_us));
            if busy > 0 {
                watched.prefills.push((worker, at, Duration::from_micros(busy)));
            }
        }
        let queued =
            loads.iter().map(|load| load.as_ref().map_or(0, |load| load.num_waiting_uncached_tokens));
        watched.samples.push(Sample { at, queued_tokens: queued.collect() });
    }
}

/// The sum of a family's samples in Prometheus' text; `None` if it has none.
fn family(text: &str, name: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    samples.reduce(|sum, sample| sum + sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_summed() {
        let text =
            "# TYPE a_total counter\na_total{dp_rank=\"0\"} 3\na_total{dp_rank=\"1\"} 4\na_totals 9\nb 1\n";
        assert_eq!(family(text, "a_total"), Some(7.0));
        assert_eq!(family(text, "b"), Some(1.0));
        assert_eq!(family(text, "c"), None);
    }

    #[test]
    fn prefill_time_is_what_came_since_the_look_before() {
        let truth = Truth::new(&["a".to_owned(), "b".to_owned()]);
        let load =
            |busy, waiting| Some(Load { num_waiting_uncached_tokens: waiting, total_prefill_busy_us: busy });
        truth.note(Duration::from_secs(1), &[load(500, 7), None]);
        truth.note(Duration::from_secs(2), &[load(900, 0), load(50, 3)]);
        truth.note(Duration::from_secs(3), &[load(900, 0), load(80, 0)]);
        let watched = truth.watched();
        let busy = |worker, at, us| (worker, Duration::from_secs(at), Duration::from_micros(us));
        assert_eq!(watched.prefills, [busy(0, 2, 400), busy(1, 3, 30)]);
        assert_eq!(watched.samples[0].queued_tokens, [7, 0]);
        assert_eq!(watched.samples[1].queued_tokens, [0, 3]);
    }
}
