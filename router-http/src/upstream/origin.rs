//! A worker's base URL, taken apart once.

use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

/// See the module.
#[derive(Debug)]
pub(super) struct Origin {
    /// Where to connect.
    pub(super) base: Uri,
    /// What its requests say in `Host`.
    pub(super) host: HeaderValue,
    /// Stands before every path; empty, or begins with a slash and does not end with one.
    prefix: String,
}

/// Not named in `Host`.
const DEFAULT_PORT: u16 = 80;

impl Origin {
    /// `None` if nothing can be sent there.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let base: Uri = url.parse().ok()?;
        let host = match base.port_u16() {
            Some(port) if port != DEFAULT_PORT => format!("{}:{port}", base.host()?),
            _ => base.host()?.to_owned(),
        };
        let prefix = base.path().trim_end_matches('/').to_owned();
        Some(Self { host: HeaderValue::try_from(host).ok()?, base, prefix })
    }

    /// Where a path leads, as the request's first line says it. Whatever a client writes stays a path.
    pub(super) fn target(&self, path: &PathAndQuery) -> Option<Uri> {
        if self.prefix.is_empty() {
            return Some(Uri::from(path.clone()));
        }
        Some(Uri::from(PathAndQuery::try_from(format!("{}{path}", self.prefix)).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_client_writes_stays_a_path() {
        let joined = |base: &str, path: &'static str| {
            Origin::parse(base).unwrap().target(&PathAndQuery::from_static(path)).unwrap()
        };
        assert_eq!(joined("http://w:1", "/a?b=c"), "/a?b=c");
        assert_eq!(joined("http://w:1/base", "//x@y/"), "/base//x@y/");
        for path in ["//@evil:80/", "//.evil", "/:80"] {
            assert_eq!(joined("http://w", path).authority(), None, "{path}");
        }
    }

    #[test]
    fn the_host_is_named_as_it_is_reached() {
        for (url, host) in [("http://w:1/base", "w:1"), ("http://w:80", "w"), ("http://[::1]:8", "[::1]:8")] {
            assert_eq!(Origin::parse(url).unwrap().host, host);
        }
        assert!(Origin::parse("no url").is_none());
    }
}
