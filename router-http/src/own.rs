//! What the router answers by itself: routes about itself, and what no worker could answer through it.

use http::{HeaderValue, Method, Response, StatusCode, Version, header};
use http_body_util::Full;
use router_core::{Router, WorkerState};

use crate::body::Body;
use crate::error::Failure;
use crate::receive::Head;

/// The answer to a request that concerns the router itself. `whole`: no thread of the data plane has died.
pub(crate) fn answer(router: &Router, whole: bool, request: &Head) -> Option<Response<Body>> {
    let (method, path) = (&request.method, request.uri.path());
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

/// Refuses to connect clients with anyone.
pub(crate) fn refuse_connect(method: &Method) -> Result<(), Failure> {
    if *method == Method::CONNECT { Err(Failure::Tunnel) } else { Ok(()) }
}

/// The other protocols that a client would go on with on its connection. HTTP/2 is not one: it is spoken here, and a client that
/// offers it this way goes on with HTTP/1.1 when it is ignored. So does one that offers anything with a request for a change.
pub(crate) fn upgrade_of(request: &Head) -> Option<HeaderValue> {
    if request.method != Method::GET || request.version != Version::HTTP_11 {
        return None;
    }
    let headers = &request.headers;
    let named = words(headers.get_all(header::CONNECTION)).any(|word| word.eq_ignore_ascii_case("upgrade"));
    if !named {
        return None;
    }
    let is_http2 =
        |protocol: &str| ["h2c", "h2", "HTTP/2.0"].iter().any(|h2| protocol.eq_ignore_ascii_case(h2));
    let others = words(headers.get_all(header::UPGRADE)).filter(|word| !word.is_empty() && !is_http2(word));
    let others = others.collect::<Vec<_>>().join(", ");
    if others.is_empty() { None } else { HeaderValue::try_from(others).ok() }
}

/// What several lines of one list have in them.
fn words(lines: header::GetAll<'_, HeaderValue>) -> impl Iterator<Item = &str> {
    lines.into_iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Uri};

    use super::*;

    #[test]
    fn only_another_protocol_is_an_upgrade() {
        let asked = |method: Method, connection: &'static str, upgrade: &'static str| {
            let (uri, version) = (Uri::from_static("/"), Version::HTTP_11);
            let headers = HeaderMap::from_iter([
                (header::CONNECTION, HeaderValue::from_static(connection)),
                (header::UPGRADE, HeaderValue::from_static(upgrade)),
            ]);
            upgrade_of(&Head { method, uri, version, headers })
        };
        let get = |connection, upgrade| asked(Method::GET, connection, upgrade);
        assert_eq!(get("keep-alive, Upgrade", "websocket").unwrap(), "websocket");
        assert_eq!(get("upgrade", "h2c, a/1,b").unwrap(), "a/1, b");
        assert_eq!(get("Upgrade, HTTP2-Settings", "h2c"), None);
        assert_eq!(get("keep-alive", "websocket"), None, "a header that nothing names is not an offer");
        assert_eq!(asked(Method::POST, "upgrade", "websocket"), None);
    }
}
