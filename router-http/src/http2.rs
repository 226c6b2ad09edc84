//! A connection of HTTP/2 without TLS, which its client began as one.

use std::convert::Infallible;
use std::io::Cursor;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::receive::{Head, Inbound};
use crate::service::Service;

/// Serves until either side has enough; whether the client never sent a request. `begun`: what has been read.
pub(crate) async fn serve(
    stream: TcpStream,
    begun: Bytes,
    client: Option<HeaderValue>,
    service: Service,
    patience: Duration,
    shutdown: CancellationToken,
) -> bool {
    let (read, write) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(begun).chain(read), write));
    let asked = Arc::new(AtomicBool::new(false));
    let first = asked.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        first.store(true, Relaxed);
        let (service, client) = (service.clone(), client.clone());
        async move {
            let (Parts { method, uri, version, headers, .. }, body) = request.into_parts();
            let mut head = Head { method, uri, version, headers };
            let response = service.serve(&mut head, Inbound::Http2(body), client.as_ref()).await;
            let (mut head, body) = response.into_parts();
            body.said().put(&mut head.headers);
            Ok::<_, Infallible>(Response::from_parts(head, body))
        }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new()).keep_alive_interval(patience).keep_alive_timeout(patience);
    let mut connection = pin!(http.serve_connection(io, service));
    // Pings do not make a request.
    let silent = async {
        tokio::time::sleep(patience).await;
        if asked.load(Relaxed) {
            std::future::pending().await
        }
    };
    let mut silent = pin!(silent);
    let mut told = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    // It concerns its client alone; what was in flight has been counted.
                    tracing::debug!(%error, "a client's connection broke");
                }
                return false;
            }
            () = silent.as_mut() => return true,
            () = shutdown.cancelled(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
