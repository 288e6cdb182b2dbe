//! Fuzzes the decoding of blocks by `Codec::Png`; see `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stfast_fuzz::decode(stfast_core::images::Codec::Png, data));
