//! What has come over one connection and was not taken yet.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::scratch::Use;

/// See the module.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) bytes: BytesMut,
    /// Room that the next read finds at least half of.
    room: usize,
}

/// Room at first: most heads with a small body.
const LEAST_ROOM: usize = 8 << 10;

/// Room where reads fill what they find.
const MOST_ROOM: usize = 256 << 10;

impl Incoming {
    pub(super) fn new() -> Self {
        Self { bytes: BytesMut::new(), room: LEAST_ROOM }
    }

    /// Reads what has come; 0 at the end.
    pub(super) fn poll_read(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if !self.has_room() {
            self.bytes.reserve(self.room);
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let read = pin!(stream.read_buf(&mut self.bytes)).poll(context);
        if let Poll::Ready(Ok(count)) = read
            && count == room
        {
            self.room = (self.room * 2).min(MOST_ROOM);
        }
        read
    }

    /// The same of what comes in small pieces, with long silences between them: meanwhile its room is the thread's, unless pieces have
    /// been so large that it needs more.
    pub(super) fn poll_piece(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let shares = self.room == LEAST_ROOM;
        if shares && self.bytes.capacity() == 0 {
            ready!(stream.poll_read_ready(context))?;
            self.bytes = Use::Reading.take();
        }
        let read = self.poll_read(stream, context);
        if shares && read.is_pending() {
            Use::Reading.give_back(&mut self.bytes);
        }
        read
    }

    /// The next read finds all the room that it wants.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.capacity() - self.bytes.len() >= self.room / 2
    }

    /// Gives up room that a connection without work does not need.
    pub(super) fn shrink(&mut self) {
        if self.room > LEAST_ROOM && self.bytes.is_empty() {
            *self = Self::new();
        }
    }
}
