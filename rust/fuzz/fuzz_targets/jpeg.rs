//! Fuzzes the decoding of blocks by `Codec::Jpeg`; see `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stfast_fuzz::decode(stfast_core::images::Codec::Jpeg, data));
