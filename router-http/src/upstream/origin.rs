//! A worker's base URL, taken apart once.

use http::{HeaderValue, Uri};

/// See the module.
#[derive(Debug)]
pub(super) struct Origin {
    /// Where to connect.
    pub(super) base: Uri,
    /// What its requests say in `Host`.
    pub(super) host: HeaderValue,
    /// Stands before every path; empty, or begins with a slash and does not end with one.
    pub(super) prefix: String,
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_a_path_has_one_slash_before_and_none_after() {
        for (url, prefix) in [("http://w:1", ""), ("http://w:1/", ""), ("http://w:1/base/", "/base")] {
            assert_eq!(Origin::parse(url).unwrap().prefix, prefix);
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
