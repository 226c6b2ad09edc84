//! Acknowledgements of what a stream brings, for which nobody waits.
//!
//! By default the kernel acknowledges a worker's event as soon as it has been read: one more segment through the whole of the network
//! stack for each event, an eighth of what the event costs here. On a connection that it takes for an interactive one it waits for the next
//! event, for 40 ms or, where that is longer, the round trip. Silence of that length ends this, so that the kernel is told again now
//! and then: seldom, since a worker that does not set `TCP_NODELAY` may keep an event back for as long.

use socket2::SockRef;
use tokio::net::TcpStream;

/// Pieces of a stream that are read between two times that the kernel is told.
const PIECES: u32 = 32;

/// How many pieces of a stream have been read.
#[derive(Debug, Default)]
pub(super) struct Acks {
    pieces: u32,
}

impl Acks {
    /// A piece of a stream has been read.
    pub(super) fn read(&mut self, stream: &TcpStream) {
        if self.pieces.is_multiple_of(PIECES) {
            put_off(stream);
        }
        self.pieces = self.pieces.wrapping_add(1);
    }
}

#[cfg(target_os = "linux")]
fn put_off(stream: &TcpStream) {
    // Where it cannot be had, acknowledgements come sooner.
    let _ = SockRef::from(stream).set_tcp_quickack(false);
}

#[cfg(not(target_os = "linux"))]
fn put_off(_: &TcpStream) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_kernel_is_told_at_the_beginning_and_now_and_then() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = SockRef::from(&stream);
        let mut acks = Acks::default();
        for piece in 0..3 * PIECES {
            socket.set_tcp_quickack(true).unwrap();
            acks.read(&stream);
            assert_eq!(socket.tcp_quickack().unwrap(), piece % PIECES != 0, "{piece}");
        }
    }
}
