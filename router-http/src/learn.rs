//! Learns from a passing answer which id the worker has made, so that what names it later goes there too.
//!
//! The id is looked for in the passing bytes, near their beginning: `/open_session` answers with it as a JSON string, and the
//! responses API with an object, or a stream of events, whose first `"id"` it is. A text that imitates one cannot stand before
//! it.

use std::sync::{Arc, LazyLock};

use memchr::memchr2;
use memchr::memmem::Finder;
use router_core::{TargetId, Time};

use crate::kept::Place;
use crate::metrics::HttpMetrics;
use crate::shared::Shared;

/// What an answer is looked at for.
#[derive(Debug)]
pub(crate) struct Learning {
    shared: Arc<Shared>,
    what: What,
    /// The answer's beginning, until the id is found.
    seen: Vec<u8>,
    over: bool,
}

/// See [`Learning`].
#[derive(Debug)]
pub(crate) enum What {
    /// The session that the answer names was opened.
    Opened,
    /// A request of this session was answered, which shows the dp rank that has its history.
    Continued(Arc<str>),
    /// The response that the answer names was stored.
    Stored,
}

/// Bytes of an answer within which an id must stand.
const MOST_SEEN: usize = 4096;

/// Longest id that is kept, in bytes.
const MOST_ID_BYTES: usize = 256;

/// Made once: it takes longer than a search in a short answer.
static ID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"id\":"));

impl Learning {
    pub(crate) fn new(shared: Arc<Shared>, what: What) -> Self {
        Self { shared, what, seen: Vec::new(), over: false }
    }

    /// Looks at data of a successful answer of `target`, before it is passed on.
    pub(crate) fn look(&mut self, data: &[u8], target: TargetId, now: Time, metrics: &HttpMetrics) {
        if self.over {
            return;
        }
        let ranked = Place { worker: target.worker, rank: Some(target.rank) };
        let crowded = match &self.what {
            What::Continued(session) => {
                self.over = true;
                self.shared.sessions.keep(session, ranked, now)
            }
            What::Opened | What::Stored => {
                let room = MOST_SEEN - self.seen.len();
                self.seen.extend_from_slice(&data[..data.len().min(room)]);
                let place = Place { rank: None, ..ranked };
                let opened = matches!(self.what, What::Opened);
                let (kept, id) = match opened {
                    true => (&self.shared.sessions, string(&self.seen)),
                    false => (&self.shared.responses, first_id(&self.seen)),
                };
                let crowded = id.is_some_and(|id| {
                    self.over = true;
                    kept.keep(id, place, now)
                });
                self.over |= self.seen.len() == MOST_SEEN;
                crowded
            }
        };
        if crowded {
            metrics.ids_forgotten.inc();
        }
        if self.over {
            self.seen = Vec::new();
        }
    }
}

/// The first id of an answer, once it is there whole.
fn first_id(seen: &[u8]) -> Option<&str> {
    string(&seen[ID.find(seen)? + ID.needle().len()..])
}

/// A JSON string without escapes, once it is there whole.
fn string(bytes: &[u8]) -> Option<&str> {
    let inner = bytes.trim_ascii_start().strip_prefix(b"\"")?;
    let end = memchr2(b'"', b'\\', inner)?;
    let plain = inner[end] == b'"' && (1..=MOST_ID_BYTES).contains(&end);
    plain.then(|| std::str::from_utf8(&inner[..end]).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::kept::tests::workers;

    fn learned(what: What, chunks: &[&str], id: &str) -> Option<Place> {
        let shared = Arc::new(Shared::new(8, Duration::from_secs(9), None));
        let opened = matches!(what, What::Opened);
        let target = TargetId { worker: workers(1)[0], rank: 1 };
        let metrics = HttpMetrics::register(&mut Registry::default());
        let mut learning = Learning::new(shared.clone(), what);
        for chunk in chunks {
            learning.look(chunk.as_bytes(), target, Time::default(), &metrics);
        }
        if opened { &shared.sessions } else { &shared.responses }.find(id, Time::default())
    }

    #[test]
    fn ids_are_found_wherever_the_answer_is_cut() {
        let whole = r#"{"id": "resp_1","object":"response","output":[{"id":"msg_1"}]}"#;
        let event = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"x\":1}}\n\n";
        for text in [whole, event] {
            for cut in 0..text.len() {
                let place = learned(What::Stored, &[&text[..cut], &text[cut..]], "resp_1");
                assert!(place.is_some(), "{text} cut at {cut}");
                assert_eq!(learned(What::Stored, &[&text[..cut], &text[cut..]], "msg_1"), None);
            }
        }
        assert_eq!(learned(What::Opened, &["\"s-", "1\""], "s-1").unwrap().rank, None);
    }

    #[test]
    fn what_is_no_id_is_not_kept() {
        assert_eq!(learned(What::Opened, &["{\"error\":{\"message\":\"no\"}}"], "no"), None);
        assert_eq!(learned(What::Opened, &["\"a\\\"b\""], "a\\"), None);
        let late = format!("{{\"text\":\"{}\",\"id\":\"resp_1\"}}", "x".repeat(MOST_SEEN));
        assert_eq!(learned(What::Stored, &[&late], "resp_1"), None);
    }
}
