//! Searches for operations after which the index is not what its specification says.
//!
//! ```console
//! cargo install cargo-fuzz
//! cd router-core && cargo fuzz run index --sanitizer none -- -max_total_time=60
//! ```
//!
//! This runs on a stable toolchain; the code under test is safe Rust, so that a sanitizer, which needs a nightly one, would
//! find nothing. The harness is the property test's (`tests/operations`).
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/operations/mod.rs"]
mod operations;

/// Operations of one input at most: what goes wrong after more goes wrong after fewer, and the specification is slow.
const MOST_OPERATIONS: usize = 400;

fuzz_target!(|bytes: &[u8]| {
    let (lists, _rest) = bytes.as_chunks::<6>();
    operations::run(lists.iter().take(MOST_OPERATIONS).map(|list| operations::Operation::from(*list)));
});
