//! Heads of requests and answers: found, parsed and held against the rules, before anything is believed of them.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use httparse::ParserConfig;
use memchr::memchr_iter;

use crate::decimal;
use crate::receive::Head;

thread_local! {
    /// Maps that are empty again: making and growing one takes as long as filling it.
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// Maps that a thread keeps.
const MOST_SPARE: usize = 64;

/// Headers that a kept map has room for.
const MOST_ROOM: usize = 64;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    Known(u64),
    Chunked,
    /// An answer that goes on until its connection is closed.
    UntilClose,
}

/// The head of a request.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// Of the headers all but `Content-Length`.
    pub(crate) parts: Head,
    pub(crate) length: Length,
    /// The client would send another request on its connection.
    pub(crate) keep_alive: bool,
    /// It waits for a word before it sends the body.
    pub(crate) expects_continue: bool,
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    /// `Content-Length` only where no body follows.
    pub(crate) headers: HeaderMap,
    pub(crate) length: Length,
    pub(crate) keep_alive: bool,
}

/// A head that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the head is larger than {MOST_BYTES} bytes")]
    TooLarge,
    #[error("the head has more than {MOST_HEADERS} header lines")]
    TooMany,
    #[error("a line of the head does not end with CR LF")]
    LineEnd,
    #[error("the first line of the head is not one of HTTP/1.1")]
    FirstLine,
    #[error("only HTTP/1.1, HTTP/1.0 and, with prior knowledge, HTTP/2 are spoken here")]
    Version,
    #[error("the target of the request is not a path")]
    Target,
    #[error("a header line is malformed")]
    Header,
    #[error("a request of HTTP/1.1 has exactly one Host header")]
    Host,
    #[error("Content-Length is not one number, or stands beside Transfer-Encoding")]
    Length,
    #[error("a change of protocol that nobody asked for")]
    Unasked,
    #[error("no Transfer-Encoding but chunked, once, in HTTP/1.1, is understood")]
    Coding,
}

/// Bytes of a head.
pub(crate) const MOST_BYTES: usize = 64 << 10;

/// Lines of a head after its first.
pub(crate) const MOST_HEADERS: usize = 128;

/// Looks for the end of a head in bytes that come a few at a time.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    /// Where the line begins whose end has not been seen.
    line: usize,
    /// What lies before has been looked at.
    seen: usize,
}

impl Finder {
    /// The length of the head, once it is all there; only CR LF ends a line, so that nobody sees another end than this one.
    pub(crate) fn find(&mut self, buffer: &[u8]) -> Result<Option<usize>, HeadError> {
        // Asked before anything has come, as for every request once.
        if buffer.len() == self.seen {
            return Ok(None);
        }
        let visible = &buffer[..buffer.len().min(MOST_BYTES)];
        for at in memchr_iter(b'\n', &visible[self.seen..]) {
            let end = self.seen + at;
            if end == self.line || visible[end - 1] != b'\r' {
                return Err(HeadError::LineEnd);
            }
            if end == self.line + 1 {
                return Ok(Some(end + 1));
            }
            self.line = end + 1;
        }
        self.seen = visible.len();
        if buffer.len() >= MOST_BYTES { Err(HeadError::TooLarge) } else { Ok(None) }
    }
}

/// Takes a request's head out of `buffer` once it is complete.
pub(crate) fn take_request(
    finder: &mut Finder,
    buffer: &mut BytesMut,
) -> Result<Option<RequestHead>, HeadError> {
    // An empty line before a request is passed over (RFC 9112 §2.2): old clients end a body with one.
    while finder.seen == 0 && buffer.starts_with(b"\r\n") {
        buffer.advance(2);
    }
    if **buffer == *b"\r" {
        return Ok(None);
    }
    let Some(end) = finder.find(buffer)? else { return Ok(None) };
    // Its values share these bytes. Nobody keeps one of them for long, so that the buffer is soon alone again.
    let head = buffer.split_to(end).freeze();
    *finder = Finder::default();
    request(&head).map(Some)
}

/// Takes an answer's head out of `buffer` once it is complete. `method`: the request's.
pub(crate) fn take_response(
    finder: &mut Finder,
    buffer: &mut BytesMut,
    method: &Method,
) -> Result<Option<ResponseHead>, HeadError> {
    let Some(end) = finder.find(buffer)? else { return Ok(None) };
    let head = buffer.split_to(end).freeze();
    *finder = Finder::default();
    response(&head, method).map(Some)
}

/// Takes back headers that nobody needs any more.
pub(crate) fn give_back(mut headers: HeaderMap) {
    if headers.capacity() <= MOST_ROOM {
        headers.clear();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MOST_SPARE {
                spare.push(headers);
            }
        });
    }
}

fn request(head: &Bytes) -> Result<RequestHead, HeadError> {
    let mut lines = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    complete(ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, head, &mut lines), head)?;
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::FirstLine);
    };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::FirstLine)?;
    let uri = target_of(&method, head.slice_ref(target.as_bytes()))?;
    let is_1_1 = version == 1;
    let lines = Lines::collect(head, parsed.headers, false)?;
    if lines.hosts > 1 || (is_1_1 && lines.hosts == 0) {
        return Err(HeadError::Host);
    }
    let length = lines.length(is_1_1)?.unwrap_or(Length::Known(0));
    let keep_alive = lines.keep_alive(is_1_1);
    let expects_continue = is_1_1 && lines.expects_continue == Some(true);
    let version = if is_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let parts = Head { method, uri, version, headers: lines.headers };
    Ok(RequestHead { parts, length, keep_alive, expects_continue })
}

fn response(head: &Bytes, method: &Method) -> Result<ResponseHead, HeadError> {
    let mut lines = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    complete(
        ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, &mut lines),
        head,
    )?;
    let (Some(code), Some(version)) = (parsed.code, parsed.version) else { return Err(HeadError::FirstLine) };
    let status = StatusCode::from_u16(code).map_err(|_| HeadError::FirstLine)?;
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let lines = Lines::collect(head, parsed.headers, bodiless)?;
    let announced = lines.length(version == 1)?;
    // What follows is of another protocol, for as long as it is spoken.
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    let length = if switches {
        Length::UntilClose
    } else if bodiless {
        Length::Known(0)
    } else {
        announced.unwrap_or(Length::UntilClose)
    };
    let keep_alive = lines.keep_alive(version == 1) && length != Length::UntilClose;
    Ok(ResponseHead { status, headers: lines.headers, length, keep_alive })
}

/// All of the head must have been one.
fn complete(parsed: Result<httparse::Status<usize>, httparse::Error>, head: &[u8]) -> Result<(), HeadError> {
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => Ok(()),
        Ok(_) => Err(HeadError::Header),
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooMany),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => Err(HeadError::Header),
        Err(httparse::Error::Version) => Err(HeadError::Version),
        Err(_) => Err(HeadError::FirstLine),
    }
}

/// The four forms of RFC 9112 §3.2, each where it may stand.
fn target_of(method: &Method, target: Bytes) -> Result<Uri, HeadError> {
    let (path, star) = (target.starts_with(b"/"), &*target == b"*");
    let uri = Uri::from_maybe_shared(target).map_err(|_| HeadError::Target)?;
    let fits = match *method {
        Method::CONNECT => uri.authority().is_some() && uri.scheme().is_none(),
        _ if star => *method == Method::OPTIONS,
        _ => path || (uri.scheme().is_some() && uri.authority().is_some()),
    };
    if fits { Ok(uri) } else { Err(HeadError::Target) }
}

/// Header lines, and what was noticed of them.
struct Lines {
    headers: HeaderMap,
    hosts: usize,
    lengths: usize,
    /// What the last of them says, if it is a number.
    length: Option<u64>,
    codings: usize,
    /// So says the last of them.
    is_chunked: bool,
    has_connection: bool,
    /// What the first `Expect` says.
    expects_continue: Option<bool>,
}

impl Lines {
    /// `keeps_length`: the length is that of a body which does not follow, and stays among the headers.
    fn collect(head: &Bytes, lines: &[httparse::Header<'_>], keeps_length: bool) -> Result<Self, HeadError> {
        let mut headers = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        // Room for what a proxy adds.
        headers.reserve(lines.len() + 4);
        let mut all = Self {
            headers,
            hosts: 0,
            lengths: 0,
            length: None,
            codings: 0,
            is_chunked: false,
            has_connection: false,
            expects_continue: None,
        };
        for line in lines {
            let name = name_of(line)?;
            all.notice(&name, line.value);
            if keeps_length || name != header::CONTENT_LENGTH {
                all.headers.append(name, value_of(head, line.value)?);
            }
        }
        Ok(all)
    }

    fn notice(&mut self, name: &HeaderName, value: &[u8]) {
        match *name {
            header::HOST => self.hosts += 1,
            header::CONTENT_LENGTH => {
                self.lengths += 1;
                self.length = decimal::number(value);
            }
            header::TRANSFER_ENCODING => {
                self.codings += 1;
                self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            header::CONNECTION => self.has_connection = true,
            header::EXPECT => {
                self.expects_continue.get_or_insert(value.eq_ignore_ascii_case(b"100-continue"));
            }
            _ => {}
        }
    }

    fn length(&self, is_1_1: bool) -> Result<Option<Length>, HeadError> {
        match (self.lengths, self.codings) {
            (0, 0) => Ok(None),
            (1, 0) => self.length.map(|length| Some(Length::Known(length))).ok_or(HeadError::Length),
            (0, 1) if is_1_1 && self.is_chunked => Ok(Some(Length::Chunked)),
            (0, _) => Err(HeadError::Coding),
            _ => Err(HeadError::Length),
        }
    }

    fn keep_alive(&self, is_1_1: bool) -> bool {
        if !self.has_connection {
            return is_1_1;
        }
        let says = |wanted: &str| {
            let lines = self.headers.get_all(header::CONNECTION).iter();
            let words = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
            words.into_iter().any(|word| word.trim().eq_ignore_ascii_case(wanted))
        };
        if is_1_1 { !says("close") } else { says("keep-alive") && !says("close") }
    }
}

/// The name of a line. The usual ones, as they are usually written, are told by comparing: to look any other up takes several times as
/// long.
fn name_of(line: &httparse::Header<'_>) -> Result<HeaderName, HeadError> {
    Ok(match line.name {
        "Host" | "host" => header::HOST,
        "Date" | "date" => header::DATE,
        "Accept" | "accept" => header::ACCEPT,
        "Server" | "server" => header::SERVER,
        "User-Agent" | "user-agent" => header::USER_AGENT,
        "Content-Type" | "content-type" => header::CONTENT_TYPE,
        "Authorization" | "authorization" => header::AUTHORIZATION,
        "Content-Length" | "content-length" => header::CONTENT_LENGTH,
        other => HeaderName::from_bytes(other.as_bytes()).map_err(|_| HeadError::Header)?,
    })
}

/// The value of a line; the one that nearly every message has is not made anew.
fn value_of(head: &Bytes, value: &[u8]) -> Result<HeaderValue, HeadError> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let value = match value {
        b"application/json" => return Ok(JSON),
        b"" => Bytes::new(),
        value => head.slice_ref(value),
    };
    HeaderValue::from_maybe_shared(value).map_err(|_| HeadError::Header)
}

impl HeadError {
    /// The status and the code with which a client is answered that sent such a head.
    pub(crate) fn verdict(self) -> (u16, &'static str) {
        match self {
            Self::TooLarge | Self::TooMany => (431, "head_too_large"),
            Self::Version => (505, "version_not_served"),
            Self::Coding => (501, "coding_not_served"),
            _ => (400, "malformed_request"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request_of(text: &str) -> Result<RequestHead, HeadError> {
        let mut buffer = BytesMut::from(text);
        take_request(&mut Finder::default(), &mut buffer).map(|head| head.expect("it is complete"))
    }

    fn with(lines: &str) -> Result<RequestHead, HeadError> {
        request_of(&format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n"))
    }

    #[test]
    fn a_usual_head_is_understood() {
        let head = with("Content-Length: 12\r\nX-A:  b \r\nx-a:\r\nExpect: 100-Continue\r\n").unwrap();
        assert_eq!(
            (&head.parts.method, head.parts.uri.path(), head.length),
            (&Method::POST, "/a", Length::Known(12))
        );
        assert!(head.keep_alive && head.expects_continue && head.parts.version == Version::HTTP_11);
        assert_eq!(head.parts.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["b", ""]);
        assert!(!with("connection: x, Close\r\n").unwrap().keep_alive);
        let old = |lines: &str| request_of(&format!("GET / HTTP/1.0\r\n{lines}\r\n")).unwrap().keep_alive;
        assert!(!old("") && old("connection: Keep-Alive\r\n"));
        assert_eq!(with("transfer-encoding: Chunked\r\n").unwrap().length, Length::Chunked);
        assert_eq!(request_of("\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n").unwrap().parts.uri, "/");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (lines, error) in [
            ("content-length: 1\r\ntransfer-encoding: chunked\r\n", HeadError::Length),
            ("content-length: 1\r\ncontent-length: 2\r\n", HeadError::Length),
            ("content-length: 1\r\ncontent-length: 1\r\n", HeadError::Length),
            ("content-length: 1, 1\r\n", HeadError::Length),
            ("content-length: +1\r\n", HeadError::Length),
            ("content-length: 0x1\r\n", HeadError::Length),
            ("content-length: \r\n", HeadError::Length),
            ("content-length: 99999999999999999999\r\n", HeadError::Length),
            ("transfer-encoding: gzip, chunked\r\n", HeadError::Coding),
            ("transfer-encoding: identity\r\n", HeadError::Coding),
            ("transfer-encoding: \u{b}chunked\r\n", HeadError::Header),
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", HeadError::Coding),
            ("x: a\r\n b\r\n", HeadError::Header),
            ("x : a\r\n", HeadError::Header),
            (": a\r\n", HeadError::Header),
            ("x\r\n", HeadError::Header),
            ("x: a\0b\r\n", HeadError::Header),
            ("x: a\rb\r\n", HeadError::Header),
            ("x: a\n", HeadError::LineEnd),
            ("host: h\r\n", HeadError::Host),
        ] {
            assert_eq!(with(lines).unwrap_err(), error, "{}", lines.escape_debug());
        }
        for (text, error) in [
            ("GET / HTTP/1.1\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\n\n", HeadError::LineEnd),
            ("GET a HTTP/1.1\r\nhost: h\r\n\r\n", HeadError::Target),
            ("GET * HTTP/1.1\r\nhost: h\r\n\r\n", HeadError::Target),
            ("CONNECT / HTTP/1.1\r\nhost: h\r\n\r\n", HeadError::Target),
            ("GET / HTTP/1.2\r\nhost: h\r\n\r\n", HeadError::Version),
            ("GET /  HTTP/1.1\r\nhost: h\r\n\r\n", HeadError::Version),
            ("GET /\r\n\r\n", HeadError::FirstLine),
            ("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", HeadError::Coding),
        ] {
            let found = request_of(text).unwrap_err();
            assert!(found == error || found == HeadError::FirstLine, "{}: {found}", text.escape_debug());
        }
        let many = "x: y\r\n".repeat(MOST_HEADERS);
        assert_eq!(with(&many).unwrap_err(), HeadError::TooMany);
        let long = format!("x: {}\r\n", "y".repeat(MOST_BYTES));
        assert_eq!(with(&long).unwrap_err(), HeadError::TooLarge);
    }

    #[test]
    fn an_answer_says_how_its_body_ends() {
        let length = |method: &Method, text: &str| {
            let mut buffer = BytesMut::from(text);
            let head = take_response(&mut Finder::default(), &mut buffer, method);
            head.map(|head| head.map(|head| (head.length, head.keep_alive)))
        };
        let get = |text: &str| length(&Method::GET, text).map(Option::unwrap);
        assert_eq!(get("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"), Ok((Length::Known(3), true)));
        assert_eq!(get("HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n"), Ok((Length::Chunked, true)));
        assert_eq!(get("HTTP/1.1 200 OK\r\n\r\n"), Ok((Length::UntilClose, false)));
        assert_eq!(get("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n"), Ok((Length::Known(3), false)));
        assert_eq!(get("HTTP/1.1 204 No\r\n\r\n"), Ok((Length::Known(0), true)));
        assert_eq!(
            length(&Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"),
            Ok(Some((Length::Known(0), true)))
        );
        let both = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(get(both), Err(HeadError::Length));
        assert_eq!(get("HTTP/1.1 200 OK\nx: y\n\n"), Err(HeadError::LineEnd));
    }

    proptest! {
        #[test]
        fn reads_may_end_anywhere(
            text in "(\r\n)?(GET|POST) /[a-z]{0,4} HTTP/1.[01]\r\n((host|x|content-length): ?[0-9a]{1,3}\r?\n){0,4}\r\n[a-z]{0,5}",
        ) {
            let outcome = |step: usize| {
                let (mut finder, mut buffer) = (Finder::default(), BytesMut::new());
                let mut found = None;
                for piece in text.as_bytes().chunks(step) {
                    buffer.extend_from_slice(piece);
                    if found.is_none() {
                        let head = take_request(&mut finder, &mut buffer);
                        found = head.map(|head| head.map(|head| (head.parts.uri, head.length, head.parts.headers))).transpose();
                    }
                }
                (found, buffer.to_vec())
            };
            let (whole, rest) = outcome(text.len());
            for step in 1..8 {
                let (found, left) = outcome(step);
                prop_assert_eq!(&found, &whole);
                if whole.as_ref().is_some_and(Result::is_ok) {
                    prop_assert_eq!(&left, &rest);
                }
            }
        }
    }
}
