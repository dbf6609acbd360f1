//! The reference path of addition, multiplication, division, square root and their fusion:
//! exact results in integers, rounded once.

use std::cmp::Ordering;

use super::unpacked::{Finite, Operand, round, unpack};
use super::{Flags, Format, Rounding, infinity, invalid, zero};

/// `a + b`.
#[inline(never)]
pub(super) fn add<F: Format>(a: F, b: F, rounding: Rounding, flags: &mut Flags) -> F {
    match (unpack(a, flags), unpack(b, flags)) {
        (Operand::Nan, _) | (_, Operand::Nan) => F::CANONICAL_NAN,
        (Operand::Infinite { negative: x }, Operand::Infinite { negative: y }) if x != y => invalid(flags),
        (Operand::Infinite { .. }, _) => a,
        (_, Operand::Infinite { .. }) => b,
        (Operand::Zero { negative: x }, Operand::Zero { negative: y }) => zero_sum(x, y, rounding),
        (Operand::Zero { .. }, _) => b,
        (_, Operand::Zero { .. }) => a,
        (Operand::Finite(x), Operand::Finite(y)) => round_sum(Wide::from(x), Wide::from(y), rounding, flags),
    }
}

/// `a × b`.
#[inline(never)]
pub(super) fn mul<F: Format>(a: F, b: F, rounding: Rounding, flags: &mut Flags) -> F {
    match product(unpack(a, flags), unpack(b, flags)) {
        Product::Nan => F::CANONICAL_NAN,
        Product::Invalid => invalid(flags),
        Product::Infinite { negative } => infinity(negative),
        Product::Zero { negative } => zero(negative),
        Product::Finite(exact) => round(exact.narrow(), rounding, flags),
    }
}

/// `a × b + c`, rounded once.
#[inline(never)]
pub(super) fn fused_multiply_add<F: Format>(a: F, b: F, c: F, rounding: Rounding, flags: &mut Flags) -> F {
    let product = product(unpack(a, flags), unpack(b, flags));
    match (product, unpack(c, flags)) {
        // Infinity times zero is invalid whatever is added, a quiet NaN too.
        (Product::Invalid, _) => invalid(flags),
        (Product::Nan, _) | (_, Operand::Nan) => F::CANONICAL_NAN,
        (Product::Infinite { negative: x }, Operand::Infinite { negative: y }) if x != y => invalid(flags),
        (Product::Infinite { negative }, _) => infinity(negative),
        (_, Operand::Infinite { .. }) => c,
        (Product::Zero { negative: x }, Operand::Zero { negative: y }) => zero_sum(x, y, rounding),
        (Product::Zero { .. }, _) => c,
        (Product::Finite(x), Operand::Zero { .. }) => round(x.narrow(), rounding, flags),
        (Product::Finite(x), Operand::Finite(y)) => round_sum(x, Wide::from(y), rounding, flags),
    }
}

/// `a ÷ b`.
#[inline(never)]
pub(super) fn div<F: Format>(a: F, b: F, rounding: Rounding, flags: &mut Flags) -> F {
    let negative = (a.to_bits64() ^ b.to_bits64()) & F::SIGN != 0;
    match (unpack(a, flags), unpack(b, flags)) {
        (Operand::Nan, _) | (_, Operand::Nan) => F::CANONICAL_NAN,
        (Operand::Infinite { .. }, Operand::Infinite { .. })
        | (Operand::Zero { .. }, Operand::Zero { .. }) => invalid(flags),
        (Operand::Infinite { .. }, _) => infinity(negative),
        (_, Operand::Infinite { .. }) | (Operand::Zero { .. }, _) => zero(negative),
        (Operand::Finite(_), Operand::Zero { .. }) => {
            flags.raise(Flags::DIVIDE_BY_ZERO);
            infinity(negative)
        }
        (Operand::Finite(x), Operand::Finite(y)) => {
            let dividend = u128::from(x.significand) << 63;
            let divisor = u128::from(y.significand);
            // In (2^62, 2^64), as both significands have bit 63 set.
            let quotient = (dividend / divisor) as u64;
            let sticky = u64::from(dividend % divisor != 0);
            let leading_zeros = quotient.leading_zeros();
            let exact = Finite {
                negative,
                exponent: x.exponent - y.exponent - leading_zeros as i32,
                significand: quotient << leading_zeros | sticky,
            };
            round(exact, rounding, flags)
        }
    }
}

/// The square root of `a`.
#[inline(never)]
pub(super) fn sqrt<F: Format>(a: F, rounding: Rounding, flags: &mut Flags) -> F {
    match unpack(a, flags) {
        Operand::Nan => F::CANONICAL_NAN,
        // The root of minus zero is minus zero.
        Operand::Zero { .. } | Operand::Infinite { negative: false } => a,
        Operand::Infinite { negative: true } => invalid(flags),
        Operand::Finite(x) if x.negative => invalid(flags),
        Operand::Finite(x) => {
            // The radicand gets an even exponent, and bit 126 or 127 as its highest, so that
            // the root has bit 63.
            let odd = x.exponent & 1;
            let radicand = u128::from(x.significand) << (63 + odd);
            let root = radicand.isqrt();
            let exact = Finite {
                negative: false,
                exponent: (x.exponent - odd) / 2,
                significand: root as u64 | u64::from(root * root != radicand),
            };
            round(exact, rounding, flags)
        }
    }
}

/// As [`Finite`], with room for the exact product of two of them: ± significand ×
/// 2^(exponent − 127), the significand's bit 127 set. As the result of a sum, bit 0 is sticky.
#[derive(Clone, Copy)]
struct Wide {
    negative: bool,
    exponent: i32,
    significand: u128,
}

impl Wide {
    #[inline]
    fn narrow(self) -> Finite {
        let lost = self.significand as u64 != 0;
        Finite {
            negative: self.negative,
            exponent: self.exponent,
            significand: (self.significand >> 64) as u64 | u64::from(lost),
        }
    }
}

impl From<Finite> for Wide {
    #[inline]
    fn from(value: Finite) -> Self {
        Self {
            negative: value.negative,
            exponent: value.exponent,
            significand: u128::from(value.significand) << 64,
        }
    }
}

enum Product {
    Nan,
    Invalid,
    Infinite { negative: bool },
    Zero { negative: bool },
    Finite(Wide),
}

#[inline]
fn product(a: Operand, b: Operand) -> Product {
    use Operand::{Finite, Infinite, Nan, Zero};
    match (a, b) {
        (Nan, _) | (_, Nan) => Product::Nan,
        (Infinite { .. }, Zero { .. }) | (Zero { .. }, Infinite { .. }) => Product::Invalid,
        (Finite(x), Finite(y)) => {
            let significand = u128::from(x.significand) * u128::from(y.significand);
            let leading_zeros = significand.leading_zeros();
            Product::Finite(Wide {
                negative: x.negative != y.negative,
                exponent: x.exponent + y.exponent + 1 - leading_zeros as i32,
                significand: significand << leading_zeros,
            })
        }
        (Infinite { negative: x }, Infinite { negative: y })
        | (Infinite { negative: x }, Finite(self::Finite { negative: y, .. }))
        | (Finite(self::Finite { negative: x, .. }), Infinite { negative: y }) => {
            Product::Infinite { negative: x != y }
        }
        (Zero { negative: x }, Zero { negative: y })
        | (Zero { negative: x }, Finite(self::Finite { negative: y, .. }))
        | (Finite(self::Finite { negative: x, .. }), Zero { negative: y }) => {
            Product::Zero { negative: x != y }
        }
    }
}

/// The sum of two zeros: of different signs, it is +0 in every mode but [`Rounding::Down`].
#[inline]
fn zero_sum<F: Format>(a_negative: bool, b_negative: bool, rounding: Rounding) -> F {
    zero(if a_negative == b_negative { a_negative } else { rounding == Rounding::Down })
}

/// The rounded sum of two numbers other than zero.
///
/// Aligning may lose bits of the smaller one into the sticky bit only if the exponents differ
/// by at least 22, as both significands have 22 low zeros or more; then a difference loses at
/// most one leading bit, and the sticky bit stays far below the bits kept.
#[inline]
fn round_sum<F: Format>(a: Wide, b: Wide, rounding: Rounding, flags: &mut Flags) -> F {
    let (larger, smaller) = match (a.exponent, a.significand).cmp(&(b.exponent, b.significand)) {
        Ordering::Less => (b, a),
        Ordering::Equal | Ordering::Greater => (a, b),
    };
    let shift = (larger.exponent - smaller.exponent) as u32;
    let aligned = shift_right_sticky_wide(smaller.significand, shift);
    let mut sum = larger;
    if larger.negative == smaller.negative {
        let (significand, carry) = larger.significand.overflowing_add(aligned);
        sum.significand = significand;
        if carry {
            sum.significand = 1 << 127 | significand >> 1 | significand & 1;
            sum.exponent += 1;
        }
    } else {
        let difference = larger.significand - aligned;
        if difference == 0 {
            return zero_sum(larger.negative, smaller.negative, rounding);
        }
        let leading_zeros = difference.leading_zeros();
        sum.significand = difference << leading_zeros;
        sum.exponent -= leading_zeros as i32;
    }
    round(sum.narrow(), rounding, flags)
}

/// `value >> shift`, bit 0 also set if a bit was lost.
#[inline]
fn shift_right_sticky_wide(value: u128, shift: u32) -> u128 {
    match shift {
        0 => value,
        1..=127 => value >> shift | u128::from(value << (128 - shift) != 0),
        _ => u128::from(value != 0),
    }
}
