//! The plots of a cell, and the heat map of all.

use std::fmt::Write as _;

use super::regret::{best, ttft};
use super::svg::{Plot, Scale, escaped, number};
use crate::metrics::Detail;
use crate::result::{Cell, Report};

/// Who has a line in the plots, and its class; more lines than these cannot be told apart.
pub(super) const LINES: [(&str, &str); 8] = [
    ("cache_aware", "c1"),
    ("threshold", "c2"),
    ("session_sticky", "c3"),
    ("prefix_hash", "c4"),
    ("round_robin", "c5"),
    // Over HTTP, where the two of the same colour are not.
    ("sglang-router", "c2"),
    ("smg", "c4"),
    ("pooled cache", "c0"),
];

/// Size of a plot of lines.
const SIZE: (f64, f64) = (440.0, 240.0);

/// Regrets that part the shades of the heat map.
const SHADES: [f64; 6] = [1.1, 1.5, 2.0, 4.0, 10.0, 30.0];

/// A router a row, a cell a column.
pub(super) fn heat_map(report: &Report) -> String {
    const LABEL: f64 = 170.0;
    const WIDTH: f64 = 46.0;
    const HEIGHT: f64 = 26.0;
    // What names of cells take of both directions, with the mean width of a letter.
    const LETTER: f64 = 6.0;
    const LEAN: (f64, f64) = (0.5, 0.87);
    let routers: Vec<&str> = report
        .contestants
        .iter()
        .filter(|entry| !entry.is_reference)
        .map(|entry| entry.name.as_str())
        .collect();
    let longest = report.cells.iter().map(|cell| cell.id.chars().count()).max().unwrap_or(0) as f64 * LETTER;
    let (room, head) = (LEAN.0 * longest, LEAN.1 * longest + 20.0);
    let mut body = String::new();
    for (column, cell) in report.cells.iter().enumerate() {
        let x = LABEL + WIDTH * (column as f64 + 0.5) + 4.0;
        let _ = write!(
            body,
            r#"<text transform="translate({x:.1} {:.1}) rotate(-60)">{}</text>"#,
            head - 8.0,
            escaped(&cell.id)
        );
        let least = best(report, cell);
        for (row, name) in routers.iter().enumerate() {
            let Some(regret) = ttft(cell, name).map(|ttft| ttft / least) else { continue };
            let shade = SHADES.iter().filter(|most| regret > **most).count();
            let (x, y) = (LABEL + WIDTH * column as f64, head + HEIGHT * row as f64);
            let _ = write!(
                body,
                r#"<g class="h{shade}"><rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" rx="3"><title>{}, {}: {regret:.2}</title></rect><text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text></g>"#,
                WIDTH - 2.0,
                HEIGHT - 2.0,
                escaped(name),
                escaped(&cell.id),
                x + WIDTH / 2.0 - 1.0,
                y + HEIGHT / 2.0 + 3.0,
                short(regret)
            );
        }
    }
    for (row, name) in routers.iter().enumerate() {
        let y = head + HEIGHT * (row as f64 + 0.5) + 3.0;
        let _ = write!(
            body,
            r#"<text class="name" x="{:.1}" y="{y:.1}" text-anchor="end">{}</text>"#,
            LABEL - 8.0,
            escaped(name)
        );
    }
    // Room for the last head, which leans to the right.
    let width = LABEL + WIDTH * report.cells.len() as f64 + room;
    let height = head + HEIGHT * routers.len() as f64 + 6.0;
    format!(
        r#"<svg class="heat" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{body}</svg>"#
    )
}

fn short(regret: f64) -> String {
    if regret < 10.0 { format!("{regret:.2}") } else { format!("{regret:.0}") }
}

/// Hits against time to first token: left and low is slow and blind, and the best are at the lower right.
pub(super) fn frontier(report: &Report, cell: &Cell) -> String {
    let figure =
        |run: &crate::result::Run| (100.0 * run.mean(|of| of.hit_rate), run.mean(|of| of.ttft_s.mean));
    let figures: Vec<_> = cell.runs.iter().map(figure).collect();
    let most = figures.iter().map(|(hit, _)| *hit).fold(0.0, f64::max);
    let x = Scale::Linear(0.0, if most > 50.0 { 100.0 } else { (most / 10.0).ceil().max(1.0) * 10.0 });
    let y = Scale::log_around(figures.iter().map(|(_, ttft)| *ttft));
    let mut plot = Plot::new("Hits against mean TTFT", (x, "hit rate, %"), (y, "s"), (600.0, 280.0), 160.0);
    let point = |(run, (hit, ttft)): (&crate::result::Run, &(f64, f64))| {
        let class =
            LINES.iter().find(|(name, _)| *name == run.contestant).map_or("other", |(_, class)| class);
        let class = if report.is_reference(&run.contestant) { "reference" } else { class };
        (class.to_owned(), run.contestant.clone(), *hit, *ttft)
    };
    let points: Vec<_> = cell.runs.iter().zip(&figures).map(point).collect();
    plot.named_points(&points);
    plot.finish()
}

/// Share of requests whose first token came within a time.
pub(super) fn distribution(cell: &Cell) -> String {
    let details: Vec<_> = lines(cell).collect();
    let all = details.iter().flat_map(|(.., detail)| detail.ttft_quantiles_s.iter().copied());
    let x = Scale::log_around(all.map(|ttft| ttft.max(0.01)));
    let y = Scale::Linear(0.0, 100.0);
    let mut plot = Plot::new("TTFT, cumulative", (x, "s"), (y, "% of requests"), SIZE, 16.0);
    for (name, class, detail) in details {
        let last = detail.ttft_quantiles_s.len().saturating_sub(1).max(1) as f64;
        let points = detail.ttft_quantiles_s.iter().enumerate();
        plot.line(class, name, points.map(|(i, ttft)| (ttft.max(0.01), Some(100.0 * i as f64 / last))));
    }
    plot.finish()
}

/// A series over the time of the run.
pub(super) fn over_time(cell: &Cell, series: Series) -> String {
    let details: Vec<_> = lines(cell).collect();
    let values = || details.iter().flat_map(move |(.., detail)| series.of(detail).iter().flatten().copied());
    let end =
        details.iter().map(|(.., detail)| detail.step_s * detail.hit_rate.len() as f64).fold(1.0, f64::max);
    let (title, unit, y) = match series {
        Series::Hits => ("Hit rate over time", "%", Scale::Linear(0.0, 100.0)),
        Series::Ttft => ("Mean TTFT over time", "s", Scale::log_around(values().map(|ttft| ttft.max(0.01)))),
        Series::Imbalance => {
            let most = values().fold(2.0, f64::max).ceil();
            ("Imbalance of prefill over time", "most over mean", Scale::Linear(1.0, most))
        }
    };
    let mut plot = Plot::new(title, (Scale::Linear(0.0, end), "s"), (y, unit), SIZE, 16.0);
    for (name, class, detail) in &details {
        let factor = if series == Series::Hits { 100.0 } else { 1.0 };
        let points = series.of(detail).iter().enumerate();
        let points =
            points.map(|(i, value)| ((i as f64 + 0.5) * detail.step_s, value.map(|value| factor * value)));
        plot.line(class, name, points);
    }
    plot.finish()
}

/// What is shown over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    /// Hit rate.
    Hits,
    /// Mean time to first token.
    Ttft,
    /// Most over mean of prefill time.
    Imbalance,
}

impl Series {
    fn of(self, detail: &Detail) -> &[Option<f64>] {
        match self {
            Self::Hits => &detail.hit_rate,
            Self::Ttft => &detail.ttft_s,
            Self::Imbalance => &detail.imbalance,
        }
    }
}

/// Those with a line, the first ones on top.
fn lines(cell: &Cell) -> impl Iterator<Item = (&'static str, &'static str, &Detail)> {
    let found = LINES.iter().rev().filter_map(|(name, class)| Some((*name, *class, &cell.run(name)?.detail)));
    found.filter(|(.., detail)| !detail.hit_rate.is_empty())
}

/// A legend of the lines of a cell.
pub(super) fn legend(cell: &Cell) -> String {
    let entry = |(name, class): &(&str, &str)| {
        format!(
            r#"<span><svg width="22" height="10"><path class="line {class}" d="M1 5H21"/></svg>{}</span>"#,
            escaped(name)
        )
    };
    let there = LINES.iter().filter(|(name, _)| cell.run(name).is_some());
    format!(r#"<p class="legend">{}</p>"#, there.map(entry).collect::<String>())
}

/// A legend of the heat map's shades.
pub(super) fn shades() -> String {
    let name = |shade: usize| match shade {
        0 => format!("within {} ×", number(SHADES[0])),
        shade if shade == SHADES.len() => format!("beyond {} ×", number(SHADES[shade - 1])),
        shade => format!("to {} ×", number(SHADES[shade])),
    };
    let entry = |shade: usize| {
        format!(
            r#"<span><svg width="16" height="12"><g class="h{shade}"><rect width="16" height="12" rx="3"/></g></svg>{}</span>"#,
            name(shade)
        )
    };
    format!(r#"<p class="legend">{}</p>"#, (0..=SHADES.len()).map(entry).collect::<String>())
}
