//! What agents are worth, and what faults and further routers cost: the same traffic with and without.

use std::fmt::Write as _;

use super::pairs::{paired, shown};
use crate::metrics::Metrics;
use crate::result::{Cell, Report, Run};
use crate::stats::{Ratio, geometric_mean};

/// The router with agents, and the same without.
const WITH: &str = "cache_aware";
const WITHOUT: &str = "cache_aware, no agents";

/// Agents on against off in every cell, then what is disturbed against the same undisturbed; empty where there is nothing to compare.
pub fn gains(report: &Report) -> String {
    let mut text = agents(report);
    text.push_str(&disturbed(report));
    text
}

fn agents(report: &Report) -> String {
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

fn disturbed(report: &Report) -> String {
    let plain = |cell: &Cell| report.cells.iter().find(|other| other.id == cell.undisturbed);
    let pairs = report.cells.iter().filter(|cell| cell.is_disturbed());
    let pairs: Vec<_> = pairs.filter_map(|cell| Some((cell, plain(cell)?))).collect();
    if pairs.is_empty() {
        return String::new();
    }
    let mut text =
        "With faults, or several routers, relative to the same traffic without; * where the interval excludes 1\n"
            .to_owned();
    for (cell, plain) in pairs {
        let _ = writeln!(
            text,
            "{}\n  {:<26}{:>16}{:>16}{:>10}{:>32}",
            cell.id, "", "hits %", "SLO %", "failed", "mean TTFT, with ÷ without"
        );
        let routers = cell.runs.iter().filter(|run| !report.is_reference(&run.contestant));
        for (run, before) in routers.filter_map(|run| Some((run, plain.run(&run.contestant)?))) {
            let change = |of: fn(&Metrics) -> f64| {
                format!("{:.1} → {:.1}", 100.0 * before.mean(of), 100.0 * run.mean(of))
            };
            let _ = writeln!(
                text,
                "  {:<26}{:>16}{:>16}{:>10.1}{:>32}",
                run.contestant,
                change(|of| of.hit_rate),
                change(|of| of.slo_share),
                run.mean(|of| of.failed as f64),
                shown(ttft_ratio((cell, run), (plain, before)))
            );
        }
    }
    text.push('\n');
    text
}

/// Mean time to first token of one over the other's, paired by seed.
fn ttft_ratio(one: (&Cell, &Run), other: (&Cell, &Run)) -> Option<Ratio> {
    Ratio::of(paired(one, other).map(|(a, b)| (a.ttft_s.mean, b.ttft_s.mean)))
}
