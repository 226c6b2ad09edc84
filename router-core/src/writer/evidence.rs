//! What was found of the error of one rank's claims, as the writer keeps it.

use crate::accuracy::{Accuracy, Counted, Divergence, DivergenceSource, PredictionError, Reconciliation};
use crate::key::Unit;

use super::horizon::Evictions;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) predictions: PredictionError,
    /// By unit: what was found block by block, or estimated from digests, last.
    found: [Option<Divergence>; 2],
    pub(crate) counted: Option<Counted>,
    /// When it was counted, and claims had been bounded by that.
    pub(crate) by_count: Option<Divergence>,
    pub(crate) evictions: Evictions,
    reconciliations: [Option<Reconciliation>; 2],
    pub(crate) unvouched: bool,
}

impl Evidence {
    /// A difference of claims and cache is known in a unit.
    pub(crate) fn found(&mut self, unit: Unit, divergence: Divergence) {
        self.found[unit as usize] = Some(divergence);
    }

    /// A reconciliation has put a unit right.
    pub(crate) fn reconciled(&mut self, unit: Unit, reconciliation: Reconciliation) {
        let Reconciliation { at, tokens, .. } = reconciliation;
        self.found(unit, Divergence { tokens, source: DivergenceSource::Reconciliation, at });
        self.reconciliations[unit as usize] = Some(reconciliation);
    }

    /// Nothing is claimed any more: what was found of the claims, and counted of the cache, is over.
    pub(crate) fn void(&mut self) {
        self.found = [None; 2];
        self.counted = None;
        self.by_count = None;
        self.evictions = Evictions::default();
    }

    /// As snapshots show it.
    pub(crate) fn accuracy(&self) -> Accuracy {
        // Two units are two views of one cache: the greater difference is the better bound.
        let by_block = self.found.into_iter().flatten().max_by_key(|divergence| divergence.tokens);
        Accuracy {
            predictions: self.predictions,
            divergence: by_block.or(self.by_count),
            counts: self.counted,
            reconciliations: self.reconciliations,
            unvouched: self.unvouched,
        }
    }
}
