//! The keyed, chained 64-bit block hash.
//!
//! A block is read in stripes of at most 256 bytes. Within a stripe NH (Black, Halevi, Krawczyk, Krovetz and Rogaway 1999)
//! sums products of 64-bit words under secret keys to 128 bits,
//!
//! ```text
//! n = Σ (w₂ᵢ + k₂ᵢ) · (w₂ᵢ₊₁ + k₂ᵢ₊₁)   mod 2¹²⁸, sums of a word and its key mod 2⁶⁴
//! ```
//!
//! which two different stripes share with probability 2⁻⁶⁴ over the keys, and the chain takes it in by one folded product:
//!
//! ```text
//! state' = fold((state ⊕ low(n)) · (high(n) ⊕ f)),   fold(p) = low(p) ⊕ high(p)
//! ```
//!
//! A block's hash is the state after its last stripe, so that it commits to all blocks before it and a chain goes on from a
//! hash alone. The sums of different blocks do not wait for each other; only one multiplication a stripe is in the chain.
//! Without the seed nobody can aim collisions. `docs/adr/0001-block-hash.md` compares it with others.

use std::fmt;

/// Bytes in a stripe: what the keys of one sum suffice for.
const STRIPE_BYTES: usize = 256;

/// Words in a stripe, each with a key of its own.
const STRIPE_WORDS: usize = STRIPE_BYTES / 8;

/// Hash of a block and of all blocks before it in its prompt. Never zero: zero stands for "before the first block".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockHash(u64);

/// The keys of one key space's hash.
#[derive(Clone)]
pub(super) struct ChainKeys {
    words: [u64; STRIPE_WORDS],
    fold: u64,
    root: u64,
}

/// Units that a prompt is cut from, 16 bytes of which are two words.
pub(super) trait HashUnit: Copy + Default {
    /// Units in 16 bytes.
    const PER_LANE: usize;

    /// The two little-endian words of so many units.
    fn lane(units: &[Self]) -> (u64, u64);
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

impl HashUnit for u32 {
    const PER_LANE: usize = 4;

    #[inline(always)]
    fn lane(units: &[Self]) -> (u64, u64) {
        let word = |at: usize| u64::from(units[at]) | u64::from(units[at + 1]) << 32;
        (word(0), word(2))
    }
}

impl HashUnit for u8 {
    const PER_LANE: usize = 16;

    #[inline(always)]
    fn lane(units: &[Self]) -> (u64, u64) {
        let mut both = [0; 16];
        both.copy_from_slice(&units[..16]);
        let both = u128::from_le_bytes(both);
        (both as u64, (both >> 64) as u64)
    }
}

impl ChainKeys {
    /// Expands a seed into the keys of one of several domains (SplitMix64, Steele et al. 2014).
    pub(super) fn new(seed: u64, domain: u64) -> Self {
        let mut state = seed ^ domain.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        let (root, fold) = (next(), next());
        Self { words: std::array::from_fn(|_| next()), fold, root }
    }

    /// The chain's state before the first block, for a salt.
    pub(super) fn root(&self, salt: u64) -> u64 {
        self.take_in(self.root, u128::from(salt.wrapping_add(self.words[0])) << 64 | u128::from(salt))
    }

    /// Appends the hashes of the full blocks of `units`, going on from `state`.
    pub(super) fn extend<T: HashUnit>(
        &self,
        state: u64,
        units: &[T],
        block_size: usize,
        hashes: &mut Vec<BlockHash>,
    ) {
        let blocks = units.chunks_exact(block_size);
        let lanes = |lanes: usize| block_size == lanes * T::PER_LANE;
        // Where the number of products is known, they are laid out without a loop.
        match () {
            () if lanes(4) => self.chain(state, blocks, hashes, |block| self.lanes::<T, 4>(block)),
            () if lanes(8) => self.chain(state, blocks, hashes, |block| self.lanes::<T, 8>(block)),
            () if lanes(16) => self.chain(state, blocks, hashes, |block| self.lanes::<T, 16>(block)),
            () if block_size * 16 <= STRIPE_BYTES * T::PER_LANE => {
                self.chain(state, blocks, hashes, |block| self.sum(block));
            }
            () => self.chain_stripes(state, blocks, hashes),
        }
    }

    /// The chain over blocks of one stripe each.
    #[inline(always)]
    fn chain<'a, T: HashUnit + 'a>(
        &self,
        mut state: u64,
        blocks: impl ExactSizeIterator<Item = &'a [T]>,
        hashes: &mut Vec<BlockHash>,
        sum: impl Fn(&[T]) -> u128,
    ) {
        hashes.extend(blocks.map(|block| {
            state = self.take_in(state, sum(block));
            // Zero is reserved. One state in 2^64 is told apart from the hash that stands for it.
            BlockHash(state.max(1))
        }));
    }

    /// The chain over blocks of any size.
    fn chain_stripes<'a, T: HashUnit + 'a>(
        &self,
        mut state: u64,
        blocks: impl ExactSizeIterator<Item = &'a [T]>,
        hashes: &mut Vec<BlockHash>,
    ) {
        hashes.extend(blocks.map(|block| {
            let stripes = block.chunks(STRIPE_BYTES / 16 * T::PER_LANE);
            state = stripes.fold(state, |state, stripe| self.take_in(state, self.sum(stripe)));
            BlockHash(state.max(1))
        }));
    }

    /// NH over a stripe of exactly so many times 16 bytes.
    #[inline(always)]
    fn lanes<T: HashUnit, const LANES: usize>(&self, stripe: &[T]) -> u128 {
        let stripe = &stripe[..LANES * T::PER_LANE];
        (0..LANES).fold(0, |sum: u128, lane| {
            let units = &stripe[lane * T::PER_LANE..(lane + 1) * T::PER_LANE];
            sum.wrapping_add(product(T::lane(units), &self.words[2 * lane..2 * lane + 2]))
        })
    }

    /// NH over one stripe; units that are missing from its last 16 bytes count as zero.
    fn sum<T: HashUnit>(&self, stripe: &[T]) -> u128 {
        let lanes = stripe.chunks_exact(T::PER_LANE);
        let rest = lanes.remainder();
        let mut sum: u128 = 0;
        for (lane, keys) in lanes.zip(self.words.chunks_exact(2)) {
            sum = sum.wrapping_add(product(T::lane(lane), keys));
        }
        if !rest.is_empty() {
            let mut lane = [T::default(); 16];
            lane[..rest.len()].copy_from_slice(rest);
            let at = stripe.len() / T::PER_LANE * 2;
            sum = sum.wrapping_add(product(T::lane(&lane), &self.words[at..at + 2]));
        }
        sum
    }

    #[inline(always)]
    fn take_in(&self, state: u64, sum: u128) -> u64 {
        let folded = u128::from(state ^ sum as u64) * u128::from((sum >> 64) as u64 ^ self.fold);
        folded as u64 ^ (folded >> 64) as u64
    }
}

#[inline(always)]
fn product((even, odd): (u64, u64), keys: &[u64]) -> u128 {
    u128::from(even.wrapping_add(keys[0])) * u128::from(odd.wrapping_add(keys[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word by word.
    fn plainly(keys: &ChainKeys, state: u64, block: &[u8]) -> u64 {
        block.chunks(STRIPE_BYTES).fold(state, |state, stripe| {
            let mut padded = stripe.to_vec();
            padded.resize(stripe.len().div_ceil(16) * 16, 0);
            let words: Vec<u64> =
                padded.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
            let sum = words.chunks(2).enumerate().fold(0_u128, |sum, (i, pair)| {
                let keyed = |j: usize| u128::from(pair[j].wrapping_add(keys.words[2 * i + j]));
                sum.wrapping_add(keyed(0) * keyed(1))
            });
            let product = u128::from(state ^ sum as u64) * u128::from((sum >> 64) as u64 ^ keys.fold);
            product as u64 ^ (product >> 64) as u64
        })
    }

    #[test]
    fn units_of_both_kinds_hash_as_defined_at_every_size() {
        let keys = ChainKeys::new(7, 0);
        for block_size in [1, 2, 3, 4, 5, 16, 63, 64, 65, 130] {
            let tokens: Vec<u32> = (0..block_size as u32 * 3).map(|i| i.wrapping_mul(0x9E37_79B9)).collect();
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            let (mut of_tokens, mut of_bytes) = (Vec::new(), Vec::new());
            keys.extend(keys.root(3), &tokens, block_size, &mut of_tokens);
            keys.extend(keys.root(3), &bytes, block_size * 4, &mut of_bytes);
            let mut state = keys.root(3);
            let plain = bytes.chunks(block_size * 4).map(|block| {
                state = plainly(&keys, state, block);
                BlockHash(state)
            });
            assert_eq!(of_tokens, plain.collect::<Vec<_>>());
            assert_eq!(of_bytes, of_tokens);
        }
    }

    /// Every bit of a block moves about half of the bits of its hash, and of the hash after it.
    #[test]
    fn single_bits_spread() {
        let keys = ChainKeys::new(1, 0);
        let hash = |tokens: &[u32]| {
            let mut hashes = Vec::new();
            keys.extend(keys.root(0), tokens, 16, &mut hashes);
            hashes
        };
        let mut tokens: Vec<u32> = (0..32).map(|i| i * 1_000).collect();
        let before = hash(&tokens);
        let mut moved = [0_u32; 2];
        for bit in 0..16 * 32 {
            tokens[bit / 32] ^= 1 << (bit % 32);
            let after = hash(&tokens);
            for block in 0..2 {
                let changed = (before[block].0 ^ after[block].0).count_ones();
                assert!(changed > 8, "bit {bit} moves {changed} bits of block {block}");
                moved[block] += changed;
            }
            tokens[bit / 32] ^= 1 << (bit % 32);
        }
        for moved in moved {
            let mean = f64::from(moved) / 512.0;
            assert!((30.0..34.0).contains(&mean), "{mean}");
        }
    }
}
