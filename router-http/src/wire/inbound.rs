//! A client's connection, and the body that is read from it once somebody wants it.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::chunked::{ChunkError, Decoded, Decoder};
use super::head::Length;
use super::read::Incoming;
use super::spare;
use super::write::Outgoing;

/// A connection as its own future and the request that it serves share it. Both are polled by one task, so that its lock is never
/// waited for.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<Wire>>);

/// See [`Shared`].
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    pub(super) incoming: Incoming,
    /// The body of the request that is served has not been read to its end.
    pub(super) unread: bool,
}

/// A request's body, still with the client.
#[derive(Debug)]
pub(crate) struct Upload {
    wire: Shared,
    length: Length,
    /// The client waits for a word before it sends.
    expects_continue: bool,
}

/// A body that was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("it is too large")]
    TooLarge,
    #[error("nothing more came for too long")]
    Silent,
    #[error("it broke off")]
    Broken,
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// Most bytes that are set aside for what has been announced and has not come.
const MOST_RESERVED: usize = 4 << 20;

/// Room that is left after a body's end, so that the read which takes the last byte also notices that nothing follows.
const SPARE: usize = 64;

/// Bytes of later requests that are read while one is served.
const MOST_AHEAD: usize = 64 << 10;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Shared {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Mutex::new(Wire { stream, incoming: Incoming::new(), unread: false })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, once nobody else has it.
    pub(super) fn into_inner(self) -> Option<Wire> {
        Arc::into_inner(self.0).map(|wire| wire.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Wire {
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if !self.incoming.has_room() {
            // It is only made for what is there.
            ready!(self.stream.poll_read_ready(context))?;
        }
        self.incoming.poll_read(&mut self.stream, context)
    }

    /// Ready once the client has closed its side: it does not wait for an answer any more.
    pub(super) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // Whoever reads the body notices by itself.
        while !self.unread && self.incoming.bytes.len() < MOST_AHEAD {
            if !matches!(ready!(self.poll_read(context)), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl Upload {
    pub(super) fn new(wire: Shared, length: Length, expects_continue: bool) -> Self {
        wire.lock().unread = length != Length::Known(0);
        Self { wire, length, expects_continue }
    }

    /// All of it. `most` bytes at most; `idle` is the longest silence within it.
    pub(crate) async fn whole(self, most: usize, idle: Duration) -> Result<Bytes, UploadError> {
        let mut reading = match self.length {
            Length::Known(0) => return Ok(Bytes::new()),
            Length::Known(length) => {
                let length = usize::try_from(length).ok().filter(|length| *length <= most);
                Reading::Known { length: length.ok_or(UploadError::TooLarge)?, body: Vec::new() }
            }
            Length::Chunked => Reading::Chunked { decoder: Decoder::new(), body: BytesMut::new() },
            // No request has such a body.
            Length::UntilClose => return Err(UploadError::Broken),
        };
        let mut word = Outgoing::default();
        if self.expects_continue && self.wire.lock().incoming.bytes.is_empty() {
            word.small().extend_from_slice(CONTINUE);
        }
        let mut silence: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|context| {
            let wire = &mut *self.wire.lock();
            // A client that is gone is noticed by reading.
            let _ = word.poll_flush(&mut wire.stream, context);
            let mut heard = false;
            loop {
                if let Some(body) = reading.take(&mut wire.incoming.bytes, most)? {
                    wire.unread = false;
                    return Poll::Ready(Ok(body));
                }
                match reading.poll_read(wire, context) {
                    Poll::Ready(Ok(1..)) => heard = true,
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(UploadError::Broken)),
                    Poll::Pending => break,
                }
            }
            let sleep = silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
            if heard {
                sleep.as_mut().reset(tokio::time::Instant::now() + idle);
            }
            sleep.as_mut().poll(context).map(|()| Err(UploadError::Silent))
        })
        .await
    }
}

/// A body that is being read.
enum Reading {
    Known { length: usize, body: Vec<u8> },
    Chunked { decoder: Decoder, body: BytesMut },
}

impl Reading {
    /// Takes what has come; the body if that is all of it.
    fn take(&mut self, incoming: &mut BytesMut, most: usize) -> Result<Option<Bytes>, UploadError> {
        match self {
            Self::Known { length, body } if body.is_empty() => {
                if incoming.len() >= *length {
                    return Ok(Some(incoming.split_to(*length).freeze()));
                }
                if body.capacity() == 0 {
                    *body = spare::take((*length).min(MOST_RESERVED) + SPARE);
                }
                body.extend_from_slice(incoming);
                incoming.clear();
                Ok(None)
            }
            Self::Known { length, body } => {
                if body.len() < *length {
                    return Ok(None);
                }
                // The beginning of another request.
                incoming.extend_from_slice(&body[*length..]);
                body.truncate(*length);
                Ok(Some(spare::lend(std::mem::take(body))))
            }
            Self::Chunked { decoder, body } => loop {
                match decoder.decode(incoming)? {
                    Decoded::More => return Ok(None),
                    Decoded::End => return Ok(Some(std::mem::take(body).freeze())),
                    Decoded::Data(data) => {
                        if body.len() + data.len() > most {
                            return Err(UploadError::TooLarge);
                        }
                        // Several chunks are seldom; one is not copied twice.
                        if body.is_empty() && decoder.is_done() {
                            return Ok(Some(data));
                        }
                        body.extend_from_slice(&data);
                    }
                }
            },
        }
    }

    /// Reads more, straight to where it belongs.
    fn poll_read(&mut self, wire: &mut Wire, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Known { length, body } => {
                if body.len() == body.capacity() {
                    let missing = *length - body.len();
                    body.reserve(missing.min(body.len().max(MOST_RESERVED)) + SPARE);
                }
                pin!(wire.stream.read_buf(body)).poll(context)
            }
            Self::Chunked { .. } => wire.poll_read(context),
        }
    }
}
