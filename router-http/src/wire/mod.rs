//! HTTP/1.1 as this proxy speaks it: no task and no channel between a socket and the request that uses it.
//!
//! [`head`] reads heads, [`chunked`] bodies in chunks, and [`write`](mod@write) sends what there is to say in as few calls as it takes.
//! [`server`] serves one client's connection, from which [`inbound`] reads bodies, into buffers that [`spare`] keeps, and to which
//! [`response`] frames answers; [`client`] asks a worker over one connection, whose acknowledgements of a stream [`acks`] puts off;
//! [`tunnel`] makes one of both. Streams use the room of [`scratch`] in turn. What two readers could understand differently is refused: a
//! proxy that guesses lets one request hide in another (RFC 9112 §11.2).

mod acks;
pub(crate) mod chunked;
pub(crate) mod client;
pub(crate) mod head;
pub(crate) mod inbound;
pub(crate) mod patience;
mod read;
mod response;
mod scratch;
pub(crate) mod server;
pub(crate) mod spare;
mod tunnel;
mod write;

use bytes::{BufMut as _, BytesMut};
use http::HeaderName;

/// Room for a head as most are; a larger one makes its own.
const USUAL_HEAD: usize = 512;

/// Writes a header line.
fn put_line(head: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    head.put_slice(name.as_str().as_bytes());
    head.put_slice(b": ");
    head.put_slice(value);
    head.put_slice(b"\r\n");
}

/// Writes the header line that says how long a body is.
fn put_length(head: &mut BytesMut, length: u64) {
    head.put_slice(b"content-length: ");
    head.put_slice(itoa::Buffer::new().format(length).as_bytes());
    head.put_slice(b"\r\n");
}
