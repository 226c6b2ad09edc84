//! What the router answers by itself: routes about itself, and what no worker could answer through it.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use router_core::{Router, WorkerState};

use crate::body::Body;
use crate::error::Failure;

/// The answer to a request that concerns the router itself. `whole`: no thread of the data plane has died.
pub(crate) fn answer<B>(router: &Router, whole: bool, request: &Request<B>) -> Option<Response<Body>> {
    let (method, path) = (request.method(), request.uri().path());
    let status = match (method, path) {
        // About the server as a whole (RFC 9110 §9.3.7): no worker's business.
        (&Method::OPTIONS, "*") => StatusCode::OK,
        (&Method::GET | &Method::HEAD, "/liveness") => alive(whole && !router.is_orphaned()),
        // SGLang's own word for being alive, which holds while it is paused.
        (&Method::GET | &Method::HEAD, "/ping") => {
            let snapshot = router.snapshot();
            alive(snapshot.fleet.workers.iter().any(|worker| worker.state != WorkerState::Unreachable))
        }
        (&Method::GET | &Method::HEAD, "/health" | "/readiness" | "/ready") => {
            alive(router.snapshot().fleet.can_serve())
        }
        _ => return None,
    };
    let mut response = Response::new(Body::own(Full::default()));
    *response.status_mut() = status;
    if *method == Method::OPTIONS {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOWED));
    }
    Some(response)
}

/// Methods that are passed on.
pub(crate) const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

fn alive(alive: bool) -> StatusCode {
    if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Refuses what would make the connection a tunnel.
pub(crate) fn refuse_tunnels<B>(request: &Request<B>) -> Result<(), Failure> {
    if *request.method() == Method::CONNECT {
        return Err(Failure::Tunnel);
    }
    if upgrades(request.headers()) { Err(Failure::Upgrade) } else { Ok(()) }
}

/// Whether a client asks for another protocol on its connection. HTTP/2 is not one: it is spoken here, and a client that offers
/// it this way goes on with HTTP/1.1 when it is ignored.
fn upgrades(headers: &HeaderMap) -> bool {
    let asks = |list: header::GetAll<'_, HeaderValue>, wanted: &dyn Fn(&str) -> bool| {
        let lines = list.iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|word| wanted(word.trim()))
    };
    let other = |protocol: &str| {
        !protocol.is_empty() && !["h2c", "h2", "HTTP/2.0"].iter().any(|h2| protocol.eq_ignore_ascii_case(h2))
    };
    asks(headers.get_all(header::CONNECTION), &|word| word.eq_ignore_ascii_case("upgrade"))
        && asks(headers.get_all(header::UPGRADE), &other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_protocol_is_an_upgrade() {
        let asked = |connection: &'static str, upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
            headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            upgrades(&headers)
        };
        assert!(asked("keep-alive, Upgrade", "websocket"));
        assert!(!asked("Upgrade, HTTP2-Settings", "h2c"));
        assert!(!asked("keep-alive", "websocket"), "a header that nothing names is not an offer");
    }
}
