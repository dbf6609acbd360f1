//! Numbers taken apart, and the one place where a result is rounded and put together.

use super::{Flags, Format, Rounding, infinity};

/// An operand as the arithmetic sees it.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    Nan,
    Infinite { negative: bool },
    Zero { negative: bool },
    Finite(Finite),
}

/// A number other than zero: ± significand × 2^(exponent − 63), the significand's bit 63 set,
/// so that it is in [2^exponent, 2^(exponent + 1)) whatever its format, subnormal or not.
///
/// As a result on its way to [`round`], bit 0 is sticky: it is also set where the exact result
/// has anything below it. Both formats leave at least ten bits between it and the last bit kept.
#[derive(Clone, Copy)]
pub(super) struct Finite {
    pub negative: bool,
    pub exponent: i32,
    pub significand: u64,
}

/// Takes an operand of an arithmetic operation apart, and raises NV if it is a signalling NaN.
#[inline]
pub(super) fn unpack<F: Format>(value: F, flags: &mut Flags) -> Operand {
    let bits = value.to_bits64();
    let negative = bits & F::SIGN != 0;
    let stored_exponent = ((bits & F::INFINITY) >> F::FRACTION_BITS) as u32;
    let fraction = bits & F::FRACTION;
    let to_top = 63 - F::FRACTION_BITS;
    if stored_exponent == F::EXPONENT_MAX {
        if fraction == 0 {
            return Operand::Infinite { negative };
        }
        flags.raise_if(fraction & F::QUIET == 0, Flags::INVALID);
        Operand::Nan
    } else if stored_exponent != 0 {
        Operand::Finite(Finite {
            negative,
            exponent: stored_exponent as i32 - F::BIAS,
            significand: 1 << 63 | fraction << to_top,
        })
    } else if fraction != 0 {
        let leading_zeros = fraction.leading_zeros();
        Operand::Finite(Finite {
            negative,
            exponent: 1 - F::BIAS - (leading_zeros - to_top) as i32,
            significand: fraction << leading_zeros,
        })
    } else {
        Operand::Zero { negative }
    }
}

/// Rounds to the format, raising NX, UF and OF as due.
#[inline]
pub(super) fn round<F: Format>(exact: Finite, rounding: Rounding, flags: &mut Flags) -> F {
    let Finite { negative, exponent, significand } = exact;
    let stored_exponent = exponent + F::BIAS;
    // The bits kept include the leading one, which by carrying adds one to the exponent field;
    // hence the field starts one lower.
    let magnitude = if stored_exponent >= 1 {
        let (kept, inexact) = round_significand::<F>(negative, significand, rounding);
        let magnitude = ((stored_exponent as u64 - 1) << F::FRACTION_BITS) + kept;
        if magnitude >= F::INFINITY {
            return overflow(negative, rounding, flags);
        }
        flags.raise_if(inexact, Flags::INEXACT);
        magnitude
    } else {
        let shifted = shift_right_sticky(significand, (1 - stored_exponent) as u32);
        let (kept, inexact) = round_significand::<F>(negative, shifted, rounding);
        if inexact {
            flags.raise(Flags::INEXACT);
            let (unbounded, _) = round_significand::<F>(negative, significand, rounding);
            // After rounding: not tiny if the format's precision, with an exponent without
            // bound, rounds it up to the smallest normal number.
            let reaches_normal = stored_exponent == 0 && unbounded > (F::FRACTION << 1 | 1);
            flags.raise_if(!reaches_normal, Flags::UNDERFLOW);
        }
        kept
    };
    F::from_bits64(magnitude | if negative { F::SIGN } else { 0 })
}

/// The format's significand out of the top bits of a 64-bit one, a carry included, and
/// whether anything was lost.
#[inline]
fn round_significand<F: Format>(negative: bool, significand: u64, rounding: Rounding) -> (u64, bool) {
    let dropped_bits = 63 - F::FRACTION_BITS;
    let kept = significand >> dropped_bits;
    let dropped = significand << (64 - dropped_bits);
    let up = rounds_away(negative, kept & 1 != 0, dropped, rounding);
    (kept + u64::from(up), dropped != 0)
}

/// Whether the magnitude grows by one in the last place kept. `dropped` is what is taken from
/// it: the fraction of that place whose first binary digit is bit 63.
///
/// Each mode is what to add to `dropped` for a carry to say so, which needs no branch on data.
#[inline]
pub(super) fn rounds_away(negative: bool, odd: bool, dropped: u64, rounding: Rounding) -> bool {
    const HALF: u64 = 1 << 63;
    let any_if = |away: bool| if away { u64::MAX } else { 0 };
    let addend = match rounding {
        Rounding::NearestEven => HALF - 1 + u64::from(odd),
        Rounding::NearestMaxMagnitude => HALF,
        Rounding::TowardZero => 0,
        Rounding::Down => any_if(negative),
        Rounding::Up => any_if(!negative),
    };
    dropped.overflowing_add(addend).1
}

/// What a magnitude beyond the largest finite number becomes: infinity, or that number where
/// the mode rounds towards zero for this sign.
#[cold]
fn overflow<F: Format>(negative: bool, rounding: Rounding, flags: &mut Flags) -> F {
    flags.raise(Flags::OVERFLOW | Flags::INEXACT);
    let stays_finite = match rounding {
        Rounding::NearestEven | Rounding::NearestMaxMagnitude => false,
        Rounding::TowardZero => true,
        Rounding::Down => !negative,
        Rounding::Up => negative,
    };
    let infinite = infinity::<F>(negative).to_bits64();
    F::from_bits64(infinite - u64::from(stays_finite))
}

/// `value >> shift`, bit 0 also set if a bit was lost.
#[inline]
pub(super) fn shift_right_sticky(value: u64, shift: u32) -> u64 {
    match shift {
        0 => value,
        1..=63 => value >> shift | u64::from(value << (64 - shift) != 0),
        _ => u64::from(value != 0),
    }
}
