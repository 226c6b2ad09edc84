//! What is kept and told of a decision, also after the request in flight is gone.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use router_core::policy::Reason;

use crate::headers::REQUEST_ID;

/// Worker, rank and predicted tokens; worker and rank that prefill.
static NAMES: [HeaderName; 5] = [
    HeaderName::from_static("x-espalier-worker"),
    HeaderName::from_static("x-espalier-dp-rank"),
    HeaderName::from_static("x-espalier-predicted-tokens"),
    HeaderName::from_static("x-espalier-prefill-worker"),
    HeaderName::from_static("x-espalier-prefill-dp-rank"),
];

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

/// What the head of an answer says of it, with the request's id; nothing where nothing was decided.
///
/// Of HTTP/1.1 it is written as it is: headers would be made, hashed and written for the same.
#[derive(Debug, Default)]
pub(crate) struct Said<'a>(pub(crate) Option<(&'a Decided, &'a HeaderValue)>);

impl Decided {
    /// Whether it says this header itself.
    pub(crate) fn names(name: &HeaderName) -> bool {
        name.as_str().starts_with("x-espalier-") && NAMES.contains(name)
    }
}

impl Said<'_> {
    /// Each line of it.
    pub(crate) fn each_line(&self, mut line: impl FnMut(&HeaderName, &[u8])) {
        let Some((decided, request_id)) = self.0 else { return };
        let [worker, rank, predicted_tokens, prefill_worker, prefill_rank] = &NAMES;
        let mut url = |name: &HeaderName, url: &str| {
            // What cannot stand in a header is not said.
            if url.bytes().all(|byte| byte.is_ascii_graphic()) {
                line(name, url.as_bytes());
            }
        };
        url(worker, &decided.worker);
        if let Some((prefill, _)) = &decided.prefill {
            url(prefill_worker, prefill);
        }
        let mut digits = itoa::Buffer::new();
        line(rank, digits.format(decided.rank).as_bytes());
        line(predicted_tokens, digits.format(decided.predicted_tokens).as_bytes());
        if let Some((_, prefill)) = decided.prefill {
            line(prefill_rank, digits.format(prefill).as_bytes());
        }
        line(&REQUEST_ID, request_id.as_bytes());
    }

    /// Says it in an answer's headers.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        self.each_line(|name, value| {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.insert(name, value);
            }
        });
    }
}
