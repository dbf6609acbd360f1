//! Conversions between the formats, and from and to integers.

use super::unpacked::{Finite, Operand, round, rounds_away, unpack};
use super::{Flags, Format, Rounding, infinity, zero};

/// FCVT.S.D and FCVT.D.S: the value in the other format. To the wider one it is exact.
#[inline(never)]
pub(super) fn convert_format<From: Format, To: Format>(
    value: From,
    rounding: Rounding,
    flags: &mut Flags,
) -> To {
    match unpack(value, flags) {
        Operand::Nan => To::CANONICAL_NAN,
        Operand::Infinite { negative } => infinity(negative),
        Operand::Zero { negative } => zero(negative),
        Operand::Finite(exact) => round(exact, rounding, flags),
    }
}

/// FCVT.W: the integer, or with NV the nearest limit; a NaN counts as +∞.
pub fn to_i32<F: Format>(value: F, rounding: Rounding, flags: &mut Flags) -> i32 {
    to_integer(value, 1 << 31, i32::MAX as u64, rounding, flags) as i32
}

/// FCVT.WU, otherwise as [`to_i32`]. The instruction sign-extends even this result into its
/// register; that is the caller's.
pub fn to_u32<F: Format>(value: F, rounding: Rounding, flags: &mut Flags) -> u32 {
    to_integer(value, 0, u64::from(u32::MAX), rounding, flags) as u32
}

/// FCVT.L, otherwise as [`to_i32`].
pub fn to_i64<F: Format>(value: F, rounding: Rounding, flags: &mut Flags) -> i64 {
    to_integer(value, 1 << 63, i64::MAX as u64, rounding, flags) as i64
}

/// FCVT.LU, otherwise as [`to_i32`].
pub fn to_u64<F: Format>(value: F, rounding: Rounding, flags: &mut Flags) -> u64 {
    to_integer(value, 0, u64::MAX, rounding, flags)
}

/// FCVT from W.
pub fn from_i32<F: Format>(value: i32, rounding: Rounding, flags: &mut Flags) -> F {
    from_i64(i64::from(value), rounding, flags)
}

/// FCVT from WU.
pub fn from_u32<F: Format>(value: u32, rounding: Rounding, flags: &mut Flags) -> F {
    from_u64(u64::from(value), rounding, flags)
}

/// FCVT from L.
pub fn from_i64<F: Format>(value: i64, rounding: Rounding, flags: &mut Flags) -> F {
    from_magnitude(value < 0, value.unsigned_abs(), rounding, flags)
}

/// FCVT from LU.
pub fn from_u64<F: Format>(value: u64, rounding: Rounding, flags: &mut Flags) -> F {
    from_magnitude(false, value, rounding, flags)
}

/// The value rounded to an integer in [−`lowest_magnitude`, `highest`], in two's complement,
/// or with NV (and then without NX) the limit that it is beyond.
#[inline]
fn to_integer<F: Format>(
    value: F,
    lowest_magnitude: u64,
    highest: u64,
    rounding: Rounding,
    flags: &mut Flags,
) -> u64 {
    let lowest = lowest_magnitude.wrapping_neg();
    let out_of_range = |negative: bool, flags: &mut Flags| {
        flags.raise(Flags::INVALID);
        if negative { lowest } else { highest }
    };
    let Finite { negative, exponent, significand } = match unpack(value, flags) {
        Operand::Nan => return out_of_range(false, flags),
        Operand::Infinite { negative } => return out_of_range(negative, flags),
        Operand::Zero { .. } => return 0,
        Operand::Finite(exact) => exact,
    };
    if exponent > 63 {
        return out_of_range(negative, flags);
    }
    // As a fixed-point number with 64 bits on either side of the point. Below 1/4 the exact
    // place no longer matters to any mode.
    let fixed = u128::from(significand) << 64 >> (63 - exponent).min(66);
    let (whole, fraction) = ((fixed >> 64) as u64, fixed as u64);
    let away = rounds_away(negative, whole & 1 != 0, fraction, rounding);
    let limit = if negative { lowest_magnitude } else { highest };
    match whole.checked_add(u64::from(away)) {
        Some(magnitude) if magnitude <= limit => {
            flags.raise_if(fraction != 0, Flags::INEXACT);
            if negative { magnitude.wrapping_neg() } else { magnitude }
        }
        _ => out_of_range(negative, flags),
    }
}

#[inline]
fn from_magnitude<F: Format>(negative: bool, magnitude: u64, rounding: Rounding, flags: &mut Flags) -> F {
    if magnitude == 0 {
        return zero(false);
    }
    let leading_zeros = magnitude.leading_zeros();
    let exact =
        Finite { negative, exponent: 63 - leading_zeros as i32, significand: magnitude << leading_zeros };
    round(exact, rounding, flags)
}
