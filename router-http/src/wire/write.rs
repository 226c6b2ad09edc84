//! What is to be sent over one connection: small pieces are joined, large ones go as they are, all of it in one call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::scratch::Use;

/// Bytes on their way, in order.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    queue: VecDeque<Bytes>,
    /// In all of `queue`.
    queued: usize,
    /// After all of `queue`.
    tail: BytesMut,
}

/// Largest piece that is copied beside others: to name one more to the kernel costs about as much.
const MOST_COPIED: usize = 2048;

/// Room for small pieces that a connection without work keeps.
const MOST_ROOM: usize = 8 << 10;

/// Pieces that are handed over at once.
const MOST_SLICES: usize = 32;

impl Outgoing {
    /// Where small pieces are written to.
    pub(crate) fn small(&mut self) -> &mut BytesMut {
        if self.tail.capacity() == 0 {
            self.tail = Use::Writing.take();
        }
        &mut self.tail
    }

    pub(crate) fn put(&mut self, data: Bytes) {
        if data.len() <= MOST_COPIED {
            self.small().extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            self.queued += self.tail.len();
            self.queue.push_back(self.tail.split().freeze());
        }
        self.queued += data.len();
        self.queue.push_back(data);
    }

    pub(crate) fn len(&self) -> usize {
        self.queued + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.queued = 0;
        self.tail.clear();
    }

    /// Nothing is to be said until something comes: its room is the thread's meanwhile.
    pub(crate) fn pause(&mut self) {
        Use::Writing.give_back(&mut self.tail);
    }

    /// Gives up room that a connection without work does not need.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() && self.tail.capacity() > MOST_ROOM {
            *self = Self::default();
        }
    }

    /// Sends until nothing is left.
    pub(crate) fn poll_flush(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let sent = if self.queue.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(context, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); MOST_SLICES];
                let pieces = self.queue.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
                let mut count = 0;
                for (slice, piece) in slices.iter_mut().zip(pieces) {
                    *slice = IoSlice::new(piece);
                    count += 1;
                }
                ready!(Pin::new(&mut *stream).poll_write_vectored(context, &slices[..count]))?
            };
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut sent: usize) {
        while let Some(first) = self.queue.front_mut() {
            let here = first.len().min(sent);
            self.queued -= here;
            sent -= here;
            if here < first.len() {
                first.advance(here);
                return;
            }
            self.queue.pop_front();
        }
        if sent == self.tail.len() {
            // The next one finds the same memory.
            self.tail.clear();
        } else {
            self.tail.advance(sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// Takes a few bytes at a time.
    struct Narrow {
        took: Vec<u8>,
        most: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let here = bytes.len().min(self.most);
            self.took.extend_from_slice(&bytes[..here]);
            Poll::Ready(Ok(here))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes: Vec<u8> =
                slices.iter().flat_map(|slice| slice.iter().copied()).take(self.most).collect();
            self.took.extend_from_slice(&bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn everything_goes_in_order_however_little_is_taken(
            lengths in prop::collection::vec(prop_oneof![0..10_usize, 2000..2100_usize, 5000..6000_usize], 0..60),
            most in 1..9000_usize,
        ) {
            let (mut outgoing, mut all) = (Outgoing::default(), Vec::new());
            for (at, length) in lengths.into_iter().enumerate() {
                let piece = vec![at as u8; length];
                all.extend_from_slice(&piece);
                if at % 3 == 0 {
                    outgoing.small().extend_from_slice(&piece);
                } else {
                    outgoing.put(piece.into());
                }
            }
            prop_assert_eq!(outgoing.len(), all.len());
            let mut narrow = Narrow { took: Vec::new(), most };
            let flushed = outgoing.poll_flush(&mut narrow, &mut Context::from_waker(Waker::noop()));
            prop_assert!(matches!(flushed, Poll::Ready(Ok(()))) && outgoing.is_empty());
            prop_assert_eq!(narrow.took, all);
        }
    }
}
