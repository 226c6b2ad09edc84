//! What agents are worth: the same traffic with and without.

use std::fmt::Write as _;

use super::pairs::{paired, shown};
use crate::result::{Cell, Report, Run};
use crate::stats::{Ratio, geometric_mean};

/// The router with agents, and the same without.
const WITH: &str = "cache_aware";
const WITHOUT: &str = "cache_aware, no agents";

/// Agents on against off in every cell; empty where there is nothing to compare.
pub fn gains(report: &Report) -> String {
    let pairs = report.cells.iter().filter_map(|cell| Some((cell, cell.run(WITH)?, cell.run(WITHOUT)?)));
    let pairs: Vec<_> = pairs.collect();
    if pairs.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "`cache_aware` with agents relative to without; * where the interval excludes 1\n{:<62}{:>16}{:>8}{:>16}{:>32}\n",
        "", "hits %, without", "with", "SLO %", "mean TTFT, with ÷ without"
    );
    let mut ratios = Vec::new();
    for (cell, with, without) in pairs {
        let ratio = ttft_ratio((cell, with), (cell, without));
        ratios.extend(ratio.map(|ratio| ratio.ratio));
        let hits = |run: &Run| 100.0 * run.mean(|of| of.hit_rate);
        let met = |run: &Run| 100.0 * run.mean(|of| of.slo_share);
        let objectives = format!("{:.1} → {:.1}", met(without), met(with));
        let _ = writeln!(
            text,
            "{:<62}{:>16.1}{:>8.1}{objectives:>16}{:>32}",
            cell.id,
            hits(without),
            hits(with),
            shown(ratio)
        );
    }
    let _ = writeln!(text, "{:<62}{:>46.3}\n", "geometric mean", geometric_mean(&ratios));
    text
}

/// Mean time to first token of one over the other's, paired by seed.
pub(super) fn ttft_ratio(one: (&Cell, &Run), other: (&Cell, &Run)) -> Option<Ratio> {
    Ratio::of(paired(one, other).map(|(a, b)| (a.ttft_s.mean, b.ttft_s.mean)))
}
