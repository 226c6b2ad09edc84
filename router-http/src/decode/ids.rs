//! Reads a flat list of token ids, of which a prompt may have a hundred thousand.
//!
//! The commas of 64 bytes are found at once, so that where a number begins does not have to wait until the one before has been read;
//! its digits are checked and added up together.

use wide::u8x16;

use super::spare::Spare;

/// Bytes whose commas are found at once.
const BLOCK: usize = 64;

thread_local! {
    static SPARE: Spare<u32> = const { Spare::new() };
}

/// The ids of a list as it stands in JSON; `None` where it is another one, or malformed.
pub(super) fn ids(value: &[u8]) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    fill(&mut ids, value).map(|()| ids)
}

/// The same of a prompt, which is [given back](give_back).
pub(super) fn prompt(value: &[u8]) -> Option<Vec<u32>> {
    let mut ids = SPARE.with(Spare::take);
    if fill(&mut ids, value).is_some() {
        return Some(ids);
    }
    give_back(ids);
    None
}

/// Takes back what nobody reads any more.
pub(super) fn give_back(ids: Vec<u32>) {
    SPARE.with(|spare| spare.give_back(ids));
}

fn fill(ids: &mut Vec<u32>, value: &[u8]) -> Option<()> {
    let list = value.strip_prefix(b"[")?.strip_suffix(b"]")?;
    if list.iter().all(is_white) {
        return Some(());
    }
    // Five digits and a comma are usual.
    ids.reserve(list.len() / 6 + 1);
    let mut start = 0;
    let (blocks, _) = list.as_chunks::<BLOCK>();
    for (index, block) in blocks.iter().enumerate() {
        let mut commas = commas(block);
        while commas != 0 {
            let end = index * BLOCK + commas.trailing_zeros() as usize;
            commas &= commas - 1;
            ids.push(id(list, start, end)?);
            start = end + 1;
        }
    }
    while let Some(length) = list[start..].iter().position(|byte| *byte == b',') {
        ids.push(id(list, start, start + length)?);
        start += length + 1;
    }
    ids.push(id(list, start, list.len())?);
    Some(())
}

/// A bit for each comma.
#[inline]
fn commas(block: &[u8; BLOCK]) -> u64 {
    let (quarters, _) = block.as_chunks::<16>();
    quarters.iter().rev().fold(0, |bits, quarter| {
        let here = u8x16::new(*quarter).simd_eq(u8x16::splat(b',')).to_bitmask();
        bits << 16 | u64::from(here)
    })
}

/// The number between two commas.
#[inline]
fn id(list: &[u8], start: usize, end: usize) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Many clients put one space after each comma.
    let from = start + usize::from(list.get(start) == Some(&b' '));
    let count = end.wrapping_sub(from);
    if let Some(eight) = list.get(from..).and_then(<[u8]>::first_chunk::<8>)
        && (1..8).contains(&count)
    {
        // What follows is shifted out, and zeros that lead make it eight digits.
        let digits = (u64::from_le_bytes(*eight) ^ (ONES * u64::from(b'0'))) << (64 - 8 * count);
        // The high bit of every byte that is above 9.
        let others = (digits.wrapping_add(ONES * 0x76) | digits) & (ONES * 0x80);
        let leading_zero = eight[0] == b'0' && count > 1;
        if others == 0 && !leading_zero {
            // Two, four and eight of them are put together.
            let pairs = (digits.wrapping_mul(10) + (digits >> 8)) & 0x00FF_00FF_00FF_00FF;
            let fours = (pairs.wrapping_mul(100) + (pairs >> 16)) & 0x0000_FFFF_0000_FFFF;
            return Some((fours.wrapping_mul(10_000) + (fours >> 32)) as u32);
        }
    }
    careful(&list[start..end])
}

/// The same of any length, with any white space.
#[cold]
fn careful(text: &[u8]) -> Option<u32> {
    let first = text.iter().position(|byte| !is_white(byte))?;
    let last = text.iter().rposition(|byte| !is_white(byte))?;
    let digits = &text[first..=last];
    let plain = digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits[0] != b'0');
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

fn is_white(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_are_read_as_json_is(
            list in prop::collection::vec(prop_oneof![0_u32..10, 0_u32..200_000, any::<u32>()], 0..40),
            separator in prop_oneof![Just(","), Just(", "), Just(" ,\n\t"), Just("  ,")],
            around in prop_oneof![Just(""), Just(" "), Just("\r\n")],
        ) {
            let digits: Vec<String> = list.iter().map(u32::to_string).collect();
            let text = format!("[{around}{}{around}]", digits.join(separator));
            prop_assert_eq!(ids(text.as_bytes()), Some(list));
        }

        #[test]
        fn a_list_that_is_none_is_not_read(before in "([0-9]{1,7},){0,20}", text in "[-0-9,. e\"]{0,24}") {
            let text = format!("[{before}{text}]");
            let expected = serde_json::from_str::<Vec<u32>>(&text).ok();
            prop_assert_eq!(ids(text.as_bytes()), expected);
        }
    }

    #[test]
    fn memory_is_used_again_and_what_was_there_is_not_seen() {
        let long = prompt(b"[1,22,333,4444]").unwrap();
        let room = long.capacity();
        give_back(long);
        assert_eq!(prompt(b"[5,x]"), None);
        let short = prompt(b"[6]").unwrap();
        assert_eq!((&short[..], short.capacity()), (&[6][..], room));
    }
}
