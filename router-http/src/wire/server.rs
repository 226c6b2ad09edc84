//! One client's connection: one request after the other, each served to its end before the next is looked at.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
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
use crate::http2;
use crate::receive::Inbound;
use crate::service::Service;

/// See the module.
///
/// A thousand streams find their memory cold at each event. So what an event needs lies together in an [`Answer`], and the futures around
/// it are few and small.
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
    /// It goes on as one of HTTP/2: see [`Connection::serve_http2`].
    Http2,
    /// It goes on as one with a worker's: see [`Connection::join`].
    Tunnel(Box<Tunnel>),
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

/// An answer on its way.
struct Answer {
    body: Body,
    encoding: Encoding,
    progress: Progress,
    /// The client may still send of what it is the answer to.
    unread: bool,
    /// How the connection ends with it; `None`: another request may follow.
    end: Option<End>,
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

    /// Serves until either side has enough, or it becomes another kind of connection.
    pub(crate) async fn serve(&mut self) -> End {
        loop {
            let mut answer = match self.answer().await {
                Ok(answer) => answer,
                Err(end) => return end,
            };
            let all_sent = poll_fn(|context| self.poll_send(&mut answer, context)).await;
            let Answer { body, unread, end, .. } = answer;
            // It may be what keeps a worker's connection.
            drop(body);
            if !all_sent {
                return end.unwrap_or(End::Closed);
            }
            if let Some(end) = end {
                self.close(unread).await;
                return end;
            }
        }
    }

    /// The beginning of the next answer.
    async fn answer(&mut self) -> Result<Answer, End> {
        match self.next().await {
            Next::Request(head) => {
                self.is_new = false;
                let is_1_1 = head.parts.version == Version::HTTP_11;
                let asked = Asked { head_only: head.parts.method == Method::HEAD, is_1_1 };
                let end = (!head.keep_alive).then_some(End::Closed);
                let response = self.ask(head).await.ok_or(End::Closed)?;
                self.begin(response, asked, end)
            }
            Next::Failed(failure) => {
                // Where the next request would begin is not known.
                self.wire.lock().unread = true;
                let response = self.service.refuse(&failure);
                let silent = self.is_new && matches!(failure, Failure::HeadSilent { .. });
                let end = if silent { End::Silent } else { End::Closed };
                self.begin(response, Asked { head_only: false, is_1_1: true }, Some(end))
            }
            Next::Silent => Err(if self.is_new { End::Silent } else { End::Closed }),
            Next::Closed => Err(End::Closed),
            Next::Http2 => Err(End::Http2),
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

    /// The answer to a request; `None`: its client is gone.
    async fn ask(&self, mut head: RequestHead) -> Option<Response<Body>> {
        let body = Inbound::Http1(Upload::new(self.wire.clone(), head.length, head.expects_continue));
        let mut serving = pin!(self.service.serve(&mut head.parts, body, self.client.as_ref()));
        poll_fn(|context| match serving.as_mut().poll(context) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => self.wire.lock().poll_gone(context).map(|()| None),
        })
        .await
    }

    /// Puts the head of an answer where it is sent from. `end`: how the connection ends with it, unless it goes on.
    fn begin(&mut self, response: Response<Body>, asked: Asked, end: Option<End>) -> Result<Answer, End> {
        let unread = self.wire.lock().unread;
        let (mut parts, body) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            Encoding::None.put_head(self.outgoing.small(), &parts, &body.said(), asked, None, false);
            return Err(body.into_tunnel().map_or(End::Closed, |tunnel| End::Tunnel(Box::new(tunnel))));
        }
        if parts.status == StatusCode::NO_CONTENT {
            // A reader that does not know this status would wait for what it announces (RFC 9110 §8.6).
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let exact = body.size_hint().exact();
        let encoding = Encoding::of(asked, &parts, exact);
        let closes = unread || encoding == Encoding::UntilClose || self.token.is_cancelled();
        let end = end.or(closes.then_some(End::Closed));
        encoding.put_head(self.outgoing.small(), &parts, &body.said(), asked, exact, end.is_some());
        head::give_back(parts.headers);
        let progress = if encoding == Encoding::None { Progress::Ended } else { Progress::More };
        Ok(Answer { body, encoding, progress, unread, end })
    }

    /// Sends what there is of an answer: ready once that was all of it, or with `false` if nothing more can be sent.
    fn poll_send(&mut self, answer: &mut Answer, context: &mut Context<'_>) -> Poll<bool> {
        loop {
            if matches!(answer.progress, Progress::More | Progress::Waits) {
                answer.progress =
                    poll_body(&mut answer.body, &mut answer.encoding, &mut self.outgoing, context);
            }
            let wire = &mut *self.wire.lock();
            match (self.outgoing.poll_flush(&mut wire.stream, context), answer.progress) {
                (Poll::Ready(Ok(())), Progress::More) => {}
                (Poll::Ready(Ok(())), Progress::Ended) => return Poll::Ready(true),
                // What was right so far has been sent.
                (Poll::Ready(Ok(())), Progress::Broken) | (Poll::Ready(Err(_)), _) => {
                    return Poll::Ready(false);
                }
                (Poll::Ready(Ok(())), Progress::Waits) | (Poll::Pending, _) => {
                    self.outgoing.pause();
                    return wire.poll_gone(context).map(|()| false);
                }
            }
        }
    }

    /// Goes on in HTTP/2; whether the client never sent a request.
    pub(crate) async fn serve_http2(self) -> bool {
        let Self { wire, outgoing, service, client, patience, shutdown, token, .. } = self;
        let bound = patience.bound;
        drop((outgoing, patience, shutdown));
        let Some(wire) = wire.into_inner() else { return false };
        http2::serve(wire.stream, wire.incoming.bytes.freeze(), client, service, bound, token).await
    }

    /// Makes the connection one with a worker's.
    pub(crate) async fn join(mut self, Tunnel { link, exchange, idle_timeout, deadline }: Tunnel) {
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
