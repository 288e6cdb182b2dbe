//! Fuzzes the decoding of blocks by `Codec::Jp2k`; see `src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stfast_fuzz::decode(stfast_core::images::Codec::Jp2k, data));
