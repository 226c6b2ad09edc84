//! What engines without an agent count of their caches: asked of their own metrics now and then, far from any request.
//!
//! SGLang has these at `/metrics` with `--enable-metrics`; families and labels as of 0.5.23.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use router_core::{Counts, FleetUpdate, Router, TargetId, Update, Worker, WorkerId, WorkerState};
use router_http::Clock;
use tokio::time::{MissedTickBehavior, interval};

use super::{ProbeError, Prober};
use crate::requests::send;

const PATH: &str = "/metrics";

/// A worker that has no metrics is asked again only every so many times: it may be started anew with them.
const PAUSE_WITHOUT_METRICS: u32 = 12;

/// KV tokens that nobody uses, of the prefix cache.
const EVICTABLE: &str = "sglang:kv_evictable_tokens";

/// KV tokens of running requests: of the prefix cache, or not yet.
const USED: [&str; 2] = ["sglang:kv_used_tokens", "sglang:num_used_tokens"];

const EVICTED: &str = "sglang:evicted_tokens_total";

impl Prober {
    /// Asks one worker for its counts for as long as it is registered.
    pub(super) async fn count(&self, every: Duration, clock: Clock, router: &Router, id: WorkerId) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = 0_u32;
        loop {
            ticks.tick().await;
            let snapshot = router.snapshot();
            let Some(worker) = snapshot.fleet.workers.iter().find(|worker| worker.id == id).cloned() else {
                return;
            };
            drop(snapshot);
            if pause > 0 {
                pause -= 1;
            } else if worker.agent.is_none() && worker.state != WorkerState::Unreachable {
                let asked = self.ask_counts(&clock, router, &worker).await;
                if let Err(error) = asked {
                    tracing::debug!(worker = &*worker.url, %error, "the engine does not say what it has cached");
                    pause = PAUSE_WITHOUT_METRICS;
                }
            }
        }
    }

    async fn ask_counts(&self, clock: &Clock, router: &Router, worker: &Worker) -> Result<(), ProbeError> {
        // What is used while the engine answers is younger than its answer.
        let at = clock.now();
        let (status, body) = self.get(&worker.url, PATH).await?;
        if status != StatusCode::OK {
            return Err(ProbeError::Status(PATH, status));
        }
        let text = std::str::from_utf8(&body).map_err(|_| ProbeError::Unreadable(PATH))?;
        let counts = read(text, worker.profile.dp_size);
        if counts.is_empty() {
            return Err(ProbeError::Unreadable(PATH));
        }
        for (rank, counts) in counts {
            let target = TargetId { worker: worker.id, rank };
            // With an overloaded writer the next answer says it again.
            let _ = send(router, Update::Fleet(FleetUpdate::Counted { target, counts, at })).await;
        }
        Ok(())
    }
}

/// What an engine's metrics say of one rank.
#[derive(Debug, Default)]
struct Read {
    evictable: Option<u64>,
    used: Option<u64>,
    evicted: Option<u64>,
}

/// The counts of each rank that the metrics speak of.
fn read(text: &str, dp_size: u32) -> BTreeMap<u32, Counts> {
    let mut ranks: BTreeMap<u32, Read> = BTreeMap::new();
    for sample in text.lines().filter_map(Sample::parse) {
        // Engines of one rank do not name it.
        let rank = match sample.label("dp_rank").map(str::parse) {
            None if dp_size == 1 => 0,
            Some(Ok(rank)) if rank < dp_size => rank,
            _ => continue,
        };
        let read = ranks.entry(rank).or_default();
        let figure = match sample.name {
            EVICTABLE => &mut read.evictable,
            EVICTED if sample.label("tp_rank").is_some() => &mut read.evicted,
            // Without that label it is a sum over tensor-parallel ranks, which all evict the same.
            EVICTED => continue,
            name if USED.contains(&name) => &mut read.used,
            _ => continue,
        };
        // All tensor-parallel ranks tell the same, some of them earlier.
        *figure = (*figure).max(Some(sample.value));
    }
    let counts = ranks.into_iter().filter_map(|(rank, Read { evictable, used, evicted })| {
        let held_tokens = evictable?.saturating_add(used?);
        Some((rank, Counts { held_tokens, evicted_tokens_total: evicted }))
    });
    counts.collect()
}

/// One line of Prometheus' text format.
#[derive(Debug)]
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: u64,
}

impl<'a> Sample<'a> {
    /// `None` for comments, and for values that count nothing.
    fn parse(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_at(line.find(['{', ' '])?);
        if !(name == EVICTABLE || name == EVICTED || USED.contains(&name)) {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None => ("", rest),
        };
        let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
        (value.is_finite() && value >= 0.0).then_some(Self { name, labels, value: value as u64 })
    }

    /// A label's value; names of ranks need no escapes.
    fn label(&self, name: &str) -> Option<&'a str> {
        let at =
            self.labels.split(',').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix("=\""))?;
        at.strip_suffix('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_one_rank_are_read_as_sglang_writes_them() {
        let text = "# HELP sglang:kv_evictable_tokens Number of evictable token slots.\n\
            # TYPE sglang:kv_evictable_tokens gauge\n\
            sglang:kv_evictable_tokens{engine_type=\"unified\",model_name=\"a, b\",tp_rank=\"0\"} 800.0\n\
            sglang:kv_used_tokens{engine_type=\"unified\",model_name=\"a, b\",tp_rank=\"0\"} 112.0\n\
            sglang:kv_used_tokens_extra 7\n\
            sglang:evicted_tokens_total{cache_type=\"UnifiedRadixCache\",dp_rank=\"0\",pp_rank=\"0\",tp_rank=\"0\"} 240.0\n";
        let expected = Counts { held_tokens: 912, evicted_tokens_total: Some(240) };
        assert_eq!(read(text, 1), BTreeMap::from([(0, expected)]));
    }

    #[test]
    fn ranks_are_told_apart_and_what_is_ambiguous_is_left_out() {
        let text = "sglang:kv_evictable_tokens{dp_rank=\"1\",tp_rank=\"0\"} 64\n\
            sglang:kv_evictable_tokens{dp_rank=\"1\",tp_rank=\"1\"} 80\n\
            sglang:num_used_tokens{dp_rank=\"1\",tp_rank=\"0\"} 0\n\
            sglang:evicted_tokens_total{cache_type=\"RadixCache\"} 480\n\
            sglang:evicted_tokens_total{dp_rank=\"1\"} 480\n\
            sglang:kv_evictable_tokens 9\n\
            sglang:kv_evictable_tokens{dp_rank=\"7\"} 9\nsglang:num_used_tokens{dp_rank=\"7\"} 9\n\
            sglang:kv_evictable_tokens{dp_rank=\"0\"} NaN\nsglang:num_used_tokens{dp_rank=\"0\"} 1\n";
        let expected = Counts { held_tokens: 80, evicted_tokens_total: None };
        assert_eq!(read(text, 2), BTreeMap::from([(1, expected)]));
        assert_eq!(read("not metrics", 1), BTreeMap::new());
    }
}
