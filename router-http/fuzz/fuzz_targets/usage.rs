//! Searches for pieces of an answer with which the search for its usage does not come to an end, or keeps too much.
//! `requests.rs` says how it is run.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| router_http::fuzzing::usage(bytes));
