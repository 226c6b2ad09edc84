//! The one worker that a request has to go to, if it names one or names something that one has.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Uri};
use router_core::{Router, Time, WorkerId};
use serde::Deserialize;

use crate::clock::Clock;
use crate::decode::Names;
use crate::error::Failure;
use crate::headers;
use crate::kept::{Kept, Place};
use crate::route::{Handling, Route};
use crate::shared::Shared;

/// Header or parameter of the query that names a worker by its URL.
pub(crate) const WORKER: &str = "x-espalier-worker";

const WORKER_HEADER: HeaderName = HeaderName::from_static(WORKER);

/// The worker that a request names. Takes the name out: it is no worker's business.
pub(crate) fn named(
    router: &Router,
    headers: &mut HeaderMap,
    path: &mut PathAndQuery,
) -> Result<Option<WorkerId>, Failure> {
    let in_header = headers::take(headers, &WORKER_HEADER)
        .map(|url| String::from_utf8_lossy(url.as_bytes()).into_owned());
    let in_query = path.query().and_then(without_worker);
    if let Some((_, rest)) = &in_query {
        let mark = if rest.is_empty() { "" } else { "?" };
        if let Ok(shorter) = PathAndQuery::try_from(format!("{}{mark}{rest}", path.path())) {
            *path = shorter;
        }
    }
    let Some(url) = in_query.map(|(url, _)| url).or(in_header) else { return Ok(None) };
    let snapshot = router.snapshot();
    match snapshot.fleet.worker_by_url(url.trim_end_matches('/')) {
        Some(worker) => Ok(Some(worker.id)),
        None => Err(Failure::UnknownWorker),
    }
}

/// The worker of a query, and the query without it.
fn without_worker(query: &str) -> Option<(String, String)> {
    if !query.contains(WORKER) {
        return None;
    }
    let (mut url, mut rest) = (None, Vec::new());
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((WORKER, value)) => url = Some(percent_decoded(value)),
            _ => rest.push(pair),
        }
    }
    Some((url?, rest.join("&")))
}

/// A part of a URI with its escapes undone; what is no escape stays as it is.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit())) {
            Some(digits) => {
                decoded.push(u8::from_str_radix(digits, 16).unwrap_or(b'%'));
                rest = &after[2..];
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The place that a request's history is at, if it has any.
pub(crate) fn of_history(
    router: &Router,
    shared: &Shared,
    names: &Names<'_>,
    clock: Clock,
) -> Result<Option<Place>, Failure> {
    if let Some(session) = &names.session {
        return find(router, &shared.sessions, session, "session", clock.now()).map(Some);
    }
    if let Some(response) = &names.previous_response {
        return find(router, &shared.responses, response, "response", clock.now()).map(Some);
    }
    // A session's id may be no more than a label; only one that was opened here binds.
    Ok(names.session_id.as_ref().and_then(|session| shared.sessions.find(session, clock.now())))
}

/// The place of what a route without a prompt is about.
pub(crate) fn of_route(
    router: &Router,
    shared: &Shared,
    route: &Route,
    path: &str,
    body: &[u8],
    now: Time,
) -> Result<Option<Place>, Failure> {
    #[derive(Deserialize)]
    struct Close<'a> {
        #[serde(borrow)]
        session_id: Option<Cow<'a, str>>,
    }
    match route.handling {
        Handling::StoredResponse => {
            let id = percent_decoded(route.parameter(path).unwrap_or_default());
            find(router, &shared.responses, &id, "response", now).map(Some)
        }
        Handling::CloseSession => match serde_json::from_slice(body) {
            Ok(Close { session_id: Some(id) }) => {
                let place = find(router, &shared.sessions, &id, "session", now)?;
                shared.sessions.forget(&id);
                Ok(Some(place))
            }
            // The worker says what is wrong with it.
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Where an id is. Where it is not known but there is only one worker, it can be nowhere else.
fn find(router: &Router, kept: &Kept, id: &str, what: &'static str, now: Time) -> Result<Place, Failure> {
    if let Some(place) = kept.find(id, now) {
        let snapshot = router.snapshot();
        let registered = snapshot.fleet.workers.iter().any(|worker| worker.id == place.worker);
        return if registered { Ok(place) } else { Err(Failure::StateLost { what }) };
    }
    match &router.snapshot().fleet.workers[..] {
        [only] => Ok(Place { worker: only.id, rank: None }),
        _ => Err(Failure::StateUnknown { what }),
    }
}

/// A path as the table of routes knows it: a worker undoes escapes before it looks at it, and so must whoever guards it.
pub(crate) fn plain_path(uri: &Uri) -> Cow<'_, str> {
    match uri.path() {
        path if path.contains('%') => Cow::Owned(percent_decoded(path)),
        path => Cow::Borrowed(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_taken_out_of_a_query() {
        let taken = |query: &str| without_worker(query);
        let url = "http://10.0.0.1:30000".to_owned();
        assert_eq!(
            taken("a=1&x-espalier-worker=http%3A%2F%2F10.0.0.1%3a30000&b"),
            Some((url.clone(), "a=1&b".into()))
        );
        assert_eq!(taken("x-espalier-worker=http://10.0.0.1:30000"), Some((url, String::new())));
        assert_eq!(taken("a=1&x=x-espalier-worker"), None);
    }

    #[test]
    fn a_path_in_disguise_is_the_same_path() {
        assert_eq!(plain_path(&Uri::from_static("/flush%5Fcache")), "/flush_cache");
        assert_eq!(plain_path(&Uri::from_static("/100%/%zz%4")), "/100%/%zz%4");
    }
}
