//! The keyed, chained 64-bit block hash.
//!
//! `h_i = mix(h_{i-1}, xxh3(block_i))`: xxh3 runs at memory speed over the block under a secret derived from the key
//! space's seed; `mix` folds a 64×64→128-bit product and finishes with the 64-bit finalizer of MurmurHash3 (`fmix64`), so
//! that every bit of the chain's state reaches every bit of the next. Without the seed nobody can aim collisions.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_secret;

/// Bytes of xxh3's secret; its own default has this length.
const SECRET_BYTES: usize = 192;

/// Hash of a block and of all blocks before it in its prompt. Never zero: zero stands for "before the first block".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockHash(u64);

/// The keys of one key space's hash.
#[derive(Clone)]
pub(super) struct ChainKeys {
    secret: [u8; SECRET_BYTES],
    left: u64,
    right: u64,
}

impl BlockHash {
    /// The hash with this value, or `None` for zero.
    pub fn new(value: u64) -> Option<Self> {
        (value != 0).then_some(Self(value))
    }

    /// The value as it travels and is compared.
    pub fn get(self) -> u64 {
        self.0
    }
}

// The value itself is a key: printing it would put prompts' identities into logs.
impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockHash(…)")
    }
}

impl ChainKeys {
    /// Expands a seed into the keys (SplitMix64, Steele et al. 2014).
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        let left = next();
        let right = next();
        let mut secret = [0; SECRET_BYTES];
        for word in secret.chunks_exact_mut(8) {
            word.copy_from_slice(&next().to_le_bytes());
        }
        Self { secret, left, right }
    }

    /// The chain's state before the first block, for a salt.
    pub(super) fn root(&self, salt: u64) -> u64 {
        self.mix(self.left.rotate_left(32), salt)
    }

    /// The state after one more block.
    pub(super) fn next(&self, state: u64, block: &[u8]) -> BlockHash {
        // Zero is reserved; one value in 2^64 is counted twice.
        BlockHash(self.mix(state, xxh3_64_with_secret(block, &self.secret)).max(1))
    }

    fn mix(&self, state: u64, block: u64) -> u64 {
        let product = u128::from(state ^ self.left) * u128::from(block ^ self.right);
        // Adding the state keeps the chain's history even where the other factor happens to be zero.
        let mut h = (product as u64) ^ ((product >> 64) as u64) ^ state.rotate_left(17);
        h = (h ^ (h >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        h = (h ^ (h >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        h ^ (h >> 33)
    }
}
