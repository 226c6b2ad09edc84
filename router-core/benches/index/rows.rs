//! The rows that a measurement prints: one JSON object a line.
//!
//! A figure is the median over the rounds of what a round came to. `ratio` is the reference relative to ours, turned so
//! that more than 1 means ours is better, whatever the unit.

use std::io::Write as _;

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Small sizes, few rounds.
    pub(crate) quick: bool,
    /// The largest index and fleet instead of the tables.
    #[allow(dead_code, reason = "the peers' package shares this file")]
    pub(crate) scale: bool,
    /// Only rows whose name contains this.
    only: Option<String>,
}

/// The figures of one contestant, one a round.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Who.
    pub(crate) name: &'static str,
    /// One figure a round.
    pub(crate) rounds: Vec<f64>,
}

/// What ours is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reference {
    /// What it is.
    pub(crate) name: &'static str,
    /// Its figure.
    pub(crate) value: f64,
}

/// Whether less or more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// Times, bytes.
    Less,
    /// Rates.
    #[allow(dead_code, reason = "the peers' package shares this file")]
    More,
}

impl Plan {
    /// Reads `--quick`, `--scale` and `--only SUBSTRING`; what cargo itself adds is passed over.
    pub(crate) fn from_arguments() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let only = arguments.iter().position(|argument| argument == "--only");
        Self {
            scale: arguments.iter().any(|argument| argument == "--scale"),
            quick: arguments.iter().any(|argument| argument == "--quick"),
            only: only.and_then(|at| arguments.get(at + 1).cloned()),
        }
    }

    /// Whether a row is asked for.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|only| row.contains(only.as_str()))
    }

    /// Says on standard error what is going on.
    pub(crate) fn progress(&self, what: &str) {
        writeln!(std::io::stderr(), "{what}").expect("standard error takes a line");
    }

    /// One row for every reference. The target counts against the best of them.
    pub(crate) fn versus(&self, row: &str, unit: &str, all: &[Series], target: Option<f64>) {
        let Some((ours, references)) = all.split_first().filter(|(ours, _)| !ours.rounds.is_empty()) else {
            return;
        };
        let references: Vec<_> = references
            .iter()
            .filter(|series| !series.rounds.is_empty())
            .map(|series| Reference { name: series.name, value: median(&series.rounds) })
            .collect();
        let best = references.iter().map(|reference| reference.value).min_by(f64::total_cmp);
        for reference in references {
            let target = target.filter(|_| Some(reference.value) == best);
            self.row(row, unit, &ours.rounds, reference, Better::Less, target);
        }
    }

    /// One row against a figure that ours must not exceed.
    pub(crate) fn bound(&self, row: &str, unit: &str, ours: &[f64], bound: f64) {
        let bound = Reference { name: "bound", value: bound };
        self.row(row, unit, ours, bound, Better::Less, Some(1.0));
    }

    /// One row against one reference.
    pub(crate) fn row(
        &self,
        row: &str,
        unit: &str,
        ours: &[f64],
        reference: Reference,
        better: Better,
        target: Option<f64>,
    ) {
        if !self.wants(row) {
            return;
        }
        let own = median(ours);
        let ratio = match better {
            Better::Less => reference.value / own,
            Better::More => own / reference.value,
        };
        let row = serde_json::json!({
            "row": row,
            "unit": unit,
            "ours": own,
            "reference": reference.value,
            "reference_name": reference.name,
            "ratio": ratio,
            "target": target,
            "met": target.map(|target| ratio >= target),
            "min": ours.iter().copied().fold(f64::INFINITY, f64::min),
            "max": ours.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            "runs": ours.len(),
        });
        writeln!(std::io::stdout(), "{row}").expect("standard output takes the rows");
    }
}

/// The middle of some figures.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
