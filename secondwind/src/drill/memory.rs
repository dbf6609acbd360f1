//! How much memory an agent takes beyond its guest's.

/// Resident memory of a process beyond the mapping that holds the guest's memory, at its
/// peak, in bytes. `None` when the process is gone.
///
/// The guest's part is subtracted as far as it is resident, not as a whole: a guest that
/// touches little of its memory must not hide what the agent takes.
pub fn overhead_bytes(pid: u32, guest_memory_bytes: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak_kib = field_kib(&status, "VmHWM:")?;
    let mappings = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let guest_kib = guest_resident_kib(&mappings, guest_memory_bytes / 1024);
    Some(peak_kib.saturating_sub(guest_kib) * 1024)
}

/// The value of a line `NAME   NUMBER kB`.
fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is resident of the guest's memory: of the writable mapping whose size is nearest above. By how
/// much it is larger, the kernel merged neighbours into it; all of that counts as if it were resident, and not as
/// the guest's.
fn guest_resident_kib(smaps: &str, guest_kib: u64) -> u64 {
    let mut nearest: Option<(u64, u64)> = None;
    let (mut writable, mut size_kib) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let kib = || value.parse().unwrap_or(0);
        match name {
            "Size:" => size_kib = kib(),
            "Rss:" if writable && size_kib >= guest_kib => {
                let found = (size_kib, kib());
                nearest = Some(nearest.map_or(found, |nearest| nearest.min(found)));
            }
            // A mapping begins: FROM-TO PERMISSIONS ...
            _ if !name.ends_with(':') => writable = value.starts_with("rw-"),
            _ => {}
        }
    }
    nearest.map_or(0, |(size_kib, resident_kib)| resident_kib.saturating_sub(size_kib - guest_kib))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_resident_part_is_found() {
        let smaps = "\
7e00-7e01 r--p 0 fe:00 1 /usr/lib/locale/archive\nSize: 65536 kB\nRss: 500 kB\n\
7f00-7f01 rw-p 0 00:00 0\nSize: 65600 kB\nKernelPageSize: 4 kB\nRss: 2000 kB\nPss: 2000 kB\n\
7f02-7f03 rw-p 0 00:00 0 [heap]\nSize: 900 kB\nRss: 800 kB\n\
7f04-7f05 rw-p 0 00:00 0\nSize: 99000 kB\nRss: 9000 kB\n";
        assert_eq!(guest_resident_kib(smaps, 65536), 2000 - 64, "neighbours of 64 KiB are in it");
        assert_eq!(guest_resident_kib(smaps, 1 << 20), 0, "no mapping can hold it");
    }

    #[test]
    fn this_process_has_an_overhead() {
        let bytes = overhead_bytes(std::process::id(), 1 << 40).unwrap();
        assert!(bytes > 1 << 20, "{bytes}");
    }
}
