//! What is kept and told of a decision, also after the request in flight is gone.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use router_core::policy::Reason;

const X_WORKER: HeaderName = HeaderName::from_static("x-espalier-worker");
const X_DP_RANK: HeaderName = HeaderName::from_static("x-espalier-dp-rank");
const X_PREDICTED_TOKENS: HeaderName = HeaderName::from_static("x-espalier-predicted-tokens");
const X_PREFILL_WORKER: HeaderName = HeaderName::from_static("x-espalier-prefill-worker");
const X_PREFILL_DP_RANK: HeaderName = HeaderName::from_static("x-espalier-prefill-dp-rank");

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Decided {
    pub(crate) worker: Arc<str>,
    pub(crate) rank: u32,
    pub(crate) reason: Reason,
    pub(crate) predicted_tokens: u64,
    /// The worker and rank that prefill, if they are others.
    pub(crate) prefill: Option<(Arc<str>, u32)>,
}

impl Decided {
    /// Says so in an answer's headers.
    pub(crate) fn describe(&self, headers: &mut HeaderMap) {
        if let Ok(worker) = HeaderValue::from_str(&self.worker) {
            headers.insert(X_WORKER, worker);
        }
        headers.insert(X_DP_RANK, HeaderValue::from(self.rank));
        headers.insert(X_PREDICTED_TOKENS, HeaderValue::from(self.predicted_tokens));
        let Some((prefill, rank)) = &self.prefill else { return };
        if let Ok(worker) = HeaderValue::from_str(prefill) {
            headers.insert(X_PREFILL_WORKER, worker);
        }
        headers.insert(X_PREFILL_DP_RANK, HeaderValue::from(*rank));
    }
}
