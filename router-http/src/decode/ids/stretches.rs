//! Reads the usual list of ids in stretches of some kilobytes, where the processor has AVX-512 as since Ice Lake.
//!
//! A stretch is gone through twice: first for where its numbers end, 64 bytes at a time, then for sixteen numbers at a time, whose digits
//! are put to where three digits would end, and the three before these: six are enough for any vocabulary. So nothing waits for where the
//! numbers before have ended. What can be wrong is noted on the way and looked at once, so that there is nothing to guess for the processor.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi8, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_cmpeq_epi8_mask,
    _mm512_cmpgt_epu8_mask, _mm512_cmple_epu8_mask, _mm512_cmplt_epu32_mask, _mm512_dpbusd_epi32,
    _mm512_madd_epi16, _mm512_mask_max_epu8, _mm512_maskz_compress_epi8, _mm512_maskz_permutex2var_epi8,
    _mm512_max_epu8, _mm512_min_epu8, _mm512_permutexvar_epi32, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_shuffle_epi8, _mm512_sub_epi8,
};

use bytemuck::cast;
use fearless_simd::{Level, kernel};

/// Bytes that are looked at together for where numbers end. Two of them hold sixteen numbers.
const BLOCK: usize = 64;

/// Bytes whose numbers are taken together, or not at all.
const STRETCH: usize = 64 * BLOCK;

/// What is needed of a list for sixteen numbers to be taken.
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

/// Takes as many sixteens as a stretch has, and says how many bytes these are, with their separators. `None`, whatever was taken, where
/// anything is not as usual.
///
/// `SEPARATOR`: bytes from the end of a number to the next one.
#[target_feature(enable = "avx512vbmi,avx512vbmi2,avx512vnni,popcnt")]
fn stretch<const SEPARATOR: usize>(ids: &mut Vec<u32>, ends: &mut Ends, list: &[u8]) -> Option<usize> {
    ends.find::<SEPARATOR>(list)?;
    ends.take::<SEPARATOR>(ids, list)
}

impl Ends {
    /// Finds where the numbers of whole blocks end. `None` where there is anything but digits between separators, or a
    /// block without any.
    #[inline]
    #[target_feature(enable = "avx512vbmi,avx512vbmi2,popcnt")]
    fn find<const SEPARATOR: usize>(&mut self, list: &[u8]) -> Option<()> {
        self.places[0] = 0_u8.wrapping_sub(SEPARATOR as u8);
        self.count = 0;
        let mut places: __m512i = cast(const { each::<1>() });
        let (mut strange, mut greatest) = (0, _mm512_set1_epi8(0));
        // The block before ends with one.
        let mut comma_before = 0;
        let (blocks, _) = list[..list.len().min(STRETCH)].as_chunks::<BLOCK>();
        for block in blocks {
            let bytes = cast(*block);
            let digits = _mm512_sub_epi8(bytes, _mm512_set1_epi8(b'0'.cast_signed()));
            let [commas, spaces] =
                [b',', b' '].map(|byte| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte.cast_signed())));
            // So that lengths of numbers are told by eight bits.
            if commas == 0 {
                return None;
            }
            let separators = if SEPARATOR == 2 { commas | spaces } else { commas };
            greatest = _mm512_mask_max_epu8(greatest, !separators, greatest, digits);
            if SEPARATOR == 2 {
                strange |= spaces ^ (commas << 1 | comma_before);
                comma_before = commas >> (BLOCK - 1);
            }
            let room: &mut [u8; BLOCK] = self.places[1 + self.count..].first_chunk_mut()?;
            *room = cast(_mm512_maskz_compress_epi8(commas, places));
            self.count += commas.count_ones() as usize;
            places = _mm512_add_epi8(places, _mm512_set1_epi8(BLOCK as i8));
        }
        // What follows the last comma is left for others, but not the space that belongs to it.
        if SEPARATOR == 2 && comma_before == 1 {
            strange |= u64::from(list.get(BLOCK * blocks.len()) != Some(&b' '));
        }
        let no_digits = _mm512_cmpgt_epu8_mask(greatest, _mm512_set1_epi8(9));
        (strange | no_digits == 0).then_some(())
    }

    /// Takes the numbers, sixteen at a time, and says how many bytes they are. `None` where one has no digit, more than six, or a zero
    /// before others.
    #[inline]
    #[target_feature(enable = "avx512vbmi,avx512vbmi2,avx512vnni,popcnt")]
    fn take<const SEPARATOR: usize>(&self, ids: &mut Vec<u32>, list: &[u8]) -> Option<usize> {
        let number: __m512i = cast(const { each::<4>() });
        // From the end of the number before to where a number ends that has each of three digits, and of the three before these.
        let [lower, upper] = [[4_u8, 3, 2, 1], [7, 6, 5, 4]].map(|digits| {
            _mm512_set1_epi32(i32::from_le_bytes(digits.map(|digits| digits + SEPARATOR as u8)))
        });
        let weights = _mm512_set1_epi32(i32::from_le_bytes([0, 100, 10, 1]));
        let least: __m512i = cast(const { least::<SEPARATOR>() });
        let (mut longest, mut shortest, mut too_small) = (_mm512_set1_epi8(0), _mm512_set1_epi8(-1), 0);
        let mut at = 0;
        let (before, _) = self.places[..self.count].as_chunks::<16>();
        let (own, _) = self.places[1..=self.count].as_chunks::<16>();
        // Room for all at once, instead of for each sixteen.
        let (had, mut taken) = (ids.len(), 0);
        ids.resize(had + 16 * own.len(), 0);
        let (room, _) = ids[had..].as_chunks_mut::<16>();
        for ((before, own), room) in before.iter().zip(own).zip(room) {
            let Some(window) = list.get(at..).and_then(<[u8]>::first_chunk::<{ 2 * BLOCK }>) else { break };
            let span = own[15].wrapping_sub(before[0]);
            let first = _mm512_set1_epi8(before[0].cast_signed());
            let [before, own] = [before, own].map(|ends| _mm512_broadcast_i32x4(cast(*ends)));
            let lengths = _mm512_sub_epi8(own, before);
            longest = _mm512_max_epu8(longest, lengths);
            shortest = _mm512_min_epu8(shortest, lengths);
            let lengths = _mm512_shuffle_epi8(lengths, number);
            let ends = _mm512_sub_epi8(_mm512_shuffle_epi8(own, number), first);
            let [front, back]: [[u8; BLOCK]; 2] = cast(*window);
            let [lower, upper] = [lower, upper].map(|least| {
                let has_digit = _mm512_cmple_epu8_mask(least, lengths);
                let places = _mm512_sub_epi8(ends, least);
                let digits = _mm512_maskz_permutex2var_epi8(has_digit, cast(front), places, cast(back));
                _mm512_and_si512(digits, _mm512_set1_epi8(0xF))
            });
            let upper = _mm512_dpbusd_epi32(_mm512_set1_epi8(0), upper, weights);
            let thousands = _mm512_madd_epi16(upper, _mm512_set1_epi32(1000));
            let numbers = _mm512_dpbusd_epi32(thousands, lower, weights);
            too_small |= _mm512_cmplt_epu32_mask(numbers, _mm512_permutexvar_epi32(lengths, least));
            *room = cast(numbers);
            taken += 16;
            at += usize::from(span);
        }
        ids.truncate(had + taken);
        let too_long = _mm512_cmpgt_epu8_mask(longest, _mm512_set1_epi8((6 + SEPARATOR) as i8));
        let too_short = _mm512_cmple_epu8_mask(shortest, _mm512_set1_epi8(SEPARATOR as i8));
        (too_long | too_short == 0 && too_small == 0).then_some(at)
    }
}

/// By the length of a number and its separator, of which the lowest four bits are looked at: the least that it can be.
const fn least<const SEPARATOR: usize>() -> [u32; BLOCK / 4] {
    let mut least = [0; BLOCK / 4];
    let (mut digits, mut power) = (2, 10);
    while digits <= 6 {
        least[digits + SEPARATOR] = power;
        (digits, power) = (digits + 1, 10 * power);
    }
    least
}

/// The numbers of fours or of bytes, each as often as it has bytes.
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
    fn a_zero_before_others_and_no_number_are_seen_wherever_they_are() {
        for separator in [",", ", "] {
            for strange in ["", "00", "07", "012345"] {
                for before in 0..40 {
                    let mut numbers = vec!["23456"; 60];
                    numbers[before] = strange;
                    let mut ids = Vec::new();
                    read(&mut ids, numbers.join(separator).as_bytes());
                    assert!(ids.len() <= before, "{strange:?} after {before} with {separator:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_of_any_length_are_taken_for_no_others() {
        for digits in 7..600 {
            for before in [0, 7, 8, 20] {
                let long = "1".repeat(digits);
                let list = [vec!["23456"; before], vec![&long], vec!["23456"; 60]].concat().join(",");
                let at = read(&mut Vec::new(), list.as_bytes());
                assert!(at <= 6 * before, "{at} before {digits} digits after {before} numbers");
            }
        }
    }
}
