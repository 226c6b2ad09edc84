//! What a session agreed on.

use std::time::Duration;

use router_core::key::{KeySpace, SCHEME, Unit};

use super::convert::{ResumePoint, WantedSpace, Welcome};
use crate::config::Level;
use crate::translate::BlockView;

/// Leases outside of this are brought inside: a missing one must not make the agent spin, nor fall silent.
const LEASE_MS: std::ops::RangeInclusive<u32> = 300..=3_600_000;
const BATCH_MS: std::ops::RangeInclusive<u32> = 5..=60_000;

/// The writer looks around at least this often.
const MAX_TICK: Duration = Duration::from_secs(1);

/// The coordinator's wishes, as far as they can be fulfilled.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) lease: Duration,
    pub(super) batch_interval: Duration,
    pub(super) level: Level,
    /// The key spaces that reports are written in, at most one of a unit; without any there are no block hashes.
    pub(super) spaces: Vec<KeySpace>,
    /// Why key spaces were refused; for people.
    pub(super) refused: String,
    pub(super) resume: Vec<ResumePoint>,
    /// Ranks that begin with a delta, to be compared.
    pub(super) reconcile: Vec<u32>,
}

/// Why something is not offered, where it is not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Without<'r> {
    /// Blocks of text.
    pub(super) text: Option<&'r str>,
    /// The chat template.
    pub(super) chats: Option<&'r str>,
}

impl Terms {
    /// Reads a welcome for an engine with pages of `page_size` tokens.
    pub(super) fn new(welcome: Welcome, page_size: u32, without: Without<'_>) -> Self {
        let ms = |ms: u32, range: std::ops::RangeInclusive<u32>| {
            Duration::from_millis(ms.clamp(*range.start(), *range.end()).into())
        };
        let mut spaces: Vec<KeySpace> = Vec::new();
        let mut refused = Vec::new();
        for wanted in &welcome.key_spaces {
            match space_of(wanted, page_size, without.text) {
                Ok(accepted) if spaces.iter().any(|space| space.unit() == accepted.unit()) => {}
                Ok(accepted) => spaces.push(accepted),
                Err(refusal) => refused.push(format!("key space of {} blocks: {refusal}", unit_name(wanted))),
            }
        }
        // A router asks for no more than was offered; why less was is for its people too.
        let asked = welcome.key_spaces.iter().any(|wanted| wanted.unit == Some(Unit::Text));
        refused
            .extend(without.text.filter(|_| !asked).map(|reason| format!("text is not reported: {reason}")));
        // Without text there are no chats as text.
        let no_chats = without.chats.filter(|_| without.text.is_none());
        refused.extend(no_chats.map(|reason| format!("no chat template is offered: {reason}")));
        Self {
            lease: ms(welcome.lease_ms, LEASE_MS),
            batch_interval: ms(welcome.batch_interval_ms, BATCH_MS),
            level: welcome.level,
            spaces,
            refused: refused.join("; "),
            resume: welcome.resume,
            reconcile: welcome.reconcile,
        }
    }
}

impl Terms {
    /// What names all key spaces together: the wrapping sum of their fingerprints. `None` if there is none.
    pub(super) fn fingerprint(&self) -> Option<u64> {
        self.spaces.iter().map(KeySpace::fingerprint).reduce(u64::wrapping_add)
    }

    /// Longest pause of the writer. At a change of anything it looks around at once.
    pub(super) fn tick(&self) -> Duration {
        self.batch_interval.min(self.lease / 12).min(MAX_TICK)
    }

    /// Every load is sent this often, so that there are three in each lease even when the writer comes a tick late.
    pub(super) fn renewal(&self) -> Duration {
        self.lease / 4
    }
}

/// Why a key space gets no block hashes.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the hash {scheme:?} is not known here, only {SCHEME:?}")]
    Scheme { scheme: String },
    #[error(transparent)]
    Space(#[from] router_core::key::KeySpaceError),
    #[error("this side hashes differently: the fingerprints are not equal")]
    Fingerprint,
    #[error("{reason}")]
    Text { reason: String },
    #[error(transparent)]
    Translate(#[from] crate::translate::TranslateError),
    #[error("the unit is not known here")]
    Unit,
}

fn unit_name(wanted: &WantedSpace) -> &'static str {
    match wanted.unit {
        Some(Unit::Token) => "token",
        Some(Unit::Text) => "text",
        None => "unknown",
    }
}

fn space_of(wanted: &WantedSpace, page_size: u32, no_text: Option<&str>) -> Result<KeySpace, Refusal> {
    if wanted.scheme != SCHEME {
        return Err(Refusal::Scheme { scheme: wanted.scheme.chars().take(64).collect() });
    }
    let unit = wanted.unit.ok_or(Refusal::Unit)?;
    let space = KeySpace::new(unit, wanted.block_size, wanted.seed)?;
    match (unit, no_text) {
        (Unit::Token, _) => BlockView::check(&space, page_size)?,
        (Unit::Text, None) => {}
        (Unit::Text, Some(reason)) => return Err(Refusal::Text { reason: reason.to_owned() }),
    }
    if space.fingerprint() != wanted.fingerprint {
        return Err(Refusal::Fingerprint);
    }
    Ok(space)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(unit: Option<Unit>, block_size: u32) -> WantedSpace {
        let space = KeySpace::new(unit.unwrap_or(Unit::Token), block_size, 7);
        let fingerprint = space.map_or(0, |space| space.fingerprint());
        WantedSpace { unit, block_size, scheme: SCHEME.to_owned(), seed: 7, fingerprint }
    }

    fn terms(key_spaces: Vec<WantedSpace>) -> Terms {
        let welcome = Welcome {
            lease_ms: 0,
            batch_interval_ms: 0,
            level: Level::Full,
            key_spaces,
            resume: Vec::new(),
            reconcile: Vec::new(),
        };
        Terms::new(welcome, 16, Without { text: Some("there is no tokenizer"), chats: Some("no") })
    }

    #[test]
    fn a_token_space_is_taken_and_a_text_space_refused_with_a_reason() {
        let terms = terms(vec![wanted(Some(Unit::Text), 64), wanted(Some(Unit::Token), 16)]);
        assert_eq!(terms.spaces.iter().map(KeySpace::block_size).collect::<Vec<_>>(), [16]);
        assert!(terms.refused.contains("text") && terms.refused.contains("tokenizer"), "{}", terms.refused);
    }

    #[test]
    fn with_a_tokenizer_both_spaces_are_taken_once_and_named_together() {
        let (text, token) = (wanted(Some(Unit::Text), 64), wanted(Some(Unit::Token), 16));
        let both = text.fingerprint.wrapping_add(token.fingerprint);
        let key_spaces = vec![text.clone(), token, text];
        let welcome = Welcome {
            lease_ms: 0,
            batch_interval_ms: 0,
            level: Level::Full,
            key_spaces,
            resume: Vec::new(),
            reconcile: Vec::new(),
        };
        let terms = Terms::new(welcome.clone(), 16, Without::default());
        assert_eq!((terms.spaces.len(), terms.fingerprint(), &*terms.refused), (2, Some(both), ""));
        let terms = Terms::new(welcome, 16, Without { text: None, chats: Some("there is none") });
        assert_eq!((terms.spaces.len(), &*terms.refused), (2, "no chat template is offered: there is none"));
    }

    #[test]
    fn spaces_that_cannot_be_served_are_refused() {
        let other = WantedSpace { fingerprint: 1, ..wanted(Some(Unit::Token), 16) };
        let scheme = WantedSpace { scheme: "sha/9".to_owned(), ..wanted(Some(Unit::Token), 16) };
        let zero = WantedSpace { block_size: 0, ..wanted(Some(Unit::Token), 16) };
        for (space, word) in [
            (other, "fingerprints"),
            (scheme, "sha/9"),
            (zero, "units"),
            (wanted(Some(Unit::Token), 24), "fit"),
            (wanted(None, 16), "unit"),
        ] {
            let terms = terms(vec![space]);
            assert!(terms.spaces.is_empty() && terms.refused.contains(word), "{}", terms.refused);
        }
    }

    #[test]
    fn the_lease_is_renewed_three_times_in_each() {
        for (lease_ms, batch_interval_ms) in [(300, 5), (300, 60_000), (3_000, 50), (3_600_000, 60_000)] {
            let welcome = Welcome {
                lease_ms,
                batch_interval_ms,
                level: Level::Counts,
                key_spaces: Vec::new(),
                resume: Vec::new(),
                reconcile: Vec::new(),
            };
            let terms = Terms::new(welcome, 16, Without::default());
            assert!(3 * (terms.renewal() + terms.tick()) <= terms.lease, "{lease_ms} {batch_interval_ms}");
        }
    }

    #[test]
    fn missing_intervals_are_brought_into_range() {
        let terms = terms(Vec::new());
        assert_eq!((terms.lease.as_millis(), terms.batch_interval.as_millis()), (300, 5));
        assert_eq!(terms.refused, "text is not reported: there is no tokenizer");
    }
}
