//! HTTP/1.1 as this proxy speaks it: no task and no channel between a socket and the request that uses it.
//!
//! [`head`] reads heads, [`chunked`] bodies in chunks, [`inbound`] a client's body. [`server`] serves one client's connection,
//! [`client`] asks one worker over one connection, and [`write`] sends what either has to say in as few calls as it takes. What
//! two readers could understand differently is refused: a proxy that guesses lets one request hide in another (RFC 9112 §11.2).

pub(crate) mod chunked;
pub(crate) mod client;
pub(crate) mod head;
pub(crate) mod inbound;
mod response;
pub(crate) mod server;
mod tunnel;
mod write;

use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Reads what has come; 0 at the end.
fn poll_read(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    pin!(stream.read_buf(buffer)).poll(context)
}
