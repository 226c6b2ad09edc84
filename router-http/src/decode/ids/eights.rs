//! Reads the usual list of ids eight numbers at a time, where the processor has AVX2.
//!
//! Eight numbers with what separates them are usually within 64 bytes, whose commas are found at once. Eight bytes from where a number begins
//! are then shifted so that its last digit comes last, which makes all numbers eight digits long, and the eight are added up together. What
//! can be wrong is noted on the way and looked at once, at the end of a stretch, so that there is nothing to guess for the processor.

use std::arch::x86_64::{
    __m256i, _mm_cvtsi64_si128, _mm_insert_epi64, _mm256_add_epi32, _mm256_and_si256, _mm256_andnot_si256,
    _mm256_broadcastsi128_si256, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmpeq_epi8,
    _mm256_cmpgt_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_movemask_epi8, _mm256_or_si256,
    _mm256_packus_epi32, _mm256_permutevar8x32_epi32, _mm256_sad_epu8, _mm256_set_m128i, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_shuffle_ps, _mm256_sllv_epi64, _mm256_srli_epi32, _mm256_sub_epi64, _mm256_testz_si256,
    _mm256_xor_si256,
};

use bytemuck::cast;
use fearless_simd::{Level, kernel};

/// Bytes in which eight numbers are looked for.
const BLOCK: usize = 64;

/// What is needed of a list for that: the eight bytes of a number may go beyond its block.
pub(super) const WINDOW: usize = BLOCK + 16;

/// What eight numbers of five digits take, which are usual.
const USUAL: usize = 48;

/// Eights that are taken together, or not at all.
const STRETCH: usize = 64;

/// What may be wrong with numbers.
struct Doubts {
    /// Not 0 where a byte is neither a digit nor a separator.
    strangers: __m256i,
    /// Not 0 where a number is less than its digits allow: it begins with a zero, or has no digit.
    small: __m256i,
    /// Eight times the digits by which numbers are shorter than eight, in eight parts. Of a longer one it knows no more than eight digits.
    missing: __m256i,
    /// Spaces that do not follow a comma, and commas that no space follows.
    spaces: u64,
}

/// Takes the ids of a list, without its brackets, up to its last window or the first stretch that is not of the usual shape. Returns where
/// that begins.
pub(super) fn read(ids: &mut Vec<u32>, list: &[u8]) -> usize {
    let Some(avx2) = Level::new().as_avx2() else { return 0 };
    let comma = list.iter().position(|byte| *byte == b',');
    let stretch = match comma.and_then(|comma| list.get(comma + 1)) {
        Some(b' ') => after_commas_and_spaces,
        _ => after_commas,
    };
    let mut at = 0;
    loop {
        let (rest, taken) = (&list[at..], ids.len());
        ids.resize(taken + 8 * (rest.len() / USUAL + 1).min(STRETCH), 0);
        let (eights, _) = ids[taken..].as_chunks_mut();
        let (count, len) = stretch(avx2, eights, rest).unwrap_or_default();
        ids.truncate(taken + count);
        at += len;
        if count == 0 {
            return at;
        }
    }
}

kernel!(
    fn after_commas(avx2: Avx2, eights: &mut [[u32; 8]], list: &[u8]) -> Option<(usize, usize)> {
        stretch::<1>(eights, list)
    }
);

kernel!(
    fn after_commas_and_spaces(avx2: Avx2, eights: &mut [[u32; 8]], list: &[u8]) -> Option<(usize, usize)> {
        stretch::<2>(eights, list)
    }
);

/// Reads as many eights as there is room for, and says how many numbers these are and how many bytes, with their separators. `None`
/// where one is not as usual.
///
/// `SEPARATOR`: bytes from the end of a number to the next one.
#[target_feature(enable = "avx2,bmi1")]
fn stretch<const SEPARATOR: usize>(eights: &mut [[u32; 8]], list: &[u8]) -> Option<(usize, usize)> {
    let mut doubts = Doubts::none();
    let (mut rest, mut count) = (list, 0);
    for numbers in eights {
        let Some(window) = rest.first_chunk() else { break };
        let Some(len) = doubts.read::<SEPARATOR>(window, numbers) else { break };
        rest = &rest[len..];
        count += 8;
    }
    let len = list.len() - rest.len();
    // Of numbers without any digit there may be fewer bytes than separators take.
    doubts.are_none(count, len.checked_sub(count * SEPARATOR)?).then_some((count, len))
}

impl Doubts {
    #[inline]
    #[target_feature(enable = "avx2,bmi1")]
    fn none() -> Self {
        let nothing = _mm256_setzero_si256();
        Self { strangers: nothing, small: nothing, missing: nothing, spaces: 0 }
    }

    /// Reads eight numbers. Returns the bytes that they take, with their separators; `None` if they do not end in the first block.
    #[inline]
    #[target_feature(enable = "avx2,bmi1")]
    fn read<const SEPARATOR: usize>(
        &mut self,
        window: &[u8; WINDOW],
        numbers: &mut [u32; 8],
    ) -> Option<usize> {
        let mut commas = self.commas::<SEPARATOR>(window.first_chunk()?);
        let (mut start, mut last) = (0, 0);
        let texts: [u64; 8] = std::array::from_fn(|_| {
            let eight = std::array::from_fn(|place| window[start + place]);
            last = commas;
            start = commas.trailing_zeros() as usize + SEPARATOR;
            commas &= commas.wrapping_sub(1);
            u64::from_le_bytes(eight)
        });
        if last == 0 {
            return None;
        }
        // So that packing, which goes by half registers, has them in order.
        let [a, b, c, d, e, f, g, h] = texts.map(u64::cast_signed);
        let ((low, low_missing), (high, high_missing)) = (fours([a, b, e, f]), fours([c, d, g, h]));
        let fours = _mm256_packus_epi32(low, high);
        let values = _mm256_madd_epi16(fours, _mm256_set1_epi32(10_000 | 1 << 16));
        *numbers = cast(values);
        self.look_at(values, even(low_missing, high_missing));
        Some(start)
    }

    /// A bit for each comma by which a number ends.
    #[inline]
    #[target_feature(enable = "avx2,bmi1")]
    fn commas<const SEPARATOR: usize>(&mut self, block: &[u8; BLOCK]) -> u64 {
        // By the low half of a byte, what it is if it is usual.
        let usual = _mm256_broadcastsi128_si256(cast(*b"0123456789\0\0,\0\0\0"));
        let halves: [__m256i; 2] = cast(*block);
        let [commas, spaces] = [b',', b' '].map(|byte| halves.map(|half| equal(half, byte)));
        for (half, spaces) in halves.into_iter().zip(spaces) {
            let strange = _mm256_xor_si256(half, _mm256_shuffle_epi8(usual, half));
            let strange = if SEPARATOR == 2 { _mm256_andnot_si256(spaces, strange) } else { strange };
            self.strangers = _mm256_or_si256(self.strangers, strange);
        }
        let commas = bits(commas);
        if SEPARATOR == 2 {
            self.spaces |= bits(spaces) ^ commas << 1;
        }
        // What separates is to be within the block.
        commas & u64::MAX >> (SEPARATOR - 1)
    }

    /// Notes what may be wrong with eight numbers. `missing`: eight times the digits by which each is shorter than eight.
    #[inline]
    #[target_feature(enable = "avx2,bmi1")]
    fn look_at(&mut self, numbers: __m256i, missing: __m256i) {
        // Without any digit it is as if there were eight.
        let least = _mm256_setr_epi32(10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10, 0);
        let least = _mm256_permutevar8x32_epi32(least, _mm256_srli_epi32::<3>(missing));
        self.small = _mm256_or_si256(self.small, _mm256_cmpgt_epi32(least, numbers));
        self.missing = _mm256_add_epi32(self.missing, missing);
    }

    /// `digits`: what `count` numbers have.
    #[inline]
    #[target_feature(enable = "avx2,bmi1")]
    fn are_none(&self, count: usize, digits: usize) -> bool {
        let missing: [u32; 8] = cast(self.missing);
        let missing = missing.iter().sum::<u32>() as usize / 8;
        let doubtful = _mm256_or_si256(self.strangers, self.small);
        _mm256_testz_si256(doubtful, doubtful) == 1 && self.spaces == 0 && digits + missing == 8 * count
    }
}

/// The two numbers of four digits that each of four numbers consists of, and eight times the digits by which these are shorter than eight.
#[inline]
#[target_feature(enable = "avx2,bmi1")]
fn fours([a, b, c, d]: [i64; 4]) -> (__m256i, __m256i) {
    let [low, high] = [[a, b], [c, d]].map(|[a, b]| _mm_insert_epi64::<1>(_mm_cvtsi64_si128(a), b));
    let texts = _mm256_set_m128i(high, low);
    let commas = equal(texts, b',');
    let nothing = _mm256_setzero_si256();
    // All bits from the first comma on.
    let other = _mm256_or_si256(commas, _mm256_sub_epi64(nothing, commas));
    let missing = _mm256_sad_epu8(_mm256_and_si256(other, _mm256_set1_epi8(8)), nothing);
    let digits = _mm256_sllv_epi64(_mm256_and_si256(texts, _mm256_set1_epi8(0xF)), missing);
    let pairs = _mm256_maddubs_epi16(digits, _mm256_set1_epi16(10 | 1 << 8));
    (_mm256_madd_epi16(pairs, _mm256_set1_epi32(100 | 1 << 16)), missing)
}

/// Each second one of eight and of eight others, in fours.
#[inline]
#[target_feature(enable = "avx2,bmi1")]
fn even(low: __m256i, high: __m256i) -> __m256i {
    _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(
        _mm256_castsi256_ps(low),
        _mm256_castsi256_ps(high),
    ))
}

/// 0xFF for each byte that is `byte`.
#[inline]
#[target_feature(enable = "avx2,bmi1")]
fn equal(bytes: __m256i, byte: u8) -> __m256i {
    _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(byte.cast_signed()))
}

/// A bit for each byte.
#[inline]
#[target_feature(enable = "avx2,bmi1")]
fn bits(halves: [__m256i; 2]) -> u64 {
    let [low, high] = halves.map(|half| _mm256_movemask_epi8(half).cast_unsigned());
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use super::super::tests::usual_lists_are_read_but_for_less_than;
    use super::*;

    #[test]
    fn usual_lists_are_read_but_for_their_last_window() {
        if Level::new().as_avx2().is_none() {
            eprintln!("not tested: this processor has no AVX2");
            return;
        }
        usual_lists_are_read_but_for_less_than(WINDOW, read);
    }
}
