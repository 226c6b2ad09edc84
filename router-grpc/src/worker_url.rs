//! Base URLs of workers, as people and agents write them.

use url::Url;

/// A base URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// It is not a URL.
    #[error("{0}")]
    Syntax(#[from] url::ParseError),
    /// Only plain HTTP is spoken to workers.
    #[error("the scheme must be http, not {0}; TLS to workers is not spoken yet")]
    Scheme(String),
    /// There is nothing to connect to.
    #[error("it names no host")]
    NoHost,
    /// Paths are put after it, and a user before it would be sent in clear.
    #[error("a base URL has neither user, query nor fragment")]
    NotABase,
    /// Another flag has it too, or the same one.
    #[error("it is given twice: a worker has one role")]
    Twice,
}

/// A base URL without a slash at the end.
pub(crate) fn worker_url(given: &str) -> Result<String, UrlProblem> {
    let url = Url::parse(given)?;
    if url.scheme() != "http" {
        return Err(UrlProblem::Scheme(url.scheme().to_owned()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(UrlProblem::NoHost);
    }
    let user = !url.username().is_empty() || url.password().is_some();
    if user || url.query().is_some() || url.fragment().is_some() {
        return Err(UrlProblem::NotABase);
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_made_plain() {
        assert_eq!(worker_url("http://h:1/").unwrap(), "http://h:1");
        assert_eq!(worker_url("https://h").unwrap_err(), UrlProblem::Scheme("https".to_owned()));
        for bad in ["", "h:1", "http://", "ftp://h", "http://h/?q=1", "http://u:p@h"] {
            assert!(worker_url(bad).is_err(), "{bad}");
        }
    }
}
