#![no_main]

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::decoders;

fuzz_target!(|data: &[u8]| decoders::packed_pages(&bytes::Bytes::copy_from_slice(data)));
