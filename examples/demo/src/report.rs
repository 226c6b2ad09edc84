//! What one run came to, as a table and as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::drive::{Answer, Outcome};

/// One policy's run. Field names are what `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) policy: String,
    /// Requests sent.
    pub(crate) requests: usize,
    /// Requests without a complete answer.
    pub(crate) failed: usize,
    /// Cached tokens per prompt token, as the engines counted them.
    pub(crate) token_hit_rate: f64,
    /// The same for one infinite cache.
    pub(crate) ideal_token_hit_rate: f64,
    /// Time to first token in the engines' time, in milliseconds.
    pub(crate) ttft_ms: Percentiles,
    /// Prompt tokens of the busiest worker, relative to the mean.
    pub(crate) imbalance: f64,
    /// Mean of |predicted − actual| cached tokens.
    pub(crate) mispredicted_tokens_per_request: f64,
    /// Tokens claimed and not cached, or cached and not claimed, at the end, relative to tokens cached.
    pub(crate) divergence_ratio: f64,
    /// Bytes the agents sent to the router for each 1,000 prompt tokens.
    pub(crate) report_bytes_per_1k_prompt_tokens: f64,
    #[serde(skip)]
    pub(crate) failures: BTreeMap<String, usize>,
}

/// Nearest-rank percentiles.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// What only the routers and engines know, at the end of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Truth {
    pub(crate) divergence_ratio: f64,
    pub(crate) report_bytes: u64,
    pub(crate) workers: usize,
}

#[derive(Serialize)]
struct Document<'a> {
    runs: &'a [Run],
}

impl Run {
    pub(crate) fn new(policy: &str, ideal_token_hit_rate: f64, outcome: Outcome, truth: Truth) -> Self {
        let answers = &outcome.answers;
        let failed = outcome.failed();
        let sum = |of: fn(&Answer) -> u64| answers.iter().map(of).sum::<u64>() as f64;
        let prompt_tokens = sum(|answer| answer.prompt_tokens).max(1.0);
        let mispredicted = sum(|answer| answer.predicted_tokens.abs_diff(answer.cached_tokens));
        let mut by_worker: BTreeMap<&str, u64> = BTreeMap::new();
        for answer in answers {
            *by_worker.entry(&answer.worker).or_default() += answer.prompt_tokens;
        }
        let busiest = by_worker.values().copied().max().unwrap_or(0) as f64;
        let mut ttfts: Vec<Duration> = answers.iter().map(|answer| answer.ttft).collect();
        ttfts.sort_unstable();
        Self {
            policy: policy.to_owned(),
            requests: answers.len() + failed,
            failed,
            token_hit_rate: outcome.hit_rate().unwrap_or(0.0),
            ideal_token_hit_rate,
            ttft_ms: Percentiles { p50: percentile_ms(&ttfts, 0.50), p99: percentile_ms(&ttfts, 0.99) },
            imbalance: busiest * truth.workers as f64 / prompt_tokens,
            mispredicted_tokens_per_request: mispredicted / answers.len().max(1) as f64,
            divergence_ratio: truth.divergence_ratio,
            report_bytes_per_1k_prompt_tokens: truth.report_bytes as f64 / prompt_tokens * 1e3,
            failures: outcome.failures,
        }
    }
}

/// Nearest-rank percentile of sorted times.
pub(crate) fn percentile_ms(sorted: &[Duration], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// Prints all runs as one JSON document.
pub(crate) fn print_json(runs: &[Run], out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Document { runs })?;
    writeln!(out)
}

/// Prints all runs side by side.
pub(crate) fn print_table(runs: &[Run], out: &mut impl Write) -> io::Result<()> {
    type Row = (&'static str, fn(&Run) -> String);
    let rows: [Row; 10] = [
        ("requests", |run| run.requests.to_string()),
        ("failed", |run| run.failed.to_string()),
        ("token hit rate", |run| format!("{:.1} %", run.token_hit_rate * 1e2)),
        ("… of the ideal", |run| format!("{:.0} %", run.token_hit_rate / run.ideal_token_hit_rate * 1e2)),
        ("TTFT p50", |run| format!("{:.0} ms", run.ttft_ms.p50)),
        ("TTFT p99", |run| format!("{:.0} ms", run.ttft_ms.p99)),
        ("imbalance (max/mean tokens)", |run| format!("{:.2}", run.imbalance)),
        ("mispredicted tokens/request", |run| format!("{:.0}", run.mispredicted_tokens_per_request)),
        ("divergence of claims", |run| format!("{:.2} %", run.divergence_ratio * 1e2)),
        ("report bytes/1k prompt tokens", |run| format!("{:.0}", run.report_bytes_per_1k_prompt_tokens)),
    ];
    write!(out, "\n{:<31}", "")?;
    for run in runs {
        write!(out, "{:>14}", run.policy)?;
    }
    writeln!(out)?;
    for (name, value) in rows {
        write!(out, "{name:<31}")?;
        for run in runs {
            write!(out, "{:>14}", value(run))?;
        }
        writeln!(out)?;
    }
    for run in runs {
        for (reason, count) in &run.failures {
            writeln!(out, "{}: {count} requests {reason}", run.policy)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(worker: &str, ttft_ms: u64, prompt: u64, cached: u64, predicted: u64) -> Answer {
        Answer {
            ttft: Duration::from_millis(ttft_ms),
            prompt_tokens: prompt,
            cached_tokens: cached,
            predicted_tokens: predicted,
            worker: worker.to_owned(),
        }
    }

    #[test]
    fn a_run_is_summed_up() {
        let answers =
            vec![answer("a", 10, 300, 100, 120), answer("b", 30, 100, 0, 10), answer("a", 20, 0, 0, 0)];
        let outcome = Outcome { answers, failures: [("timed out".to_owned(), 2)].into() };
        let truth = Truth { divergence_ratio: 0.0, report_bytes: 40, workers: 2 };
        let run = Run::new("p", 0.5, outcome, truth);
        assert_eq!((run.requests, run.failed), (5, 2));
        assert_eq!((run.token_hit_rate, run.imbalance), (0.25, 1.5));
        assert_eq!((run.ttft_ms.p50, run.ttft_ms.p99), (20.0, 30.0));
        assert_eq!(run.mispredicted_tokens_per_request, 10.0);
        assert_eq!(run.report_bytes_per_1k_prompt_tokens, 100.0);
    }
}
