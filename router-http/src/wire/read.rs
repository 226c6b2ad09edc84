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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Reads what the other side sends.
    async fn piece(incoming: &mut Incoming, (near, far): &mut (TcpStream, TcpStream), sent: &[u8]) {
        far.write_all(sent).await.unwrap();
        let had = incoming.bytes.len();
        while incoming.bytes.len() < had + sent.len() {
            assert_ne!(poll_fn(|context| incoming.poll_piece(near, context)).await.unwrap(), 0);
        }
    }

    fn looks_in_vain(incoming: &mut Incoming, near: &mut TcpStream) {
        let read = incoming.poll_piece(near, &mut Context::from_waker(Waker::noop()));
        assert!(read.is_pending());
    }

    #[tokio::test]
    async fn whoever_waits_with_nothing_leaves_its_room_to_others_and_keeps_a_piece_that_is_not_taken() {
        let (mut one, mut other) = (connected().await, connected().await);
        let [mut first, mut second] = [Incoming::new(), Incoming::new()];
        piece(&mut first, &mut one, b"whole").await;
        let place = first.bytes.as_ptr();
        first.bytes.clear();
        looks_in_vain(&mut first, &mut one.0);
        assert_eq!(first.bytes.capacity(), 0);
        piece(&mut second, &mut other, b"half").await;
        assert_eq!(second.bytes.as_ptr(), place);
        looks_in_vain(&mut second, &mut other.0);
        // It has no room but the other's, which is in use.
        piece(&mut first, &mut one, b"whole again").await;
        assert_eq!(first.bytes, b"whole again"[..]);
        piece(&mut second, &mut other, b" and half").await;
        assert_eq!(second.bytes, b"half and half"[..]);
        drop(one.1);
        first.bytes.clear();
        let end = poll_fn(|context| first.poll_piece(&mut one.0, context)).await;
        assert_eq!(end.unwrap(), 0);
    }
}
