//! The indexes of `kv-index`, the crate of the SGLang model gateway.

mod chain;
mod tokens;

use kv_index::{ContentHash, compute_request_content_hashes, request_prefix_hashes};

pub(crate) use chain::Chain;
pub(crate) use tokens::Tokens;

use crate::work::{BLOCK_TOKENS, PeerHashes};

/// Asserts that another crate's hashes are this one's, so that one set serves both.
///
/// # Panics
/// If they differ.
pub(crate) fn assert_same_hashes(other: PeerHashes) {
    let tokens: Vec<u32> = (0..4 * BLOCK_TOKENS as u32).map(|at| at.wrapping_mul(2_654_435_761)).collect();
    let content = hash(&tokens);
    let chain: Vec<u64> = request_prefix_hashes(&content).iter().map(|hash| hash.0).collect();
    let content: Vec<u64> = content.iter().map(|hash| hash.0).collect();
    assert_eq!((content, chain), other(&tokens), "the peers hash alike");
}

fn hash(tokens: &[u32]) -> Vec<ContentHash> {
    compute_request_content_hashes(tokens, BLOCK_TOKENS)
}
