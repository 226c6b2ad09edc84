//! How a prompt becomes a chain of block hashes.
//!
//! A [`KeySpace`] says what a prompt is cut from (token ids or bytes of text), how many units make a block, and which
//! secret keys the hash. Hashing a prompt in a key space yields a [`PrefixKey`]: one [`BlockHash`] for every *full* block,
//! where each hash commits to its block and to all before it. Two prompts therefore share their first `k` blocks exactly
//! when their `k`-th hashes are equal, and a whole run of blocks is compared by comparing its last hash.

mod chain;
mod kind;
mod prefix;
mod space;

pub use chain::BlockHash;
pub use kind::BlockKind;
pub use prefix::PrefixKey;
pub use space::{KeySpace, KeySpaceError, MAX_BLOCK_SIZE, SCHEME, Salt, Unit};
