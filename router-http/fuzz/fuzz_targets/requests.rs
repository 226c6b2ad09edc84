//! Searches for bytes that a client sends over one connection, of which two readers could make different requests.
//!
//! ```console
//! cargo install cargo-fuzz
//! cd router-http && cargo fuzz run requests --sanitizer none -- -max_total_time=60
//! ```
//!
//! This runs on a stable toolchain; the code under test is safe Rust, so that a sanitizer, which needs a nightly one, would
//! find nothing. What must hold is in `router_http::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| router_http::fuzzing::requests(bytes));
