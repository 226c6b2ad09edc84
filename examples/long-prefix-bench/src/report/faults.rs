//! What faults and further routers cost: the same traffic with and without.

use super::columns::{self, Table};
use super::gains::ttft_ratio;
use super::pairs::shown;
use crate::aftermath::{Moved, Times};
use crate::metrics::Metrics;
use crate::result::{Cell, Report, Run};

/// A cell beside the one that it is compared with.
struct Beside<'a> {
    cell: &'a Cell,
    plain: &'a Cell,
}

/// A column: its name, its width on a terminal, and what it says of a run beside the same without.
type Column<'a> = (String, usize, Box<dyn Fn(&Run, &Run) -> String + 'a>);

const HEADING: &str = "Faults and several routers";

/// Every disturbed cell relative to the same undisturbed; empty where there is nothing to compare.
pub fn faults(report: &Report) -> String {
    let heading = format!("{HEADING}, relative to the same traffic without; * where the interval excludes 1");
    columns::texts(&heading, &tables(report))
}

/// The same for the page.
pub(super) fn section(body: &mut String, report: &Report) {
    let about = "Relative to the same traffic without, in the mean over the seeds; * where the interval of paired seeds excludes 1. Hits \
        back: seconds until hits are at 90 % of those without, the median over moments and seeds, and their range. Alike: decisions \
        that all routers would have taken alike. Moved: next turns that went to a worker with less of their prompt than one before them \
        still had, in brackets the share of tokens; at the same times without the change, and with it.";
    columns::section(body, HEADING, about, &tables(report));
}

fn tables(report: &Report) -> Vec<Table> {
    beside(report).iter().map(|beside| beside.table(report)).collect()
}

fn beside(report: &Report) -> Vec<Beside<'_>> {
    let plain = |cell: &Cell| report.cells.iter().find(|other| other.id == cell.undisturbed);
    let disturbed = report.cells.iter().filter(|cell| cell.is_disturbed());
    disturbed.filter_map(|cell| Some(Beside { cell, plain: plain(cell)? })).collect()
}

impl<'a> Beside<'a> {
    fn table(&self, report: &'a Report) -> Table {
        let columns = self.columns();
        let names = columns.iter().map(|(name, width, _)| (name.as_str(), *width));
        let mut table = Table::new(&self.cell.id, names);
        for (run, before) in self.runs(report) {
            table.row(&run.contestant, columns.iter().map(|(.., figure)| figure(run, before)).collect());
        }
        table
    }

    fn runs(&self, report: &'a Report) -> impl Iterator<Item = (&'a Run, &'a Run)> {
        let plain = self.plain;
        let routers = self.cell.runs.iter().filter(|run| !report.is_reference(&run.contestant));
        routers.filter_map(|run| Some((run, plain.run(&run.contestant)?)))
    }

    /// Those that there is something to say in.
    fn columns(&self) -> Vec<Column<'a>> {
        let Self { cell, plain } = *self;
        let change = |of: fn(&Metrics) -> f64| {
            move |run: &Run, before: &Run| {
                format!("{:.1} → {:.1}", 100.0 * before.mean(of), 100.0 * run.mean(of))
            }
        };
        let failed = |run: &Run, _: &Run| format!("{:.1}", run.mean(|of| of.failed as f64));
        let mut columns: Vec<Column<'a>> = vec![
            ("hits %".to_owned(), 14, Box::new(change(|of| of.hit_rate))),
            ("SLO %".to_owned(), 14, Box::new(change(|of| of.slo_share))),
            ("failed".to_owned(), 7, Box::new(failed)),
        ];
        if cell.routers > 1 {
            columns.push(("alike %".to_owned(), 7, Box::new(|run, _| alike(run))));
        }
        for after in moments(cell) {
            let back = move |run: &Run, _: &Run| back(Times::of(&run.aftermaths, after));
            columns.push((format!("hits back, {after}, s"), 26, Box::new(back)));
        }
        if cell.runs.iter().any(|run| run.moved(Moved::share).is_some()) {
            columns.push(("moved %".to_owned(), 30, Box::new(|run, _| moved(run))));
        }
        let ttft = move |run: &Run, before: &Run| shown(ttft_ratio((cell, run), (plain, before)));
        columns.push(("mean TTFT, with ÷ without".to_owned(), 32, Box::new(ttft)));
        columns
    }
}

/// What happens, each thing once.
fn moments(cell: &Cell) -> Vec<&str> {
    let aftermaths = cell.runs.iter().flat_map(|run| &run.aftermaths);
    let mut names = Vec::new();
    for recovery in aftermaths.flat_map(|aftermath| &aftermath.recoveries) {
        if !names.contains(&recovery.after.as_str()) {
            names.push(recovery.after.as_str());
        }
    }
    names
}

fn alike(run: &Run) -> String {
    let shares: Vec<f64> = run.seeds.iter().filter_map(|of| of.agreement).collect();
    if shares.is_empty() { "–".to_owned() } else { format!("{:.1}", 100.0 * crate::stats::mean(&shares)) }
}

/// The median, the range, and how many are missing from both.
fn back(times: Option<Times>) -> String {
    let Some(Times { median_s, range_s, never, of }) = times else { return "–".to_owned() };
    let median = median_s.map_or_else(|| "never".to_owned(), |median| format!("{median:.0}"));
    let range = range_s.map_or_else(String::new, |(least, most)| format!(" ({least:.0} to {most:.0})"));
    let missing = if never == 0 { String::new() } else { format!(", {never} of {of} never") };
    format!("{median}{range}{missing}")
}

fn moved(run: &Run) -> String {
    let both = run.moved(Moved::share).zip(run.moved(Moved::token_share));
    let Some(((before, with), (tokens_before, tokens_with))) = both else { return "–".to_owned() };
    format!(
        "{:.1} ({:.1}) → {:.1} ({:.1})",
        100.0 * before,
        100.0 * tokens_before,
        100.0 * with,
        100.0 * tokens_with
    )
}
