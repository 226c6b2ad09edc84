//! One client's connection: one request after the other, each served to its end before the next is looked at.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::head::{self, Finder, RequestHead, take_request};
use super::inbound::{Shared, Upload};
use super::patience::Patience;
use super::response::{Asked, Encoding};
use super::tunnel;
use super::write::Outgoing;
use crate::body::{Body, Tunnel};
use crate::error::Failure;
use crate::receive::Inbound;
use crate::service::Service;

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Shared,
    outgoing: Outgoing,
    service: Service,
    /// The client's address, as a header names it.
    client: Option<HeaderValue>,
    patience: Patience,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The shutdown wakes this connection's task, which is always the same.
    awaits_shutdown: bool,
    token: CancellationToken,
    /// No request has come yet.
    is_new: bool,
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    Closed,
    /// The client never sent a whole head.
    Silent,
    /// It goes on as one of HTTP/2, of which this has been read.
    Http2(TcpStream, Bytes),
}

/// What comes where a request could.
#[allow(clippy::large_enum_variant, reason = "taken apart at once: a box would be an allocation a request")]
enum Next {
    Request(RequestHead),
    Http2,
    Failed(Failure),
    Silent,
    Closed,
}

/// What follows an answer.
enum After {
    Request,
    Tunnel(Box<Tunnel>),
}

/// How far the body of an answer has come.
#[derive(Clone, Copy)]
enum Progress {
    More,
    /// More is to come.
    Waits,
    Ended,
    Broken,
}

/// How a client of HTTP/2 begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of an answer that are held before they are sent.
const HIGH_WATER: usize = 64 << 10;

/// How long what a client still sends is read and thrown away, lest the answer be lost with it.
const LINGER: Duration = Duration::from_secs(2);

impl Connection {
    /// `patience`: time for a head.
    pub(crate) fn new(
        stream: TcpStream,
        client: Option<HeaderValue>,
        service: Service,
        patience: Duration,
        token: CancellationToken,
    ) -> Self {
        Self {
            wire: Shared::new(stream),
            outgoing: Outgoing::default(),
            service,
            client,
            patience: Patience::new(patience),
            shutdown: Box::pin(token.clone().cancelled_owned()),
            awaits_shutdown: false,
            token,
            is_new: true,
        }
    }

    /// Serves until either side has enough.
    pub(crate) async fn serve(mut self) -> End {
        loop {
            match self.next().await {
                Next::Request(mut head) => {
                    self.is_new = false;
                    match self.exchange(&mut head).await {
                        Some(After::Request) => {}
                        Some(After::Tunnel(tunnel)) => {
                            self.join(*tunnel).await;
                            return End::Closed;
                        }
                        None => return End::Closed,
                    }
                }
                Next::Failed(failure) => {
                    // Where the next request would begin is not known.
                    self.wire.lock().unread = true;
                    let response = self.service.refuse(&failure);
                    let asked = Asked { head_only: false, is_1_1: true };
                    let _ = self.respond(response, asked, true).await;
                    let silent = self.is_new && matches!(failure, Failure::HeadSilent { .. });
                    return if silent { End::Silent } else { End::Closed };
                }
                Next::Silent => return if self.is_new { End::Silent } else { End::Closed },
                Next::Closed => return End::Closed,
                Next::Http2 => {
                    let Some(wire) = self.wire.into_inner() else { return End::Closed };
                    return End::Http2(wire.stream, wire.incoming.bytes.freeze());
                }
            }
        }
    }

    async fn next(&mut self) -> Next {
        let mut finder = Finder::default();
        self.patience.renew();
        poll_fn(|context| {
            let wire = &mut *self.wire.lock();
            loop {
                let bytes = &mut wire.incoming.bytes;
                if self.is_new && begins_http2(bytes) {
                    if bytes.len() >= PREFACE.len() {
                        return Poll::Ready(Next::Http2);
                    }
                } else {
                    match take_request(&mut finder, bytes) {
                        Ok(Some(head)) => return Poll::Ready(Next::Request(head)),
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(Next::Failed(Failure::Head(error))),
                    }
                }
                match wire.poll_read(context) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Closed),
                    Poll::Pending => break,
                }
            }
            let idle = wire.incoming.bytes.is_empty();
            if idle {
                wire.incoming.shrink();
                self.outgoing.shrink();
                if !self.awaits_shutdown {
                    self.awaits_shutdown = self.shutdown.as_mut().poll(context).is_pending();
                }
                if self.token.is_cancelled() {
                    return Poll::Ready(Next::Closed);
                }
            }
            ready!(self.patience.poll(context));
            let http2 = self.is_new && begins_http2(&wire.incoming.bytes);
            if idle || http2 {
                return Poll::Ready(Next::Silent);
            }
            let seconds = self.patience.bound.as_secs();
            Poll::Ready(Next::Failed(Failure::HeadSilent { seconds }))
        })
        .await
    }

    /// Serves one request. `None`: it was the last.
    async fn exchange(&mut self, head: &mut RequestHead) -> Option<After> {
        let RequestHead { parts: head, length, keep_alive, expects_continue } = head;
        let is_1_1 = head.version == Version::HTTP_11;
        let asked = Asked { head_only: head.method == Method::HEAD, is_1_1 };
        let body = Inbound::Http1(Upload::new(self.wire.clone(), *length, *expects_continue));
        let response = {
            let mut serving = pin!(self.service.serve(head, body, self.client.as_ref()));
            poll_fn(|context| match serving.as_mut().poll(context) {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => self.wire.lock().poll_gone(context).map(|()| None),
            })
            .await?
        };
        self.respond(response, asked, !*keep_alive).await
    }

    /// Sends an answer. `None`: nothing can follow it.
    async fn respond(&mut self, response: Response<Body>, asked: Asked, close: bool) -> Option<After> {
        let unread = self.wire.lock().unread;
        let (mut parts, mut body) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            Encoding::None.put_head(self.outgoing.small(), &parts, &body.said(), asked, None, false);
            return body.into_tunnel().map(|tunnel| After::Tunnel(Box::new(tunnel)));
        }
        if parts.status == StatusCode::NO_CONTENT {
            // A reader that does not know this status would wait for what it announces (RFC 9110 §8.6).
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let exact = body.size_hint().exact();
        let mut encoding = Encoding::of(asked, &parts, exact);
        let close = close || unread || encoding == Encoding::UntilClose || self.token.is_cancelled();
        encoding.put_head(self.outgoing.small(), &parts, &body.said(), asked, exact, close);
        head::give_back(parts.headers);
        let mut next = if encoding == Encoding::None { Progress::Ended } else { Progress::More };
        poll_fn(|context| {
            loop {
                if matches!(next, Progress::More | Progress::Waits) {
                    next = poll_body(&mut body, &mut encoding, &mut self.outgoing, context);
                }
                let wire = &mut *self.wire.lock();
                match (self.outgoing.poll_flush(&mut wire.stream, context), next) {
                    (Poll::Ready(Ok(())), Progress::More) => {}
                    (Poll::Ready(Ok(())), Progress::Ended) => return Poll::Ready(Some(())),
                    // What was right so far has been sent.
                    (Poll::Ready(Ok(())), Progress::Broken) | (Poll::Ready(Err(_)), _) => {
                        return Poll::Ready(None);
                    }
                    (Poll::Ready(Ok(())), Progress::Waits) | (Poll::Pending, _) => {
                        self.outgoing.pause();
                        return wire.poll_gone(context).map(|()| None);
                    }
                }
            }
        })
        .await?;
        // It may be what keeps a worker's connection.
        drop(body);
        if !close {
            return Some(After::Request);
        }
        self.close(unread).await;
        None
    }

    /// Makes the connection one with a worker's.
    async fn join(mut self, Tunnel { link, exchange, idle_timeout, deadline }: Tunnel) {
        // The request has ended, so that nobody else has it.
        let Some(wire) = self.wire.into_inner() else { return };
        let client = tunnel::Side {
            stream: wire.stream,
            incoming: wire.incoming,
            outgoing: std::mem::take(&mut self.outgoing),
        };
        let joined = tunnel::join(client, link.into_side(), idle_timeout);
        let joined = match deadline {
            None => joined.await,
            Some(deadline) => tokio::time::timeout_at(deadline, joined)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        };
        if let Err(error) = joined {
            tracing::debug!(%error, "a tunnel broke");
        }
        exchange.tunnelled();
    }

    /// Says that nothing follows. What the client still sends is read for a while: closing over it would tear down the answer too.
    async fn close(&mut self, unread: bool) {
        let wire = self.wire.clone();
        let unread = unread || !wire.lock().incoming.bytes.is_empty();
        let closing = async {
            let shut = poll_fn(|context| pin!(wire.lock().stream.shutdown()).poll(context)).await;
            if !unread || shut.is_err() {
                return;
            }
            let mut heap = BytesMut::with_capacity(HIGH_WATER);
            let read = poll_fn(|context| {
                let wire = &mut *wire.lock();
                loop {
                    heap.clear();
                    if !matches!(ready!(pin!(wire.stream.read_buf(&mut heap)).poll(context)), Ok(1..)) {
                        return Poll::Ready(());
                    }
                }
            });
            read.await;
        };
        let _ = tokio::time::timeout(LINGER, closing).await;
    }
}

/// Takes what there is of a body.
fn poll_body(
    body: &mut Body,
    encoding: &mut Encoding,
    outgoing: &mut Outgoing,
    context: &mut Context<'_>,
) -> Progress {
    while outgoing.len() < HIGH_WATER {
        let put = match Pin::new(&mut *body).poll_frame(context) {
            Poll::Pending => return Progress::Waits,
            Poll::Ready(Some(Err(_))) => return Progress::Broken,
            Poll::Ready(None) => {
                return encoding.put_end(outgoing).map_or(Progress::Broken, |()| Progress::Ended);
            }
            Poll::Ready(Some(Ok(frame))) => {
                frame.into_data().map_or(Ok(()), |data| encoding.put_data(outgoing, data))
            }
        };
        if put.is_err() {
            return Progress::Broken;
        }
    }
    Progress::More
}

/// Whether it could be the beginning of HTTP/2.
fn begins_http2(bytes: &[u8]) -> bool {
    let seen = bytes.len().min(PREFACE.len());
    seen > 0 && bytes[..seen] == PREFACE[..seen]
}
