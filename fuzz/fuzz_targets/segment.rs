#![no_main]

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::{records, resealed_frames};

fuzz_target!(|data: &[u8]| {
    records::segment(data);
    records::segment(&resealed_frames(data));
});
