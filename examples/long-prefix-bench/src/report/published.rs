//! What others have published, beside what the same set-up comes to here. What is alike and what is not is in `docs/benchmark.md`.

use super::columns::{self, Table};
use crate::result::{Cell, Report};

/// A published result.
#[derive(Debug)]
struct Published {
    /// The workload's name begins so.
    workload: &'static str,
    /// The cell's name has one of these.
    at: &'static [&'static str],
    routers: usize,
    source: &'static str,
    /// The first is what the others are relative to.
    rows: &'static [Row],
}

/// What they call it, who it is here, mean time to first token in seconds, hits in percent where they tell.
type Row = (&'static str, &'static str, f64, Option<f64>);

const B2B: &str = "llm-d, Qwen3-32B, 8 × 2 H100 (2025-09)";
const SMG: &str = "smg#1771, 32B, 3 × 2 H100 (2026-06)";
const DYNAMO: &str = "Dynamo's KV router A/B guide, Qwen3-32B, 8 H100";

const PUBLISHED: [Published; 8] = [
    b2b(
        &[", 10/s"],
        &[
            ("random", "random", 0.826, None),
            ("load", "least_load", 2.241, None),
            ("estimated", "cache_aware, no agents", 0.271, None),
            ("precise", "cache_aware", 0.335, None),
        ],
    ),
    b2b(
        &[", 20/s"],
        &[
            ("random", "random", 25.073, None),
            ("load", "least_load", 29.229, None),
            ("estimated", "cache_aware, no agents", 0.329, None),
            ("precise", "cache_aware", 0.363, None),
        ],
    ),
    b2b(
        &[", 40/s"],
        &[
            ("random", "random", 54.196, None),
            ("load", "least_load", 53.545, None),
            ("estimated", "cache_aware, no agents", 13.160, None),
            ("precise", "cache_aware", 0.269, None),
        ],
    ),
    b2b(
        &[", 60/s"],
        &[
            ("random", "random", 57.426, None),
            ("load", "least_load", 58.497, None),
            ("estimated", "cache_aware, no agents", 24.281, None),
            ("precise", "cache_aware", 0.283, None),
        ],
    ),
    dynamo(
        &[", 0.8 × recorded"],
        &[("round robin", "round_robin", 63.65, None), ("KV router", "cache_aware", 2.59, None)],
    ),
    dynamo(
        &[", 4 × recorded"],
        &[("round robin", "round_robin", 12.764, None), ("KV router", "cache_aware", 8.012, None)],
    ),
    smg(
        1,
        &[
            ("round_robin", "round_robin", 15.034, Some(17.4)),
            ("approximate", "cache_aware, no agents", 1.657, Some(26.5)),
            ("events", "cache_aware", 1.796, Some(24.6)),
        ],
    ),
    smg(
        2,
        &[
            ("round_robin", "round_robin", 16.087, Some(15.1)),
            ("approximate", "cache_aware, no agents", 1.896, Some(21.6)),
            ("events", "cache_aware", 1.334, Some(23.7)),
        ],
    ),
];

const fn b2b(at: &'static [&'static str], rows: &'static [Row]) -> Published {
    Published { workload: "P2", at, routers: 1, source: B2B, rows }
}

const fn dynamo(at: &'static [&'static str], rows: &'static [Row]) -> Published {
    Published { workload: "P3", at, routers: 1, source: DYNAMO, rows }
}

/// Half the rate is here because our engines are slower; the published rate is 32.
const fn smg(routers: usize, rows: &'static [Row]) -> Published {
    Published { workload: "P4", at: &[", 32/s", ", 16/s"], routers, source: SMG, rows }
}

impl Published {
    fn is_of(&self, cell: &Cell) -> bool {
        let (id, routers) = (&cell.id, cell.routers);
        cell.workload.starts_with(self.workload)
            && routers == self.routers
            && self.at.iter().any(|at| id.contains(at))
    }
}

const HEADING: &str = "Published set-ups, theirs beside here";

/// Every cell that repeats something, beside what was published of it; empty without such cells.
pub fn published(report: &Report) -> String {
    columns::texts(HEADING, &tables(report))
}

/// The same for the page.
pub(super) fn section(body: &mut String, report: &Report) {
    let about = "Other engines than ours: what counts is who is ahead, and by how much. Times as fast: mean TTFT of the first row over \
        the row's. What is alike and what is not is in docs/benchmark.md.";
    columns::section(body, HEADING, about, &tables(report));
}

fn tables(report: &Report) -> Vec<Table> {
    let repeats = |cell| PUBLISHED.iter().filter(move |of| of.is_of(cell)).map(move |of| (cell, of));
    report.cells.iter().flat_map(repeats).map(|(cell, of)| beside(cell, of)).collect()
}

/// Without rows where the first of the published rows has no run here.
fn beside(cell: &Cell, published: &Published) -> Table {
    let columns = [
        ("their name", 12),
        ("hits %, theirs", 15),
        ("here", 11),
        ("TTFT s, theirs", 17),
        ("here", 11),
        ("times as fast, theirs", 21),
        ("here", 11),
    ];
    let mut table = Table::new(format!("{}: beside {}", cell.id, published.source), columns);
    let figure = |name: &str, of: fn(&crate::metrics::Metrics) -> f64| {
        cell.run(name).filter(|run| run.is_sound()).map(|run| run.mean(of))
    };
    let ttft = |name: &str| figure(name, |of| of.ttft_s.mean);
    let Some(((_, base, base_ttft, _), base_here)) =
        published.rows.first().and_then(|row| Some((row, ttft(row.1)?)))
    else {
        return table;
    };
    for (theirs, here, ttft_s, hits) in published.rows {
        let Some(own) = ttft(here) else { continue };
        let own_hits = figure(here, |of| 100.0 * of.hit_rate).unwrap_or(0.0);
        let times = |base: f64, own: f64| format!("{:.2}", base / own.max(1e-6));
        let (their_times, own_times) = if here == base {
            ("1".to_owned(), "1".to_owned())
        } else {
            (times(*base_ttft, *ttft_s), times(base_here, own))
        };
        table.row(
            *here,
            vec![
                (*theirs).to_owned(),
                hits.map_or_else(|| "–".to_owned(), |hits| format!("{hits:.1}")),
                format!("{own_hits:.1}"),
                format!("{ttft_s:.3}"),
                format!("{own:.3}"),
                their_times,
                own_times,
            ],
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::grid::Suite;
    use crate::lab::contestants;
    use crate::runner::empty;
    use crate::workload::Pattern;

    /// Every cell of P2 to P4 has exactly one published result, and every published result a cell.
    #[test]
    fn what_is_repeated_was_published() {
        let all = contestants(Default::default());
        let plans = Suite::Full.cells(Some(Path::new("traces")));
        let cells: Vec<Cell> = plans.iter().map(|plan| empty(plan, all.iter().map(|of| of.name))).collect();
        let repeats = |cell: &&Cell| ["P2", "P3", "P4"].iter().any(|name| cell.workload.starts_with(name));
        for cell in cells.iter().filter(repeats) {
            let count = PUBLISHED.iter().filter(|of| of.is_of(cell)).count();
            assert_eq!(count, 1, "{}", cell.id);
        }
        for of in &PUBLISHED {
            assert!(cells.iter().any(|cell| of.is_of(cell)), "{of:?}");
            assert!(of.rows.iter().all(|(_, here, ..)| all.iter().any(|one| one.name == *here)), "{of:?}");
        }
        let equal = cells.iter().find(|cell| cell.workload == Pattern::Equal.name()).unwrap();
        assert!(!PUBLISHED.iter().any(|of| of.is_of(equal)), "P1 is judged by its targets");
    }
}
