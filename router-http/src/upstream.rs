//! Requests to workers: one pooled client, and what their failures mean.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use router_core::InFlight;

use crate::config::DataPlaneConfig;
use crate::error::Failure;

/// The client of all workers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
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
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(config.pool_idle_per_worker)
            .pool_idle_timeout(config.pool_idle_timeout)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { client, head_timeout: config.head_timeout }
    }

    /// Sends a request to the target of `in_flight` and waits for the head of the answer. `pin_rank`: its body is an object of
    /// an API that takes a dp rank.
    pub(crate) async fn send(
        &self,
        in_flight: &InFlight,
        (method, path_and_query): (&Method, &str),
        headers: HeaderMap,
        body: Bytes,
        pin_rank: bool,
    ) -> Result<Response<Incoming>, Attempt> {
        let uri = uri(&in_flight.worker().url, path_and_query);
        let uri = uri.ok_or_else(|| Attempt::unsent("its URL is not usable".to_owned()))?;
        let mut request = Request::new(Full::new(if pin_rank { pinned(body, in_flight) } else { body }));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = headers;
        let response = self.client.request(request);
        let response = match self.head_timeout {
            None => response.await,
            Some(timeout) => match tokio::time::timeout(timeout, response).await {
                Ok(response) => response,
                Err(_) => {
                    let failure = Failure::Slow { seconds: timeout.as_secs() };
                    return Err(Attempt { failure, unsent: false });
                }
            },
        };
        response.map_err(|error| {
            if error.is_connect() {
                let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                Attempt::unsent(reason)
            } else {
                Attempt { failure: Failure::Lost, unsent: false }
            }
        })
    }
}

impl Attempt {
    fn unsent(reason: String) -> Self {
        Self { failure: Failure::Unreachable(reason), unsent: true }
    }
}

/// Where a path leads at a worker. Put together from parts: whatever a client writes stays a path.
fn uri(base: &str, path_and_query: &str) -> Option<Uri> {
    let mut parts = base.parse::<Uri>().ok()?.into_parts();
    let prefix = parts.path_and_query.as_ref().map_or("", |base| base.path().trim_end_matches('/'));
    parts.path_and_query = Some(format!("{prefix}{path_and_query}").parse().ok()?);
    Uri::from_parts(parts).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_client_writes_stays_a_path() {
        let joined = |base: &str, path: &str| uri(base, path).map(|uri| uri.to_string());
        assert_eq!(joined("http://w:1", "/a?b=c").as_deref(), Some("http://w:1/a?b=c"));
        assert_eq!(joined("http://w:1/base", "//x@y/").as_deref(), Some("http://w:1/base//x@y/"));
        for path in ["@evil:80/", ".evil", ":80"] {
            assert!(uri("http://w", path).is_none_or(|uri| uri.host() == Some("w")), "{path}");
        }
    }
}
