//! Reads the usual list of ids in stretches of some kilobytes, where the processor has AVX-512 as since Ice Lake.
//!
//! A stretch is gone through twice: first for where its numbers end, 64 bytes at a time, then for eight numbers at a time, whose digits are
//! put to where eight digits would end. So nothing waits for where the numbers before have ended. What can be wrong is noted on the way and
//! looked at once, so that there is nothing to guess for the processor.

use std::arch::x86_64::{
    __m512i, _mm256_madd_epi16, _mm256_set1_epi32, _mm512_add_epi8, _mm512_and_si512, _mm512_cmpeq_epi8_mask,
    _mm512_cmpgt_epu8_mask, _mm512_cmple_epu8_mask, _mm512_cmplt_epu8_mask, _mm512_cvtepi32_epi16,
    _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_maskz_compress_epi8, _mm512_maskz_permutexvar_epi8,
    _mm512_max_epu8, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_epi64,
    _mm512_shuffle_epi8, _mm512_sub_epi8, _mm512_testn_epi8_mask,
};

use bytemuck::cast;
use fearless_simd::{Level, kernel};

/// Bytes that are looked at together: for where numbers end, and for the digits of eight.
const BLOCK: usize = 64;

/// Bytes whose numbers are taken together, or not at all.
const STRETCH: usize = 64 * BLOCK;

/// What is needed of a list for eight numbers to be taken.
pub(super) const LEAST: usize = 2 * BLOCK;

/// Where the numbers of a stretch end, in bytes from where it begins, of which only the lowest eight bits are kept. First comes where a number
/// before it would have ended.
struct Ends {
    places: [u8; 1 + STRETCH / 2 + BLOCK],
    /// Numbers.
    count: usize,
}

/// Takes the ids of a list, without its brackets, up to its last few or the first stretch that is not of the usual shape. Returns where
/// that begins.
pub(super) fn read(ids: &mut Vec<u32>, list: &[u8]) -> usize {
    let Some(avx512) = Level::new().as_avx512() else { return 0 };
    let comma = list.iter().position(|byte| *byte == b',');
    let stretch = match comma.and_then(|comma| list.get(comma + 1)) {
        Some(b' ') => after_commas_and_spaces,
        _ => after_commas,
    };
    let mut ends = Ends { places: [0; _], count: 0 };
    let mut at = 0;
    loop {
        let taken = ids.len();
        match stretch(avx512, ids, &mut ends, &list[at..]) {
            Some(0) => return at,
            // A separator that would end beyond the list is none.
            Some(len) if at + len <= list.len() => at += len,
            _ => {
                ids.truncate(taken);
                return at;
            }
        }
    }
}

kernel!(
    fn after_commas(avx512: Avx512, ids: &mut Vec<u32>, ends: &mut Ends, list: &[u8]) -> Option<usize> {
        stretch::<1>(ids, ends, list)
    }
);

kernel!(
    fn after_commas_and_spaces(
        avx512: Avx512,
        ids: &mut Vec<u32>,
        ends: &mut Ends,
        list: &[u8],
    ) -> Option<usize> {
        stretch::<2>(ids, ends, list)
    }
);

/// Takes as many eights as a stretch has, and says how many bytes these are, with their separators. `None`, whatever was taken, where
/// anything is not as usual.
///
/// `SEPARATOR`: bytes from the end of a number to the next one.
#[target_feature(enable = "avx512vbmi,avx512vbmi2,popcnt")]
fn stretch<const SEPARATOR: usize>(ids: &mut Vec<u32>, ends: &mut Ends, list: &[u8]) -> Option<usize> {
    ends.find::<SEPARATOR>(list)?;
    ends.take::<SEPARATOR>(ids, list)
}

impl Ends {
    /// Finds where the numbers of whole blocks end. `None` where anything else than their lengths is not as usual.
    #[inline]
    #[target_feature(enable = "avx512vbmi,avx512vbmi2,popcnt")]
    fn find<const SEPARATOR: usize>(&mut self, list: &[u8]) -> Option<()> {
        self.places[0] = 0_u8.wrapping_sub(SEPARATOR as u8);
        self.count = 0;
        let mut places: __m512i = cast(const { each::<1>() });
        let mut strange = 0;
        // What the block before says about the first bytes of the next one.
        let (mut begins_next, mut comma_before, mut zero_before) = (1, 0, 0);
        let (blocks, _) = list[..list.len().min(STRETCH)].as_chunks::<BLOCK>();
        for block in blocks {
            let bytes = cast(*block);
            let digits = _mm512_sub_epi8(bytes, _mm512_set1_epi8(b'0'.cast_signed()));
            let is_digit = _mm512_cmplt_epu8_mask(digits, _mm512_set1_epi8(10));
            let [commas, spaces] =
                [b',', b' '].map(|byte| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte.cast_signed())));
            // So that lengths of numbers are told by eight bits.
            if commas == 0 {
                return None;
            }
            // A number has a digit, and none after a zero by which it begins.
            let begins = commas << SEPARATOR | begins_next;
            let zeros = begins & _mm512_testn_epi8_mask(digits, digits);
            strange |= begins & !is_digit | (zeros << 1 | zero_before) & is_digit;
            strange |= match SEPARATOR {
                2 => !(is_digit | commas | spaces) | spaces ^ (commas << 1 | comma_before),
                _ => !(is_digit | commas),
            };
            begins_next = commas >> (BLOCK - SEPARATOR);
            (comma_before, zero_before) = (commas >> (BLOCK - 1), zeros >> (BLOCK - 1));
            let room: &mut [u8; BLOCK] = self.places[1 + self.count..].first_chunk_mut()?;
            *room = cast(_mm512_maskz_compress_epi8(commas, places));
            self.count += commas.count_ones() as usize;
            places = _mm512_add_epi8(places, _mm512_set1_epi8(BLOCK as i8));
        }
        (strange == 0).then_some(())
    }

    /// Takes the numbers, eight at a time, and says how many bytes they are. `None` where one has more than eight digits, or eight more
    /// bytes than a block.
    #[inline]
    #[target_feature(enable = "avx512vbmi,avx512vbmi2,popcnt")]
    fn take<const SEPARATOR: usize>(&self, ids: &mut Vec<u32>, list: &[u8]) -> Option<usize> {
        let number: __m512i = cast(const { each::<8>() });
        // From the end of the number before to where a number ends that has each of eight digits.
        let least = [8, 7, 6, 5, 4, 3, 2, 1].map(|digits| digits + SEPARATOR as u8);
        let least = _mm512_set1_epi64(i64::from_le_bytes(least));
        let mut longest = _mm512_set1_epi8(0);
        let (mut at, mut widest) = (0, 0);
        let (before, _) = self.places[..self.count].as_chunks::<8>();
        let (own, _) = self.places[1..=self.count].as_chunks::<8>();
        for (before, own) in before.iter().zip(own) {
            let Some(window) = list.get(at..).and_then(<[u8]>::first_chunk::<BLOCK>) else { break };
            let span = own[7].wrapping_sub(before[0]);
            let [before, own] = [before, own].map(|ends| _mm512_set1_epi64(i64::from_le_bytes(*ends)));
            let lengths = _mm512_shuffle_epi8(_mm512_sub_epi8(own, before), number);
            let first = _mm512_shuffle_epi8(before, _mm512_set1_epi8(0));
            let places = _mm512_sub_epi8(_mm512_sub_epi8(_mm512_shuffle_epi8(own, number), first), least);
            let has_digit = _mm512_cmple_epu8_mask(least, lengths);
            let digits = _mm512_maskz_permutexvar_epi8(has_digit, places, cast(*window));
            let digits = _mm512_and_si512(digits, _mm512_set1_epi8(0xF));
            let pairs = _mm512_maddubs_epi16(digits, _mm512_set1_epi16(10 | 1 << 8));
            let fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(100 | 1 << 16));
            let eights = _mm256_madd_epi16(_mm512_cvtepi32_epi16(fours), _mm256_set1_epi32(10_000 | 1 << 16));
            ids.extend_from_slice(&cast::<_, [u32; 8]>(eights));
            longest = _mm512_max_epu8(longest, lengths);
            widest = span.max(widest);
            at += usize::from(span);
        }
        let too_long = _mm512_cmpgt_epu8_mask(longest, _mm512_set1_epi8((8 + SEPARATOR) as i8));
        (too_long == 0 && usize::from(widest) <= BLOCK + SEPARATOR).then_some(at)
    }
}

/// The numbers of eights or of bytes, each as often as it has bytes.
const fn each<const BYTES: usize>() -> [u8; BLOCK] {
    let (mut numbers, mut at) = ([0; BLOCK], 0);
    while at < BLOCK {
        numbers[at] = (at / BYTES) as u8;
        at += 1;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::super::tests::usual_lists_are_read_but_for_less_than;
    use super::*;

    #[test]
    fn usual_lists_are_read_but_for_their_last_few() {
        if Level::new().as_avx512().is_none() {
            eprintln!("not tested: this processor has no AVX-512");
            return;
        }
        usual_lists_are_read_but_for_less_than(LEAST, read);
    }

    #[test]
    fn a_comma_at_the_end_is_left_wherever_that_is() {
        for last in ["1234567", "12345", "1"] {
            for count in 1..60 {
                for separator in [",", ", "] {
                    let list = ["123456", separator].concat().repeat(count) + last + ",";
                    let at = read(&mut Vec::new(), list.as_bytes());
                    assert!(at < list.len() || separator == "," && at == list.len(), "{at} of {list:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_of_any_length_are_taken_for_no_others() {
        for digits in 9..600 {
            for before in [0, 7, 8, 20] {
                let long = "1".repeat(digits);
                let list = [vec!["23456"; before], vec![&long], vec!["23456"; 60]].concat().join(",");
                let at = read(&mut Vec::new(), list.as_bytes());
                assert!(at <= 6 * before, "{at} before {digits} digits after {before} numbers");
            }
        }
    }
}
