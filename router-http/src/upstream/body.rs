//! A worker's body, read from its connection as it is asked for; gives the connection back at its end.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use router_core::WorkerId;

use super::pool::Pool;
use crate::wire::client::{BrokenOff, Framing, Link};

/// See the module. Dropping it before its end closes the connection, by which the worker learns that nobody waits any more.
#[derive(Debug)]
pub(crate) struct WorkerBody {
    framing: Framing,
    /// Until the end.
    link: Option<Box<Link>>,
    keep_alive: bool,
    worker: WorkerId,
    pool: Arc<Pool>,
}

impl WorkerBody {
    pub(super) fn new(
        framing: Framing,
        link: Box<Link>,
        keep_alive: bool,
        worker: WorkerId,
        pool: Arc<Pool>,
    ) -> Self {
        let mut body = Self { framing, link: Some(link), keep_alive, worker, pool };
        body.end_if_done();
        body
    }

    /// The connection, if the answer has not come to its end.
    pub(crate) fn into_link(self) -> Option<Box<Link>> {
        self.link
    }

    /// The next of it; `None` at its end.
    pub(crate) async fn data(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// The same.
    pub(crate) fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        let Some(link) = &mut self.link else { return Poll::Ready(None) };
        let next = ready!(link.poll_body(&mut self.framing, context));
        self.end_if_done();
        if !matches!(next, Some(Ok(_))) {
            self.link = None;
        }
        Poll::Ready(next)
    }

    /// A body of known length need not be asked again after its last byte.
    fn end_if_done(&mut self) {
        if self.framing.is_done()
            && let Some(link) = self.link.take()
            && self.keep_alive
        {
            self.pool.put(self.worker, link);
        }
    }
}

impl Body for WorkerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.poll_data(context).map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        self.link.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Left(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }
}
