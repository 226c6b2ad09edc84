//! Bodies in chunks (RFC 9112 §7.1), decoded as they come and without a copy.

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memchr;

/// Decodes one body.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// Bytes that size lines and trailers may still take beside what they need: they are read and thrown away.
    spare: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    /// So many bytes of the chunk are left.
    Data(u64),
    /// The line's end after a chunk.
    DataEnd,
    Trailers,
    Done,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    Data(Bytes),
    End,
    /// Nothing without more bytes.
    More,
}

/// Bytes that are no chunks. Where such a body ends is not known, so that its connection cannot be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("the size of a chunk is not a hexadecimal number")]
    Size,
    #[error("a line within the chunked body does not end with CR LF")]
    LineEnd,
    #[error("a chunk is longer than it says")]
    TooLong,
    #[error("chunk extensions and trailers are too long")]
    TooMuch,
    #[error("a chunk extension or a trailer has characters that cannot stand there")]
    Characters,
}

/// Bytes of one size line or one trailer.
const MOST_LINE: usize = 4096;

/// Bytes of all extensions and trailers of one body together.
const MOST_SPARE: usize = 16 << 10;

/// 60 bits: no sum of sizes that fit into memory overflows.
const MOST_DIGITS: usize = 15;

/// How all ends, seen right after a chunk.
const LAST: &[u8] = b"\r\n0\r\n\r\n";

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { state: State::Size, spare: MOST_SPARE }
    }

    /// Takes the next piece out of `buffer`.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, ChunkError> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = line(buffer)? else { return Ok(Decoded::More) };
                    let (size, extension) = size(&buffer[..line])?;
                    self.spend(extension)?;
                    buffer.advance(line + 2);
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let here = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                    let data = buffer.split_to(here).freeze();
                    let left = left - here as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    self.finish(buffer);
                    return Ok(Decoded::Data(data));
                }
                State::DataEnd => match &buffer[..] {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(Decoded::More),
                    [..] => return Err(ChunkError::TooLong),
                },
                State::Trailers => {
                    let Some(line) = line(buffer)? else { return Ok(Decoded::More) };
                    if !buffer[..line].iter().all(|byte| visible(*byte)) {
                        return Err(ChunkError::Characters);
                    }
                    self.spend(line)?;
                    buffer.advance(line + 2);
                    if line == 0 {
                        self.state = State::Done;
                    }
                }
                State::Done => return Ok(Decoded::End),
            }
        }
    }

    /// All of it has been taken.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Notices an end that is there already, so that nobody has to ask again for it.
    fn finish(&mut self, buffer: &mut BytesMut) {
        if self.state == State::DataEnd && buffer.starts_with(LAST) {
            buffer.advance(LAST.len());
            self.state = State::Done;
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ChunkError> {
        self.spare = self.spare.checked_sub(bytes).ok_or(ChunkError::TooMuch)?;
        Ok(())
    }
}

/// The length of the first line without its end, if that is there.
fn line(buffer: &[u8]) -> Result<Option<usize>, ChunkError> {
    match memchr(b'\n', &buffer[..buffer.len().min(MOST_LINE)]) {
        Some(end) => match end.checked_sub(1).filter(|end| buffer[*end] == b'\r') {
            Some(end) => Ok(Some(end)),
            None => Err(ChunkError::LineEnd),
        },
        None if buffer.len() >= MOST_LINE => Err(ChunkError::TooMuch),
        None => Ok(None),
    }
}

/// The size that a line says, and the length of what stands after it.
fn size(line: &[u8]) -> Result<(u64, usize), ChunkError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 || digits > MOST_DIGITS {
        return Err(ChunkError::Size);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| ChunkError::Size)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| ChunkError::Size)?;
    let extension = &line[digits..];
    match extension.trim_ascii_start().first() {
        None if extension.is_empty() => {}
        Some(b';') => {}
        // White space alone is not an extension: whoever trims it and whoever does not would read on differently.
        None | Some(_) => return Err(ChunkError::Size),
    }
    if !extension.iter().all(|byte| visible(*byte)) {
        return Err(ChunkError::Characters);
    }
    Ok((size, extension.len()))
}

fn visible(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds pieces; the data, and whether it came to its end.
    fn decode<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Result<(Vec<u8>, bool, usize), ChunkError> {
        let (mut decoder, mut buffer, mut data) = (Decoder::new(), BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while !decoder.is_done() {
                match decoder.decode(&mut buffer)? {
                    Decoded::Data(more) => data.extend_from_slice(&more),
                    Decoded::End | Decoded::More => break,
                }
            }
        }
        Ok((data, decoder.is_done(), buffer.len()))
    }

    #[test]
    fn chunks_are_joined_and_what_follows_is_left() {
        let whole = b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nt: v\r\n\r\nGET /";
        assert_eq!(decode([&whole[..]]), Ok((b"abc0123456789".to_vec(), true, 5)));
        assert_eq!(decode([&b"1\r\na\r\n0\r\n\r\n"[..]]), Ok((b"a".to_vec(), true, 0)));
        assert_eq!(decode([&b"1\r\na\r\n0\r\n"[..]]), Ok((b"a".to_vec(), false, 0)));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (bytes, error) in [
            (&b"\r\na"[..], ChunkError::Size),
            (b"0x1\r\na\r\n", ChunkError::Size),
            (b"-1\r\na\r\n", ChunkError::Size),
            (b"+1\r\na\r\n", ChunkError::Size),
            (b" 1\r\na\r\n", ChunkError::Size),
            (b"1 \r\na\r\n", ChunkError::Size),
            (b"1g\r\na\r\n", ChunkError::Size),
            (b"10000000000000000\r\n", ChunkError::Size),
            (b"1\na\r\n", ChunkError::LineEnd),
            (b"1\r\nab\r\n", ChunkError::TooLong),
            (b"1\r\na\n0\r\n\r\n", ChunkError::TooLong),
            (b"1;a\0\r\na\r\n", ChunkError::Characters),
            (b"1;a\rb\r\na\r\n", ChunkError::Characters),
            (b"0\r\na: \x01\r\n\r\n", ChunkError::Characters),
            (b"0\r\na: b\n\r\n", ChunkError::LineEnd),
        ] {
            assert_eq!(decode([bytes]), Err(error), "{}", bytes.escape_ascii());
        }
        let long = [b"1;".as_slice(), &[b'x'; MOST_LINE]].concat();
        assert_eq!(decode([&long[..]]), Err(ChunkError::TooMuch));
        let many = [b"1;".as_slice(), &[b'x'; 1000], b"\r\na\r\n"].concat().repeat(20);
        assert_eq!(decode([&many[..]]), Err(ChunkError::TooMuch));
    }

    proptest! {
        #[test]
        fn reads_may_end_anywhere(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            trailers in prop::collection::vec("[a-z]{1,5}: [ -~]{0,5}", 0..3),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n");
            for trailer in trailers {
                bytes.extend_from_slice(format!("{trailer}\r\n").as_bytes());
            }
            bytes.extend_from_slice(b"\r\n");
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            prop_assert_eq!(decode(pieces), Ok((chunks.concat(), true, 0)));
        }

        #[test]
        fn any_bytes_come_to_the_same_however_they_are_read(
            bytes in prop::collection::vec(prop::sample::select(b"0123af\r\n; x".to_vec()), 0..60),
        ) {
            let whole = decode([&bytes[..]]);
            let single = decode(bytes.chunks(1));
            prop_assert_eq!(whole.is_err(), single.is_err());
            if let (Ok(whole), Ok(single)) = (whole, single) {
                prop_assert_eq!(whole, single);
            }
        }
    }
}
