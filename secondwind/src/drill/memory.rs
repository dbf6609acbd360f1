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

/// The resident part of the largest mapping that is big enough for the guest's memory.
fn guest_resident_kib(smaps: &str, guest_kib: u64) -> u64 {
    let mut largest = (0, 0);
    let mut size_kib = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next().unwrap_or_default(), words.next());
        let kib = || value.and_then(|value| value.parse().ok()).unwrap_or(0);
        match name {
            "Size:" => size_kib = kib(),
            "Rss:" => {
                let resident_kib = kib();
                if size_kib >= guest_kib {
                    largest = largest.max((size_kib, resident_kib));
                }
            }
            _ => {}
        }
    }
    largest.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_resident_part_is_found() {
        let smaps = "\
7f00-7f01 rw-p 0 00:00 0\nSize: 65600 kB\nKernelPageSize: 4 kB\nRss: 2000 kB\nPss: 2000 kB\n\
7f02-7f03 rw-p 0 00:00 0 [heap]\nSize: 900 kB\nRss: 800 kB\n";
        assert_eq!(guest_resident_kib(smaps, 65536), 2000);
        assert_eq!(guest_resident_kib(smaps, 1 << 20), 0, "no mapping can hold it");
    }

    #[test]
    fn this_process_has_an_overhead() {
        let bytes = overhead_bytes(std::process::id(), 1 << 40).unwrap();
        assert!(bytes > 1 << 20, "{bytes}");
    }
}
