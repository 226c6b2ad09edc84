//! What stands beside the figures of runs over HTTP: whether they can be believed, and what the routers cost.

use std::fmt::Write as _;

use super::svg::escaped;
use crate::http::Checks;
use crate::result::{Cell, Report, Run};
use crate::stats::mean;

/// In which world a result was run.
pub(super) fn how(report: &Report) -> String {
    let Some(of) = &report.end_to_end else { return "in the lab, in virtual time".to_owned() };
    let scale = if of.scale == 1 { String::new() } else { format!(", lengths divided by {}", of.scale) };
    let workers = if of.own_workers { ", workers of its own" } else { "" };
    let early = if of.ended_early.is_some() { ", ended early" } else { "" };
    format!("end to end by {} on {} cores{scale}{workers}{early}", of.route, of.cores)
}

/// For a terminal: a line for each run over HTTP, then what is wrong, and the commands. Empty for a result of the lab.
pub fn checks(report: &Report) -> String {
    let Some(of) = &report.end_to_end else { return String::new() };
    let mut text = format!("Run {}\n", how(report));
    if let Some(reason) = &of.ended_early {
        let _ = writeln!(text, "ENDED EARLY: {reason}");
    }
    for cell in &report.cells {
        let _ = writeln!(
            text,
            "{}\n  {:<24}{:>7}{:>7}{:>10}{:>9}{:>11}{:>8}{:>10}  trust",
            cell.id, "", "over", "failed", "lag99 ms", "driver", "CPU ms/req", "MB", "overpred."
        );
        for run in cell.runs.iter().filter(|run| !run.checks.is_empty()) {
            let _ = writeln!(text, "  {:<24}{}", run.contestant, line(run));
            for remark in remarks(run) {
                let _ = writeln!(text, "    {remark}");
            }
        }
    }
    text.push_str("Started with\n");
    for entry in report.contestants.iter().filter(|entry| !entry.is_reference) {
        let _ = writeln!(text, "  {:<24}{}", entry.name, entry.settings);
    }
    text
}

/// The same for the page.
pub(super) fn table(body: &mut String, cell: &Cell) {
    if cell.runs.iter().all(|run| run.checks.is_empty()) {
        return;
    }
    body.push_str(
        "<div class=\"wide\"><table><tr><th>run over HTTP</th><th>requests</th><th>failed</th><th>driver's lag p99 ms</th>\
         <th>driver's cores</th><th>router's CPU ms a request</th><th>router's memory MB</th><th>overpredicted</th>\
         <th class=\"text\">trust</th></tr>",
    );
    for run in cell.runs.iter().filter(|run| !run.checks.is_empty()) {
        let _ = write!(body, "<tr><td>{}</td>", escaped(&run.contestant));
        for figure in figures(run) {
            let _ = write!(body, "<td>{figure}</td>");
        }
        let mut trust = vec![verdict(run).to_owned()];
        trust.extend(remarks(run));
        let _ = write!(body, "<td class=\"text\">{}</td></tr>", escaped(&trust.join("; ")));
    }
    body.push_str("</table></div>");
}

fn line(run: &Run) -> String {
    let widths = [7, 7, 10, 9, 11, 8, 10];
    let figures = figures(run).into_iter().zip(widths);
    figures.map(|(figure, width)| format!("{figure:>width$}")).collect::<String>() + "  " + verdict(run)
}

fn figures(run: &Run) -> [String; 7] {
    let sum = |of: fn(&Checks) -> usize| run.checks.iter().map(of).sum::<usize>();
    let worst = run.checks.iter().map(|of| of.driver_lag_p99_ms).fold(0.0, f64::max);
    let over = |of: &dyn Fn(&Checks) -> Option<f64>, digits: usize| {
        let all: Vec<f64> = run.checks.iter().filter_map(of).collect();
        if all.is_empty() { "–".to_owned() } else { format!("{:.digits$}", mean(&all)) }
    };
    let predicted = sum(|of| of.predicted);
    let overpredicted = 100.0 * sum(|of| of.overpredicted) as f64 / predicted.max(1) as f64;
    [
        sum(|of| of.over).to_string(),
        sum(failed).to_string(),
        format!("{worst:.1}"),
        over(&|of| of.driver_cores, 2),
        over(&|of| Some(of.router?.cpu_ms_per_request), 2),
        over(&|of| Some(of.router?.peak_mb), 0),
        if predicted == 0 { "–".to_owned() } else { format!("{overpredicted:.1} %") },
    ]
}

fn failed(checks: &Checks) -> usize {
    checks.failures.values().sum()
}

fn verdict(run: &Run) -> &'static str {
    let any = |of: fn(&Checks) -> bool| run.checks.iter().any(of);
    match () {
        () if any(|of| of.void.is_some()) => "VOID",
        () if any(|of| of.ended_early.is_some()) => "PARTIAL",
        () => "ok",
    }
}

/// What people should know of a run, seed by seed.
fn remarks(run: &Run) -> Vec<String> {
    let mut remarks = Vec::new();
    for (place, checks) in run.checks.iter().enumerate() {
        let mut say = |text: String| remarks.push(format!("seed {}: {text}", place + 1));
        checks.void.iter().for_each(|why| say(format!("void: {why}")));
        checks.ended_early.iter().for_each(|why| say(format!("ended early: {why}")));
        for (kind, count) in &checks.failures {
            say(format!("{count} failed: {kind}"));
        }
        if let Some(of) = checks.cached_tokens.filter(|_| checks.disagrees()) {
            say(format!(
                "the workers counted {:.0} cached tokens, the answers that came through the router {:.0}",
                of.by_workers, of.by_answers
            ));
        }
        if checks.other_lengths > 0 {
            say(format!(
                "{} prompts were counted in another number of tokens than were sent",
                checks.other_lengths
            ));
        }
    }
    remarks
}
