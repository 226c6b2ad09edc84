//! A request as it is held while workers are tried.

use std::mem::take;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use router_core::key::PrefixKey;
use router_core::{Role, WorkerId};

use crate::admission::{Standing, Wish};
use crate::decode::RouteKind;
use crate::headers::Added;
use crate::receive::Head;

/// A request once its body is here.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) kind: RouteKind,
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) added: Added,
    pub(crate) body: Bytes,
    /// It changes what a worker keeps, so that doing it twice is not doing it once.
    pub(crate) once: bool,
}

/// What a decision needs of a request.
pub(crate) struct Wanted {
    pub(crate) key: Option<PrefixKey>,
    pub(crate) model: Option<String>,
    /// The dp rank that the request asks for.
    pub(crate) rank: Option<u32>,
    pub(crate) several: bool,
    /// The request is to ask for usage, where the worker tells it if asked, and the client is not to be told.
    pub(crate) asks_usage: bool,
    /// The only worker that will do.
    pub(crate) only: Option<WorkerId>,
    /// The only dp rank of it that will do, which the request does not say by itself.
    pub(crate) only_rank: Option<u32>,
    /// The pool that may serve it; `None` for any worker.
    pub(crate) role: Option<Role>,
    /// How it waits, if it has to.
    pub(crate) standing: Standing,
}

impl Wanted {
    /// The same, to be kept while it waits.
    pub(crate) fn wish(&self, unpinned: bool, tried: &[WorkerId], paired: bool) -> Wish {
        Wish {
            key: self.key.clone(),
            model: self.model.clone(),
            rank: self.rank.or(self.only_rank),
            role: self.role,
            only: self.only,
            unpinned,
            tried: tried.to_vec(),
            paired,
        }
    }
}

impl Arrived {
    /// Takes what is passed on out of a request's head.
    pub(crate) fn of(kind: RouteKind, head: &mut Head, body: Bytes) -> Self {
        let (method, headers) = (take(&mut head.method), take(&mut head.headers));
        let path = take(&mut head.uri).into_parts().path_and_query;
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Self { kind, method, path, headers, added: Added::default(), body, once: false }
    }

    /// A generation that has not been answered at all can be done again, and so can what only reads; who knows what else could.
    pub(crate) fn may_repeat(&self) -> bool {
        !self.once && (self.kind.generates() || matches!(self.method, Method::GET | Method::HEAD))
    }

    /// The same request for another path.
    pub(crate) fn at(&self, path: &'static str) -> Self {
        let (method, headers) = (self.method.clone(), self.headers.clone());
        let (path, body) = (PathAndQuery::from_static(path), self.body.clone());
        let added = self.added.clone();
        Self { kind: self.kind, method, path, headers, added, body, once: self.once }
    }
}
