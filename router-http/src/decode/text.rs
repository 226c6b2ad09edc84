//! Reads a JSON string in one pass: its end is found and its escapes are undone at once.

use std::borrow::Cow;

use memchr::memchr2;

/// Least that is set aside for a string with escapes.
const LEAST_ROOM: usize = 64;

/// The bytes of the string that begins at `at`, and where it ends; borrowed unless it has escapes. `None` where it is none. That it is
/// text, and has no control characters, is not checked: that takes as long as reading it.
pub(super) fn bytes(bytes: &[u8], at: usize) -> Option<(Cow<'_, [u8]>, usize)> {
    let mut from = at + 1;
    let mut at = (bytes.get(at) == Some(&b'"')).then(|| special(bytes, from))??;
    if bytes[at] == b'"' {
        return Some((Cow::Borrowed(&bytes[from..at]), at + 1));
    }
    // A prompt that breaks its lines does so from beginning to end: what is left of the body bounds it.
    let mut text = Vec::with_capacity((bytes.len() - from).max(LEAST_ROOM));
    loop {
        text.extend_from_slice(&bytes[from..at]);
        if bytes[at] == b'"' {
            return Some((Cow::Owned(text), at + 1));
        }
        from = unescape(bytes, at + 1, &mut text)?;
        at = special(bytes, from)?;
    }
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
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

/// The first quote or backslash from `at` on.
#[inline]
fn special(bytes: &[u8], at: usize) -> Option<usize> {
    memchr2(b'"', b'\\', bytes.get(at..)?).map(|place| at + place)
}

/// Appends what the escape stands for whose letter is at `at`, and says where it ends.
fn unescape(bytes: &[u8], at: usize, text: &mut Vec<u8>) -> Option<usize> {
    let letter = *bytes.get(at)?;
    text.push(match letter {
        b'"' | b'\\' | b'/' => letter,
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'u' => {
            let (character, end) = unicode(bytes, at + 1)?;
            text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(end);
        }
        _ => return None,
    });
    Some(at + 1)
}

/// The character whose four digits begin at `at`, and where it ends. Two halves of a pair are one character.
fn unicode(bytes: &[u8], at: usize) -> Option<(char, usize)> {
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
                0..12,
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
