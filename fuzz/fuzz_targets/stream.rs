#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::{decoders, resealed_frames};

fuzz_target!(|data: &[u8]| {
    decoders::stream(&Bytes::copy_from_slice(data));
    decoders::stream(&resealed_frames(data).into());
});
