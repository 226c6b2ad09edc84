//! Kinds of blocks.

use super::Unit;

/// What a block is of, and whether an engine's events can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum BlockKind {
    /// Token ids, as every agent that reports blocks names them.
    Tokens,
    /// Token ids of prompts that the engine keeps apart by an extra key, which its events do not carry. Agents cannot name
    /// these blocks: what is known of them comes from the router's own traffic.
    SaltedTokens,
    /// Bytes of text, as agents that have the model's tokenizer name them.
    Text,
    /// Bytes of text that agents cannot name: of prompts with an extra key, or not what the engine gets to see.
    UnnamedText,
}

impl BlockKind {
    /// Blocks of this unit, of a prompt with an extra key or of one without.
    pub(crate) fn of(unit: Unit, extra_key: bool) -> Self {
        match (unit, extra_key) {
            (Unit::Token, false) => Self::Tokens,
            (Unit::Token, true) => Self::SaltedTokens,
            (Unit::Text, false) => Self::Text,
            (Unit::Text, true) => Self::UnnamedText,
        }
    }

    /// What the blocks are cut from.
    pub fn unit(self) -> Unit {
        match self {
            Self::Tokens | Self::SaltedTokens => Unit::Token,
            Self::Text | Self::UnnamedText => Unit::Text,
        }
    }

    /// The unit in which agents can name blocks of this kind. What an exact agent of that unit does not name is not cached.
    pub fn named(self) -> Option<Unit> {
        match self {
            Self::Tokens => Some(Unit::Token),
            Self::Text => Some(Unit::Text),
            Self::SaltedTokens | Self::UnnamedText => None,
        }
    }
}

impl From<Unit> for BlockKind {
    /// The kind of blocks without an extra key.
    fn from(unit: Unit) -> Self {
        Self::of(unit, false)
    }
}
