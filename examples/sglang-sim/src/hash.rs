//! SGLang's page hashes: a SHA-256 chain over token ids.
//!
//! `digest_k = SHA256(digest_{k-1} ‖ token ids as little-endian u32)`; the first page has no digest before it, unless a cache
//! salt seeds the chain. A published hash is the digest's first eight bytes as a big-endian signed integer.

use sha2::{Digest as _, Sha256};

/// The chain's state after a page.
pub(crate) type Digest = [u8; 32];

/// The state before the first page; `None` without a salt.
pub(crate) fn seed(cache_salt: &str) -> Option<Digest> {
    if cache_salt.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    hash.update(b"sglang-cache-salt-v1\0");
    hash.update(cache_salt.as_bytes());
    Some(hash.finalize().into())
}

/// The state after one more page.
pub(crate) fn next(before: Option<&Digest>, page: &[u32]) -> Digest {
    let mut hash = Sha256::new();
    if let Some(before) = before {
        hash.update(before);
    }
    for token in page {
        hash.update(token.to_le_bytes());
    }
    hash.finalize().into()
}

/// The hash that events carry.
pub(crate) fn published(digest: &Digest) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}
