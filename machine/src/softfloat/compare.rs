//! Comparisons, minimum and maximum, and classification.

use std::cmp::Ordering;

use super::{Flags, Format};

/// FEQ: a quiet comparison, NV only for a signalling NaN. False if unordered.
#[inline]
pub fn equal<F: Format>(a: F, b: F, flags: &mut Flags) -> bool {
    if is_nan(a) || is_nan(b) {
        flags.raise_if(is_signalling(a) || is_signalling(b), Flags::INVALID);
        return false;
    }
    compare(a, b) == Ordering::Equal
}

/// FLT: a signalling comparison, NV for any NaN. False if unordered.
#[inline]
pub fn less<F: Format>(a: F, b: F, flags: &mut Flags) -> bool {
    if is_nan(a) || is_nan(b) {
        flags.raise(Flags::INVALID);
        return false;
    }
    compare(a, b) == Ordering::Less
}

/// FLE: a signalling comparison, NV for any NaN. False if unordered.
#[inline]
pub fn less_or_equal<F: Format>(a: F, b: F, flags: &mut Flags) -> bool {
    if is_nan(a) || is_nan(b) {
        flags.raise(Flags::INVALID);
        return false;
    }
    compare(a, b) != Ordering::Greater
}

/// FMIN: IEEE 754-2019 `minimumNumber`. Of a number and a NaN it is the number, of two NaNs
/// the canonical one; −0 is below +0; NV for a signalling NaN.
#[inline]
pub fn minimum<F: Format>(a: F, b: F, flags: &mut Flags) -> F {
    extremum(a, b, Ordering::Less, flags)
}

/// FMAX: IEEE 754-2019 `maximumNumber`, otherwise as [`minimum`].
#[inline]
pub fn maximum<F: Format>(a: F, b: F, flags: &mut Flags) -> F {
    extremum(a, b, Ordering::Greater, flags)
}

/// The one of the two that compares as `wanted` to the other.
#[inline]
fn extremum<F: Format>(a: F, b: F, wanted: Ordering, flags: &mut Flags) -> F {
    flags.raise_if(is_signalling(a) || is_signalling(b), Flags::INVALID);
    match (is_nan(a), is_nan(b)) {
        (true, true) => F::CANONICAL_NAN,
        (true, false) => b,
        (false, true) => a,
        (false, false) => {
            // By the order of the bits, which tells the zeros apart.
            if order_key(a).cmp(&order_key(b)) == wanted { a } else { b }
        }
    }
}

/// The classes of FCLASS, one bit each.
pub struct Classes;

impl Classes {
    /// −∞
    pub const NEGATIVE_INFINITY: u64 = 1 << 0;
    /// A negative normal number.
    pub const NEGATIVE_NORMAL: u64 = 1 << 1;
    /// A negative subnormal number.
    pub const NEGATIVE_SUBNORMAL: u64 = 1 << 2;
    /// −0
    pub const NEGATIVE_ZERO: u64 = 1 << 3;
    /// +0
    pub const POSITIVE_ZERO: u64 = 1 << 4;
    /// A positive subnormal number.
    pub const POSITIVE_SUBNORMAL: u64 = 1 << 5;
    /// A positive normal number.
    pub const POSITIVE_NORMAL: u64 = 1 << 6;
    /// +∞
    pub const POSITIVE_INFINITY: u64 = 1 << 7;
    /// A signalling NaN.
    pub const SIGNALLING_NAN: u64 = 1 << 8;
    /// A quiet NaN.
    pub const QUIET_NAN: u64 = 1 << 9;
}

/// FCLASS: the one bit of [`Classes`] that describes the value; raises nothing.
pub fn classify<F: Format>(value: F) -> u64 {
    let bits = value.to_bits64();
    let negative = bits & F::SIGN != 0;
    let magnitude = bits & !F::SIGN;
    let (if_negative, if_positive) = if magnitude > F::INFINITY {
        let class = if is_signalling(value) { Classes::SIGNALLING_NAN } else { Classes::QUIET_NAN };
        (class, class)
    } else if magnitude == F::INFINITY {
        (Classes::NEGATIVE_INFINITY, Classes::POSITIVE_INFINITY)
    } else if magnitude > F::FRACTION {
        (Classes::NEGATIVE_NORMAL, Classes::POSITIVE_NORMAL)
    } else if magnitude != 0 {
        (Classes::NEGATIVE_SUBNORMAL, Classes::POSITIVE_SUBNORMAL)
    } else {
        (Classes::NEGATIVE_ZERO, Classes::POSITIVE_ZERO)
    };
    if negative { if_negative } else { if_positive }
}

#[inline]
fn is_nan<F: Format>(value: F) -> bool {
    value.to_bits64() & !F::SIGN > F::INFINITY
}

#[inline]
fn is_signalling<F: Format>(value: F) -> bool {
    is_nan(value) && value.to_bits64() & F::QUIET == 0
}

/// The order of two values that are not NaN; the zeros are equal.
#[inline]
fn compare<F: Format>(a: F, b: F) -> Ordering {
    if (a.to_bits64() | b.to_bits64()) & !F::SIGN == 0 {
        return Ordering::Equal;
    }
    order_key(a).cmp(&order_key(b))
}

/// A key that orders all values but NaNs, −0 below +0.
#[inline]
fn order_key<F: Format>(value: F) -> i64 {
    let bits = value.to_bits64();
    let magnitude = (bits & !F::SIGN) as i64;
    if bits & F::SIGN != 0 { !magnitude } else { magnitude }
}
