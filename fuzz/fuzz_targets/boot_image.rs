#![no_main]

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::scripts;

fuzz_target!(|data: &[u8]| scripts::boot_image(data));
