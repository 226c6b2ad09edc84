//! What agents are worth: the same traffic with and without.

use super::columns::{self, Table};
use super::pairs::{paired, shown};
use crate::result::{Cell, Report, Run};
use crate::stats::{Ratio, geometric_mean};

/// The router with agents, and the same without.
const WITH: &str = "cache_aware";
const WITHOUT: &str = "cache_aware, no agents";

/// Agents on against off in every cell; empty where there is nothing to compare.
pub fn gains(report: &Report) -> String {
    let heading = "`cache_aware` with agents relative to without; * where the interval excludes 1";
    columns::texts(heading, &[table(report)])
}

/// The same for the page.
pub(super) fn section(body: &mut String, report: &Report) {
    let about = "cache_aware with agents relative to without, with the interval of paired seeds; * where it excludes 1.";
    columns::section(body, "What agents are worth", about, &[table(report)]);
}

fn table(report: &Report) -> Table {
    let columns = [("hits %, without", 16), ("with", 8), ("SLO %", 16), ("mean TTFT, with ÷ without", 32)];
    let mut table = Table::new("", columns);
    let mut ratios = Vec::new();
    let pairs = report.cells.iter().filter_map(|cell| Some((cell, cell.run(WITH)?, cell.run(WITHOUT)?)));
    for (cell, with, without) in pairs {
        let ratio = ttft_ratio((cell, with), (cell, without));
        ratios.extend(ratio.map(|ratio| ratio.ratio));
        let hits = |run: &Run| format!("{:.1}", 100.0 * run.mean(|of| of.hit_rate));
        let met = |run: &Run| 100.0 * run.mean(|of| of.slo_share);
        let objectives = format!("{:.1} → {:.1}", met(without), met(with));
        table.row(&cell.id, vec![hits(without), hits(with), objectives, shown(ratio)]);
    }
    if !ratios.is_empty() {
        let mean = format!("{:.3}", geometric_mean(&ratios));
        table.row("geometric mean", vec![String::new(), String::new(), String::new(), mean]);
    }
    table
}

/// Mean time to first token of one over the other's, paired by seed.
pub(super) fn ttft_ratio(one: (&Cell, &Run), other: (&Cell, &Run)) -> Option<Ratio> {
    Ratio::of(paired(one, other).map(|(a, b)| (a.ttft_s.mean, b.ttft_s.mean)))
}
