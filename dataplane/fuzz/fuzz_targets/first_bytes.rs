//! `first_bytes` of `targets.rs` under libFuzzer.
#![no_main]
#[path = "../targets.rs"]
#[allow(dead_code)]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::first_bytes(input));
