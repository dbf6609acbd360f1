//! Guest time: counted, not read.

use serde::{Deserialize, Serialize};

/// Nanoseconds per tick of the `time` counter (10 MHz, as on QEMU's `virt` board).
pub const TICK_NS: u64 = 100;

/// The guest's clock: `time_ns = base_ns + icount * instruction_ps / 1000`.
///
/// Clock advances and jumps over idle stretches move the base; nothing else does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    base_ns: u64,
    instruction_ps: u64,
}

impl Clock {
    /// A clock at zero that passes `instruction_ps` picoseconds per instruction.
    ///
    /// # Panics
    /// When `instruction_ps` is 0: the configuration was not validated.
    pub fn new(instruction_ps: u64) -> Clock {
        assert!(instruction_ps > 0, "guest time must pass");
        Clock { base_ns: 0, instruction_ps }
    }

    /// Guest time in nanoseconds at `icount`.
    #[inline]
    pub fn now_ns(&self, icount: u64) -> u64 {
        let executed_ns = match icount.checked_mul(self.instruction_ps) {
            Some(executed_ps) => executed_ps / 1000,
            None => {
                let executed_ps = u128::from(icount) * u128::from(self.instruction_ps);
                u64::try_from(executed_ps / 1000).unwrap_or(u64::MAX)
            }
        };
        self.base_ns.saturating_add(executed_ns)
    }

    /// The `time` counter at `icount`.
    #[inline]
    pub fn ticks(&self, icount: u64) -> u64 {
        self.now_ns(icount) / TICK_NS
    }

    /// The first icount at which guest time is `time_ns` or later, if nothing moves the base.
    pub fn icount_at(&self, time_ns: u64) -> u64 {
        let ahead_ns = time_ns.saturating_sub(self.base_ns);
        match ahead_ns.checked_mul(1000) {
            Some(ahead_ps) => ahead_ps.div_ceil(self.instruction_ps),
            None => {
                let icount = (u128::from(ahead_ns) * 1000).div_ceil(u128::from(self.instruction_ps));
                u64::try_from(icount).unwrap_or(u64::MAX)
            }
        }
    }

    /// Whether guest time passes as fast as on `other`.
    pub fn same_rate(&self, other: &Clock) -> bool {
        self.instruction_ps == other.instruction_ps
    }

    /// Moves guest time forward.
    pub fn advance(&mut self, delta_ns: u64) {
        self.base_ns = self.base_ns.saturating_add(delta_ns);
    }
}

/// Guest time in nanoseconds at which the `time` counter reaches `ticks`.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    ticks.saturating_mul(TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn icount_at_is_the_first_that_reaches_the_time() {
        for instruction_ps in [1, 333, 1000, 1500, 40_000] {
            let mut clock = Clock::new(instruction_ps);
            clock.advance(12_345);
            for time_ns in [0, 12_345, 12_346, 99_999, 1 << 40, 1 << 58, u64::MAX / 1000, u64::MAX / 999] {
                let icount = clock.icount_at(time_ns);
                // At the end of icount, guest time has not come further.
                assert!(icount == u64::MAX || clock.now_ns(icount) >= time_ns);
                assert!(icount == 0 || clock.now_ns(icount - 1) < time_ns);
            }
        }
    }

    #[test]
    fn saturates_at_the_end_of_time() {
        let mut clock = Clock::new(1_000_000);
        clock.advance(u64::MAX);
        clock.advance(u64::MAX);
        assert_eq!(clock.now_ns(u64::MAX), u64::MAX);
        assert_eq!(ticks_to_ns(u64::MAX), u64::MAX);
        assert_eq!(clock.icount_at(u64::MAX), 0);
    }
}
