//! Key spaces: unit, block size and seed, with a fingerprint of all three.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::chain::{BlockHash, ChainKeys};
use super::{BlockKind, PrefixKey};

/// Name and version of the hash; sides that name another hash differently.
pub const SCHEME: &str = "nh-64-chain/1";

/// Most units a block may have.
pub const MAX_BLOCK_SIZE: u32 = 65_536;

/// What a prompt is cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Unit {
    /// The engine's token ids, each hashed as a little-endian `u32`.
    Token,
    /// Bytes of the rendered prompt.
    Text,
}

/// How prompts become block hashes. Equal key spaces hash equal prompts equally, in every process.
#[derive(Clone)]
pub struct KeySpace {
    unit: Unit,
    block_size: u32,
    seed: u64,
    fingerprint: u64,
    keys: ChainKeys,
}

/// Separates prompts whose KV cache the engine keeps apart although their tokens are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salt {
    value: u64,
    /// An extra key is part of it.
    extra: bool,
}

/// A key space that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySpaceError {
    /// The block size is zero or too large.
    #[error("a block must have 1 to {MAX_BLOCK_SIZE} units, not {block_size}")]
    BlockSize {
        /// What was asked for.
        block_size: u32,
    },
}

impl KeySpace {
    /// A key space of `block_size` units a block, keyed by `seed`.
    pub fn new(unit: Unit, block_size: u32, seed: u64) -> Result<Self, KeySpaceError> {
        if block_size == 0 || block_size > MAX_BLOCK_SIZE {
            return Err(KeySpaceError::BlockSize { block_size });
        }
        // Text and tokens of equal bytes must not meet in one index.
        let keys = ChainKeys::new(seed, unit as u64);
        let mut space = Self { unit, block_size, seed, fingerprint: 0, keys };
        space.fingerprint = space.compute_fingerprint();
        Ok(space)
    }

    /// What prompts are cut from.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Units in a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The secret of the hash. Give it to agents only; never log it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Hash over scheme, unit, block size, seed and a test prompt. Sides with different fingerprints hash differently.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The key of a prompt given as token ids.
    ///
    /// # Panics
    /// If the unit is not [`Unit::Token`].
    pub fn key_of_tokens(&self, salt: Salt, tokens: &[u32]) -> PrefixKey {
        assert_eq!(self.unit, Unit::Token, "tokens have no hash in a key space of text");
        let mut hashes = Vec::new();
        self.extend_with_tokens(salt, None, tokens, &mut hashes);
        PrefixKey::new(BlockKind::of(self.unit, salt.extra), hashes, tokens.len() as u64)
    }

    /// The key of a prompt given as text.
    ///
    /// # Panics
    /// If the unit is not [`Unit::Text`].
    pub fn key_of_text(&self, salt: Salt, text: &[u8]) -> PrefixKey {
        assert_eq!(self.unit, Unit::Text, "text has no hash in a key space of tokens");
        let mut hashes = Vec::new();
        self.extend_with_text(salt, None, text, &mut hashes);
        PrefixKey::new(BlockKind::of(self.unit, salt.extra), hashes, text.len() as u64)
    }

    /// The key of a longer prompt that begins with the full blocks of `key`; `rest` is all that follows these.
    ///
    /// The salt is the one that `key` was made with.
    ///
    /// # Panics
    /// If the unit is not [`Unit::Token`].
    pub fn key_followed_by_tokens(&self, salt: Salt, key: &PrefixKey, rest: &[u32]) -> PrefixKey {
        let mut hashes = key.hashes().to_vec();
        self.extend_with_tokens(salt, hashes.last().copied(), rest, &mut hashes);
        key.followed(hashes, rest.len() as u64, self.block_size)
    }

    /// The same of text.
    ///
    /// # Panics
    /// If the unit is not [`Unit::Text`].
    pub fn key_followed_by_text(&self, salt: Salt, key: &PrefixKey, rest: &[u8]) -> PrefixKey {
        let mut hashes = key.hashes().to_vec();
        self.extend_with_text(salt, hashes.last().copied(), rest, &mut hashes);
        key.followed(hashes, rest.len() as u64, self.block_size)
    }

    /// Appends the hashes of the full blocks of `tokens`, which follow the block `parent` (`None`: begin a prompt).
    ///
    /// The salt matters only where a prompt begins; `parent` has it in its history.
    ///
    /// # Panics
    /// If the unit is not [`Unit::Token`].
    pub fn extend_with_tokens(
        &self,
        salt: Salt,
        parent: Option<BlockHash>,
        tokens: &[u32],
        hashes: &mut Vec<BlockHash>,
    ) {
        assert_eq!(self.unit, Unit::Token, "tokens have no hash in a key space of text");
        let state = parent.map_or_else(|| self.keys.root(salt.value), BlockHash::get);
        self.keys.extend(state, tokens, self.block_size as usize, hashes);
    }

    /// Appends the hashes of the full blocks of `text`, which follows the block `parent` (`None`: begin a prompt); the salt as
    /// in [`extend_with_tokens`](Self::extend_with_tokens).
    ///
    /// # Panics
    /// If the unit is not [`Unit::Text`].
    pub fn extend_with_text(
        &self,
        salt: Salt,
        parent: Option<BlockHash>,
        text: &[u8],
        hashes: &mut Vec<BlockHash>,
    ) {
        assert_eq!(self.unit, Unit::Text, "text has no hash in a key space of tokens");
        let state = parent.map_or_else(|| self.keys.root(salt.value), BlockHash::get);
        self.keys.extend(state, text, self.block_size as usize, hashes);
    }

    fn compute_fingerprint(&self) -> u64 {
        let name = match self.unit {
            Unit::Token => "token",
            Unit::Text => "text",
        };
        let described = xxh3_64(format!("{SCHEME} {name} {}", self.block_size).as_bytes());
        // Two blocks, so that the chaining is covered and not only the hash of one block.
        let test = match self.unit {
            Unit::Token => {
                let prompt: Vec<u32> =
                    (0..2 * self.block_size).map(|i| i.wrapping_mul(2_654_435_761)).collect();
                self.key_of_tokens(Salt::default(), &prompt)
            }
            Unit::Text => {
                let prompt: Vec<u8> =
                    (0..2 * self.block_size).map(|i| (i.wrapping_mul(167) >> 3) as u8).collect();
                self.key_of_text(Salt::default(), &prompt)
            }
        };
        let last = test.hashes().last().map_or(0, |hash| hash.get());
        xxh3_64_with_seed(&described.to_le_bytes(), last)
    }
}

// The seed is a secret.
impl fmt::Debug for KeySpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySpace")
            .field("unit", &self.unit)
            .field("block_size", &self.block_size)
            .finish_non_exhaustive()
    }
}

impl PartialEq for KeySpace {
    fn eq(&self, other: &Self) -> bool {
        (self.unit, self.block_size, self.seed) == (other.unit, other.block_size, other.seed)
    }
}

impl Eq for KeySpace {}

impl Salt {
    /// The salt of a request with this LoRA adapter and this cache salt; empty strings count as absent.
    ///
    /// The engine's `extra_key` belongs here too, but its events do not carry it, so that only a request's own history
    /// can be matched under it: pass it as `extra_key`.
    pub fn new(lora: &str, cache_salt: &str, extra_key: &str) -> Self {
        if lora.is_empty() && cache_salt.is_empty() && extra_key.is_empty() {
            return Self::default();
        }
        // The lengths keep ("a", "b") apart from ("ab", "").
        let mut bytes = Vec::with_capacity(24 + lora.len() + cache_salt.len() + extra_key.len());
        for part in [lora, cache_salt, extra_key] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        Self { value: xxh3_64(&bytes).max(1), extra: !extra_key.is_empty() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(seed: u64) -> KeySpace {
        KeySpace::new(Unit::Token, 4, seed).unwrap()
    }

    #[test]
    fn only_full_blocks_are_hashed_and_prefixes_agree() {
        let tokens: Vec<u32> = (0..18).collect();
        let long = space(1).key_of_tokens(Salt::default(), &tokens);
        let short = space(1).key_of_tokens(Salt::default(), &tokens[..11]);
        assert_eq!((long.hashes().len(), short.hashes().len()), (4, 2));
        assert_eq!(&long.hashes()[..2], short.hashes());
        assert_eq!(short.units(), 11);
    }

    #[test]
    fn a_hash_commits_to_everything_before_it() {
        let mut tokens: Vec<u32> = (0..16).collect();
        let before = space(1).key_of_tokens(Salt::default(), &tokens);
        tokens[0] = 99;
        let after = space(1).key_of_tokens(Salt::default(), &tokens);
        assert!(before.hashes().iter().zip(after.hashes()).all(|(a, b)| a != b));
    }

    #[test]
    fn seed_and_salt_separate() {
        let tokens: Vec<u32> = (0..8).collect();
        let key = |seed, salt| space(seed).key_of_tokens(salt, &tokens).hashes().to_vec();
        let plain = key(1, Salt::default());
        assert_ne!(plain, key(2, Salt::default()));
        assert_ne!(plain, key(1, Salt::new("lora", "", "")));
        assert_ne!(key(1, Salt::new("ab", "", "")), key(1, Salt::new("a", "b", "")));
        assert_eq!(plain, key(1, Salt::new("", "", "")));
        let kind = |salt| space(1).key_of_tokens(salt, &tokens).kind();
        assert_eq!(kind(Salt::new("", "a", "")), BlockKind::Tokens);
        assert_eq!(kind(Salt::new("", "a", "b")), BlockKind::SaltedTokens);
        let text = KeySpace::new(Unit::Text, 4, 1).unwrap();
        assert_eq!(text.key_of_text(Salt::new("", "a", "b"), b"text").kind(), BlockKind::UnnamedText);
    }

    #[test]
    fn extending_equals_hashing_at_once() {
        let tokens: Vec<u32> = (0..32).map(|i| i * 7).collect();
        let whole = space(3).key_of_tokens(Salt::default(), &tokens);
        let mut parts = Vec::new();
        space(3).extend_with_tokens(Salt::default(), None, &tokens[..12], &mut parts);
        let parent = parts.last().copied();
        space(3).extend_with_tokens(Salt::default(), parent, &tokens[12..], &mut parts);
        assert_eq!(parts, whole.hashes());
    }

    #[test]
    fn fingerprints_tell_every_difference() {
        let base = space(1).fingerprint();
        assert_eq!(base, space(1).fingerprint());
        assert_ne!(base, space(2).fingerprint());
        assert_ne!(base, KeySpace::new(Unit::Token, 8, 1).unwrap().fingerprint());
        assert_ne!(base, KeySpace::new(Unit::Text, 4, 1).unwrap().fingerprint());
    }

    #[test]
    fn block_sizes_out_of_range_are_refused() {
        for block_size in [0, MAX_BLOCK_SIZE + 1] {
            assert_eq!(
                KeySpace::new(Unit::Text, block_size, 0).err(),
                Some(KeySpaceError::BlockSize { block_size })
            );
        }
    }
}
