//! Kinds of blocks.

use super::Unit;

/// What a block is of, and whether an engine's events can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum BlockKind {
    /// Token ids, as agents report them.
    Tokens,
    /// Token ids of prompts that the engine keeps apart by an extra key, which its events do not carry. Agents cannot name
    /// these blocks: what is known of them comes from the router's own traffic.
    SaltedTokens,
    /// Bytes of text. Agents do not name these either.
    Text,
}

impl BlockKind {
    /// What the blocks are cut from.
    pub fn unit(self) -> Unit {
        match self {
            Self::Tokens | Self::SaltedTokens => Unit::Token,
            Self::Text => Unit::Text,
        }
    }

    /// Agents can name blocks of this kind, so that what an exact agent does not report of them is not cached.
    pub fn is_reported(self) -> bool {
        self == Self::Tokens
    }
}

impl From<Unit> for BlockKind {
    /// The kind of blocks without an extra key.
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Token => Self::Tokens,
            Unit::Text => Self::Text,
        }
    }
}
