//! The rows that `cargo xtask bench` takes: one JSON object a line.

use serde::Serialize;

use crate::report::{Regret, TRACKS, regrets};
use crate::result::Report;

/// Ours beside a reference.
#[derive(Debug, Serialize)]
struct Row<'a> {
    row: String,
    unit: &'a str,
    ours: f64,
    reference: f64,
    reference_name: String,
    /// More than 1 is better.
    ratio: f64,
    target: Option<f64>,
    met: Option<bool>,
    min: f64,
    max: f64,
    runs: usize,
}

/// Whose regret the rows are about.
const OURS: &str = "cache_aware";

/// A figure of a standing.
type Figure = (&'static str, fn(&Regret) -> f64);

const FIGURES: [Figure; 2] =
    [("regret, geometric mean", |row| row.mean), ("regret, worst cell", |row| row.worst)];

/// Ours beside the best of the others, for each kind of traffic.
pub fn rows(report: &Report) -> Result<Vec<String>, serde_json::Error> {
    let mut rows = Vec::new();
    for (track, of) in TRACKS.into_iter().take(2) {
        let all = regrets(report, of);
        let Some(ours) = all.iter().find(|row| row.contestant == OURS) else { continue };
        for (name, figure) in FIGURES {
            let others = all.iter().filter(|row| !row.contestant.starts_with(OURS));
            let Some(best) = others.min_by(|a, b| figure(a).total_cmp(&figure(b))) else { continue };
            rows.push(Row {
                row: format!("{name}, {track}"),
                unit: "×",
                ours: figure(ours),
                reference: figure(best),
                reference_name: best.contestant.clone(),
                ratio: figure(best) / figure(ours),
                target: None,
                met: None,
                min: ours.least,
                max: ours.worst,
                runs: report.cells.iter().filter(|cell| of(cell)).map(|cell| cell.seeds.len()).sum(),
            });
        }
    }
    rows.iter().map(serde_json::to_string).collect()
}
