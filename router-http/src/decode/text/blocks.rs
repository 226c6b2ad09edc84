//! Undoes escapes 64 bytes at a time, where the processor has AVX-512 as since Ice Lake.
//!
//! The bytes that are escaped become what they stand for, and what is left without the backslashes is packed. There is no branch on the way, so
//! that it takes the same however often the short ones come; one with `u` is left to the caller.

use std::arch::x86_64::{
    _mm512_cmpeq_epi8_mask, _mm512_mask_mov_epi8, _mm512_mask_testn_epi8_mask, _mm512_maskz_compress_epi8,
    _mm512_movepi8_mask, _mm512_permutex2var_epi8, _mm512_set1_epi8,
};

use bytemuck::cast;
use fearless_simd::{Level, kernel};

use super::{MOST_BLOCK, STANDS_FOR, make_room};

/// Bytes that are looked at at once.
const BLOCK: usize = MOST_BLOCK;

/// Takes what a string goes on with, up to its end, its first unusual escape or its last block. Returns how many bytes that was written with;
/// 0 where the processor cannot.
pub(super) fn take(text: &mut Vec<u8>, string: &[u8]) -> usize {
    match Level::new().as_avx512() {
        Some(avx512) if string.len() >= BLOCK => blocks(avx512, text, string),
        _ => 0,
    }
}

kernel!(
    fn blocks(avx512: Avx512, text: &mut Vec<u8>, string: &[u8]) -> usize {
        let [low, high] = const { stand_for() }.map(cast);
        let mut read = 0;
        // Whether the byte before the block escapes its first one.
        let mut carry = 0;
        while let Some(block) = string.get(read..).and_then(<[u8]>::first_chunk::<BLOCK>) {
            let bytes = cast(*block);
            let [quotes, backslashes] =
                [b'"', b'\\'].map(|byte| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte.cast_signed())));
            let escaped = escaped(backslashes, carry);
            let escapes = backslashes & !escaped;
            // By its low seven bits.
            let meant = _mm512_permutex2var_epi8(low, bytes, high);
            let unusual =
                _mm512_mask_testn_epi8_mask(escaped, meant, meant) | escaped & _mm512_movepi8_mask(bytes);
            let end = (quotes & !escaped | unusual).trailing_zeros();
            let before_end = 1_u64.checked_shl(end).map_or(u64::MAX, |end| end - 1);
            let kept = !escapes & before_end;
            let packed = _mm512_maskz_compress_epi8(kept, _mm512_mask_mov_epi8(bytes, escaped, meant));
            make_room(text, string.len() - read);
            text.extend_from_slice(&cast::<_, [u8; BLOCK]>(packed));
            text.truncate(text.len() - BLOCK + kept.count_ones() as usize);
            if before_end != u64::MAX {
                // An unusual escape is left whole; its backslash may be in the block before.
                return read + end as usize - usize::from(unusual >> end & 1 == 1);
            }
            carry = escapes >> (BLOCK - 1);
            read += BLOCK;
        }
        read - carry as usize
    }
);

/// What the ASCII characters stand for, in two halves.
const fn stand_for() -> [[u8; BLOCK]; 2] {
    let (mut halves, mut at) = ([[0; BLOCK]; 2], 0);
    while at < 2 * BLOCK {
        halves[at / BLOCK][at % BLOCK] = STANDS_FOR[at];
        at += 1;
    }
    halves
}

/// A bit for each byte that the one before it escapes: of backslashes in a row, each second one is escaped. `carry`: 1 if the first byte is.
///
/// Without a loop by the borrows of one subtraction, as simdjson does it (Langdale and Lemire 2019).
#[inline(always)]
fn escaped(backslashes: u64, carry: u64) -> u64 {
    const ODD: u64 = 0xAAAA_AAAA_AAAA_AAAA;
    let may_escape = backslashes & !carry;
    let alternate = (may_escape << 1 | ODD).wrapping_sub(may_escape) ^ ODD;
    alternate ^ (backslashes | carry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn of_backslashes_in_a_row_each_second_one_is_escaped(
            backslashes in prop_oneof![any::<u64>(), (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a | b)],
            carry in 0_u64..2,
        ) {
            let mut expected = carry;
            for place in 0..63 {
                let escapes = backslashes >> place & 1 == 1 && expected >> place & 1 == 0;
                expected |= u64::from(escapes) << (place + 1);
            }
            prop_assert_eq!(escaped(backslashes, carry), expected);
        }
    }

    #[test]
    fn usual_strings_are_taken_but_for_their_last_block() {
        if Level::new().as_avx512().is_none() {
            eprintln!("not tested: this processor has no AVX-512");
            return;
        }
        for row in 1..8 {
            for before in 0..70 {
                let string = ["x".repeat(before), "\\\\".repeat(row), r"\n\t and so on ".repeat(20)].concat();
                let mut text = Vec::new();
                let taken = take(&mut text, string.as_bytes());
                assert!(string.len() - taken <= BLOCK, "{taken} of {}", string.len());
                let rest = serde_json::from_str::<String>(&format!("\"{}\"", &string[taken..])).unwrap();
                let whole = serde_json::from_str::<String>(&format!("\"{string}\"")).unwrap();
                assert_eq!(String::from_utf8(text).unwrap() + &rest, whole);
            }
        }
    }
}
