//! Digests of sets of block hashes, to estimate how far two sets differ.

use std::fmt;

use crate::key::BlockHash;

/// Digest of a set of block hashes: 256 buckets by the top 8 bits, each the wrapping sum of the low 16 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct SetDigest {
    /// Blocks in the set.
    pub blocks: u64,
    /// The sums.
    pub buckets: Box<[u16; 256]>,
}

impl SetDigest {
    /// The digest of the empty set.
    pub fn empty() -> Self {
        Self { blocks: 0, buckets: Box::new([0; 256]) }
    }

    /// Adds a hash.
    pub fn add(&mut self, hash: BlockHash) {
        self.blocks = self.blocks.wrapping_add(1);
        let bucket = &mut self.buckets[(hash.get() >> 56) as usize];
        *bucket = bucket.wrapping_add(hash.get() as u16);
    }

    /// Takes a hash out that had been added.
    pub fn remove(&mut self, hash: BlockHash) {
        self.blocks = self.blocks.wrapping_sub(1);
        let bucket = &mut self.buckets[(hash.get() >> 56) as usize];
        *bucket = bucket.wrapping_sub(hash.get() as u16);
    }

    /// Estimated number of hashes that are in one set and not in the other.
    ///
    /// By linear counting (Whang et al. 1990) over the buckets that differ, `−256 · ln(1 − differing/256)`, and never less
    /// than the difference of the sizes. With nearly all buckets differing it is a lower bound.
    pub fn difference(&self, other: &Self) -> u64 {
        let differing = self.buckets.iter().zip(other.buckets.iter()).filter(|(a, b)| a != b).count();
        let share = (differing as f64 / 256.0).min(255.5 / 256.0);
        let counted = (-256.0 * (1.0 - share).ln()).round() as u64;
        counted.max(self.blocks.abs_diff(other.blocks))
    }
}

impl fmt::Debug for SetDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetDigest").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(values: impl Iterator<Item = u64>) -> SetDigest {
        let mut digest = SetDigest::empty();
        let hash = |v: u64| xxhash_rust::xxh3::xxh3_64(&v.to_le_bytes());
        values.for_each(|v| digest.add(BlockHash::new(hash(v)).unwrap()));
        digest
    }

    #[test]
    fn equal_sets_do_not_differ_in_any_order() {
        assert_eq!(digest(0..1000).difference(&digest((0..1000).rev())), 0);
    }

    #[test]
    fn differences_are_estimated_on_both_sides() {
        for changed in [1_u64, 10, 100, 250] {
            let estimate = digest(0..10_000).difference(&digest(changed..10_000 + changed)) as f64;
            let truth = 2.0 * changed as f64;
            assert!((estimate / truth - 1.0).abs() < 0.25 + 1.0 / truth, "{changed}: {estimate}");
        }
    }

    #[test]
    fn what_is_taken_out_leaves_no_trace() {
        let mut some = digest(0..100);
        let hash = BlockHash::new(42).unwrap();
        some.add(hash);
        some.remove(hash);
        assert_eq!(some, digest(0..100));
    }
}
