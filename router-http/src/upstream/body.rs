//! A worker's body, which drives its connection while it passes and gives it back at its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use router_core::WorkerId;

use super::link::Link;
use super::pool::Pool;

/// See the module. Dropping it before its end closes the connection, by which the worker learns that nobody waits any more.
#[derive(Debug)]
pub(crate) struct WorkerBody {
    incoming: Incoming,
    /// Until the end.
    link: Option<Link>,
    worker: WorkerId,
    pool: Arc<Pool>,
}

impl WorkerBody {
    pub(super) fn new(incoming: Incoming, link: Link, worker: WorkerId, pool: Arc<Pool>) -> Self {
        let mut body = Self { incoming, link: Some(link), worker, pool };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Some(link) = self.link.take() {
            self.pool.put(self.worker, link);
        }
    }
}

impl Body for WorkerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let Some(link) = &mut this.link else { return Poll::Ready(None) };
        let incoming = &mut this.incoming;
        let polled = link.poll(context, |context| Pin::new(&mut *incoming).poll_frame(context));
        match &polled {
            Poll::Ready(None) => this.give_back(),
            // A body of known length need not be asked again after its last byte.
            Poll::Ready(Some(Ok(_))) if this.incoming.is_end_stream() => this.give_back(),
            Poll::Ready(Some(Err(_))) => this.link = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.link.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
