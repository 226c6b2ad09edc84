//! Answers to clients: how each is framed, and its head.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, StatusCode, header};

use super::write::Outgoing;
use crate::decided::Said;
use crate::headers::find;

/// What the request says about its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// For the head alone.
    pub(super) head_only: bool,
    /// The client knows chunks.
    pub(super) is_1_1: bool,
}

/// How the body of an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Not at all.
    None,
    /// So many bytes are left.
    Left(u64),
    Chunked,
    UntilClose,
}

/// More, or less, than was announced.
#[derive(Debug, thiserror::Error)]
#[error("the body is not as long as its head says")]
pub(super) struct WrongLength;

impl Encoding {
    /// `exact`: the length of the body, if it is known.
    pub(super) fn of(asked: Asked, parts: &Parts, exact: Option<u64>) -> Self {
        let bodiless = parts.status.is_informational()
            || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if asked.head_only || bodiless {
            return Self::None;
        }
        match announced(&parts.headers).or(exact) {
            Some(length) => Self::Left(length),
            None if asked.is_1_1 => Self::Chunked,
            None => Self::UntilClose,
        }
    }

    /// Writes a head. `own`: what the router says beside the headers; `close`: no other answer follows on this connection.
    pub(super) fn put_head(
        self,
        head: &mut BytesMut,
        parts: &Parts,
        own: &Said<'_>,
        asked: Asked,
        exact: Option<u64>,
        close: bool,
    ) {
        let (status, headers) = (parts.status, &parts.headers);
        head.reserve(super::USUAL_HEAD);
        head.put_slice(b"HTTP/1.1 ");
        head.put_slice(status.as_str().as_bytes());
        head.put_u8(b' ');
        head.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        head.put_slice(b"\r\n");
        let (mut says_length, mut says_date) = (false, false);
        for (name, value) in headers {
            says_length |= *name == header::CONTENT_LENGTH;
            says_date |= *name == header::DATE;
            super::put_line(head, name, value.as_bytes());
        }
        own.each_line(|name, value| super::put_line(head, name, value));
        match self {
            Self::Left(length) if !says_length => super::put_length(head, length),
            // What the answer to a GET would have; of an answer without any it is not known.
            Self::None if asked.head_only && !says_length => {
                if let Some(length @ 1..) = exact {
                    super::put_length(head, length);
                }
            }
            Self::Chunked => head.put_slice(b"transfer-encoding: chunked\r\n"),
            _ => {}
        }
        if !says_date {
            put_date(head);
        }
        if close {
            head.put_slice(b"connection: close\r\n");
        } else if !asked.is_1_1 {
            head.put_slice(b"connection: keep-alive\r\n");
        }
        head.put_slice(b"\r\n");
    }

    pub(super) fn put_data(&mut self, outgoing: &mut Outgoing, data: Bytes) -> Result<(), WrongLength> {
        match self {
            // Never the end before its time.
            _ if data.is_empty() => {}
            Self::None => return Err(WrongLength),
            Self::Left(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(WrongLength)?;
                outgoing.put(data);
            }
            Self::Chunked => {
                put_hex(outgoing.small(), data.len());
                outgoing.put(data);
                outgoing.small().put_slice(b"\r\n");
            }
            Self::UntilClose => outgoing.put(data),
        }
        Ok(())
    }

    pub(super) fn put_end(self, outgoing: &mut Outgoing) -> Result<(), WrongLength> {
        match self {
            Self::Left(1..) => return Err(WrongLength),
            Self::Chunked => outgoing.small().put_slice(b"0\r\n\r\n"),
            Self::None | Self::Left(0) | Self::UntilClose => {}
        }
        Ok(())
    }
}

/// The length that an answer says of itself.
fn announced(headers: &HeaderMap) -> Option<u64> {
    find(headers, &header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The size line of a chunk.
fn put_hex(buffer: &mut BytesMut, number: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        buffer.put_u8(DIGITS[(number >> (4 * at)) & 15]);
    }
    buffer.put_slice(b"\r\n");
}

/// The header line that says when; formatted once a second.
fn put_date(head: &mut BytesMut) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    LAST.with_borrow_mut(|(last, line)| {
        if *last != second {
            *last = second;
            *line = format!("date: {}\r\n", httpdate::fmt_http_date(now));
        }
        head.put_slice(line.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Response};

    use super::*;

    fn head(
        status: u16,
        length: Option<&'static str>,
        asked: Asked,
        exact: Option<u64>,
    ) -> (Encoding, String) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(length) = length {
            response.headers_mut().insert("content-length", HeaderValue::from_static(length));
        }
        response.headers_mut().insert("date", HeaderValue::from_static("now"));
        let parts = response.into_parts().0;
        let encoding = Encoding::of(asked, &parts, exact);
        let mut text = BytesMut::new();
        encoding.put_head(&mut text, &parts, &Said::default(), asked, exact, false);
        (encoding, String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn a_head_says_how_the_body_is_framed() {
        let get = Asked { head_only: false, is_1_1: true };
        let (head_only, old) = (Asked { head_only: true, ..get }, Asked { is_1_1: false, ..get });
        let with = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        let length = "content-length: 5\r\ndate: now\r\n";
        let chunked = "date: now\r\ntransfer-encoding: chunked\r\n";
        for (made, encoding, lines) in [
            (head(200, Some("5"), get, None), Encoding::Left(5), length),
            (head(200, None, get, Some(5)), Encoding::Left(5), "date: now\r\ncontent-length: 5\r\n"),
            (head(200, None, get, None), Encoding::Chunked, chunked),
            (head(200, None, old, None), Encoding::UntilClose, "date: now\r\nconnection: keep-alive\r\n"),
            (head(200, Some("5"), head_only, Some(0)), Encoding::None, length),
            (head(200, None, head_only, Some(0)), Encoding::None, "date: now\r\n"),
            (head(200, None, head_only, Some(7)), Encoding::None, "date: now\r\ncontent-length: 7\r\n"),
        ] {
            assert_eq!(made, (encoding, with(lines)));
        }
        assert_eq!(head(204, None, get, Some(0)).1, "HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n");
        assert_eq!(head(304, Some("5"), get, Some(0)).0, Encoding::None);
    }

    #[test]
    fn a_body_is_as_long_as_it_says() {
        let mut outgoing = Outgoing::default();
        let data = Bytes::from_static(b"abc");
        let mut left = Encoding::Left(4);
        left.put_data(&mut outgoing, data.clone()).unwrap();
        assert!(left.put_end(&mut outgoing).is_err());
        assert!(left.put_data(&mut outgoing, data.clone()).is_err());
        outgoing.clear();
        let mut chunked = Encoding::Chunked;
        chunked.put_data(&mut outgoing, Bytes::new()).unwrap();
        chunked.put_data(&mut outgoing, vec![b'x'; 26].into()).unwrap();
        chunked.put_end(&mut outgoing).unwrap();
        let text = format!("1a\r\n{}\r\n0\r\n\r\n", "x".repeat(26));
        assert_eq!(&outgoing.small()[..], text.as_bytes());
    }
}
