//! A slow or full disk, for drills: where the variable [`VARIABLE`] names a file, its text says
//! what is wrong with the disks of this process at the moment.
//!
//! ```text
//!   (nothing, or no file)   nothing
//!   slow 50                 each sync takes 50 ms longer
//!   full                    nothing more can be written
//! ```
//!
//! Without the variable, as always but in drills, this costs a look at a static.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// The environment variable that names the file.
pub const VARIABLE: &str = "SECONDWIND_DISK_FAULT";

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Slow(Duration),
    Full,
}

/// To be called before bytes are written.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] while the disk is full.
pub fn before_write() -> io::Result<()> {
    match present() {
        Fault::Full => Err(io::ErrorKind::StorageFull.into()),
        Fault::None | Fault::Slow(_) => Ok(()),
    }
}

/// To be called before a sync; returns late while the disk is slow.
pub fn before_sync() {
    if let Fault::Slow(delay) = present() {
        std::thread::sleep(delay);
    }
}

fn present() -> Fault {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    match FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)) {
        None => Fault::None,
        Some(file) => parse(&std::fs::read_to_string(file).unwrap_or_default()),
    }
}

fn parse(text: &str) -> Fault {
    match text.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["full"] => Fault::Full,
        ["slow", ms] => ms.parse().map_or(Fault::None, |ms| Fault::Slow(Duration::from_millis(ms))),
        _ => Fault::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_is_wrong() {
        assert_eq!(parse("full\n"), Fault::Full);
        assert_eq!(parse("slow 50"), Fault::Slow(Duration::from_millis(50)));
        for text in ["", "slow", "slow down", "empty"] {
            assert_eq!(parse(text), Fault::None, "{text}");
        }
        before_write().unwrap();
    }
}
