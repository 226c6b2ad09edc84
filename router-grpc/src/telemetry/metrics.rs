//! What the coordinator counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use router_core::MispredictionCause;

/// The coordinator's families. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ControlMetrics {
    report_bytes: Family<WorkerLabel, Counter>,
    report_messages: Family<WorkerLabel, Counter>,
    mispredicted: Family<CauseLabel, Counter>,
    pub(crate) resyncs: Counter,
    pub(crate) key_space_mismatches: Counter,
    pub(crate) sessions_refused: Counter,
    pub(crate) baselines_refused: Counter,
    pub(crate) unknown_parents: Counter,
    pub(crate) reconciliation_rounds: Counter,
    pub(crate) reconciliations_completed: Counter,
    pub(crate) reconciliations_given_up: Counter,
    pub(crate) reconciliation_symbols: Counter,
    pub(crate) reconciliation_bytes: Counter,
    pub(crate) reconciliation_seconds: Counter<f64, AtomicU64>,
    differences: Family<DifferenceLabel, Counter>,
    /// All bytes, also of workers that are gone.
    total_report_bytes: Arc<AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DifferenceLabel {
    kind: &'static str,
}

impl ControlMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let it = &metrics;
        registry.register(
            "espalier_agent_report_bytes",
            "Bytes of agents' messages",
            it.report_bytes.clone(),
        );
        registry.register("espalier_agent_report_messages", "Messages of agents", it.report_messages.clone());
        registry.register(
            "espalier_mispredicted_tokens",
            "Absolute difference of predicted and actual cached tokens, by cause",
            it.mispredicted.clone(),
        );
        registry.register(
            "espalier_resyncs",
            "Baselines asked for because a rank had been lost track of",
            it.resyncs.clone(),
        );
        registry.register(
            "espalier_key_space_mismatches",
            "Sessions whose agent hashes differently",
            it.key_space_mismatches.clone(),
        );
        registry.register(
            "espalier_agent_sessions_refused",
            "Agents' streams closed because there were too many",
            it.sessions_refused.clone(),
        );
        registry.register(
            "espalier_baselines_refused",
            "Sessions closed because their baselines had too many blocks",
            it.baselines_refused.clone(),
        );
        registry.register(
            "espalier_unknown_parents",
            "Reported runs of blocks that were ignored because nobody had heard of the block before them",
            it.unknown_parents.clone(),
        );
        metrics.register_reconciliation(registry);
        metrics
    }

    fn register_reconciliation(&self, registry: &mut Registry) {
        let mut counter = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        counter(
            "espalier_reconciliation_rounds",
            "Comparisons of claims with what an engine holds that were begun",
            &self.reconciliation_rounds,
        );
        counter(
            "espalier_reconciliations_completed",
            "Comparisons whose difference was found",
            &self.reconciliations_completed,
        );
        counter(
            "espalier_reconciliations_given_up",
            "Comparisons that were not answered, or for which a baseline came",
            &self.reconciliations_given_up,
        );
        counter(
            "espalier_reconciliation_symbols",
            "Symbols sent to agents, to find differences",
            &self.reconciliation_symbols,
        );
        counter("espalier_reconciliation_bytes", "Bytes of these symbols", &self.reconciliation_bytes);
        registry.register(
            "espalier_reconciliation_seconds",
            "Time from the first symbols of a comparison to its difference, over all completed",
            self.reconciliation_seconds.clone(),
        );
        registry.register(
            "espalier_reconciled_blocks",
            "Blocks that were found to differ: claimed and not held, or held and not claimed",
            self.differences.clone(),
        );
    }

    /// A difference was put right.
    pub(crate) fn reconciled(&self, false_claims: u64, missing: u64) {
        for (kind, blocks) in [("false_claim", false_claims), ("missing", missing)] {
            self.differences.get_or_create(&DifferenceLabel { kind }).inc_by(blocks);
        }
    }

    /// A message of an agent arrived.
    pub(crate) fn reported(&self, worker: &str, bytes: usize) {
        let label = WorkerLabel { worker: worker.to_owned() };
        self.report_bytes.get_or_create(&label).inc_by(bytes as u64);
        self.report_messages.get_or_create(&label).inc();
        self.total_report_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn mispredicted(&self, error_tokens: i64, cause: Option<MispredictionCause>) {
        if let Some(cause) = cause {
            let label = CauseLabel { cause: cause.name() };
            self.mispredicted.get_or_create(&label).inc_by(error_tokens.unsigned_abs());
        }
    }

    /// A worker is gone, and so are its labels.
    pub(crate) fn forget_worker(&self, worker: &str) {
        let label = WorkerLabel { worker: worker.to_owned() };
        self.report_bytes.remove(&label);
        self.report_messages.remove(&label);
    }

    pub(crate) fn total_report_bytes(&self) -> u64 {
        self.total_report_bytes.load(Relaxed)
    }
}
