//! Reads a JSON string in one pass: its end is found and its escapes are undone at once.

#[cfg(target_arch = "x86_64")]
mod blocks;

use std::borrow::Cow;

use memchr::memchr2;
use wide::u8x16;

use super::spare::Spare;

/// Bytes that are looked at, and copied, at once.
const BLOCK: usize = 32;

/// The same with AVX-512, at most.
const MOST_BLOCK: usize = 64;

thread_local! {
    static SPARE: Spare<u8> = const { Spare::new() };
}

/// Where none are taken together.
#[cfg(not(target_arch = "x86_64"))]
mod blocks {
    pub(super) fn take(_: &mut Vec<u8>, _: &[u8]) -> usize {
        0
    }
}

/// What the letter of an escape stands for, but for `u`; 0 where it is none.
const STANDS_FOR: [u8; 256] = {
    let pairs = *b"\"\"\\\\//b\x08f\x0Cn\nr\rt\t";
    let (mut table, mut at) = ([0; 256], 0);
    while at < pairs.len() {
        table[pairs[at] as usize] = pairs[at + 1];
        at += 2;
    }
    table
};

/// The bytes of the string that begins at `at`, and where it ends; borrowed unless it has escapes. `None` where it is none. That it is
/// text, and has no control characters, is not checked: that takes as long as reading it.
pub(super) fn bytes(json: &[u8], at: usize) -> Option<(Cow<'_, [u8]>, usize)> {
    let body = json.get(at..)?.strip_prefix(b"\"")?;
    let plain = first_special(body)?;
    let (text, length) = match body[plain] {
        b'"' => (Cow::Borrowed(&body[..plain]), plain),
        _ => unescaped(body, plain).map(|(text, length)| (Cow::Owned(text), length))?,
    };
    Some((text, at + 1 + length + 1))
}

/// Takes back what nobody reads any more.
pub(super) fn give_back(text: Cow<'_, [u8]>) {
    if let Cow::Owned(text) = text {
        SPARE.with(|spare| spare.give_back(text));
    }
}

/// The bytes before the quote that ends the string, of which the first escape is at `read`, and where that quote is.
fn unescaped(body: &[u8], mut read: usize) -> Option<(Vec<u8>, usize)> {
    let mut text = SPARE.with(Spare::take);
    text.extend_from_slice(&body[..read]);
    loop {
        match *body.get(read)? {
            b'"' => return Some((text, read)),
            b'\\' => read = unescape(&mut text, body, read)?,
            _ => match blocks::take(&mut text, &body[read..]) {
                0 => read += plain(&mut text, &body[read..])?,
                taken => read += taken,
            },
        }
    }
}

/// Takes the escape at `at`. Returns where it ends.
fn unescape(text: &mut Vec<u8>, body: &[u8], at: usize) -> Option<usize> {
    match STANDS_FOR[usize::from(*body.get(at + 1)?)] {
        0 => {
            let (character, end) = unicode(body, at + 1)?;
            text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            Some(end)
        }
        byte => {
            text.push(byte);
            Some(at + 2)
        }
    }
}

/// Takes what is before the next quote or backslash, and says how many bytes that is. They are copied in blocks, whether or not these have
/// one, and what was copied too much is taken back.
fn plain(text: &mut Vec<u8>, body: &[u8]) -> Option<usize> {
    let mut read = 0;
    while let Some(block) = body.get(read..).and_then(<[u8]>::first_chunk::<BLOCK>) {
        make_room(text, body.len() - read);
        text.extend_from_slice(block);
        let specials = specials(block);
        if specials != 0 {
            let plain = specials.trailing_zeros() as usize;
            text.truncate(text.len() - BLOCK + plain);
            return Some(read + plain);
        }
        read += BLOCK;
    }
    let plain = memchr2(b'"', b'\\', &body[read..])?;
    text.extend_from_slice(&body[read..read + plain]);
    Some(read + plain)
}

/// Makes room for a block of either kind. For as much again as there is, so that a short string costs no more than it is long, whatever
/// follows it in its body; and no more than `rest` of the body could need, since nothing becomes longer.
#[inline(always)]
fn make_room(text: &mut Vec<u8>, rest: usize) {
    #[cold]
    fn grow(text: &mut Vec<u8>, rest: usize) {
        text.reserve_exact((text.len() + MOST_BLOCK).min(rest + MOST_BLOCK));
    }
    if text.capacity() - text.len() < MOST_BLOCK {
        grow(text, rest);
    }
}

/// Where the first quote or backslash is. Most strings are short, and to look at a block takes less than to begin a search.
#[inline]
fn first_special(body: &[u8]) -> Option<usize> {
    match body.first_chunk::<BLOCK>().map(specials) {
        None => memchr2(b'"', b'\\', body),
        Some(0) => memchr2(b'"', b'\\', &body[BLOCK..]).map(|at| BLOCK + at),
        Some(specials) => Some(specials.trailing_zeros() as usize),
    }
}

/// A bit for each quote and backslash.
#[inline]
fn specials(block: &[u8; BLOCK]) -> u32 {
    let (halves, _) = block.as_chunks::<16>();
    let [low, high] = [0, 1].map(|half| {
        let bytes = u8x16::new(halves[half]);
        (bytes.simd_eq(u8x16::splat(b'"')) | bytes.simd_eq(u8x16::splat(b'\\'))).to_bitmask()
    });
    low | high << 16
}

/// The same, as text.
pub(super) fn string(json: &[u8], at: usize) -> Option<(Cow<'_, str>, usize)> {
    let (text, end) = bytes(json, at)?;
    Some((utf8(text)?, end))
}

/// Bytes as text, if they are.
pub(super) fn utf8(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => {
            // What is kept has no more memory than it needs.
            let text = std::str::from_utf8(&bytes).ok().map(|text| Cow::Owned(text.to_owned()));
            give_back(Cow::Owned(bytes));
            text
        }
    }
}

/// The character of the escape whose `u` is at `at`, and where it ends. Two halves of a pair are one character.
fn unicode(bytes: &[u8], at: usize) -> Option<(char, usize)> {
    let at = (bytes[at] == b'u').then_some(at + 1)?;
    let four = |at: usize| {
        let digits = bytes.get(at..at + 4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let first = four(at)?;
    if let Some(character) = char::from_u32(u32::from(first)) {
        return Some((character, at + 4));
    }
    let second = bytes.get(at + 4..)?.starts_with(b"\\u").then(|| four(at + 6))??;
    let pair = char::decode_utf16([first, second]).next()?.ok()?;
    Some((pair, at + 10))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_are_read_as_json_is(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("a b"), Just("ü€😀"), Just("\\n"), Just("\\\\"), Just("\\\""), Just("\\/"), Just("\\u0041"),
                    Just("\\u00fc"), Just("\\ud83d\\ude00"), Just("\\ud83d"), Just("\\ude00"), Just("\\u12"), Just("\\x"),
                    Just("\\u0000"), Just("\\uzzzz"), Just("\\u+123"), Just("sixteen bytes and"), Just("\u{7f}"),
                ],
                0..40,
            ),
            after in "[,} \"]{0,20}",
        ) {
            let whole = format!("\"{}\"", parts.concat());
            let expected = serde_json::from_str::<String>(&whole).ok().map(|text| (text, whole.len()));
            let body = whole + &after;
            let read = string(body.as_bytes(), 0).map(|(text, end)| (text.into_owned(), end));
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn a_short_string_costs_little_whatever_follows_it() {
        let body = [&b"\"\\n\""[..], &[b' '; 1 << 20]].concat();
        let Some((Cow::Owned(text), 4)) = bytes(&body, 0) else { panic!("it has an escape") };
        assert_eq!(text, b"\n");
        assert!(text.capacity() <= 2 * MOST_BLOCK, "{}", text.capacity());
    }

    #[test]
    fn a_long_string_takes_little_more_room_than_its_body() {
        let line = "x".repeat(69) + "\\n";
        for lines in [10, 1_000, 9_000] {
            let body = format!("\"{}\"", line.repeat(lines));
            // What earlier strings have left may be larger.
            SPARE.with(Spare::take);
            let Some((Cow::Owned(text), _)) = bytes(body.as_bytes(), 0) else { panic!("it has escapes") };
            assert_eq!(text.len(), 70 * lines);
            assert!(text.capacity() <= body.len() + MOST_BLOCK, "{} of {}", text.capacity(), body.len());
        }
    }

    #[test]
    fn a_prompt_is_the_bytes_that_it_is() {
        for raw in [&b"\"\xFF\n\x00\""[..], b"\"\""] {
            assert_eq!(bytes(raw, 0), Some((Cow::Borrowed(&raw[1..raw.len() - 1]), raw.len())));
        }
        assert_eq!(bytes(b"\"\xFF\\n\",", 0), Some((Cow::Owned(b"\xFF\n".to_vec()), 5)));
    }

    #[test]
    fn bytes_that_are_no_text_are_no_string() {
        for bytes in [&b"\"\xFF\""[..], b"\"\\n\xC3\"", b"\"", b"", b"x", b"\"\\"] {
            assert_eq!(string(bytes, 0), None);
        }
    }
}
