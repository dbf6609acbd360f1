//! The drill's random choices: all of them follow from its seed.

use std::time::Duration;

/// A generator of numbers, SplitMix64 (Steele, Lea, Flood 2014): small, and the same for a
/// seed on every host.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of `seed` for one purpose; other purposes get unrelated numbers.
    pub fn new(seed: u64, purpose: u64) -> Random {
        let mut random = Random(seed);
        let mixed = random.next() ^ purpose.wrapping_mul(0xd134_2543_de82_ef95);
        Random(mixed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The bias is below 2^-32 for the small limits that a drill has.
        self.next() % limit
    }

    /// A duration from `least` to `most`.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span_ns = u64::try_from((most.saturating_sub(least)).as_nanos()).unwrap_or(u64::MAX - 1);
        least + Duration::from_nanos(self.below(span_ns + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_everything_and_purposes_differ() {
        let numbers = |seed, purpose| -> Vec<u64> {
            let mut random = Random::new(seed, purpose);
            (0..4).map(|_| random.next()).collect()
        };
        assert_eq!(numbers(7, 1), numbers(7, 1));
        assert_ne!(numbers(7, 1), numbers(7, 2));
        assert_ne!(numbers(7, 1), numbers(8, 1));
    }

    #[test]
    fn durations_stay_within_their_limits() {
        let (least, most) = (Duration::from_millis(3), Duration::from_millis(9));
        let mut random = Random::new(1, 1);
        for _ in 0..1000 {
            let chosen = random.between(least, most);
            assert!((least..=most).contains(&chosen), "{chosen:?}");
        }
        assert_eq!(random.between(least, least), least);
    }
}
