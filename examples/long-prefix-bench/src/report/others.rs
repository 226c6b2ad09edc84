//! What those who are there to disturb cost the others: the same traffic with and without them.

use super::columns::{self, Table};
use super::pairs::{paired, shown};
use crate::metrics::{Metrics, Others};
use crate::result::{Cell, Report, Run};
use crate::stats::{Ratio, mean};

const HEADING: &str = "What those who disturb cost the others";

/// Everybody but those who disturb, in every cell that has its like without them; empty if none has.
pub fn others(report: &Report) -> String {
    let heading = format!("{HEADING}: alone → disturbed; * where the interval excludes 1");
    columns::texts(&heading, &tables(report))
}

/// The same for the page.
pub(super) fn section(body: &mut String, report: &Report) {
    let about = "Figures of the others alone → disturbed; they come at the same times in both. The last column is relative to alone, \
        with the interval of paired seeds; * where it excludes 1.";
    columns::section(body, HEADING, about, &tables(report));
}

fn tables(report: &Report) -> Vec<Table> {
    let quiet = |id: &str| report.cells.iter().find(|other| other.id == id);
    let pairs = report.cells.iter().filter_map(|cell| Some((cell, quiet(cell.quiet.as_deref()?)?)));
    pairs.map(|(cell, quiet)| table(report, cell, quiet)).collect()
}

fn table(report: &Report, cell: &Cell, quiet: &Cell) -> Table {
    let columns = [
        ("hits %", 15),
        ("SLO %", 15),
        ("TTFT p99 s", 17),
        ("TPOT ms", 15),
        ("mean TTFT, disturbed ÷ alone", 31),
    ];
    let mut table = Table::new(&cell.id, columns);
    let routers = cell.runs.iter().filter(|run| !report.is_reference(&run.contestant));
    for (run, alone) in routers.filter_map(|run| Some((run, quiet.run(&run.contestant)?))) {
        let change = |factor: f64, digits: usize, of: fn(&Others) -> f64| {
            let figure =
                |run: &Run| factor * mean(&run.seeds.iter().map(|one| of(&apart(one))).collect::<Vec<_>>());
            format!("{:.digits$} → {:.digits$}", figure(alone), figure(run))
        };
        let ttft = |one: &Metrics| apart(one).ttft_s.mean;
        let ratio = Ratio::of(paired((cell, run), (quiet, alone)).map(|(a, b)| (ttft(a), ttft(b))));
        table.row(
            &run.contestant,
            vec![
                change(100.0, 1, |of| of.hit_rate),
                change(100.0, 1, |of| of.slo_share),
                change(1.0, 2, |of| of.ttft_s.p99),
                change(1e3, 1, |of| of.tpot_s.mean),
                shown(ratio),
            ],
        );
    }
    table
}

/// Of those who do not disturb: of all, where nobody does.
fn apart(of: &Metrics) -> Others {
    of.others.unwrap_or(Others {
        requests: of.requests,
        hit_rate: of.hit_rate,
        ttft_s: of.ttft_s,
        tpot_s: of.tpot_s,
        slo_share: of.slo_share,
    })
}
