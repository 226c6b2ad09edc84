//! What a simulated server does wrong on purpose: `POST /sim/faults`, a route that no SGLang server has.
//!
//! ```json
//! {"status": 500, "reset_every": 20, "slowdown": 20.0}
//! ```
//! Generations are answered with the status; of them every so many-th has its connection reset before it is answered; every step
//! of the engine takes so many times as long. What is not named is as it should be.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Body, Server};
use crate::engine::Command;

pub(super) const PATH: &str = "/sim/faults";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// 0 for none.
    status: AtomicU16,
    reset_every: AtomicU32,
    generations: AtomicU32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    status: Option<u16>,
    reset_every: u32,
    slowdown: f64,
}

/// A connection that is reset when it is dropped, if that has been asked for.
#[derive(Debug)]
pub(super) struct Resettable {
    stream: TcpStream,
    reset: Resets,
}

/// Asks for a connection to be reset. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Resets(Arc<AtomicBool>);

/// A connection ends because it is told to.
#[derive(Debug, thiserror::Error)]
#[error("reset on purpose")]
pub(super) struct Reset;

impl Default for Asked {
    fn default() -> Self {
        Self { status: None, reset_every: 0, slowdown: 1.0 }
    }
}

impl Faults {
    /// Whether the connection of this request is to be reset.
    pub(super) fn is_reset<T>(&self, request: &Request<T>) -> bool {
        let every = self.reset_every.load(Relaxed);
        every > 0 && generates(request) && (self.generations.fetch_add(1, Relaxed) + 1).is_multiple_of(every)
    }

    /// What is answered instead.
    pub(super) fn answer<T>(&self, request: &Request<T>) -> Option<Response<Body>> {
        let status = StatusCode::from_u16(self.status.load(Relaxed)).ok()?;
        let message = json!({"error": {"message": "failing on purpose"}});
        generates(request).then(|| super::json(status, &message))
    }
}

fn generates<T>(request: &Request<T>) -> bool {
    let paths = ["/generate", "/v1/completions", "/v1/chat/completions"];
    request.method() == Method::POST && paths.contains(&request.uri().path())
}

impl Server {
    pub(super) async fn set_faults(&self, body: &[u8]) -> Response<Body> {
        let refuse =
            |problem: String| super::json(StatusCode::BAD_REQUEST, &json!({"error": {"message": problem}}));
        let asked: Asked = match serde_json::from_slice(body) {
            Ok(asked) => asked,
            Err(error) => return refuse(error.to_string()),
        };
        if !(0.001..=1e6).contains(&asked.slowdown) {
            return refuse("slowdown: must be between 0.001 and a million".to_owned());
        }
        if asked.status.is_some_and(|status| !(400..600).contains(&status)) {
            return refuse("status: must be between 400 and 599".to_owned());
        }
        let faults = &self.inner.faults;
        faults.status.store(asked.status.unwrap_or(0), Relaxed);
        faults.reset_every.store(asked.reset_every, Relaxed);
        for rank in &self.inner.ranks {
            rank.send(Command::Slow(asked.slowdown)).await;
        }
        super::json(StatusCode::OK, &json!({}))
    }
}

impl Resettable {
    pub(super) fn new(stream: TcpStream) -> (Self, Resets) {
        let reset = Resets::default();
        (Self { stream, reset: reset.clone() }, reset)
    }
}

impl Resets {
    pub(super) fn reset(&self) -> Reset {
        self.0.store(true, Relaxed);
        Reset
    }
}

impl Drop for Resettable {
    fn drop(&mut self) {
        if self.reset.0.load(Relaxed) {
            // A connection that is gone already need not be reset.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Resettable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
