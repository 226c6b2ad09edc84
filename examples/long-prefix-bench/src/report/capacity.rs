//! Capacity: how many requests a second a fleet bears with each router while 95 % of them meet both objectives.

use super::columns::{self, Table};
use crate::result::{Cell, Report};

/// Cells that differ in nothing but their load.
#[derive(Debug)]
pub struct Ladder<'a> {
    /// What they have in common.
    pub name: String,
    /// From the least load to the most.
    cells: Vec<&'a Cell>,
}

/// Share of the requests that has to meet both objectives.
const MET: f64 = 0.95;

/// Loads from which a ladder is made: fewer say too little about where objectives begin to be missed.
const LEAST_LOADS: usize = 3;

impl Ladder<'_> {
    /// Requests a second at which a router's share of requests that meet both objectives falls to 95 %: between two loads in
    /// proportion, at most the highest load there is; nothing if the least load is too much.
    pub fn capacity_per_s(&self, contestant: &str) -> Option<f64> {
        let points = self.cells.iter().map(|cell| {
            let run = cell.run(contestant)?;
            Some((run.mean(|of| of.offered_per_s), run.mean(|of| of.slo_share)))
        });
        let points = points.collect::<Option<Vec<(f64, f64)>>>()?;
        let first_missed = points.iter().position(|(_, met)| *met < MET);
        match first_missed {
            None => points.last().map(|(rate, _)| *rate),
            Some(0) => None,
            Some(at) => {
                let ((low, met), (high, missed)) = (points[at - 1], points[at]);
                Some(low + (high - low) * (met - MET) / (met - missed))
            }
        }
    }

    /// A router's hits relative to another's, at the middle load.
    pub fn hits_ratio(&self, contestant: &str, other: &str) -> Option<f64> {
        let cell = self.cells.get(self.cells.len() / 2)?;
        let hits = |name: &str| cell.run(name).map(|run| run.mean(|of| of.hit_rate));
        Some(hits(contestant)? / hits(other)?.max(1e-9))
    }
}

/// All of them.
pub fn ladders(report: &Report) -> Vec<Ladder<'_>> {
    let mut all: Vec<Ladder<'_>> = Vec::new();
    for cell in report.cells.iter().filter(|cell| !cell.is_disturbed()) {
        let name = cell.id.replacen(&format!(", ρ {}", cell.rho), "", 1);
        match all.iter_mut().find(|ladder| ladder.name == name) {
            Some(ladder) => ladder.cells.push(cell),
            None => all.push(Ladder { name, cells: vec![cell] }),
        }
    }
    all.retain(|ladder| ladder.cells.len() >= LEAST_LOADS);
    all.iter_mut().for_each(|ladder| ladder.cells.sort_by(|a, b| a.rho.total_cmp(&b.rho)));
    all
}

/// Every ladder with everybody's capacity; empty if there is none.
pub fn capacities(report: &Report) -> String {
    columns::texts(&heading(), &tables(report))
}

/// The same for the page.
pub(super) fn section(body: &mut String, report: &Report) {
    let about = "Between two loads in proportion, at most the highest load there is; none where the least one is too much.";
    columns::section(body, &heading(), about, &tables(report));
}

fn heading() -> String {
    format!("Requests a second with {:.0} % of the objectives met", 100.0 * MET)
}

fn tables(report: &Report) -> Vec<Table> {
    let table = |ladder: &Ladder<'_>| {
        let loads: Vec<String> = ladder.cells.iter().map(|cell| cell.rho.to_string()).collect();
        let title = format!("{} (ρ {})", ladder.name, loads.join(", "));
        let mut table = Table::new(title, [("requests/s", 12), ("× round_robin", 14)]);
        let blind = ladder.capacity_per_s("round_robin");
        for entry in report.contestants.iter().filter(|entry| !entry.is_reference) {
            let own = ladder.capacity_per_s(&entry.name);
            let ratio = own.zip(blind).map_or("–".to_owned(), |(own, blind)| format!("{:.2}", own / blind));
            let own = own.map_or_else(|| "none".to_owned(), |own| format!("{own:.2}"));
            table.row(&entry.name, vec![own, ratio]);
        }
        table
    };
    ladders(report).iter().map(table).collect()
}
