//! How far the lab's own figures move when sessions start some milliseconds later: nothing that runs in real time can be closer to it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use router_core::policy::CacheAwareSettings;

use crate::grid::Plan;
use crate::lab::{Kind, contestants};
use crate::runner::{BenchError, Prepared};

/// Sessions start up to so much later.
const JITTER: Duration = Duration::from_millis(5);

/// Runs of each contestant, each with other delays.
const RUNS: u64 = 20;

/// A table of the least and the most that every router comes to in every cell, with the first seed's traffic.
pub fn jitter(cells: &[Plan], traces: Option<&Path>) -> Result<String, BenchError> {
    let mut text =
        format!("{RUNS} runs in the lab, sessions up to {} ms later than drawn\n", JITTER.as_millis());
    for plan in cells {
        let _ = writeln!(text, "{}\n  {:<24}{:>16}{:>20}", plan.id(), "", "hits %", "TTFT p50 s");
        let drawn = Prepared::new(plan, traces, 1)?;
        let all = contestants(CacheAwareSettings::default());
        for contestant in all.iter().filter(|of| of.kind == Kind::Router) {
            let (mut hits, mut ttft) = (Vec::new(), Vec::new());
            for seed in 1..=RUNS {
                let (metrics, _) = delayed(&drawn, seed).in_the_lab(plan, contestant)?;
                hits.push(100.0 * metrics.hit_rate);
                ttft.push(metrics.ttft_s.p50);
            }
            let (hits, ttft) = (range(&hits, 1), range(&ttft, 3));
            let _ = writeln!(text, "  {:<24}{hits:>16}{ttft:>20}", contestant.name);
        }
    }
    Ok(text)
}

fn delayed(drawn: &Prepared, seed: u64) -> Prepared {
    let (mut delayed, mut rng) = (drawn.clone(), fastrand::Rng::with_seed(seed));
    for session in &mut delayed.traffic.sessions {
        session.start += JITTER.mul_f64(rng.f64());
    }
    delayed
}

fn range(figures: &[f64], digits: usize) -> String {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(0.0, f64::max);
    format!("{least:.digits$} to {most:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Suite;

    #[test]
    fn every_router_has_a_range() {
        let mut cells = Suite::Smoke.cells(None);
        cells.truncate(1);
        let (one, other) = (jitter(&cells, None).unwrap(), jitter(&cells, None).unwrap());
        assert_eq!(one, other, "the seed decides");
        let line = one.lines().find(|line| line.contains("round_robin")).unwrap();
        let figures: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(figures.len(), 4, "{line}");
        assert!(figures[0] <= figures[1] && figures[2] < figures[3], "{line}");
    }
}
