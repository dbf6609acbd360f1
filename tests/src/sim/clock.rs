//! A host's monotonic clock: its own zero, its own rate, jumps forward, never back.

/// How far a host's clock may be off the true rate, in parts per million. What a primary's lease
/// allows for is more (`docs/architecture.md`, "The lease").
pub const RATE_MAX_PPM: i64 = 10_000;

const MILLION: i128 = 1_000_000;

/// Reads virtual time as one host does.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    /// Virtual time at which rate or zero changed last, and what the clock showed then.
    since_ns: u64,
    shown_ns: u64,
    rate_ppm: i64,
}

impl HostClock {
    /// A clock that shows `shown_ns` at the beginning of time and keeps the true rate.
    pub fn new(shown_ns: u64) -> Self {
        HostClock { since_ns: 0, shown_ns, rate_ppm: 0 }
    }

    /// What it shows at a virtual time.
    pub fn shows_ns(&self, now_ns: u64) -> u64 {
        let passed = i128::from(now_ns.saturating_sub(self.since_ns));
        let shown = passed * (MILLION + i128::from(self.rate_ppm)) / MILLION;
        self.shown_ns + shown as u64
    }

    /// The first virtual time at which it shows at least `shown_ns`.
    pub fn reaches_ns(&self, shown_ns: u64) -> u64 {
        let ahead = i128::from(shown_ns.saturating_sub(self.shown_ns));
        let rate = MILLION + i128::from(self.rate_ppm);
        self.since_ns.saturating_add(((ahead * MILLION + rate - 1) / rate) as u64)
    }

    /// Runs at another rate from now on.
    pub fn set_rate(&mut self, now_ns: u64, rate_ppm: i64) {
        assert!(rate_ppm.abs() <= RATE_MAX_PPM);
        *self = HostClock { since_ns: now_ns, shown_ns: self.shows_ns(now_ns), rate_ppm };
    }

    /// Shows so much more from now on, as after a suspend.
    pub fn jump(&mut self, now_ns: u64, by_ns: u64) {
        *self = HostClock { since_ns: now_ns, shown_ns: self.shows_ns(now_ns) + by_ns, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_goes_back_and_reaches_what_it_is_asked_for() {
        let mut clock = HostClock::new(77);
        let mut shown_ns = 0;
        for step in 0..200u64 {
            let now_ns = step * 1_000_003;
            match step % 3 {
                0 => clock.set_rate(now_ns, (step as i64 * 7919) % RATE_MAX_PPM),
                1 => clock.set_rate(now_ns, -((step as i64 * 7919) % RATE_MAX_PPM)),
                _ => clock.jump(now_ns, step),
            }
            assert!(clock.shows_ns(now_ns) >= shown_ns);
            shown_ns = clock.shows_ns(now_ns);
            let reached_ns = clock.reaches_ns(shown_ns + 12_345);
            assert!(clock.shows_ns(reached_ns) >= shown_ns + 12_345);
            assert!(clock.shows_ns(reached_ns - 1) < shown_ns + 12_345);
        }
    }
}
