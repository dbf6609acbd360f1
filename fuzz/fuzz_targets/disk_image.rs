#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use secondwind_fuzz::disk::{self, DiskMode, DiskSpec, Format};

/// A larger disk takes long to hash, and shows nothing more.
const MOST_BYTES: u64 = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let Some(len) = data.get(24..32).and_then(|len| len.try_into().ok()).map(u64::from_be_bytes) else {
        return;
    };
    // A backing file is any file of this host: not here.
    if len > MOST_BYTES || data[8..16] != [0; 8] {
        return;
    }
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("some memory is free");
    file.write_all(data).expect("some memory is free");
    let spec = DiskSpec { format: Some(Format::Qcow2), ..DiskSpec::new(file.path().to_owned()) };
    for mode in [DiskMode::Overlay, DiskMode::Direct] {
        let Ok(mut disk) = disk::open(&spec, mode) else { continue };
        let last = disk.len_sectors() - 1;
        // What fails here fails for the machine, which stops.
        let _ = disk.write(last, &[7; 512]);
        let _ = disk.write(last / 2, &[8; 512]);
        let _ = disk.zero(0, last, data.len().is_multiple_of(2));
        let _ = disk.read(0, &mut [0; 512]);
        let _ = disk.flush();
    }
});
