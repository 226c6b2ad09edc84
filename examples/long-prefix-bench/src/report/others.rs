//! What those who are there to disturb cost the others: the same traffic with and without them.

use std::fmt::Write as _;

use super::pairs::{paired, shown};
use crate::metrics::{Metrics, Others};
use crate::result::{Report, Run};
use crate::stats::{Ratio, mean};

/// Everybody but those who disturb, in every cell that has its like without them; empty if none has.
pub fn others(report: &Report) -> String {
    let quiet = |id: &str| report.cells.iter().find(|other| other.id == id);
    let pairs = report.cells.iter().filter_map(|cell| Some((cell, quiet(cell.quiet.as_deref()?)?)));
    let mut text = String::new();
    for (cell, quiet) in pairs {
        let _ = writeln!(
            text,
            "{}: the others alone → disturbed; * where the interval excludes 1\n  {:<26}{:>16}{:>16}{:>18}{:>16}{:>32}",
            cell.id, "", "hits %", "SLO %", "TTFT p99 s", "TPOT ms", "mean TTFT, disturbed ÷ alone"
        );
        let routers = cell.runs.iter().filter(|run| !report.is_reference(&run.contestant));
        for (run, alone) in routers.filter_map(|run| Some((run, quiet.run(&run.contestant)?))) {
            let change = |factor: f64, digits: usize, of: fn(&Others) -> f64| {
                let figure = |run: &Run| {
                    factor * mean(&run.seeds.iter().map(|one| of(&apart(one))).collect::<Vec<_>>())
                };
                format!("{:.digits$} → {:.digits$}", figure(alone), figure(run))
            };
            let ttft = |one: &Metrics| apart(one).ttft_s.mean;
            let ratio = Ratio::of(paired((cell, run), (quiet, alone)).map(|(a, b)| (ttft(a), ttft(b))));
            let _ = writeln!(
                text,
                "  {:<26}{:>16}{:>16}{:>18}{:>16}{:>32}",
                run.contestant,
                change(100.0, 1, |of| of.hit_rate),
                change(100.0, 1, |of| of.slo_share),
                change(1.0, 2, |of| of.ttft_s.p99),
                change(1e3, 1, |of| of.tpot_s.mean),
                shown(ratio)
            );
        }
        text.push('\n');
    }
    text
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
