//! What a run came to.

/// See the module. Sums over the part of a run that counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Share of the blocks cached that are claimed and not held or held and not claimed, one of each target at each sample.
    pub(crate) divergences: Vec<f64>,
    /// Blocks claimed, over all samples.
    pub(crate) claimed: u64,
    /// Of these, blocks that were not held.
    pub(crate) falsely: u64,
    /// Requests whose first token came.
    pub(crate) requests: u64,
    /// Absolute differences of predicted and actual cached tokens.
    pub(crate) mispredicted: u64,
    /// Tokens of their prompts.
    pub(crate) prompt_tokens: u64,
    /// Of these, tokens that were cached.
    pub(crate) cached_tokens: u64,
    /// Bytes of all reports.
    pub(crate) report_bytes: u64,
    /// Bytes of the engines' events, for every router once.
    pub(crate) event_bytes: u64,
    /// Reports that were applied.
    pub(crate) reports: u64,
    /// Time that took.
    pub(crate) report_us: f64,
}

impl Figures {
    pub(crate) fn divergence_percent(&self) -> f64 {
        100.0 * self.divergences.iter().sum::<f64>() / self.divergences.len().max(1) as f64
    }

    pub(crate) fn divergence_p99_percent(&self) -> f64 {
        let mut sorted = self.divergences.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted.get(sorted.len() * 99 / 100).map_or(0.0, |share| 100.0 * share)
    }

    pub(crate) fn false_claims_percent(&self) -> f64 {
        100.0 * self.falsely as f64 / self.claimed.max(1) as f64
    }

    pub(crate) fn mispredicted_tokens(&self) -> f64 {
        self.mispredicted as f64 / self.requests.max(1) as f64
    }

    pub(crate) fn hit_percent(&self) -> f64 {
        100.0 * self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64
    }

    pub(crate) fn bytes_per_1k(&self) -> f64 {
        1e3 * self.report_bytes as f64 / self.prompt_tokens.max(1) as f64
    }

    pub(crate) fn streamed_bytes_per_1k(&self) -> f64 {
        1e3 * self.event_bytes as f64 / self.prompt_tokens.max(1) as f64
    }

    /// Bytes of reports, relative to the same events with their token ids.
    pub(crate) fn bytes_of_streamed_ids(&self) -> f64 {
        self.report_bytes as f64 / self.event_bytes.max(1) as f64
    }

    pub(crate) fn us_per_report(&self) -> f64 {
        self.report_us / self.reports.max(1) as f64
    }
}
