//! What must hold for any bytes that come over a wire: for the fuzz targets (`fuzz/`), and tried here with made-up ones.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header};

use crate::decode::{self, RouteKind};
use crate::receive;
use crate::usage::UsageSearch;
use crate::wire::chunked::{ChunkError, Decoded, Decoder};
use crate::wire::client::{Request, put_request};
use crate::wire::head::{Finder, HeadError, Length, take_request, take_response};

/// What one reader makes of the messages of a connection: each one's head and body, and what is wrong in the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    messages: Vec<(String, HeaderMap, Vec<u8>)>,
    wrong: Option<Wrong>,
}

/// Why a reader goes no further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// Where a reader is.
enum Place {
    Head(Finder),
    Left(u64),
    Chunks(Decoder),
    UntilClose,
}

/// A message's head: how it begins, its headers, and how its body ends.
type Head = (String, HeaderMap, Length);

/// Requests over one connection. The first byte says how they are cut into reads: that must not matter. What is understood is
/// understood the same way by whoever reads what would be sent to a worker.
pub fn requests(bytes: &[u8]) {
    fn head(finder: &mut Finder, buffer: &mut BytesMut) -> Result<Option<Head>, Wrong> {
        let head = take_request(finder, buffer)?;
        Ok(head.map(|head| {
            let receive::Head { method, uri, headers, .. } = head.parts;
            if let Some(path) = uri.path_and_query().filter(|_| method != Method::CONNECT) {
                passed_on(&method, path.as_str(), headers.clone());
            }
            (format!("{method} {uri} {}", head.keep_alive), headers, head.length)
        }))
    }
    cut_anyhow(bytes, head);
}

/// The same for answers.
pub fn answers(bytes: &[u8]) {
    fn head(finder: &mut Finder, buffer: &mut BytesMut) -> Result<Option<Head>, Wrong> {
        let head = take_response(finder, buffer, &Method::GET)?;
        Ok(head.map(|head| (format!("{} {}", head.status, head.keep_alive), head.headers, head.length)))
    }
    cut_anyhow(bytes, head);
}

/// The body of a generation: what both readers understand they understand the same way.
pub fn bodies(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let kinds = RouteKind::GENERATIONS;
    decode::compare_readers(kinds[usize::from(*kind) % kinds.len()], body);
}

/// An answer's data in pieces: the search for its usage keeps little, whatever it sees.
pub fn usage(bytes: &[u8]) {
    let Some((step, data)) = bytes.split_first() else { return };
    let mut search = UsageSearch::of(RouteKind::Generate);
    for piece in data.chunks(usize::from(*step) + 1) {
        search.look(piece);
        assert!(search.carries() <= 2 * crate::usage::MOST_CARRIED);
    }
}

fn cut_anyhow(bytes: &[u8], head: fn(&mut Finder, &mut BytesMut) -> Result<Option<Head>, Wrong>) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let whole = read(bytes, bytes.len().max(1), head);
    let cut = read(bytes, usize::from(*step) + 1, head);
    assert_eq!(whole, cut);
}

fn read(
    bytes: &[u8],
    step: usize,
    head: fn(&mut Finder, &mut BytesMut) -> Result<Option<Head>, Wrong>,
) -> Read {
    let (mut read, mut buffer) = (Read::default(), BytesMut::new());
    let mut place = Place::Head(Finder::default());
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        if let Err(wrong) = go_on(&mut read, &mut buffer, &mut place, head) {
            read.wrong = Some(wrong);
            break;
        }
    }
    read
}

fn go_on(
    read: &mut Read,
    buffer: &mut BytesMut,
    place: &mut Place,
    head: fn(&mut Finder, &mut BytesMut) -> Result<Option<Head>, Wrong>,
) -> Result<(), Wrong> {
    loop {
        let data = match place {
            Place::Head(finder) => {
                // A head that is not whole is seldom worth a copy.
                let before = memchr::memmem::find(buffer, b"\r\n\r\n").map(|_| buffer.clone());
                let Some((start, headers, length)) = head(finder, buffer)? else { return Ok(()) };
                let before = before.expect("a head ends with an empty line");
                let text = &before[..before.len() - buffer.len()];
                // Asked of the bytes: a length that was understood is not among the headers.
                assert!(!has_line(text, b"content-length:") || !has_line(text, b"transfer-encoding:"));
                read.messages.push((start, headers, Vec::new()));
                *place = match length {
                    Length::Known(left) => Place::Left(left),
                    Length::Chunked => Place::Chunks(Decoder::new()),
                    Length::UntilClose => Place::UntilClose,
                };
                continue;
            }
            Place::Left(0) => {
                *place = Place::Head(Finder::default());
                continue;
            }
            Place::Left(left) => {
                let here = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
                *left -= here as u64;
                buffer.split_to(here).freeze()
            }
            Place::UntilClose => buffer.split().freeze(),
            Place::Chunks(decoder) => match decoder.decode(buffer)? {
                Decoded::Data(data) => data,
                Decoded::More => return Ok(()),
                Decoded::End => {
                    *place = Place::Head(Finder::default());
                    continue;
                }
            },
        };
        if data.is_empty() {
            return Ok(());
        }
        if let Some((_, _, body)) = read.messages.last_mut() {
            body.extend_from_slice(&data);
        }
    }
}

/// Whether a line of a head begins like this.
fn has_line(head: &[u8], start: &[u8]) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n');
    lines.any(|line| line.get(..start.len()).is_some_and(|there| there.eq_ignore_ascii_case(start)))
}

/// Writes a request as a worker would get it, and reads it as the worker would.
fn passed_on(method: &Method, path: &str, mut headers: HeaderMap) {
    let (id, host) = (HeaderValue::from_static("id"), HeaderValue::from_static("worker"));
    let (client, key) = (HeaderValue::from_static("10.0.0.1"), HeaderValue::from_static("Bearer key"));
    let added = crate::headers::introduce(&mut headers, Some(&client), &id, Some(&key));
    let mut text = put_request(&Request {
        method,
        prefix: "",
        path,
        host: &host,
        headers: &headers,
        added: &added,
        body: Bytes::from_static(b"body"),
        upgrades: false,
    });
    text.extend_from_slice(b"body");
    let head = take_request(&mut Finder::default(), &mut text);
    // With what is added it may be more than a client may send.
    if matches!(head, Err(HeadError::TooMany | HeadError::TooLarge)) {
        return;
    }
    let head = head.expect("what is sent is well-formed").expect("and whole");
    assert_eq!((&head.parts.method, head.length, &text[..]), (method, Length::Known(4), &b"body"[..]));
    headers.insert(header::HOST, host);
    added.each_line(|name, value| _ = headers.insert(name, value.clone()));
    assert_eq!(head.parts.headers, headers);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Words that heads and bodies are put together from.
    const WORDS: [&str; 34] = [
        "GET ",
        "POST ",
        "/a",
        "http://h/b?c",
        "*",
        " HTTP/1.1",
        " HTTP/1.0",
        "\r\n",
        "\r\n",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        "host: h",
        "Host:",
        "content-length: ",
        "transfer-encoding: ",
        "chunked",
        "connection: ",
        "close",
        "keep-alive",
        "x",
        ": ",
        " ",
        "\t",
        "0",
        "5",
        "a",
        ";b=c",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 204 ",
        "HTTP/1.1 101 S",
        "\0",
        "expect: 100-continue",
    ];

    /// A request that is mostly right.
    const LIKELY: [&str; 4] = [
        "GET /a HTTP/1.1\r\nhost: h\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reads_may_end_anywhere_whatever_is_read(
            step in 0..40_u8,
            likely in prop::sample::select(LIKELY.to_vec()),
            words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..24),
        ) {
            let bytes = [&[step], likely.as_bytes(), words.concat().as_bytes()].concat();
            requests(&bytes);
            answers(&bytes);
        }
    }
}
