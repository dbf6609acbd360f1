//! The drill's clock: nanoseconds since the drill began, for what it sees itself and for
//! what the agents wrote down.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Reads the drill's time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    began: Instant,
    began_unix_ns: u64,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Clock {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_unix_ns = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
        Clock { began: Instant::now(), began_unix_ns }
    }

    /// Nanoseconds since the drill began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The same of a time that an agent gives in nanoseconds since 1970.
    pub fn at_unix_ns(&self, unix_ns: u64) -> u64 {
        unix_ns.saturating_sub(self.began_unix_ns)
    }
}

/// Nanoseconds as milliseconds, for people.
pub fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}
