#![no_main]

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::inputs;

fuzz_target!(|data: &[u8]| {
    inputs::datagram(data);
    inputs::datagram_resealed(data);
});
