//! What an engine has to have kept of a prefix for it to be of use.

use std::fmt;

/// What an engine's cache keeps of a prefix beside the KV of full attention.
///
/// Full attention needs the KV of all that came before, and nothing else, so that a prefix that is cached is a prefix that is used. Other
/// layers need something that has a pool of its own, is evicted by itself, and leaves the KV where it was: a prefix may then be
/// cached and of no use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum CacheKind {
    /// Not known; taken for [`Full`](Self::Full).
    #[default]
    Unknown,
    /// Nothing: one pool has all that is cached.
    Full,
    /// The latest tokens of each prefix for layers with a sliding window.
    SlidingWindow,
    /// The state of recurrent layers after some of the tokens (Mamba, linear attention); it may have sliding windows, too.
    RecurrentState,
}

impl CacheKind {
    /// The kind of a cache by its pools beside that of full attention; `None`: it is not known whether there is such a pool.
    pub fn of_pools(windows: Option<bool>, states: Option<bool>) -> Self {
        match (windows, states) {
            (_, Some(true)) => Self::RecurrentState,
            (Some(true), _) => Self::SlidingWindow,
            (Some(false), Some(false)) => Self::Full,
            _ => Self::Unknown,
        }
    }

    /// Whether what is cached may be of no use for want of something that is evicted by itself.
    pub fn is_hybrid(self) -> bool {
        matches!(self, Self::SlidingWindow | Self::RecurrentState)
    }
}

impl fmt::Display for CacheKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Full => "full",
            Self::SlidingWindow => "sliding_window",
            Self::RecurrentState => "recurrent_state",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pool_beside_is_enough_and_none_has_to_be_known() {
        use CacheKind::*;
        for (windows, states, expected) in [
            (Some(false), Some(false), Full),
            (Some(true), Some(false), SlidingWindow),
            (Some(true), None, SlidingWindow),
            (Some(false), Some(true), RecurrentState),
            (None, Some(true), RecurrentState),
            (Some(true), Some(true), RecurrentState),
            (None, Some(false), Unknown),
            (Some(false), None, Unknown),
            (None, None, Unknown),
        ] {
            let kind = CacheKind::of_pools(windows, states);
            assert_eq!(kind, expected, "windows {windows:?}, states {states:?}");
            assert_eq!(kind.is_hybrid(), windows == Some(true) || states == Some(true));
        }
    }
}
