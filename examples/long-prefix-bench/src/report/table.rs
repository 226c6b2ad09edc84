//! Tables for a terminal.

use std::fmt::Write as _;

use super::regret::{Regret, TRACKS, regrets};
use crate::result::Report;

/// The standing of every router: over real cells, over generated ones, over all.
pub fn standings(report: &Report) -> String {
    let mut text = String::new();
    for (track, of) in TRACKS {
        let rows = regrets(report, of);
        if rows.is_empty() {
            continue;
        }
        let cells = report.cells.iter().filter(|cell| of(cell)).count();
        let _ = writeln!(text, "Mean TTFT relative to the best router of the cell: {track}, {cells} cells");
        let _ = writeln!(
            text,
            "{:<24}{:>8}{:>9}{:>10}{:>8}{:>8}{:>8}  {:<26}worst cell",
            "router", "geo.mean", "worst", "≤ 10 %", "≤ 2×", "η", "SLO %", "÷ round_robin (95 %)"
        );
        rows.iter().for_each(|row| standing(&mut text, row));
        text.push('\n');
    }
    text
}

fn standing(text: &mut String, row: &Regret) {
    let beside = row.beside_round_robin.map_or_else(String::new, |ratio| {
        format!("{:.3} ({:.3} to {:.3})", ratio.ratio, ratio.low, ratio.high)
    });
    let efficiency = row.efficiency.map_or_else(|| "–".to_owned(), |share| format!("{share:.2}"));
    let _ = writeln!(
        text,
        "{:<24}{:>8.2}{:>9.1}{:>9.0}%{:>7.0}%{:>8}{:>8.1}  {beside:<26}{}",
        row.contestant,
        row.mean,
        row.worst,
        100.0 * row.within_tenth,
        100.0 * row.within_twice,
        efficiency,
        100.0 * row.slo_share,
        row.worst_cell,
    );
}

/// Every cell with everybody's figures, means over the seeds.
pub fn cells(report: &Report) -> String {
    let mut text = String::new();
    for cell in &report.cells {
        let mean = |of: fn(&crate::result::Seed) -> f64| {
            crate::stats::mean(&cell.seeds.iter().map(of).collect::<Vec<_>>())
        };
        let _ = writeln!(
            text,
            "{}: {:.0} requests, {:.0} tokens a worker (κ {:.2}); hits: infinite {:.1} %, Belady {:.1} %, pooled LRU {:.1} %",
            cell.id,
            mean(|seed| seed.requests as f64),
            mean(|seed| seed.capacity_tokens as f64),
            mean(|seed| seed.kappa),
            mean(|seed| 100.0 * seed.infinite_hit_rate),
            mean(|seed| 100.0 * seed.belady_hit_rate),
            mean(|seed| 100.0 * seed.lru_hit_rate),
        );
        let _ = writeln!(
            text,
            "  {:<24}{:>7}{:>7}{:>8}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}",
            "",
            "hit %",
            "η",
            "recomp.",
            "TTFT s",
            "p50",
            "p99",
            "slowdown",
            "TPOT ms",
            "SLO %",
            "imbal.",
            "late"
        );
        for run in &cell.runs {
            let of = |figure: fn(&crate::metrics::Metrics) -> f64| run.mean(figure);
            let efficiency = cell
                .efficiency(&run.contestant)
                .map_or_else(|| "–".to_owned(), |share| format!("{share:.2}"));
            let _ = writeln!(
                text,
                "  {:<24}{:>7.1}{:>7}{:>8.2}{:>9.3}{:>9.3}{:>9.2}{:>9.2}{:>9.1}{:>8.1}{:>8.2}{:>8.1}",
                run.contestant,
                of(|of| 100.0 * of.hit_rate),
                efficiency,
                of(|of| of.recompute_factor),
                of(|of| of.ttft_s.mean),
                of(|of| of.ttft_s.p50),
                of(|of| of.ttft_s.p99),
                of(|of| of.slowdown.p50),
                of(|of| 1e3 * of.tpot_s.mean),
                of(|of| 100.0 * of.slo_share),
                of(|of| of.imbalance_mean),
                of(|of| of.timed_out as f64),
            );
        }
        text.push('\n');
    }
    text
}
