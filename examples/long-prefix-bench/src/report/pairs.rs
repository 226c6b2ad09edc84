//! Figures of two runs with the same seeds.

use crate::metrics::Metrics;
use crate::result::{Cell, Run};
use crate::stats::Ratio;

/// What both have of each seed, whatever the order.
pub(super) fn paired<'a>(
    one: (&'a Cell, &'a Run),
    other: (&'a Cell, &'a Run),
) -> impl Iterator<Item = (&'a Metrics, &'a Metrics)> {
    let (ours, theirs) = (one.0.seeds.iter().zip(&one.1.seeds), other);
    ours.filter_map(move |(seed, figures)| {
        let at = theirs.0.seeds.iter().position(|theirs| theirs.seed == seed.seed)?;
        Some((figures, theirs.1.seeds.get(at)?))
    })
}

/// A ratio with its interval, and a mark if it is a difference.
pub(super) fn shown(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(
        || "–".to_owned(),
        |ratio| {
            let mark = if ratio.differs() { "*" } else { " " };
            format!("{:.3} ({:.3} to {:.3}){mark}", ratio.ratio, ratio.low, ratio.high)
        },
    )
}
