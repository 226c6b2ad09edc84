//! Which key a request has to bring, and which one its worker gets in its place, as SGLang has it.
//!
//! With an admin key, routes that control the engine take that key and no other, and all others the API key and no other.

use http::{HeaderMap, HeaderValue, Method, header};

use crate::config::{DataPlaneConfig, Secret};
use crate::error::Failure;
use crate::headers;
use crate::route::Access;

/// The key that a request must bring, if any.
fn asked<'c>(config: &'c DataPlaneConfig, method: &Method, access: Access) -> Option<&'c Secret> {
    match access {
        // A browser asks beforehand what it may send, and cannot send a key with that.
        _ if *method == Method::OPTIONS => None,
        Access::Open => None,
        Access::Key => config.api_key.as_ref(),
        Access::Admin => config.api.admin_api_key.as_ref().or(config.api_key.as_ref()),
    }
}

/// Refuses a request that does not bring its key.
pub(crate) fn authorize(
    config: &DataPlaneConfig,
    method: &Method,
    access: Access,
    headers: &HeaderMap,
) -> Result<(), Failure> {
    let Some(key) = asked(config, method, access) else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.and_then(headers::bearer);
    match given.is_some_and(|given| key.matches(given)) {
        true => Ok(()),
        false if access == Access::Admin && config.api.admin_api_key.is_some() => Err(Failure::NotAdmin),
        false => Err(Failure::Unauthorized),
    }
}

/// Takes out the key to this router, which is no worker's business, and says which one the worker gets.
pub(crate) fn exchange_keys<'c>(
    config: &'c DataPlaneConfig,
    method: &Method,
    access: Access,
    headers: &mut HeaderMap,
) -> Option<&'c HeaderValue> {
    if asked(config, method, access).is_some() {
        headers.remove(header::AUTHORIZATION);
    }
    let admin = config.api.worker_admin_api_key.as_ref().filter(|_| access == Access::Admin);
    admin.or(config.worker_api_key.as_ref()).map(Secret::as_header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_asked_for_as_sglang_does() {
        let secret = |key: Option<&str>| key.map(|key| Secret::new(key).unwrap());
        let mut config = DataPlaneConfig::default();
        let mut allowed = |api: Option<&str>, admin: Option<&str>, access, given: Option<&str>| {
            config.api_key = secret(api);
            config.api.admin_api_key = secret(admin);
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(header::AUTHORIZATION, format!("Bearer {given}").parse().unwrap());
            }
            authorize(&config, &Method::GET, access, &headers).is_ok()
        };
        for (api, admin, access, given, expected) in [
            (None, None, Access::Admin, None, true),
            (Some("k"), None, Access::Admin, Some("k"), true),
            (Some("k"), None, Access::Admin, None, false),
            (Some("k"), Some("a"), Access::Admin, Some("k"), false),
            (Some("k"), Some("a"), Access::Admin, Some("a"), true),
            (Some("k"), Some("a"), Access::Key, Some("a"), false),
            (Some("k"), Some("a"), Access::Key, Some("k"), true),
            (None, Some("a"), Access::Key, None, true),
            (None, Some("a"), Access::Admin, None, false),
            (Some("k"), Some("a"), Access::Open, None, true),
        ] {
            assert_eq!(
                allowed(api, admin, access, given),
                expected,
                "{api:?} {admin:?} {access:?} {given:?}"
            );
        }
        let preflight = authorize(&config, &Method::OPTIONS, Access::Key, &HeaderMap::new());
        assert!(preflight.is_ok());
    }
}
