//! One connection to a worker, driven by whoever waits for what comes over it: no task of its own, and so no waking to and fro.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    connection: Option<Connection<TokioIo<TcpStream>, Full<Bytes>>>,
}

impl Link {
    pub(super) async fn open(stream: TokioIo<TcpStream>) -> hyper::Result<Self> {
        let (sender, connection) = http1::handshake(stream).await?;
        Ok(Self { sender, connection: Some(connection) })
    }

    /// Goes on with whatever the connection has to do; `context` is woken when there is more.
    pub(super) fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(context).is_ready()
        {
            self.connection = None;
        }
    }

    /// Whether nothing is under way on it, and the worker has not closed it as far as this machine knows.
    pub(super) fn is_free(&mut self) -> bool {
        self.drive(&mut nobody());
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of the answer. The error has the request if the connection never took it.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        let mut response = pin!(self.sender.try_send_request(request));
        poll_fn(|context| {
            self.drive(context);
            // It comes of nothing but driving.
            response.as_mut().poll(&mut nobody())
        })
        .await
    }

    /// The next of an answer's body.
    pub(super) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        mut next: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // What has been read already is taken first; asking also tells the connection that more is wanted.
        match next(&mut nobody()) {
            Poll::Ready(next) => Poll::Ready(next),
            Poll::Pending => {
                self.drive(context);
                next(&mut nobody())
            }
        }
    }
}

/// For what changes only by what is polled right beside it.
fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
