//! How far claims are from what engines hold, and what it costs to keep them close: `cargo xtask bench divergence`.
//!
//! A discrete-event simulation in virtual time: real schedulers and caches of the simulated engine, the agent's own mirror and
//! translation, and `router-core` itself with its writer; only the network between them is left out, and each message's bytes are
//! those of its encoding. `workload.rs` says what is sent, `level.rs` what routers are told, `world.rs` what happens, and `figures.rs`
//! what is measured. Everything follows from the seed.
//!
//! Every row compares a level with *none*, which predicts and hears nothing, or with a bound.

mod engine;
mod figures;
mod level;
#[allow(dead_code, reason = "shared with the index benchmark, which needs more of it")]
#[path = "../../../router-core/benches/index/rows.rs"]
mod rows;
mod side;
mod workload;
mod world;

use std::error::Error;

use figures::Figures;
use level::Level;
use rows::{Better, Plan, Reference, median};
use workload::Kind;
use world::{Setting, run};

/// Engines in front of which every run is.
const ENGINES: usize = 4;

/// A level's figures of one workload, one for each seed.
type Cell = Vec<Figures>;

/// What all levels are measured on.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    routers: usize,
    overlap_schedule: bool,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let plan = Plan::from_arguments();
    let (seeds, requests) = if plan.quick { (1..=2, 2_400) } else { (1..=5, 8_000) };
    for case in Case::all().filter(|case| plan.wants(&case.name())) {
        plan.progress(&case.name());
        let Case { kind, routers, overlap_schedule } = case;
        let measured = Level::ALL.map(|level| {
            let engines = ENGINES;
            let setting = |seed| Setting { kind, level, routers, overlap_schedule, engines, requests, seed };
            let cell: Result<Cell, _> = seeds.clone().map(|seed| run(setting(seed))).collect();
            cell.map(|cell| (level, cell))
        });
        let measured = measured.into_iter().collect::<Result<Vec<_>, _>>()?;
        for line in table(&measured) {
            plan.progress(&line);
        }
        report(&plan, case, &measured);
    }
    Ok(())
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let usual = |kind| Self { kind, routers: 1, overlap_schedule: true };
        let two_routers = Self { routers: 2, ..usual(Kind::MultiTurn) };
        let no_overlap = Self { overlap_schedule: false, ..usual(Kind::Churn { percent: 200 }) };
        Kind::ALL.into_iter().map(usual).chain([two_routers, no_overlap])
    }

    fn name(self) -> String {
        let routers = if self.routers > 1 { ", two routers" } else { "" };
        let overlap = if self.overlap_schedule { "" } else { ", no overlap" };
        format!("{}{routers}{overlap}", self.kind.name())
    }
}

/// One line of figures for each level, for people.
fn table(measured: &[(Level, Cell)]) -> Vec<String> {
    let head = "  level                  mean %  p99 %  false %  mispredicted/req  hits %  bytes/1k  of ids  us/report";
    let line = |(level, cell): &(Level, Cell)| {
        let of = |figure: fn(&Figures) -> f64| median(&cell.iter().map(figure).collect::<Vec<_>>());
        format!(
            "  {:<21} {:>7.2} {:>6.1} {:>8.2} {:>17.1} {:>7.1} {:>9.1} {:>7.4} {:>10.1}",
            level.name(),
            of(Figures::divergence_percent),
            of(Figures::divergence_p99_percent),
            of(Figures::false_claims_percent),
            of(Figures::mispredicted_tokens),
            of(Figures::hit_percent),
            of(Figures::bytes_per_1k),
            of(Figures::bytes_of_streamed_ids),
            of(Figures::us_per_report),
        )
    };
    std::iter::once(head.to_owned()).chain(measured.iter().map(line)).collect()
}

/// The rows of one workload.
fn report(plan: &Plan, case: Case, measured: &[(Level, Cell)]) {
    let (name, kind) = (case.name(), case.kind);
    let all = |level: Level, figure: fn(&Figures) -> f64| -> Vec<f64> {
        let cells = measured.iter().filter(|(other, _)| *other == level);
        cells.flat_map(|(_, cell)| cell.iter().map(figure)).collect()
    };
    let none = median(&all(Level::None, Figures::divergence_percent));
    for level in Level::ALL {
        let ours = all(level, Figures::divergence_percent);
        let row = format!("divergence, {name}, {}", level.name());
        // The bounds are for engines as they run by default.
        match level.most_percent().filter(|_| case.overlap_schedule) {
            Some(most) => plan.bound(&row, "%", &ours, most),
            None => {
                let none = Reference { name: "none", value: none };
                let halved = (level == Level::Responses && kind.is_churn()).then_some(2.0);
                plan.row(&row, "%", &ours, none, Better::Less, halved);
            }
        }
    }
    let bytes = all(Level::Removals, Figures::bytes_per_1k);
    let row = format!("bytes per 1,000 prompt tokens, {name}, removals");
    // Behind several routers each has to be told what the others send.
    if kind == Kind::MultiTurn && case.routers == 1 {
        plan.bound(&row, "B", &bytes, 20.0);
    }
    let streamed = median(&all(Level::Full, Figures::streamed_bytes_per_1k));
    let streamed = Reference { name: "token ids streamed", value: streamed };
    for level in Level::ALL.into_iter().filter(|level| level.tells(case.routers).is_some()) {
        let row = format!("bytes per 1,000 prompt tokens, {name}, {}, beside ids", level.name());
        plan.row(&row, "B", &all(level, Figures::bytes_per_1k), streamed, Better::Less, None);
    }
}
