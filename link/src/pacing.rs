//! Pacing: so many bytes per second and no more, sans-I/O.
//!
//! A token bucket in the form of the generic cell rate algorithm (ITU-T I.371): instead of
//! tokens it keeps the time at which the bytes spent so far will have been paid for. Whole
//! numbers only, so that no byte is gained or lost however long it runs.

const NANOSECONDS_PER_SECOND: u128 = 1_000_000_000;

/// Spreads bytes over time.
///
/// Order of calls: when `now_ns` has reached [`Pacer::ready_at_ns`], send one piece of any
/// size and [`Pacer::spend`] it; a large piece is paid for by a longer wait after it.
#[derive(Debug, Clone)]
pub struct Pacer {
    /// `None`: as fast as the link takes it.
    bytes_per_second: Option<u64>,
    burst_bytes: u64,
    /// When everything spent is paid for.
    paid_at_ns: u64,
    /// What the division left over, in parts of `bytes_per_second`.
    remainder: u128,
}

impl Pacer {
    /// `bytes_per_second` on average (at least 1; `None` is without limit), and up to
    /// `burst_bytes` at once after a pause.
    pub fn new(bytes_per_second: Option<u64>, burst_bytes: u64) -> Self {
        Pacer {
            bytes_per_second: bytes_per_second.map(|rate| rate.max(1)),
            burst_bytes,
            paid_at_ns: 0,
            remainder: 0,
        }
    }

    /// When the next piece may go: at once if that lies in the past.
    pub fn ready_at_ns(&self) -> u64 {
        match self.bytes_per_second {
            Some(_) => self.paid_at_ns,
            None => 0,
        }
    }

    /// Whether a piece may go now.
    pub fn is_ready(&self, now_ns: u64) -> bool {
        now_ns >= self.ready_at_ns()
    }

    /// A piece of `bytes` went out at `now_ns`.
    pub fn spend(&mut self, bytes: u64, now_ns: u64) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let earliest_ns = now_ns.saturating_sub(duration_ns(self.burst_bytes, rate));
        if self.paid_at_ns < earliest_ns {
            self.paid_at_ns = earliest_ns;
            self.remainder = 0;
        }
        let cost = u128::from(bytes) * NANOSECONDS_PER_SECOND + self.remainder;
        let cost_ns = u64::try_from(cost / u128::from(rate)).unwrap_or(u64::MAX);
        self.paid_at_ns = self.paid_at_ns.saturating_add(cost_ns);
        self.remainder = cost % u128::from(rate);
    }

    /// Changes the rate from `now_ns` on. What was spent before and is not paid for yet is
    /// paid at the new rate.
    pub fn set_rate(&mut self, bytes_per_second: Option<u64>, now_ns: u64) {
        let new_rate = bytes_per_second.map(|rate| rate.max(1));
        if let (Some(old), Some(new)) = (self.bytes_per_second, new_rate) {
            let owed_ns = u128::from(self.paid_at_ns.saturating_sub(now_ns));
            if owed_ns > 0 {
                let owed_ns = owed_ns * u128::from(old) / u128::from(new);
                let owed_ns = u64::try_from(owed_ns).unwrap_or(u64::MAX);
                self.paid_at_ns = now_ns.saturating_add(owed_ns);
            }
        }
        self.bytes_per_second = new_rate;
        self.remainder = 0;
    }

    /// The rate; `None` is without limit.
    pub fn bytes_per_second(&self) -> Option<u64> {
        self.bytes_per_second
    }
}

fn duration_ns(bytes: u64, bytes_per_second: u64) -> u64 {
    let ns = u128::from(bytes) * NANOSECONDS_PER_SECOND / u128::from(bytes_per_second);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = NANOSECONDS_PER_SECOND as u64;

    /// Sends pieces as early as it may, from `start_ns` on; returns when each went.
    fn send_eagerly(pacer: &mut Pacer, pieces: &[u64], start_ns: u64) -> Vec<u64> {
        let mut now_ns = start_ns;
        let send = |bytes: &u64| {
            now_ns = now_ns.max(pacer.ready_at_ns());
            assert!(pacer.is_ready(now_ns));
            pacer.spend(*bytes, now_ns);
            now_ns
        };
        pieces.iter().map(send).collect()
    }

    #[test]
    fn a_steady_sender_gets_exactly_its_rate() {
        let mut pacer = Pacer::new(Some(1000), 0);
        let times = send_eagerly(&mut pacer, &[100; 11], SECOND);
        assert_eq!(times[10], 2 * SECOND);
    }

    #[test]
    fn a_pause_earns_the_burst_and_not_more() {
        let mut pacer = Pacer::new(Some(1000), 500);
        let times = send_eagerly(&mut pacer, &[100; 7], 60 * SECOND);
        // The burst of 500, one more on credit, then one each tenth of a second.
        let at_once = times.iter().filter(|&&time| time == 60 * SECOND).count();
        assert_eq!(at_once, 6);
        assert_eq!(times[6], 60 * SECOND + SECOND / 10);
    }

    #[test]
    fn without_a_rate_everything_goes_at_once() {
        let mut pacer = Pacer::new(None, 0);
        let times = send_eagerly(&mut pacer, &[u64::MAX; 5], 7);
        assert_eq!(times, [7; 5]);
    }

    #[test]
    fn a_new_rate_holds_for_what_is_still_owed() {
        let mut pacer = Pacer::new(Some(1000), 0);
        pacer.spend(1000, SECOND);
        assert_eq!(pacer.ready_at_ns(), 2 * SECOND);
        pacer.set_rate(Some(2000), SECOND + SECOND / 2);
        assert_eq!(pacer.ready_at_ns(), SECOND + SECOND / 2 + SECOND / 4);
        pacer.set_rate(None, SECOND + SECOND / 2);
        assert!(pacer.is_ready(0));
    }

    proptest! {
        #[test]
        fn no_stretch_carries_more_than_its_rate_and_one_burst(
            rate in 1..1u64 << 40,
            burst in 0..1u64 << 20,
            pieces in prop::collection::vec(1..1u64 << 20, 1..60),
            start_ns in 0..1u64 << 40,
        ) {
            let mut pacer = Pacer::new(Some(rate), burst);
            let times = send_eagerly(&mut pacer, &pieces, start_ns);
            for first in 0..pieces.len() {
                for last in first..pieces.len() {
                    // All but the last piece: that one is paid for after it went.
                    let sent: u64 = pieces[first..last].iter().sum();
                    let elapsed_ns = u128::from(times[last] - times[first]);
                    let allowed = elapsed_ns * u128::from(rate) / NANOSECONDS_PER_SECOND;
                    // Rounding of the burst and of one piece to whole nanoseconds.
                    let rounding = 2 * u128::from(rate) / NANOSECONDS_PER_SECOND + 2;
                    prop_assert!(u128::from(sent) <= allowed + u128::from(burst) + rounding);
                }
            }
        }

        #[test]
        fn nothing_is_lost_to_rounding(
            rate in 1..1u64 << 40,
            pieces in prop::collection::vec(1..1u64 << 20, 1..60),
        ) {
            let mut pacer = Pacer::new(Some(rate), 0);
            let start_ns = SECOND;
            send_eagerly(&mut pacer, &pieces, start_ns);
            let total: u64 = pieces.iter().sum();
            prop_assert_eq!(pacer.ready_at_ns(), start_ns + duration_ns(total, rate));
        }
    }
}
