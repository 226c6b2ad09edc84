//! One coded symbol, and its bytes.

use super::SketchError;
use super::mapping::Mapping;

/// Bytes of a symbol on the wire.
///
/// Eight for the sum of the hashes, and four for the sum of their tags: 24 bits of check, 8 of number. A symbol is taken for a
/// single hash if its tag is that hash's and the hash maps there, and a round ends only when nothing at all is left of any symbol.
/// So a wrong guess, of one in 2^24 symbols, makes a round fail and cannot make it lie.
pub const SYMBOL_BYTES: usize = 12;

/// A sum over hashes. Everything wraps: what is added can be taken out again in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    sum: u64,
    tags: u32,
}

impl Symbol {
    #[inline]
    pub(super) fn add(&mut self, hash: u64, mapping: Mapping) {
        self.sum = self.sum.wrapping_add(hash);
        self.tags = self.tags.wrapping_add(mapping.tag());
    }

    #[inline]
    pub(super) fn take(&mut self, hash: u64, mapping: Mapping) {
        self.sum = self.sum.wrapping_sub(hash);
        self.tags = self.tags.wrapping_sub(mapping.tag());
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self { sum: self.sum.wrapping_sub(other.sum), tags: self.tags.wrapping_sub(other.tags) }
    }

    /// No hash is left in it.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The number of hashes, those taken out counted below zero; the remainder of more than fits.
    pub(super) fn count(self) -> i8 {
        self.tags as i8
    }

    /// The only hash in it, if it looks as if there were one, and whether it was added rather than taken out.
    pub(super) fn only(self, salt: u64) -> Option<(u64, bool)> {
        let (hash, tag, added) = match self.count() {
            1 => (self.sum, self.tags, true),
            -1 => (self.sum.wrapping_neg(), self.tags.wrapping_neg(), false),
            _ => return None,
        };
        (hash != 0 && Mapping::new(salt, hash).tag() == tag).then_some((hash, added))
    }

    /// Appends the bytes of a symbol.
    pub fn write(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.sum.to_le_bytes());
        bytes.extend_from_slice(&self.tags.to_le_bytes());
    }

    /// The symbols that some bytes are.
    ///
    /// # Errors
    /// If they are not whole symbols.
    pub fn read(bytes: &[u8]) -> Result<Vec<Self>, SketchError> {
        if !bytes.len().is_multiple_of(SYMBOL_BYTES) {
            return Err(SketchError::Length { bytes: bytes.len() });
        }
        let symbol = |bytes: &[u8]| {
            let (mut sum, mut tags) = ([0; 8], [0; 4]);
            sum.copy_from_slice(&bytes[..8]);
            tags.copy_from_slice(&bytes[8..]);
            Self { sum: u64::from_le_bytes(sum), tags: u32::from_le_bytes(tags) }
        };
        Ok(bytes.chunks_exact(SYMBOL_BYTES).map(symbol).collect())
    }
}
