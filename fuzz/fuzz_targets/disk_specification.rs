#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::disk::DiskSpec;

fuzz_target!(|data: &[u8]| {
    if let Ok(spec) = DiskSpec::parse(OsStr::from_bytes(data)) {
        assert!(!spec.path.as_os_str().is_empty());
        let exclusive = [spec.read_only, spec.snapshot, spec.overlay.is_some()];
        assert!(exclusive.into_iter().filter(|given| *given).count() <= 1);
    }
});
