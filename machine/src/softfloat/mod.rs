//! Floating point of the RISC-V F and D extensions, bit-exact on any host.
//!
//! A binary32 value is its `u32` of bits and a binary64 value its `u64`: the two types
//! implement [`Format`], so that every operation here is written once and takes either.
//! Each operation gets the rounding mode of the instruction and the flags accrued in `fcsr`
//! so far, and raises in them what the operation raises.
//!
//! What the specification (unprivileged ISA, chapters "F" and "D") leaves no choice about, and
//! IEEE 754 does: a NaN result is always the canonical NaN; tininess is detected after
//! rounding; `fma(inf, 0, qNaN)` raises NV; an integer conversion out of range saturates.
//!
//! Two paths give the same bits: the reference path in integers alone (`arithmetic`,
//! `convert`), and for the common case the host's own arithmetic (`host`) where result and
//! flags provably are the same.

mod arithmetic;
mod compare;
mod convert;
mod host;
#[cfg(test)]
mod tests;
mod unpacked;

pub use compare::{Classes, classify, equal, less, less_or_equal, maximum, minimum};
pub use convert::{from_i32, from_i64, from_u32, from_u64, to_i32, to_i64, to_u32, to_u64};

pub use host::{add, convert_format, div, fused_multiply_add, mul, sqrt, sub};

use std::fmt::{Debug, LowerHex};

/// An IEEE 754 binary interchange format, implemented by the integer that holds its bits.
pub trait Format: Copy + Eq + Debug + LowerHex + host::Native {
    /// Bits of the stored fraction.
    const FRACTION_BITS: u32;
    /// Bits of the stored exponent.
    const EXPONENT_BITS: u32;
    /// The only NaN that an operation ever results in: quiet, positive, no payload.
    const CANONICAL_NAN: Self;

    /// The stored exponent of 1.0.
    const BIAS: i32 = (1 << (Self::EXPONENT_BITS - 1)) - 1;
    /// The stored exponent of infinities and NaNs.
    const EXPONENT_MAX: u32 = (1 << Self::EXPONENT_BITS) - 1;
    /// The sign bit, in the bits widened to 64.
    const SIGN: u64 = 1 << (Self::FRACTION_BITS + Self::EXPONENT_BITS);
    /// The fraction, in the bits widened to 64.
    const FRACTION: u64 = (1 << Self::FRACTION_BITS) - 1;
    /// Positive infinity, in the bits widened to 64.
    const INFINITY: u64 = (Self::EXPONENT_MAX as u64) << Self::FRACTION_BITS;
    /// The fraction's top bit, set in a quiet NaN, in the bits widened to 64.
    const QUIET: u64 = 1 << (Self::FRACTION_BITS - 1);

    /// The bits, zero-extended.
    fn to_bits64(self) -> u64;
    /// The format's bits out of the low ones of `bits`.
    fn from_bits64(bits: u64) -> Self;
}

/// binary32, single precision.
impl Format for u32 {
    const FRACTION_BITS: u32 = 23;
    const EXPONENT_BITS: u32 = 8;
    const CANONICAL_NAN: Self = 0x7fc0_0000;

    #[inline(always)]
    fn to_bits64(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn from_bits64(bits: u64) -> Self {
        bits as u32
    }
}

/// binary64, double precision.
impl Format for u64 {
    const FRACTION_BITS: u32 = 52;
    const EXPONENT_BITS: u32 = 11;
    const CANONICAL_NAN: Self = 0x7ff8_0000_0000_0000;

    #[inline(always)]
    fn to_bits64(self) -> u64 {
        self
    }

    #[inline(always)]
    fn from_bits64(bits: u64) -> Self {
        bits
    }
}

/// A rounding mode, numbered as in `frm` and in the `rm` field of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rounding {
    /// RNE: to nearest, ties to even.
    NearestEven = 0,
    /// RTZ: towards zero.
    TowardZero = 1,
    /// RDN: towards minus infinity.
    Down = 2,
    /// RUP: towards plus infinity.
    Up = 3,
    /// RMM: to nearest, ties away from zero.
    NearestMaxMagnitude = 4,
}

impl Rounding {
    /// All modes, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::NearestEven, Self::TowardZero, Self::Down, Self::Up, Self::NearestMaxMagnitude];

    /// The mode of number `bits`; `None` for 5 and 6 (reserved) and 7 (in an instruction:
    /// take the mode from `frm`).
    #[inline]
    pub fn from_bits(bits: u32) -> Option<Self> {
        Self::ALL.get(bits as usize).copied()
    }
}

/// Accrued exceptions, with the bits of `fflags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// No exception.
    pub const NONE: Self = Self(0);
    /// NX: the result is rounded.
    pub const INEXACT: Self = Self(1);
    /// UF: the result is rounded and below the normal range.
    pub const UNDERFLOW: Self = Self(2);
    /// OF: the rounded result is beyond the largest finite number.
    pub const OVERFLOW: Self = Self(4);
    /// DZ: a finite number other than zero was divided by zero.
    pub const DIVIDE_BY_ZERO: Self = Self(8);
    /// NV: the operation has no meaning for the operands, or one of them signals.
    pub const INVALID: Self = Self(16);

    /// The flags in the low five bits of `bits`; the rest is dropped, as a write to `fflags` does.
    #[inline]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 0x1f)
    }

    /// The five bits of `fflags`.
    #[inline]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other` are raised.
    #[inline]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Raises `other` beside what is already raised.
    #[inline]
    pub fn raise(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Raises `other` if `condition` holds.
    #[inline]
    fn raise_if(&mut self, condition: bool, other: Self) {
        if condition {
            self.raise(other);
        }
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A binary32 as a 64-bit register holds it: the upper half all ones.
#[inline]
pub fn box_f32(value: u32) -> u64 {
    0xffff_ffff_0000_0000 | u64::from(value)
}

/// The binary32 in a 64-bit register; a value that is not boxed counts as the canonical NaN.
#[inline]
pub fn unbox_f32(register: u64) -> u32 {
    if register >> 32 == 0xffff_ffff { register as u32 } else { u32::CANONICAL_NAN }
}

/// The value with its sign turned, of a NaN too; raises nothing.
#[inline]
pub fn negate<F: Format>(value: F) -> F {
    F::from_bits64(value.to_bits64() ^ F::SIGN)
}

/// The zero of this sign.
#[inline]
fn zero<F: Format>(negative: bool) -> F {
    F::from_bits64(if negative { F::SIGN } else { 0 })
}

/// The infinity of this sign.
#[inline]
fn infinity<F: Format>(negative: bool) -> F {
    F::from_bits64(F::INFINITY | if negative { F::SIGN } else { 0 })
}

/// The result of an operation without meaning: raises NV, gives the canonical NaN.
#[inline]
fn invalid<F: Format>(flags: &mut Flags) -> F {
    flags.raise(Flags::INVALID);
    F::CANONICAL_NAN
}
