#![no_main]

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::{as_it_is_and_resealed, decoders};

fuzz_target!(|data: &[u8]| {
    for input in as_it_is_and_resealed(data) {
        decoders::batch(&input);
    }
});
