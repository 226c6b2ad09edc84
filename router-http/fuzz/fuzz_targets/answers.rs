//! Searches for bytes that a worker sends, of which two readers could make different answers.
//! `requests.rs` says how it is run.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| router_http::fuzzing::answers(bytes));
