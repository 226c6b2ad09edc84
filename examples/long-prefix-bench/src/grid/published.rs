//! Cells that repeat what others have published: P2 to P4. P1 is where a load makes it.

use super::{Capacity, Pace, Plan, Workload};
use crate::workload::{Pattern, Trace};

/// KV tokens of two H100s beside a model of 32B: as llm-d says of P2, and taken for P4, whose model is as large.
const ENGINE_TOKENS: usize = 307_328;

/// Requests a second of P2, and how many come at this rate: four of the seventeen stages, with lengths as published.
const B2B_STAGES: [(f64, usize); 4] = [(10.0, 200), (20.0, 760), (40.0, 1_520), (60.0, 1_500)];

/// Requests a second of P4: as published, and half of that.
const GATEWAY_RATES: [f64; 2] = [32.0, 16.0];
const GATEWAY_REQUESTS: usize = 1_800;

/// Asked for of P3, whose engines are not described: less than they get, which is the least size.
const LEAST_TOKENS: usize = 131_072;

/// How many times as fast as recorded P3 comes: as in Dynamo's guide, and in an earlier version of it.
const REPLAY_SPEEDS: [f64; 2] = [0.8, 4.0];

/// P2 and P4.
pub(super) fn generated() -> Vec<Plan> {
    let at = |pattern, rate, workers, requests| Plan {
        capacity: Capacity::Tokens(ENGINE_TOKENS),
        pace: Some(Pace::PerSecond(rate)),
        ..Plan::new(Workload::Generated(pattern), 1.0, 0.0, workers, requests)
    };
    let mut cells: Vec<Plan> =
        B2B_STAGES.into_iter().map(|(rate, requests)| at(Pattern::B2b, rate, 8, requests)).collect();
    for rate in GATEWAY_RATES {
        let one = at(Pattern::Gateways, rate, 3, GATEWAY_REQUESTS);
        cells.extend([one, Plan { routers: 2, ..one }]);
    }
    cells
}

/// P3: with the 1,000 rows that there are, on engines of the least size.
pub(super) fn replayed() -> impl Iterator<Item = Plan> {
    REPLAY_SPEEDS.into_iter().map(|times| Plan {
        capacity: Capacity::Tokens(LEAST_TOKENS),
        pace: Some(Pace::TimesRecorded(times)),
        ..Plan::new(Workload::Replayed(Trace::ToolAgent), 1.0, 0.0, 8, 1_000)
    })
}
