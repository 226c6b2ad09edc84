//! What `cache_aware` is held to, and whether it keeps it.

use std::fmt::Write as _;

use super::capacity::ladders;
use super::regret::{regrets, ttft};
use crate::result::{Cell, Report};
use crate::stats::geometric_mean;
use crate::workload::Pattern;

/// Who is held to them.
const HELD: [&str; 2] = ["cache_aware", "cache_aware, no agents"];

/// What they are relative to.
const BLIND: &str = "round_robin";

/// One target.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Who.
    pub contestant: &'static str,
    /// What.
    pub what: String,
    /// What it came to.
    pub figure: f64,
    /// The bound.
    pub bound: f64,
    /// The bound is the least it may be, not the most.
    pub is_floor: bool,
}

impl Target {
    /// Whether it is met.
    pub fn is_met(&self) -> bool {
        if self.is_floor { self.figure >= self.bound } else { self.figure <= self.bound }
    }
}

/// Those that the cells of a result can tell about.
pub fn targets(report: &Report) -> Vec<Target> {
    let mut all = Vec::new();
    for contestant in HELD {
        let mut add = |what: &str, figure: Option<f64>, bound: f64, is_floor: bool| {
            let target = |figure| Target { contestant, what: what.to_owned(), figure, bound, is_floor };
            all.extend(figure.map(target));
        };
        let real = |cell: &Cell| cell.is_real && !cell.is_disturbed();
        let row = regrets(report, real).into_iter().find(|row| row.contestant == contestant);
        add("TTFT ÷ best router, real traces, geometric mean", row.as_ref().map(|row| row.mean), 1.15, false);
        add("TTFT ÷ best router, real traces, worst cell", row.map(|row| row.worst), 3.0, false);
        let hits: Vec<f64> = report
            .cells
            .iter()
            .filter(|cell| real(cell))
            .filter_map(|cell| hits_of_best(report, cell, contestant))
            .collect();
        let mean = (!hits.is_empty()).then(|| geometric_mean(&hits));
        add("hits ÷ best router's, real traces, geometric mean", mean, 0.95, true);
        add("hits ÷ best router's, real traces, worst cell", hits.into_iter().reduce(f64::min), 0.95, true);
        let cliff = |cell: &Cell| cell.workload == Pattern::Cliff.name() && !cell.is_disturbed();
        let row = regrets(report, cliff).into_iter().find(|row| row.contestant == contestant);
        add("TTFT ÷ best router, A7, worst cell", row.map(|row| row.worst), 3.0, false);
        for ladder in ladders(report).iter().filter(|ladder| ladder.name.starts_with(Pattern::Equal.name())) {
            add("hits ÷ round robin's, P1", ladder.hits_ratio(contestant, BLIND), 3.8, true);
            let capacity = ladder.capacity_per_s(contestant).zip(ladder.capacity_per_s(BLIND));
            let ratio = capacity.map(|(own, blind)| own / blind);
            add("capacity ÷ round robin's, P1", ratio, 1.9, true);
        }
        let worst = workloads(report, contestant).into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((workload, ratio)) = worst {
            add(&format!("TTFT ÷ round robin, worst workload ({workload})"), Some(ratio), 1.03, false);
        }
    }
    all
}

/// The same as a table.
pub fn targets_table(report: &Report) -> String {
    let mut text = String::new();
    for target in targets(report) {
        let bound = if target.is_floor { "≥" } else { "≤" };
        let met = if target.is_met() { "met" } else { "missed" };
        let _ = writeln!(
            text,
            "{:<26}{:<64}{:>9.3} {bound} {:<6}{met}",
            target.contestant, target.what, target.figure, target.bound
        );
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn hits_of_best(report: &Report, cell: &Cell, contestant: &str) -> Option<f64> {
    let hits = |run: &crate::result::Run| run.mean(|of| of.hit_rate);
    let routers = cell.runs.iter().filter(|run| !report.is_reference(&run.contestant));
    let most = routers.map(hits).fold(0.0, f64::max);
    (most > 0.0).then_some(hits(cell.run(contestant)?) / most)
}

/// Mean time to first token relative to round robin, in the geometric mean over each workload's cells.
fn workloads(report: &Report, contestant: &str) -> Vec<(String, f64)> {
    let mut ratios: Vec<(String, Vec<f64>)> = Vec::new();
    for cell in &report.cells {
        let Some(ratio) = ttft(cell, contestant).zip(ttft(cell, BLIND)).map(|(own, blind)| own / blind)
        else {
            continue;
        };
        match ratios.iter_mut().find(|(workload, _)| *workload == cell.workload) {
            Some((_, all)) => all.push(ratio),
            None => ratios.push((cell.workload.clone(), vec![ratio])),
        }
    }
    ratios.into_iter().map(|(workload, all)| (workload, geometric_mean(&all))).collect()
}
