//! What a session agreed on.

use std::time::Duration;

use espalier_proto as proto;
use router_core::key::{KeySpace, SCHEME, Unit};

use super::convert::from_level;
use crate::config::Level;
use crate::translate::BlockView;

/// Leases outside of this are brought inside: a missing one must not make the agent spin, nor fall silent.
const LEASE_MS: std::ops::RangeInclusive<u32> = 300..=3_600_000;
const BATCH_MS: std::ops::RangeInclusive<u32> = 5..=60_000;

/// The coordinator's wishes, as far as they can be fulfilled.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) lease: Duration,
    pub(super) batch_interval: Duration,
    pub(super) level: Level,
    /// The key space that reports are written in; without one there are no block hashes.
    pub(super) space: Option<KeySpace>,
    /// Why key spaces were refused; for people.
    pub(super) refused: String,
    pub(super) resume: Vec<proto::ResumePoint>,
}

impl Terms {
    /// Reads a welcome for an engine with pages of `page_size` tokens.
    pub(super) fn new(welcome: proto::Welcome, page_size: u32) -> Self {
        let level = from_level(welcome.level());
        let ms = |ms: u32, range: std::ops::RangeInclusive<u32>| {
            Duration::from_millis(ms.clamp(*range.start(), *range.end()).into())
        };
        let mut space = None;
        let mut refused = Vec::new();
        for wanted in &welcome.key_spaces {
            match space_of(wanted, page_size) {
                Ok(accepted) => space = space.or(Some(accepted)),
                Err(refusal) => refused.push(format!("key space of {} blocks: {refusal}", unit_name(wanted))),
            }
        }
        Self {
            lease: ms(welcome.lease_ms, LEASE_MS),
            batch_interval: ms(welcome.batch_interval_ms, BATCH_MS),
            level,
            space,
            refused: refused.join("; "),
            resume: welcome.resume,
        }
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
    #[error(transparent)]
    Translate(#[from] crate::translate::TranslateError),
    #[error("the unit is not known here")]
    Unit,
}

fn unit_name(wanted: &proto::KeySpace) -> &'static str {
    match wanted.unit() {
        proto::KeyUnit::Token => "token",
        proto::KeyUnit::Text => "text",
        proto::KeyUnit::Unspecified => "unknown",
    }
}

fn space_of(wanted: &proto::KeySpace, page_size: u32) -> Result<KeySpace, Refusal> {
    if wanted.scheme != SCHEME {
        return Err(Refusal::Scheme { scheme: wanted.scheme.chars().take(64).collect() });
    }
    let unit = match wanted.unit() {
        proto::KeyUnit::Token => Unit::Token,
        proto::KeyUnit::Text => Unit::Text,
        proto::KeyUnit::Unspecified => return Err(Refusal::Unit),
    };
    let space = KeySpace::new(unit, wanted.block_size, wanted.seed)?;
    BlockView::check(&space, page_size)?;
    if space.fingerprint() != wanted.fingerprint {
        return Err(Refusal::Fingerprint);
    }
    Ok(space)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(unit: proto::KeyUnit, block_size: u32) -> proto::KeySpace {
        let fingerprint = |unit| KeySpace::new(unit, block_size, 7).map_or(0, |space| space.fingerprint());
        let fingerprint = fingerprint(if unit == proto::KeyUnit::Text { Unit::Text } else { Unit::Token });
        proto::KeySpace { unit: unit.into(), block_size, scheme: SCHEME.to_owned(), seed: 7, fingerprint }
    }

    fn terms(key_spaces: Vec<proto::KeySpace>) -> Terms {
        let level = proto::ReportLevel::Full.into();
        Terms::new(proto::Welcome { key_spaces, level, ..proto::Welcome::default() }, 16)
    }

    #[test]
    fn a_token_space_is_taken_and_a_text_space_refused_with_a_reason() {
        let terms = terms(vec![wanted(proto::KeyUnit::Text, 64), wanted(proto::KeyUnit::Token, 16)]);
        assert_eq!(terms.space.map(|space| space.block_size()), Some(16));
        assert!(terms.refused.contains("text") && terms.refused.contains("tokenizer"), "{}", terms.refused);
    }

    #[test]
    fn spaces_that_cannot_be_served_are_refused() {
        let other = proto::KeySpace { fingerprint: 1, ..wanted(proto::KeyUnit::Token, 16) };
        let scheme = proto::KeySpace { scheme: "sha/9".to_owned(), ..wanted(proto::KeyUnit::Token, 16) };
        let zero = proto::KeySpace { block_size: 0, ..wanted(proto::KeyUnit::Token, 16) };
        for (space, word) in [
            (other, "fingerprints"),
            (scheme, "sha/9"),
            (zero, "units"),
            (wanted(proto::KeyUnit::Token, 24), "fit"),
            (wanted(proto::KeyUnit::Unspecified, 16), "unit"),
        ] {
            let terms = terms(vec![space]);
            assert!(terms.space.is_none() && terms.refused.contains(word), "{}", terms.refused);
        }
    }

    #[test]
    fn missing_intervals_are_brought_into_range() {
        let terms = terms(Vec::new());
        assert_eq!((terms.lease.as_millis(), terms.batch_interval.as_millis()), (300, 5));
        assert!(terms.refused.is_empty());
    }
}
