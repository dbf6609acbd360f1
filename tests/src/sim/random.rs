//! Seeded randomness: the only source of it in a simulation.

/// SplitMix64. Small, fast, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Random { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6a09_e667_f3bc_c908 }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        assert!(from <= to);
        match (to - from).checked_add(1) {
            Some(span) => from + self.next_u64() % span,
            None => self.next_u64(),
        }
    }

    /// Whether something of this likelihood, in thousandths, happens.
    pub fn chance(&mut self, thousandths: u64) -> bool {
        self.next_u64() % 1000 < thousandths
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.between(0, from.len() as u64 - 1) as usize]
    }

    /// A generator of its own, for a part whose draws must not shift the others'.
    pub fn fork(&mut self) -> Random {
        Random::new(self.next_u64())
    }
}
