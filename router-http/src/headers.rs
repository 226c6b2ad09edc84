//! Which headers pass a proxy, and which it adds.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::Injector;

use crate::decided::Decided;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Names the request in logs of all parts.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The answer goes on at another worker if its own is lost.
pub(crate) const CONTINUABLE: HeaderName = HeaderName::from_static("x-espalier-continuable");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Most bytes of a client's own request id that are passed on.
const MOST_ID_BYTES: usize = 128;

/// A header that is seldom there: to compare what is there takes less than to hash what is looked for.
pub(crate) fn find<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    if headers.keys().any(|there| there == name) { headers.get(name) } else { None }
}

/// Takes out a header that is seldom there.
pub(crate) fn take(headers: &mut HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    if find(headers, name).is_some() { headers.remove(name) } else { None }
}

/// Whether a header concerns one connection alone (RFC 9110 §7.6.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    match *name {
        header::CONNECTION
        | header::PROXY_AUTHENTICATE
        | header::PROXY_AUTHORIZATION
        | header::TE
        | header::TRAILER
        | header::TRANSFER_ENCODING
        | header::UPGRADE => true,
        _ => *name == KEEP_ALIVE || *name == PROXY_CONNECTION,
    }
}

/// Takes out of an answer what concerns one connection alone, and what the router says itself.
pub(crate) fn strip_answer(headers: &mut HeaderMap) {
    strip(headers, |name| is_hop_by_hop(name) || *name == REQUEST_ID || Decided::names(name));
}

/// Takes out what leaves, and what `Connection` names.
fn strip(headers: &mut HeaderMap, leaves: impl Fn(&HeaderName) -> bool) {
    // To look once at what is there is less than to look for each that could be.
    let mut leaving: Vec<HeaderName> = headers.keys().filter(|name| leaves(name)).cloned().collect();
    if leaving.contains(&header::CONNECTION) {
        let lines = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let named = lines.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok());
        leaving.extend(named);
    }
    for name in leaving {
        headers.remove(name);
    }
}

/// What a worker is told of a request beside its client's headers. It is written as it is, as [`Said`](crate::decided::Said) is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Added {
    forwarded_for: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    key: Option<HeaderValue>,
}

impl Added {
    /// Each line of it.
    pub(crate) fn each_line(&self, mut line: impl FnMut(&HeaderName, &HeaderValue)) {
        let Self { forwarded_for, request_id, key } = self;
        let lines = [(FORWARDED_FOR, forwarded_for), (REQUEST_ID, request_id), (header::AUTHORIZATION, key)];
        for (name, value) in &lines {
            if let Some(value) = value {
                line(name, value);
            }
        }
    }
}

/// Takes out of a client's headers what no worker is told, or is told anew. `client` is its address.
pub(crate) fn introduce(
    headers: &mut HeaderMap,
    client: Option<&HeaderValue>,
    request_id: &HeaderValue,
    key: Option<&HeaderValue>,
) -> Added {
    strip(headers, |name| match *name {
        header::AUTHORIZATION => key.is_some(),
        header::EXPECT => true,
        _ => is_hop_by_hop(name) || *name == REQUEST_ID,
    });
    let forwarded_for = client.and_then(|client| forwarded_for(headers, client));
    Added { forwarded_for, request_id: Some(request_id.clone()), key: key.cloned() }
}

/// Says that the connection is to go on with another protocol.
pub(crate) fn offer_upgrade(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocols);
}

/// A client after those that it speaks for, who are taken out.
fn forwarded_for(headers: &mut HeaderMap, client: &HeaderValue) -> Option<HeaderValue> {
    if find(headers, &FORWARDED_FOR).is_none() {
        return Some(client.clone());
    }
    // Several lines of one name are one list (RFC 9110 §5.2).
    let before = headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
    let before = before.filter(|line| line.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t')));
    let mut chain = before.collect::<Vec<_>>();
    let chain = if chain.is_empty() {
        Ok(client.clone())
    } else {
        chain.push(client.as_bytes());
        HeaderValue::try_from(chain.join(&b", "[..]))
    };
    let chain = chain.ok()?;
    headers.remove(FORWARDED_FOR);
    Some(chain)
}

/// The client's request id if it can be passed on, or a new one; it is text.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = find(headers, &REQUEST_ID).filter(|id| id.to_str().is_ok());
    let given = given.filter(|id| !id.is_empty() && id.len() <= MOST_ID_BYTES);
    // Copied: it is kept for as long as the answer takes, and would keep all that was read with it.
    given.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()).unwrap_or_else(new_id)
}

/// 32 hexadecimal digits.
fn new_id() -> HeaderValue {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    let bytes = fastrand::u128(..).to_ne_bytes();
    let mut digits = [0; 32];
    digits[..16].copy_from_slice(&bytes.map(|byte| digit(byte & 15)));
    digits[16..].copy_from_slice(&bytes.map(|byte| digit(byte >> 4)));
    // Shared from the start: what is copied into a value is set up for that once it is cloned.
    HeaderValue::from_maybe_shared(Bytes::from_owner(digits)).expect("digits can stand in a header")
}

/// The credentials of an `Authorization` header of the scheme Bearer, whose name knows no case (RFC 9110 §11.1).
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, credentials) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| credentials.trim_ascii())
}

/// Writes trace context into headers.
pub(crate) struct HeaderInjector<'a>(pub(crate) &'a mut HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

/// Reads trace context from headers.
pub(crate) struct HeaderExtractor<'a>(pub(crate) &'a HeaderMap);

impl opentelemetry::propagation::Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_does_not_pass() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-secret-hop"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-request-id", "the worker's"),
            ("x-espalier-worker", "another"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_answer(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn the_scheme_knows_no_case() {
        for given in ["Bearer k", "bearer k", "BEARER  k"] {
            assert_eq!(bearer(given.as_bytes()), Some(&b"k"[..]));
        }
        for other in ["", "Bearer", "Basic k", "Bearerk"] {
            assert_eq!(bearer(other.as_bytes()), None);
        }
    }

    #[test]
    fn the_worker_learns_who_asked_and_gets_its_own_key() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", HeaderValue::from_static("10.0.0.7, 10.0.0.8"));
        headers.append("x-forwarded-for", HeaderValue::from_static("10.0.0.1"));
        headers.insert("authorization", HeaderValue::from_static("Bearer clients"));
        let added = introduce(
            &mut headers,
            Some(&HeaderValue::from_static("10.0.0.2")),
            &HeaderValue::from_static("id"),
            Some(&HeaderValue::from_static("Bearer workers")),
        );
        assert!(headers.is_empty());
        let mut lines = Vec::new();
        added.each_line(|name, value| lines.push(format!("{name}: {}", value.to_str().unwrap())));
        let expected = [
            "x-forwarded-for: 10.0.0.7, 10.0.0.8, 10.0.0.1, 10.0.0.2",
            "x-request-id: id",
            "authorization: Bearer workers",
        ];
        assert_eq!(lines, expected);
    }
}
