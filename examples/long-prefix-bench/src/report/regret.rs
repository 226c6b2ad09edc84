//! Regret: mean time to first token relative to the best router of the cell. There is no single score: a mean, the worst cell, and
//! how often it is close, apart for real and for generated traffic.

use crate::result::{Cell, Report};
use crate::stats::{Ratio, geometric_mean};

/// Cells that are looked at together.
pub type Track = (&'static str, fn(&Cell) -> bool);

/// Real and generated traffic apart, what is disturbed apart from both, and all.
pub const TRACKS: [Track; 4] = [
    ("real traces", |cell| cell.is_real && !cell.is_disturbed()),
    ("generated", |cell| !cell.is_real && !cell.is_disturbed()),
    ("faults and several routers", |cell| cell.is_disturbed()),
    ("all cells", |_| true),
];

/// One router over some cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Regret {
    /// The router.
    pub contestant: String,
    /// Geometric mean over cells.
    pub mean: f64,
    /// The best cell's.
    pub least: f64,
    /// The worst cell's.
    pub worst: f64,
    /// Which cell that is.
    pub worst_cell: String,
    /// Share of cells within 10 % of the best.
    pub within_tenth: f64,
    /// Share of cells within twice the best.
    pub within_twice: f64,
    /// Mean time to first token relative to `round_robin`, paired by seed: one geometric mean over cells for each.
    pub beside_round_robin: Option<Ratio>,
    /// Mean over cells of the share of what pooling wins.
    pub efficiency: Option<f64>,
    /// Mean over cells of the share of requests that met both objectives.
    pub slo_share: f64,
}

/// Of every router, over the cells that `of` accepts; empty without such cells.
pub fn regrets(report: &Report, of: impl Fn(&Cell) -> bool) -> Vec<Regret> {
    let cells: Vec<&Cell> = report.cells.iter().filter(|cell| of(cell)).collect();
    if cells.is_empty() {
        return Vec::new();
    }
    // Whoever has nothing that can be believed has no standing.
    let sound = |name: &str| cells.iter().any(|cell| ttft(cell, name).is_some());
    let routers = report.contestants.iter().filter(|entry| !entry.is_reference && sound(&entry.name));
    routers.map(|entry| regret(report, &cells, &entry.name)).collect()
}

fn regret(report: &Report, cells: &[&Cell], name: &str) -> Regret {
    let each: Vec<(f64, &str)> = cells
        .iter()
        .filter_map(|cell| Some((ttft(cell, name)? / best(report, cell), cell.id.as_str())))
        .collect();
    let ratios: Vec<f64> = each.iter().map(|(ratio, _)| *ratio).collect();
    let worst = each.iter().max_by(|a, b| a.0.total_cmp(&b.0)).copied().unwrap_or((1.0, ""));
    let within =
        |most: f64| ratios.iter().filter(|ratio| **ratio <= most).count() as f64 / ratios.len().max(1) as f64;
    let runs = cells.iter().filter_map(|cell| cell.run(name).filter(|run| run.is_sound()));
    let shares: Vec<f64> = runs.map(|run| run.mean(|of| of.slo_share)).collect();
    let efficiencies: Vec<f64> = cells.iter().filter_map(|cell| cell.efficiency(name)).collect();
    Regret {
        contestant: name.to_owned(),
        mean: geometric_mean(&ratios),
        least: ratios.iter().copied().fold(worst.0, f64::min),
        worst: worst.0,
        worst_cell: worst.1.to_owned(),
        within_tenth: within(1.1),
        within_twice: within(2.0),
        beside_round_robin: beside(cells, name, "round_robin"),
        slo_share: crate::stats::mean(&shares),
        efficiency: (!efficiencies.is_empty()).then(|| crate::stats::mean(&efficiencies)),
    }
}

/// Mean time to first token of a contestant in a cell, in seconds.
pub(super) fn ttft(cell: &Cell, name: &str) -> Option<f64> {
    cell.run(name).filter(|run| run.is_sound()).map(|run| run.mean(|of| of.ttft_s.mean).max(1e-6))
}

/// The best router's.
pub(super) fn best(report: &Report, cell: &Cell) -> f64 {
    let routers = cell.runs.iter().filter(|run| !report.is_reference(&run.contestant));
    routers.filter_map(|run| ttft(cell, &run.contestant)).fold(f64::INFINITY, f64::min)
}

/// For each seed the geometric mean over the cells, of one contestant over another's; nothing if either is missing anywhere: means over
/// different cells say nothing.
fn beside(cells: &[&Cell], name: &str, other: &str) -> Option<Ratio> {
    let seeds = cells.iter().map(|cell| cell.seeds.len()).min().unwrap_or(0);
    let mean_of = |name: &str, seed: usize| {
        let figure = |cell: &&Cell| Some(cell.run(name)?.seeds.get(seed)?.ttft_s.mean.max(1e-6));
        Some(geometric_mean(&cells.iter().map(figure).collect::<Option<Vec<_>>>()?))
    };
    let pairs = (0..seeds).map(|seed| Some((mean_of(name, seed)?, mean_of(other, seed)?)));
    Ratio::of(pairs.collect::<Option<Vec<_>>>()?.into_iter())
}
