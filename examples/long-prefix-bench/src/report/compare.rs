//! Two results side by side: ratios of mean time to first token and of hits, paired by seed.

use std::fmt::Write as _;

use super::end_to_end::how;
use super::pairs::{paired, shown};
use crate::metrics::Metrics;
use crate::result::{Cell, Report, Seed};
use crate::stats::Ratio;

/// Results that must not be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// The engines are not the same.
    #[error("the engines of the two results differ: their times say nothing about the routers")]
    Engine,
    /// The traffic is not the same.
    #[error(
        "cell `{cell}`, seed {seed}: the traffic differs ({a} and {b}); run both with the same generators and traces"
    )]
    Traffic {
        /// The cell.
        cell: String,
        /// The seed.
        seed: u64,
        /// Its hash in the first result.
        a: String,
        /// And in the second.
        b: String,
    },
    /// The caches are not the same.
    #[error("cell `{cell}`: the engines' capacities differ")]
    Capacity {
        /// The cell.
        cell: String,
    },
    /// They have no cell in common.
    #[error("the two results have no cell in common")]
    NothingInCommon,
}

/// What the second result is relative to the first, for every contestant that both have, over the cells and seeds that both have.
pub fn compare(a: &Report, b: &Report) -> Result<String, CompareError> {
    let pairs = pairs(a, b)?;
    let mut text = format!(
        "{} cells in common; B relative to A, 95 % intervals of paired seeds; * where the interval excludes 1\nA: {}; B: {}\n",
        pairs.len(),
        how(a),
        how(b)
    );
    for entry in &a.contestants {
        let both = pairs
            .iter()
            .filter_map(|(one, other)| Some(((one, other), one.run(&entry.name)?, other.run(&entry.name)?)));
        let both: Vec<_> = both.collect();
        if both.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{}\n  {:<46}{:>30}{:>30}", entry.name, "", "mean TTFT", "hits");
        for ((cell, counterpart), one, other) in both {
            let seeds = || paired((cell, one), (counterpart, other));
            let ratio = |of: fn(&Metrics) -> f64| shown(Ratio::of(seeds().map(|(a, b)| (of(b), of(a)))));
            let (ttft, hits) = (ratio(|of| of.ttft_s.mean), ratio(|of| of.hit_rate));
            let _ = writeln!(text, "  {:<46}{ttft:>30}{hits:>30}", cell.id);
        }
    }
    Ok(text)
}

/// The cells that both have, in the first one's order, if they are of the same traffic, engines and capacities.
pub(super) fn pairs<'a>(a: &'a Report, b: &'a Report) -> Result<Vec<(&'a Cell, &'a Cell)>, CompareError> {
    if a.engine != b.engine {
        return Err(CompareError::Engine);
    }
    let pairs: Vec<(&Cell, &Cell)> = a
        .cells
        .iter()
        .filter_map(|cell| Some((cell, b.cells.iter().find(|other| other.id == cell.id)?)))
        .collect();
    if pairs.is_empty() {
        return Err(CompareError::NothingInCommon);
    }
    pairs.iter().try_for_each(|(one, other)| check(one, other))?;
    Ok(pairs)
}

fn check(one: &Cell, other: &Cell) -> Result<(), CompareError> {
    let others = other.hashes();
    for seed in &one.seeds {
        if let Some(hash) = others.get(&seed.seed).filter(|hash| **hash != seed.hash) {
            return Err(CompareError::Traffic {
                cell: one.id.clone(),
                seed: seed.seed,
                a: seed.hash.clone(),
                b: (*hash).to_owned(),
            });
        }
    }
    let of = |seed: &Seed| other.seeds.iter().find(|theirs| theirs.seed == seed.seed);
    let pairs = one.seeds.iter().filter_map(|seed| Some((seed, of(seed)?)));
    if pairs.into_iter().any(|(a, b)| a.capacity_tokens != b.capacity_tokens) {
        return Err(CompareError::Capacity { cell: one.id.clone() });
    }
    Ok(())
}
