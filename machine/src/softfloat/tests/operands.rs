//! Operands that favour the borders: extreme exponents, exponents close to each other's (for
//! cancellation and ties), and significands of few bits or long runs.

use crate::softfloat::{Format, Rounding};

/// A deterministic source of random numbers (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    pub fn rounding(&mut self) -> Rounding {
        Rounding::ALL[self.below(5) as usize]
    }

    /// An integer of any magnitude, often at a power of two.
    pub fn integer(&mut self) -> u64 {
        let value = match self.below(4) {
            0 => self.bits(),
            1 => self.bits() >> self.below(64),
            2 => 1 << self.below(64),
            _ => run_of_ones(self),
        };
        let value = value.wrapping_add(self.below(3)).wrapping_sub(1);
        if self.below(3) == 0 { value.wrapping_neg() } else { value }
    }

    /// Any value of the format.
    pub fn operand<F: Format>(&mut self) -> F {
        if self.below(8) == 0 {
            return F::from_bits64(self.bits());
        }
        let exponent = self.exponent::<F>();
        self.operand_at(exponent)
    }

    /// A value whose exponent is near `other`'s, near its inverse, or anywhere.
    pub fn operand_near<F: Format>(&mut self, other: F) -> F {
        let stored = ((other.to_bits64() & F::INFINITY) >> F::FRACTION_BITS) as i64;
        let bias = i64::from(F::BIAS);
        let spread = i64::from(F::FRACTION_BITS) + 4;
        let offset = self.below(2 * spread as u64 + 1) as i64 - spread;
        let exponent = match self.below(6) {
            0 => stored + self.below(5) as i64 - 2,
            1 => stored + offset,
            // The product is then near 1, near the smallest or near the largest numbers.
            2 => 2 * bias - stored + offset,
            3 => bias - stored + offset,
            4 => 3 * bias - stored + self.below(5) as i64 - 2,
            _ => return self.operand(),
        };
        self.operand_at(exponent.clamp(0, i64::from(F::EXPONENT_MAX) - 1) as u64)
    }

    fn exponent<F: Format>(&mut self) -> u64 {
        let max = u64::from(F::EXPONENT_MAX);
        let bias = F::BIAS as u64;
        match self.below(8) {
            0 => 0,
            1 => self.below(4),
            2 => max - self.below(3),
            3 => bias - 4 + self.below(8),
            4 => bias + self.below(70),
            5 => self.below(u64::from(F::FRACTION_BITS) + 3),
            6 => max / 4 + self.below(8),
            _ => self.below(max + 1),
        }
    }

    fn operand_at<F: Format>(&mut self, exponent: u64) -> F {
        let fraction = match self.below(8) {
            0 => 0,
            1 => F::FRACTION,
            2 => 1 << self.below(u64::from(F::FRACTION_BITS)),
            3 => run_of_ones(self),
            4 => run_of_ones(self) ^ (1 << self.below(64)),
            // Few bits at the top: products and quotients that are exact.
            5 => self.bits() << (F::FRACTION_BITS - 1 - self.below(10) as u32),
            _ => self.bits(),
        };
        let sign = self.below(2) * F::SIGN;
        F::from_bits64(sign | exponent << F::FRACTION_BITS | fraction & F::FRACTION)
    }
}

fn run_of_ones(random: &mut Random) -> u64 {
    (u64::MAX >> random.below(64)) & (u64::MAX << random.below(64))
}
