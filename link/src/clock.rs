//! The host's monotonic clock, for drivers. Cores take the time as an argument.

use std::sync::OnceLock;
use std::time::Instant;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since this process first asked.
#[expect(clippy::disallowed_methods, reason = "this is where drivers take the time from")]
pub fn monotonic_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds since the host booted, its sleep included, which [`monotonic_ns`] leaves out.
/// What another host counts in the meantime is to be compared with this.
pub fn boot_ns() -> u64 {
    // Linux has this clock since 2.6.39, and nothing else can fail.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    now.map_or(u64::MAX, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
