#![no_main]

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::checkpoint_bytes;

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("secondwind-fuzz-{}.swc", std::process::id()));
    checkpoint_bytes::file(data, &path);
    if let Some(resealed) = checkpoint_bytes::resealed(data) {
        checkpoint_bytes::file(&resealed, &path);
    }
});
