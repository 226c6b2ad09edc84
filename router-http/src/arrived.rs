//! A request as it is held while workers are tried.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use router_core::Role;
use router_core::key::PrefixKey;

use crate::decode::RouteKind;

/// A request once its body is here.
pub(crate) struct Arrived {
    pub(crate) kind: RouteKind,
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What a decision needs of a request.
pub(crate) struct Wanted {
    pub(crate) key: Option<PrefixKey>,
    pub(crate) model: Option<String>,
    pub(crate) rank: Option<u32>,
    pub(crate) several: bool,
    /// The pool that may serve it; `None` for any worker.
    pub(crate) role: Option<Role>,
}

impl Arrived {
    /// A generation that has not been answered at all can be done again, and so can what only reads; who knows what else could.
    pub(crate) fn may_repeat(&self) -> bool {
        self.kind != RouteKind::Other || matches!(self.method, Method::GET | Method::HEAD)
    }
}
