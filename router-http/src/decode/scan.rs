//! Finds the members of a JSON object without reading their values.
//!
//! A prompt of hundreds of kilobytes is one string or one list of numbers: it is passed over, or taken, at the speed of memory. What
//! is passed over is not checked: a body that is wrong there is the worker's to judge. Whatever is not as expected is `None`, and
//! the careful reader of `body` says what is wrong with it.

use std::borrow::Cow;

use memchr::{memchr, memchr2, memchr3};

use super::text::{bytes, utf8};

/// The members of an object, in order: after each [`key`](Self::key) its value is taken, one way or the other.
#[derive(Debug)]
pub(super) struct Members<'a> {
    bytes: &'a [u8],
    at: usize,
    first: bool,
}

impl<'a> Members<'a> {
    /// Of a body that is one object.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let at = white(bytes, 0);
        (bytes.get(at) == Some(&b'{')).then_some(Self { bytes, at: at + 1, first: true })
    }

    /// The next member's key; `Some(None)` at the end of the object, after which there must be nothing.
    pub(super) fn key(&mut self) -> Option<Option<Cow<'a, [u8]>>> {
        let first = std::mem::replace(&mut self.first, false);
        let mut at = white(self.bytes, self.at);
        match self.bytes.get(at)? {
            b'}' => return (white(self.bytes, at + 1) == self.bytes.len()).then_some(None),
            b',' if !first => at = white(self.bytes, at + 1),
            _ if first => {}
            _ => return None,
        }
        let (key, end) = bytes(self.bytes, at)?;
        at = white(self.bytes, end);
        if self.bytes.get(at) != Some(&b':') {
            return None;
        }
        self.at = white(self.bytes, at + 1);
        Some(Some(key))
    }

    /// The value, as it stands in the body.
    pub(super) fn value(&mut self) -> Option<&'a [u8]> {
        let at = self.at;
        self.at = value_end(self.bytes, at)?;
        Some(&self.bytes[at..self.at])
    }

    /// What `read` makes of the value up to its first `]`, which is all of it if it is a list of numbers; it is to refuse any other. Then the
    /// value is still to be taken.
    pub(super) fn numbers<T>(&mut self, read: impl FnOnce(&'a [u8]) -> Option<T>) -> Option<T> {
        let value = self.bytes.get(self.at..).filter(|value| value.starts_with(b"["))?;
        let len = memchr(b']', value)? + 1;
        let numbers = read(&value[..len])?;
        self.at += len;
        Some(numbers)
    }

    /// The bytes of the value if it is a string. Otherwise it is still to be taken.
    pub(super) fn text(&mut self) -> Option<Option<Cow<'a, [u8]>>> {
        if self.bytes.get(self.at) != Some(&b'"') {
            return Some(None);
        }
        let (text, end) = bytes(self.bytes, self.at)?;
        self.at = end;
        Some(Some(text))
    }

    /// The value, read, if it is a string. Otherwise it is still to be taken.
    pub(super) fn string(&mut self) -> Option<Option<Cow<'a, str>>> {
        match self.text()? {
            None => Some(None),
            Some(text) => utf8(text).map(Some),
        }
    }
}

/// Where the value that begins at `at` ends.
fn value_end(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'"' => string_end(bytes, at),
        b'{' => nest_end(bytes, at, b'{', b'}'),
        b'[' => nest_end(bytes, at, b'[', b']'),
        _ => {
            let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
            let len = bytes[at..].iter().take_while(|byte| goes_on(byte)).count();
            (len > 0).then_some(at + len)
        }
    }
}

/// Where the string that begins at `at` ends.
pub(super) fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Where the object or list that begins at `at` ends.
fn nest_end(bytes: &[u8], mut at: usize, open: u8, close: u8) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        at += memchr3(b'"', open, close, bytes.get(at..)?)?;
        match bytes[at] {
            b'"' => at = string_end(bytes, at)?,
            byte => {
                depth = if byte == open { depth + 1 } else { depth - 1 };
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
    }
}

/// The first byte from `at` on that is no white space.
#[inline]
fn white(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(body: &str) -> Option<Vec<(String, String)>> {
        let mut members = Members::of(body.as_bytes())?;
        let mut all = Vec::new();
        while let Some(key) = members.key()? {
            let value = members.value()?;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            all.push((text(&key), text(value)));
        }
        Some(all)
    }

    #[test]
    fn values_are_passed_over_whole() {
        let body =
            r#" { "a" : "x\"}," , "b":[1,{"]":"["},[2]], "c":{"d":{"}":1}},"e":-1.5e+3,"\u0066":null } "#;
        let expected = [
            ("a", r#""x\"},""#),
            ("b", r#"[1,{"]":"["},[2]]"#),
            ("c", r#"{"d":{"}":1}}"#),
            ("e", "-1.5e+3"),
            ("f", "null"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        assert_eq!(members(body), Some(expected));
        assert_eq!(members("{}"), Some(Vec::new()));
    }

    #[test]
    fn a_list_is_read_to_its_end_or_is_still_to_be_taken() {
        let mut members = Members::of(br#"{"a":[1],"b":[[2],3],"c":"[4]"}"#).unwrap();
        members.key().unwrap();
        assert_eq!(members.numbers(Some), Some(&b"[1]"[..]));
        members.key().unwrap();
        assert_eq!(members.numbers(|list| (list != b"[[2]").then_some(list)), None);
        assert_eq!(members.value(), Some(&b"[[2],3]"[..]));
        members.key().unwrap();
        assert_eq!(members.numbers(Some), None);
        assert_eq!(members.value(), Some(&br#""[4]""#[..]));
        assert_eq!(members.key(), Some(None));
    }

    #[test]
    fn what_is_no_object_is_not_taken_for_one() {
        for body in [
            "",
            "{",
            "[]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1}x",
            "{,}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":\"x}",
            "{\"a\":\"x\\",
            "{\"a\":[1}",
            "{\"a\":1{\"b\":2}}",
            "{a:1}",
        ] {
            assert_eq!(members(body), None, "{body}");
        }
    }
}
