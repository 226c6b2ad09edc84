//! Requests to workers: connections that are kept, and what their failures mean.
//!
//! A connection has no task. Whoever waits for an answer reads it ([`Link`]): the request's own future until the head is there,
//! then the body that passes ([`body`]), which puts it back into the [`pool`] of its thread at its end.

mod body;
mod origin;
mod pool;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, header};
use hyper_util::client::legacy::connect::HttpConnector;
use router_core::{InFlight, WorkerId};
use tower_service::Service as _;

pub(crate) use self::body::WorkerBody;
use self::origin::Origin;
use self::pool::Pool;
use crate::config::DataPlaneConfig;
use crate::error::Failure;
use crate::headers::{Added, find};
use crate::wire::client::{Framing, Link, Request, SendError};

/// One thread's connections to all workers.
#[derive(Debug)]
pub(crate) struct Upstream {
    connector: HttpConnector,
    pool: Arc<Pool>,
    head_timeout: Option<Duration>,
}

/// An attempt that brought no answer.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) failure: Failure,
    /// The request never reached the worker, so that trying elsewhere cannot do the work twice.
    pub(crate) unsent: bool,
}

/// The kernel counts in seconds.
const SECOND: Duration = Duration::from_secs(1);

impl Upstream {
    pub(crate) fn new(config: &DataPlaneConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_nodelay(true);
        // A host that vanishes closes nothing. Idle half the time, then four probes: together no longer than the bound, which
        // also holds for what was sent and is not acknowledged.
        let bound = config.dead_worker_timeout;
        connector.set_keepalive(Some((bound / 2).max(SECOND)));
        connector.set_keepalive_interval(Some((bound / 8).max(SECOND)));
        connector.set_keepalive_retries(Some(4));
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        connector.set_tcp_user_timeout(Some(bound.max(SECOND)));
        let pool = Arc::new(Pool::new(config.pool_idle_per_worker, config.pool_idle_timeout));
        Self { connector, pool, head_timeout: config.head_timeout }
    }

    /// Sends a request to the target of `in_flight` and waits for the head of the answer. Of headers that concern one connection
    /// only those of an upgrade may be among them. `pin_rank`: its body is an object of an API that takes a dp rank.
    pub(crate) async fn send(
        &self,
        in_flight: &InFlight,
        (method, path): (&Method, &PathAndQuery),
        headers: (&HeaderMap, &Added),
        body: Bytes,
        pin_rank: bool,
    ) -> Result<Box<Response<WorkerBody>>, Attempt> {
        let worker = in_flight.worker();
        let unusable = || Attempt::unsent("its URL is not usable".to_owned());
        let origin = self.pool.origin(worker).ok_or_else(unusable)?;
        let body = if pin_rank { pinned(body, in_flight) } else { body };
        let response = self.exchange(worker.id, &origin, (method, path), headers, body);
        match self.head_timeout {
            None => response.await,
            Some(timeout) => tokio::time::timeout(timeout, response).await.unwrap_or_else(|_| {
                Err(Attempt { failure: Failure::Slow { seconds: timeout.as_secs() }, unsent: false })
            }),
        }
    }

    /// Closes connections that have waited too long.
    pub(crate) fn sweep(&self) {
        self.pool.sweep();
    }

    async fn exchange(
        &self,
        worker: WorkerId,
        origin: &Origin,
        (method, path): (&Method, &PathAndQuery),
        (headers, added): (&HeaderMap, &Added),
        body: Bytes,
    ) -> Result<Box<Response<WorkerBody>>, Attempt> {
        loop {
            let kept = self.pool.take(worker);
            let is_kept = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => self.connect(origin).await?,
            };
            let request = Request {
                method,
                prefix: &origin.prefix,
                path: path.as_str(),
                host: &origin.host,
                headers,
                added,
                body: body.clone(),
                upgrades: find(headers, &header::UPGRADE).is_some(),
            };
            let failure = match link.send(request).await {
                Ok(head) => {
                    let framing = Framing::of(head.length);
                    let pool = self.pool.clone();
                    let body = WorkerBody::new(framing, link, head.keep_alive, worker, pool);
                    // Boxed: it goes through many hands.
                    let mut response = Box::new(Response::new(body));
                    *response.status_mut() = head.status;
                    *response.headers_mut() = head.headers;
                    return Ok(response);
                }
                // The worker closed it before anything was sent.
                Err(SendError::Unsent) if is_kept => continue,
                Err(SendError::Unsent | SendError::Lost) => Failure::Lost,
                Err(SendError::Malformed(error)) => Failure::Malformed(error),
            };
            return Err(Attempt { failure, unsent: false });
        }
    }

    async fn connect(&self, origin: &Origin) -> Result<Box<Link>, Attempt> {
        let stream = self.connector.clone().call(origin.base.clone()).await;
        let stream = stream.map_err(|error| Attempt::unsent(error.to_string()))?;
        Ok(Box::new(Link::new(stream.into_inner())))
    }
}

impl Attempt {
    fn unsent(reason: String) -> Self {
        Self { failure: Failure::Unreachable(reason), unsent: true }
    }
}

/// The body with the dp rank of its target, for workers with several: one field put after all others, where it wins over any
/// of the same name. Everything else stays byte for byte.
fn pinned(body: Bytes, in_flight: &InFlight) -> Bytes {
    if in_flight.worker().profile.dp_size <= 1 {
        return body;
    }
    let Some(object) = body.trim_ascii_end().strip_suffix(b"}") else { return body };
    let comma = if object.trim_ascii() == b"{" { "" } else { "," };
    let field = format!("{comma}\"routed_dp_rank\":{}}}", in_flight.target().rank);
    [object, field.as_bytes()].concat().into()
}
