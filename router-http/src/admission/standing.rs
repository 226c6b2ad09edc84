//! On whose behalf a request waits, and how urgently.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::Failure;
use crate::headers;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    tenant: Option<HeaderValue>,
    priority: i32,
}

/// A whole number; the greater goes first.
pub(crate) const PRIORITY: HeaderName = HeaderName::from_static("x-espalier-priority");

/// Largest priority, and smallest with its sign turned.
const MOST_PRIORITY: i32 = 100;

/// Most bytes of a tenant's name.
const MOST_TENANT_BYTES: usize = 128;

impl Standing {
    /// Takes the priority out of a request's headers; the tenant's may be of use to others and stays.
    pub(crate) fn take(headers: &mut HeaderMap, tenant_header: &HeaderName) -> Result<Self, Failure> {
        let priority = match headers::take(headers, &PRIORITY) {
            Some(value) => priority(&value).ok_or(Failure::Priority)?,
            None => 0,
        };
        let tenant = headers::find(headers, tenant_header);
        if tenant.is_some_and(|tenant| tenant.len() > MOST_TENANT_BYTES || tenant.to_str().is_err()) {
            return Err(Failure::Tenant { header: tenant_header.as_str().into() });
        }
        Ok(Self { tenant: tenant.cloned(), priority })
    }

    pub(crate) fn tenant(&self) -> &str {
        self.tenant.as_ref().and_then(|tenant| tenant.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn priority(&self) -> i32 {
        self.priority
    }
}

fn priority(value: &HeaderValue) -> Option<i32> {
    let priority = value.to_str().ok()?.trim().parse::<i32>().ok()?;
    (-MOST_PRIORITY..=MOST_PRIORITY).contains(&priority).then_some(priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_what_cannot_be_meant_is_refused() {
        let name = HeaderName::from_static("x-tenant");
        let mut headers = HeaderMap::new();
        assert_eq!(Standing::take(&mut headers, &name).unwrap().tenant(), "");
        headers.insert("x-tenant", HeaderValue::from_static("acme"));
        headers.insert(PRIORITY, HeaderValue::from_static(" -7 "));
        let standing = Standing::take(&mut headers, &name).unwrap();
        assert_eq!((standing.tenant(), standing.priority()), ("acme", -7));
        assert!(headers.contains_key("x-tenant") && !headers.contains_key(PRIORITY));
        for bad in ["high", "101", "-101", "1.5", ""] {
            headers.insert(PRIORITY, HeaderValue::from_static(bad));
            assert!(matches!(Standing::take(&mut headers, &name), Err(Failure::Priority)), "{bad}");
        }
        headers.insert("x-tenant", HeaderValue::try_from("x".repeat(129)).unwrap());
        assert!(matches!(Standing::take(&mut headers, &name), Err(Failure::Tenant { .. })));
    }
}
