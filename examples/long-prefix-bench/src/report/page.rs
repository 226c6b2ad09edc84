//! The page: one file with everything in it, light and dark, that needs no script.

use std::fmt::Write as _;

use super::plots::{self, Series};
use super::regret::{Regret, TRACKS, regrets};
use super::svg::escaped;
use super::{agreement, capacity, end_to_end, faults, gains, others, published};
use crate::result::{Cell, Report, Run};
use crate::stats::mean;

const STYLE: &str = include_str!("page.css");

/// Names a column, and its figure.
type Column = (&'static str, fn(&Run) -> f64, usize);

const COLUMNS: [Column; 10] = [
    ("hit %", |run| 100.0 * run.mean(|of| of.hit_rate), 1),
    ("recompute ×", |run| run.mean(|of| of.recompute_factor), 2),
    ("TTFT mean s", |run| run.mean(|of| of.ttft_s.mean), 3),
    ("p50 s", |run| run.mean(|of| of.ttft_s.p50), 3),
    ("p99 s", |run| run.mean(|of| of.ttft_s.p99), 2),
    ("slowdown p50", |run| run.mean(|of| of.slowdown.p50), 2),
    ("TPOT ms", |run| run.mean(|of| 1e3 * of.tpot_s.mean), 1),
    ("SLO %", |run| run.mean(|of| 100.0 * of.slo_share), 1),
    ("imbalance", |run| run.mean(|of| of.imbalance_mean), 2),
    ("timed out", |run| run.mean(|of| of.timed_out as f64), 1),
];

/// The heat map of all cells alone, as an SVG file.
pub fn heat_map(report: &Report) -> String {
    let map = plots::heat_map(report).replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1);
    map.replacen('>', &format!("><style>{STYLE}</style>"), 1)
}

/// The whole page.
pub fn page(report: &Report) -> String {
    let seeds = report.cells.first().map_or(0, |cell| cell.seeds.len());
    let engine = &report.engine;
    let mut body = format!(
        "<h1>long-prefix-bench: {}</h1><p class=\"soft\">{} cells, {seeds} seeds each, version {}; {}. Engines: \
         {:.0} tokens/s of prefill, twice as long at a context of {:.0}; chunks of {} tokens; pages of {}; clients wait {:.0} s for a \
         first token. Definitions: docs/benchmark.md.</p>",
        escaped(&report.suite),
        report.cells.len(),
        escaped(&report.version),
        escaped(&end_to_end::how(report)),
        engine.prefill_tokens_per_s,
        engine.half_context_tokens,
        engine.chunk_tokens,
        engine.page_tokens,
        engine.timeout_s,
    );
    body.push_str("<h2>Standing</h2><p class=\"soft\">Regret: mean TTFT relative to the best router of the cell. There is no single \
        score: look at the mean, the worst cell, and how often it is close. η: share of the hits that pooling all caches would win over round \
        robin. SLO: requests whose first token came within 1 s or 4 times the time alone, and the others \
        every 50 ms or faster.</p>");
    TRACKS.iter().for_each(|(track, of)| standing(&mut body, track, &regrets(report, of)));
    let _ = write!(
        body,
        "<h2>Regret by cell</h2>{}<div class=\"wide\">{}</div>",
        plots::shades(),
        plots::heat_map(report)
    );
    agreement::section(&mut body, report);
    others::section(&mut body, report);
    published::section(&mut body, report);
    gains::section(&mut body, report);
    faults::section(&mut body, report);
    capacity::section(&mut body, report);
    body.push_str("<h2>Cells</h2>");
    report.cells.iter().enumerate().for_each(|(place, each)| cell(&mut body, report, each, place == 0));
    contestants(&mut body, report);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>long-prefix-bench: {}</title><style>{STYLE}</style></head><body>{body}</body></html>\n",
        escaped(&report.suite)
    )
}

fn standing(body: &mut String, track: &str, rows: &[Regret]) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(
        body,
        "<div class=\"wide\"><table><tr><th>{track}</th><th>geo. mean</th><th>worst</th><th>within 10 %</th><th>within 2×</th><th>η</th><th>SLO %</th>\
         <th>÷ round_robin (95 %)</th><th class=\"text\">worst cell</th></tr>"
    );
    let least = rows.iter().map(|row| row.mean).fold(f64::INFINITY, f64::min);
    for row in rows {
        let best = if row.mean <= least { " class=\"best\"" } else { "" };
        let beside = row.beside_round_robin.map_or_else(String::new, |ratio| {
            format!("{:.3} ({:.3}–{:.3})", ratio.ratio, ratio.low, ratio.high)
        });
        let efficiency = row.efficiency.map_or_else(|| "–".to_owned(), |share| format!("{share:.2}"));
        let _ = write!(
            body,
            "<tr><td>{}</td><td{best}>{:.2}</td><td>{:.1}</td><td>{:.0} %</td><td>{:.0} %</td><td>{efficiency}</td><td>{:.1}</td><td>{beside}</td>\
             <td class=\"text\">{}</td></tr>",
            escaped(&row.contestant),
            row.mean,
            row.worst,
            100.0 * row.within_tenth,
            100.0 * row.within_twice,
            100.0 * row.slo_share,
            escaped(&row.worst_cell),
        );
    }
    body.push_str("</table></div>");
}

fn cell(body: &mut String, report: &Report, cell: &Cell, open: bool) {
    let of =
        |figure: fn(&crate::result::Seed) -> f64| mean(&cell.seeds.iter().map(figure).collect::<Vec<_>>());
    let open = if open { " open" } else { "" };
    let _ = write!(
        body,
        "<details{open}><summary>{}</summary><p class=\"soft\">{:.0} requests a seed, {:.1} M prompt tokens; {:.0} KV tokens a worker (κ {:.2}); \
         sessions start over {:.0} s. Hits of an infinite cache {:.1} %, of one pooled cache that knows the future {:.1} %, of one pooled \
         LRU {:.1} %.</p>",
        escaped(&cell.id),
        of(|seed| seed.requests as f64),
        of(|seed| seed.prompt_tokens as f64 / 1e6),
        of(|seed| seed.capacity_tokens as f64),
        of(|seed| seed.kappa),
        of(|seed| seed.span_s),
        of(|seed| 100.0 * seed.infinite_hit_rate),
        of(|seed| 100.0 * seed.belady_hit_rate),
        of(|seed| 100.0 * seed.lru_hit_rate),
    );
    figures(body, report, cell);
    end_to_end::table(body, cell);
    let _ = write!(body, "{}<div class=\"plots\">{}", plots::legend(cell), plots::frontier(report, cell));
    body.push_str(&plots::distribution(cell));
    for series in [Series::Hits, Series::Ttft, Series::Imbalance] {
        body.push_str(&plots::over_time(cell, series));
    }
    body.push_str("</div></details>");
}

fn figures(body: &mut String, report: &Report, cell: &Cell) {
    body.push_str("<div class=\"wide\"><table><tr><th>router</th><th>η</th>");
    COLUMNS.iter().for_each(|(name, ..)| {
        let _ = write!(body, "<th>{name}</th>");
    });
    body.push_str("</tr>");
    for run in &cell.runs {
        let class = if report.is_reference(&run.contestant) { " class=\"reference\"" } else { "" };
        let efficiency =
            cell.efficiency(&run.contestant).map_or_else(|| "–".to_owned(), |share| format!("{share:.2}"));
        let _ = write!(body, "<tr{class}><td>{}</td><td>{efficiency}</td>", escaped(&run.contestant));
        for (_, figure, digits) in COLUMNS {
            let _ = write!(body, "<td>{:.digits$}</td>", figure(run));
        }
        body.push_str("</tr>");
    }
    body.push_str("</table></div>");
}

fn contestants(body: &mut String, report: &Report) {
    body.push_str("<h2>Who is compared</h2><div class=\"wide\"><table><tr><th>name</th><th class=\"text\">what</th><th class=\"text\">settings</th></tr>");
    for entry in &report.contestants {
        let class = if entry.is_reference { " class=\"reference\"" } else { "" };
        let _ = write!(
            body,
            "<tr{class}><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td></tr>",
            escaped(&entry.name),
            escaped(&entry.what),
            escaped(&entry.settings)
        );
    }
    body.push_str("</table></div>");
}
