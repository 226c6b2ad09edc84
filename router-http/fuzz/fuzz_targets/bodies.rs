//! Searches for bodies of generations that the quick reader takes for something else than they are.
//! `requests.rs` says how it is run.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| router_http::fuzzing::bodies(bytes));
