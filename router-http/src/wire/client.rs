//! One connection to a worker, used by one request at a time: its future writes and reads here itself.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::net::TcpStream;

use super::acks::Acks;
use super::chunked::{ChunkError, Decoded, Decoder};
use super::head::{Finder, HeadError, Length, ResponseHead, take_response};
use super::read::Incoming;
use super::tunnel::Side;
use super::write::Outgoing;
use crate::headers::Added;

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    incoming: Incoming,
    /// What is left of the request. An answer may come before all of it has gone.
    outgoing: Outgoing,
    acks: Acks,
    /// A write has failed: what the worker said before is still read.
    is_deaf: bool,
}

/// A request as it goes to a worker.
#[derive(Debug)]
pub(crate) struct Request<'r> {
    pub(crate) method: &'r Method,
    /// Before the path.
    pub(crate) prefix: &'r str,
    pub(crate) path: &'r str,
    pub(crate) host: &'r HeaderValue,
    /// All others, but for how the body is framed. The host, and the length that a request of HTTP/2 names, are passed over.
    pub(crate) headers: &'r HeaderMap,
    /// Put after them.
    pub(crate) added: &'r Added,
    pub(crate) body: Bytes,
    /// It asks for another protocol.
    pub(crate) upgrades: bool,
}

/// No answer came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the connection was closed before anything was sent")]
    Unsent,
    #[error("the connection was closed before the answer")]
    Lost,
    #[error(transparent)]
    Malformed(#[from] HeadError),
}

/// How an answer's body ends, and how far it has come.
#[derive(Debug)]
pub(crate) enum Framing {
    Left(u64),
    Chunked(Decoder),
    UntilClose,
}

/// A body that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenOff {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("its connection was closed")]
    Closed,
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

impl Link {
    pub(crate) fn new(stream: TcpStream) -> Self {
        let (incoming, outgoing) = (Incoming::new(), Outgoing::default());
        Self { stream, incoming, outgoing, acks: Acks::default(), is_deaf: false }
    }

    /// Whether nothing is under way on it, and the worker has not closed it as far as this machine knows.
    pub(crate) fn is_free(&mut self) -> bool {
        if !self.has_ended() {
            return false;
        }
        let mut nobody = Context::from_waker(Waker::noop());
        if self.stream.poll_read_ready(&mut nobody).is_pending() {
            return true;
        }
        // The last read may have taken all there was without noticing.
        let read = self.stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether nothing is under way on it.
    pub(crate) fn has_ended(&self) -> bool {
        !self.is_deaf && self.outgoing.is_empty() && self.incoming.bytes.is_empty()
    }

    /// Nothing is to be expected for some time.
    pub(crate) fn rest(&mut self) {
        self.incoming.shrink();
        self.outgoing.shrink();
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&mut self, request: Request<'_>) -> Result<ResponseHead, SendError> {
        let (method, upgrades) = (request.method, request.upgrades);
        self.acks = Acks::default();
        put_head(self.outgoing.small(), &request);
        self.outgoing.put(request.body);
        let whole = self.outgoing.len();
        let mut sent_any = false;
        let mut finder = Finder::default();
        poll_fn(|context| {
            self.poll_send(context, &mut sent_any, whole);
            loop {
                if let Some(head) = take_response(&mut finder, &mut self.incoming.bytes, method)? {
                    match head.status {
                        StatusCode::SWITCHING_PROTOCOLS if !upgrades => {
                            return Poll::Ready(Err(HeadError::Unasked.into()));
                        }
                        StatusCode::SWITCHING_PROTOCOLS => return Poll::Ready(Ok(head)),
                        // A word on the way.
                        status if status.is_informational() => continue,
                        _ => return Poll::Ready(Ok(head)),
                    }
                }
                match ready!(self.incoming.poll_read(&mut self.stream, context)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => {
                        let nothing = !sent_any && self.incoming.bytes.is_empty();
                        return Poll::Ready(Err(if nothing { SendError::Unsent } else { SendError::Lost }));
                    }
                }
            }
        })
        .await
    }

    /// The next of an answer's body; `None` at its end.
    pub(crate) fn poll_body(
        &mut self,
        framing: &mut Framing,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        if !self.outgoing.is_empty() {
            self.poll_send(context, &mut true, 0);
        }
        loop {
            let bytes = &mut self.incoming.bytes;
            match framing {
                Framing::Left(0) => return Poll::Ready(None),
                Framing::Left(left) if !bytes.is_empty() => {
                    let here = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *left -= here as u64;
                    return Poll::Ready(Some(Ok(bytes.split_to(here).freeze())));
                }
                Framing::UntilClose if !bytes.is_empty() => {
                    return Poll::Ready(Some(Ok(bytes.split().freeze())));
                }
                Framing::Left(_) | Framing::UntilClose => {}
                Framing::Chunked(decoder) => match decoder.decode(bytes) {
                    Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(data))),
                    Ok(Decoded::End) => return Poll::Ready(None),
                    Ok(Decoded::More) => {}
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
            }
            // Only what has no length beforehand is a stream.
            let has_length = matches!(framing, Framing::Left(_));
            let incoming = &mut self.incoming;
            let read = if has_length {
                incoming.poll_read(&mut self.stream, context)
            } else {
                incoming.poll_piece(&mut self.stream, context)
            };
            match ready!(read) {
                Ok(0) => {
                    let whole = matches!(framing, Framing::UntilClose);
                    return Poll::Ready(if whole { None } else { Some(Err(BrokenOff::Closed)) });
                }
                Ok(_) if has_length => {}
                Ok(_) => self.acks.read(&self.stream),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// The connection as it is.
    pub(super) fn into_side(self) -> Side {
        Side { stream: self.stream, incoming: self.incoming, outgoing: self.outgoing }
    }

    /// Goes on sending the request. A worker that does not listen any more may have said why.
    fn poll_send(&mut self, context: &mut Context<'_>, sent_any: &mut bool, whole: usize) {
        if self.outgoing.is_empty() {
            return;
        }
        let flushed = self.outgoing.poll_flush(&mut self.stream, context);
        *sent_any |= self.outgoing.len() < whole;
        if let Poll::Ready(Err(_)) = flushed {
            self.outgoing.clear();
            self.is_deaf = true;
        }
    }
}

impl Framing {
    pub(crate) fn of(length: Length) -> Self {
        match length {
            Length::Known(length) => Self::Left(length),
            Length::Chunked => Self::Chunked(Decoder::new()),
            Length::UntilClose => Self::UntilClose,
        }
    }

    /// Nothing of the body is left.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Left(left) => *left == 0,
            Self::Chunked(decoder) => decoder.is_done(),
            Self::UntilClose => false,
        }
    }
}

/// The head of a request as it is sent.
#[cfg(any(test, fuzzing))]
pub(crate) fn put_request(request: &Request<'_>) -> BytesMut {
    let mut head = BytesMut::new();
    put_head(&mut head, request);
    head
}

fn put_head(head: &mut BytesMut, request: &Request<'_>) {
    head.reserve(super::USUAL_HEAD);
    head.put_slice(request.method.as_str().as_bytes());
    head.put_u8(b' ');
    head.put_slice(request.prefix.as_bytes());
    if !request.path.starts_with('/') {
        head.put_u8(b'/');
    }
    head.put_slice(request.path.as_bytes());
    head.put_slice(b" HTTP/1.1\r\nhost: ");
    head.put_slice(request.host.as_bytes());
    head.put_slice(b"\r\n");
    // Where a body would mean something, its absence is said (RFC 9110 §8.6).
    let means_something = matches!(*request.method, Method::POST | Method::PUT | Method::PATCH);
    if means_something || !request.body.is_empty() {
        super::put_length(head, request.body.len() as u64);
    }
    // Both have been said, about the body as it is sent.
    let said = |name: &HeaderName| *name == header::HOST || *name == header::CONTENT_LENGTH;
    for (name, value) in request.headers.iter().filter(|(name, _)| !said(name)) {
        super::put_line(head, name, value.as_bytes());
    }
    request.added.each_line(|name, value| super::put_line(head, name, value.as_bytes()));
    head.put_slice(b"\r\n");
}
