//! Reads the usual list of ids a kilobyte at a time.
//!
//! Where numbers end is found for 64 bytes at once. Eight bytes from where a number begins are then shifted so that its last digit comes
//! last, which makes all numbers eight digits long, and four of them are added up together. What can be wrong is noted on the way and looked at
//! once, at the end of a window, so that there is nothing to guess for the processor.

use wide::bytemuck::cast;
use wide::{i16x8, i32x4, u8x16, u16x8};

/// Bytes whose commas are found at once.
const BLOCK: usize = 64;

/// Bytes that are read at once.
pub(super) const WINDOW: usize = 16 * BLOCK;

/// Commas that are noted together, be there so many or fewer.
const STRIDE: usize = 4;

/// What is written down while a window is read.
struct Notes {
    /// Where its numbers end: a digit and a comma each, and one stride more.
    ends: [u32; WINDOW / 2 + STRIDE],
    numbers: [[u32; 4]; WINDOW / 8],
}

/// What may be wrong with numbers.
struct Doubts {
    /// The largest digit in each place, of whatever was taken for a digit.
    largest: u8x16,
    /// Minus the lengths of numbers, all in one by `&`: of lengths from 1 to 8 it is at least −8 and below 0.
    lengths: i32,
    /// What follows zeros that numbers begin with, and is no comma.
    leading_zeros: u64,
    /// Spaces that do not follow a comma, and commas that no space follows.
    spaces: u64,
}

/// Takes the ids of a list, without its brackets, up to the first window that is not of the usual shape. Returns where that begins: beyond the
/// list if there is none.
pub(super) fn read(ids: &mut Vec<u32>, list: &[u8]) -> usize {
    let comma = list.iter().position(|byte| *byte == b',');
    match comma.and_then(|comma| list.get(comma + 1)) {
        Some(b' ') => all::<2>(ids, list),
        _ => all::<1>(ids, list),
    }
}

/// `SEPARATOR`: bytes from the end of a number to the next one.
fn all<const SEPARATOR: usize>(ids: &mut Vec<u32>, list: &[u8]) -> usize {
    let mut notes = Notes { ends: [0; _], numbers: [[0; 4]; _] };
    let mut padded = [0; WINDOW + 8];
    let mut at = 0;
    // Where a separator would be is the end of the list.
    while let Some(rest) = list.get(at..) {
        let window = match rest.first_chunk() {
            Some(window) => window,
            None => {
                pad::<SEPARATOR>(&mut padded, rest);
                &padded
            }
        };
        let Some(taken) = notes.take::<SEPARATOR>(ids, window, rest.len()) else { break };
        at += taken;
    }
    at
}

/// The end of a list, and usual numbers after it.
fn pad<const SEPARATOR: usize>(padded: &mut [u8; WINDOW + 8], list: &[u8]) {
    let (own, rest) = padded.split_at_mut(list.len());
    own.copy_from_slice(list);
    let more = if SEPARATOR == 2 { b", 111111" } else { b",1111111" };
    rest.chunks_mut(more.len()).for_each(|rest| rest.copy_from_slice(&more[..rest.len()]));
}

impl Notes {
    /// Takes the numbers that end in the window and not after `len`; up to three may be left. Returns the bytes that they take,
    /// with their separators. `None`, and nothing is taken, where there are none or one is not as usual.
    fn take<const SEPARATOR: usize>(
        &mut self,
        ids: &mut Vec<u32>,
        window: &[u8; WINDOW + 8],
        len: usize,
    ) -> Option<usize> {
        let mut doubts = Doubts::default();
        let count = self.find_ends::<SEPARATOR>(window, &mut doubts)?;
        let ends = &self.ends[..count];
        let wanted = ends.partition_point(|end| *end as usize <= len);
        let (fours, _) = ends.as_chunks::<4>();
        let fours = &fours[..wanted.div_ceil(4).min(fours.len())];
        let mut start = 0;
        for (ends, numbers) in fours.iter().zip(&mut self.numbers) {
            let digits = ends.map(|end| {
                let digits = doubts.digits(window, start, end);
                start = end + SEPARATOR as u32;
                digits
            });
            *numbers = doubts.numbers(digits);
        }
        let taken = wanted.min(4 * fours.len());
        let last = ends[..taken].last().filter(|_| doubts.are_none())?;
        ids.extend_from_slice(&self.numbers.as_flattened()[..taken]);
        Some(*last as usize + SEPARATOR)
    }

    /// Notes where the numbers of a window end; how many. `None` if there are too many commas for numbers between them.
    fn find_ends<const SEPARATOR: usize>(
        &mut self,
        window: &[u8; WINDOW + 8],
        doubts: &mut Doubts,
    ) -> Option<usize> {
        let (blocks, _) = window[..WINDOW].as_chunks::<BLOCK>();
        let mut count = 0;
        let (mut begins, mut last_zero, mut last_comma) = (1, 0, 0);
        for (base, block) in (0_u32..).step_by(BLOCK).zip(blocks) {
            let mut commas = each(block, b',');
            let first_digits = commas << SEPARATOR | begins;
            begins = commas >> (BLOCK - SEPARATOR);
            let zeros = each(block, b'0') & first_digits;
            doubts.leading_zeros |= (zeros << 1 | last_zero) & !commas;
            last_zero = zeros >> (BLOCK - 1);
            if SEPARATOR == 2 {
                doubts.spaces |= each(block, b' ') ^ (commas << 1 | last_comma);
                last_comma = commas >> (BLOCK - 1);
            }
            let found = commas.count_ones() as usize;
            for ends in self.ends.get_mut(count..)?.as_chunks_mut::<STRIDE>().0 {
                if commas == 0 {
                    break;
                }
                for end in ends {
                    // There may be no comma left: then the next block's ends take its place.
                    *end = base | (commas | 1 << 63).trailing_zeros();
                    commas &= commas.wrapping_sub(1);
                }
            }
            if commas != 0 {
                return None;
            }
            count += found;
        }
        if SEPARATOR == 2 {
            doubts.spaces |= last_comma & u64::from(window[WINDOW] != b' ');
        }
        (count <= WINDOW / 2).then_some(count)
    }
}

/// A bit for each of the block's bytes that is `byte`.
#[inline]
fn each(block: &[u8; BLOCK], byte: u8) -> u64 {
    let (quarters, _) = block.as_chunks::<16>();
    quarters.iter().rev().fold(0, |bits, quarter| {
        let here = u8x16::new(*quarter).simd_eq(u8x16::splat(byte)).to_bitmask();
        bits << 16 | u64::from(here)
    })
}

impl Doubts {
    /// The eight digits of a number, the first in the lowest byte.
    #[inline]
    fn digits(&mut self, window: &[u8; WINDOW + 8], start: u32, end: u32) -> u64 {
        const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);
        // It is not beyond the window; the compiler is to see it.
        let from = start as usize % WINDOW;
        let eight: [u8; 8] = std::array::from_fn(|place| window[from + place]);
        let length = start.wrapping_sub(end);
        self.lengths &= length.cast_signed();
        // What follows the number is shifted out.
        (u64::from_le_bytes(eight) ^ ZEROS) << (length.wrapping_mul(8) % 64)
    }

    /// The numbers that digits stand for.
    #[inline]
    fn numbers(&mut self, [a, b, c, d]: [u64; 4]) -> [u32; 4] {
        let fours: [i32x4; 2] = [self.fours([a, b]), self.fours([c, d])];
        let fours = i16x8::from_i32x8_saturate(cast(fours));
        let numbers = fours.dot(i16x8::new([10_000, 1, 10_000, 1, 10_000, 1, 10_000, 1]));
        numbers.to_array().map(i32::cast_unsigned)
    }

    /// The two numbers of four digits that each number of eight consists of.
    #[inline]
    fn fours(&mut self, digits: [u64; 2]) -> i32x4 {
        let digits: u8x16 = cast(digits.map(u64::to_le));
        self.largest = self.largest.max(digits);
        let digits: u16x8 = cast(digits);
        // The first of two digits is in the low byte.
        let pairs = (digits & u16x8::splat(0xFF)) * u16x8::splat(10) + (digits >> 8_u32);
        let pairs: i16x8 = cast(pairs);
        pairs.dot(i16x8::new([100, 1, 100, 1, 100, 1, 100, 1]))
    }

    fn are_none(&self) -> bool {
        let are_digits = self.largest.to_array().iter().all(|digit| *digit <= 9);
        are_digits && (-8..0).contains(&self.lengths) && self.leading_zeros == 0 && self.spaces == 0
    }
}

impl Default for Doubts {
    fn default() -> Self {
        Self { largest: u8x16::splat(0), lengths: -1, leading_zeros: 0, spaces: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of a list that is of the usual shape throughout.
    fn read_of(list: &str) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        (read(&mut ids, list.as_bytes()) > list.len()).then_some(ids)
    }

    #[test]
    fn usual_lists_are_read_to_their_ends() {
        for separator in [",", ", "] {
            for most in [1, 9, 99_999, 99_999_999] {
                let ids: Vec<u32> =
                    (1..2_000_u32).map(|i| i.wrapping_mul(2_654_435_761) % (most + 1)).collect();
                let texts: Vec<String> = ids.iter().map(u32::to_string).collect();
                for count in (1..400).chain([1_999]) {
                    let expected = Some(ids[..count].to_vec());
                    assert_eq!(
                        read_of(&texts[..count].join(separator)),
                        expected,
                        "{count} with {separator:?}"
                    );
                }
            }
        }
    }
}
