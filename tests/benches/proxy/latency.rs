//! What a contestant adds to the time of a small request, at one rate for all: half of the most that the slower of nginx and
//! ours answers in a second when the load keeps the machine full.
//!
//! Requests are due at random times, and their time counts from when they were due. What is added is the difference to the
//! load going straight to the workers in the same round. Who answers less than that rate takes no part.

use crate::Fault;
use crate::cells::{Field, Rounds, SMALL, job};
use crate::contestants::{DIRECT, OURS};
use crate::link::{Drive, Job};
use crate::rows::{Better, Plan, Reference, Series, median};

/// What nginx adds relative to us, at least.
const TARGET: f64 = 1.0 / 1.5;

/// Rounds for each one of another row: how long the system keeps threads waiting for a core differs tenfold between two.
const ROUNDS: u64 = 4;

/// Connections, more than are ever busy unless a contestant falls behind.
const CONNECTIONS: usize = 128;

/// The rows.
const ROWS: [&str; 2] = ["added latency p50", "added latency p99"];

/// Whether any row of this module is asked for.
pub(crate) fn wanted(plan: &Plan) -> bool {
    ROWS.iter().any(|row| plan.wants(row))
}

/// Measures both quantiles.
pub(crate) fn measure(plan: &Plan, field: &mut Field, most: &[Series], rounds: Rounds) -> Result<(), Fault> {
    if !wanted(plan) {
        return Ok(());
    }
    let most_of = |name: &str| {
        let series = most.iter().find(|series| series.name == name);
        series.filter(|series| !series.rounds.is_empty()).map(|series| median(&series.rounds))
    };
    let Some(ours) = most_of(OURS) else { return Ok(()) };
    let per_second = most_of("nginx").unwrap_or(f64::INFINITY).min(ours) / 2.0;
    plan.progress(&format!("latency at {per_second:.0} requests/s"));
    let takes_part: Vec<bool> =
        field.contestants.iter().map(|it| most_of(it.name).is_some_and(|most| most > per_second)).collect();
    let series = |it: &crate::contestants::Contestant| Series { name: it.name, rounds: Vec::new() };
    let all: Vec<Series> = field.contestants.iter().map(series).collect();
    let mut added = [all.clone(), all];
    for round in 0..ROUNDS * rounds.count as u64 {
        let mut times = Vec::new();
        for at in (0..field.contestants.len()).filter(|at| takes_part[*at]) {
            let drive = Drive::Open { per_second };
            // The numbers go on where no cell has been.
            let job = job(&field.contestants[at], SMALL, (1 << 16) + round);
            let job = Job { drive, seconds: rounds.seconds, connections: CONNECTIONS, ..job };
            if let Some((outcome, _)) = field.round(plan, at, &job)? {
                let (name, p50, p99) = (field.contestants[at].name, outcome.p50_us, outcome.p99_us);
                plan.progress(&format!("  {name:<14} p50 {p50:>6.0} µs, p99 {p99:>7.0} µs"));
                times.push((at, [p50, p99]));
            }
        }
        let direct =
            times.iter().find(|(at, _)| field.contestants[*at].name == DIRECT).map(|(_, times)| *times);
        let Some(direct) = direct else { continue };
        for (at, times) in times {
            for quantile in 0..ROWS.len() {
                added[quantile][at].rounds.push(times[quantile] - direct[quantile]);
            }
        }
    }
    for (row, all) in ROWS.into_iter().zip(&added) {
        let Some((ours, others)) = all.split_first().filter(|(ours, _)| !ours.rounds.is_empty()) else {
            continue;
        };
        for other in others.iter().filter(|other| other.name != DIRECT && !other.rounds.is_empty()) {
            let target = (other.name == "nginx" && row.ends_with("p99")).then_some(TARGET);
            let reference = Reference { name: other.name, value: median(&other.rounds) };
            plan.row(row, "µs", &ours.rounds, reference, Better::Less, target);
        }
    }
    Ok(())
}
