//! The host's monotonic clock, for drivers. Cores take the time as an argument.

use std::sync::OnceLock;
use std::time::Instant;

/// Nanoseconds since this process first asked.
#[expect(clippy::disallowed_methods, reason = "this is where drivers take the time from")]
pub fn monotonic_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}
