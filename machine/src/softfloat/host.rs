//! The operations as everybody calls them: the host's floating point where that provably gives
//! the same result and flags, else the reference path of [`arithmetic`] and [`convert`].
//!
//! The host rounds to nearest, ties to even, and its results are those of IEEE 754; its flags
//! are never read. What would be raised follows from the operands and the result:
//!
//! - NV, DZ and OF only come with a result that is an infinity or a NaN, or from a comparison or
//!   conversion to integer, which have no host path. Such results are left to the reference
//!   path, and so the host path never sees infinite or NaN operands of its finite results but
//!   in quotients by infinity, which are zero.
//! - UF only comes with a result no larger than the smallest normal number. Those are left to
//!   the reference path too; a sum needs no such care, since below that it is exact.
//! - NX accrues. Once it is raised, as it soon is in any program that does not clear it, nothing
//!   more is to be found out; before that, the result is taken if it is shown to be exact.
//!
//! [`arithmetic`]: super::arithmetic
//! [`convert`]: super::convert

use std::ops::{Add, Sub};

use super::{Flags, Format, Rounding, arithmetic, convert, negate};

/// Whether this target's `f32` and `f64` arithmetic rounds each result to its own format (the
/// x87 does not) and has subnormal numbers (32-bit Arm's vector unit has not).
const HOST_IS_EXACT: bool =
    cfg!(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"));

/// Whether `f64::mul_add` rounds once: it is an instruction, or the C library's `fma`, of which
/// those on Linux are exact (glibc and musl; that of MinGW is not).
const HOST_FUSES: bool =
    cfg!(any(target_arch = "aarch64", target_arch = "riscv64", target_feature = "fma", target_os = "linux"));

/// `a + b`.
#[inline]
pub fn add<F: Format>(a: F, b: F, rounding: Rounding, flags: &mut Flags) -> F {
    if is_native(rounding) {
        let sum = a.native_sum(b);
        if is_finite(sum) && (is_inexact(flags) || a.native_sum_is_exact(b, sum)) {
            return sum;
        }
    }
    arithmetic::add(a, b, rounding, flags)
}

/// `a - b`.
#[inline]
pub fn sub<F: Format>(a: F, b: F, rounding: Rounding, flags: &mut Flags) -> F {
    add(a, negate(b), rounding, flags)
}

/// `a × b`.
#[inline]
pub fn mul<F: Format>(a: F, b: F, rounding: Rounding, flags: &mut Flags) -> F {
    if is_native(rounding) {
        let product = a.native_product(b);
        if is_normal(product) && (is_inexact(flags) || product_is_exact(a, b)) {
            return product;
        }
    }
    arithmetic::mul(a, b, rounding, flags)
}

/// `a ÷ b`.
#[inline]
pub fn div<F: Format>(a: F, b: F, rounding: Rounding, flags: &mut Flags) -> F {
    if is_native(rounding) {
        let quotient = a.native_quotient(b);
        if is_normal(quotient) && (is_inexact(flags) || is_product_of(a, quotient, b)) {
            return quotient;
        }
    }
    arithmetic::div(a, b, rounding, flags)
}

/// The square root of `a`.
#[inline]
pub fn sqrt<F: Format>(a: F, rounding: Rounding, flags: &mut Flags) -> F {
    if is_native(rounding) {
        let root = a.native_root();
        if is_normal(root) && (is_inexact(flags) || is_product_of(a, root, root)) {
            return root;
        }
    }
    arithmetic::sqrt(a, rounding, flags)
}

/// `a × b + c`, rounded once.
///
/// The instructions' other forms turn signs: FMSUB is `(a, b, -c)`, FNMSUB `(-a, b, c)`, FNMADD
/// `(-a, b, -c)`, with [`negate`].
#[inline]
pub fn fused_multiply_add<F: Format>(a: F, b: F, c: F, rounding: Rounding, flags: &mut Flags) -> F {
    if is_native(rounding) {
        match F::native_fused(a, b, c, is_inexact(flags)) {
            Some(result) if is_normal(result) => return result,
            _ => {}
        }
    }
    arithmetic::fused_multiply_add(a, b, c, rounding, flags)
}

/// FCVT.S.D and FCVT.D.S: the value in the other format. To the wider one it is exact.
#[inline]
pub fn convert_format<From: Format, To: Format>(value: From, rounding: Rounding, flags: &mut Flags) -> To {
    if is_native(rounding) {
        let double = value.to_native_double();
        let converted = To::from_native_double(double);
        if is_normal(converted) && (is_inexact(flags) || converted.to_native_double() == double) {
            return converted;
        }
    }
    convert::convert_format(value, rounding, flags)
}

#[inline(always)]
fn is_native(rounding: Rounding) -> bool {
    HOST_IS_EXACT && rounding == Rounding::NearestEven
}

#[inline(always)]
fn is_inexact(flags: &Flags) -> bool {
    flags.contains(Flags::INEXACT)
}

#[inline(always)]
fn is_finite<F: Format>(value: F) -> bool {
    value.to_bits64() & F::INFINITY != F::INFINITY
}

/// Whether a result is finite and beyond the smallest normal number, which itself may have been
/// tiny before it was rounded.
#[inline(always)]
fn is_normal<F: Format>(result: F) -> bool {
    let smallest = F::FRACTION + 1;
    let magnitude = result.to_bits64() & !F::SIGN;
    magnitude.wrapping_sub(smallest + 1) < F::INFINITY - (smallest + 1)
}

/// Whether the product, if it is normal, surely has no more bits than the format: as many as
/// both significands have without their trailing zeros, or one fewer.
#[inline(always)]
fn product_is_exact<F: Format>(a: F, b: F) -> bool {
    // Of a zero this says something wrong, but then the product is not normal.
    let trailing_zeros = |x: F| (x.to_bits64() | (F::FRACTION + 1)).trailing_zeros();
    trailing_zeros(a) + trailing_zeros(b) > F::FRACTION_BITS
}

/// Whether x = y × z exactly, of numbers of which this is known to be nearly so: if it holds of
/// their odd parts, the powers of two can only differ by none.
#[inline(always)]
fn is_product_of<F: Format>(x: F, y: F, z: F) -> bool {
    u128::from(odd_part(y)) * u128::from(odd_part(z)) == u128::from(odd_part(x))
}

/// The significand without its trailing zeros.
#[inline(always)]
fn odd_part<F: Format>(value: F) -> u64 {
    let bits = value.to_bits64();
    let leading_one = u64::from(bits & F::INFINITY != 0) << F::FRACTION_BITS;
    let significand = bits & F::FRACTION | leading_one;
    significand.checked_shr(significand.trailing_zeros()).unwrap_or(0)
}

/// A format that the host computes with.
pub trait Native: Sized {
    /// `self + other`.
    fn native_sum(self, other: Self) -> Self;
    /// Whether the finite `sum` of the two is exact; may be false of an exact one.
    fn native_sum_is_exact(self, other: Self, sum: Self) -> bool;
    /// `self × other`.
    fn native_product(self, other: Self) -> Self;
    /// `self ÷ other`.
    fn native_quotient(self, other: Self) -> Self;
    /// The square root.
    fn native_root(self) -> Self;
    /// `a × b + c` rounded once, if the host can tell; unless `inexact` is fine, only if exact.
    /// What it gives counts only where it is normal.
    fn native_fused(a: Self, b: Self, c: Self, inexact: bool) -> Option<Self>;
    /// The value, exactly.
    fn to_native_double(self) -> f64;
    /// The value rounded.
    fn from_native_double(value: f64) -> Self;
}

/// The methods of [`Native`] that read the same in either format.
macro_rules! native_arithmetic {
    ($float:ty) => {
        #[inline(always)]
        fn native_sum(self, other: Self) -> Self {
            (<$float>::from_bits(self) + <$float>::from_bits(other)).to_bits()
        }

        #[inline(always)]
        fn native_sum_is_exact(self, other: Self, sum: Self) -> bool {
            let [a, b, sum] = [self, other, sum].map(<$float>::from_bits);
            sum_error(a, b, sum) == 0.0
        }

        #[inline(always)]
        fn native_product(self, other: Self) -> Self {
            (<$float>::from_bits(self) * <$float>::from_bits(other)).to_bits()
        }

        #[inline(always)]
        fn native_quotient(self, other: Self) -> Self {
            (<$float>::from_bits(self) / <$float>::from_bits(other)).to_bits()
        }

        #[inline(always)]
        fn native_root(self) -> Self {
            <$float>::from_bits(self).sqrt().to_bits()
        }
    };
}

impl Native for u32 {
    native_arithmetic!(f32);

    /// In binary64 the product is exact. The sum, rounded to odd, can then be rounded again
    /// as if it were exact, for it has at least two bits more than the result: see Boldo and
    /// Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using
    /// rounding to odd" (IEEE Transactions on Computers 57, 2008).
    #[inline(always)]
    fn native_fused(a: Self, b: Self, c: Self, inexact: bool) -> Option<Self> {
        let [a, b, c] = [a, b, c].map(Self::to_native_double);
        let product = a * b;
        let sum = product + c;
        let error = sum_error(product, c, sum);
        let mut bits = sum.to_bits();
        if error != 0.0 && bits & 1 == 0 {
            // The neighbour on the other side of the exact sum is odd.
            let grows = (error > 0.0) == (sum > 0.0);
            bits = if grows { bits + 1 } else { bits - 1 };
        }
        let result = Self::from_native_double(f64::from_bits(bits));
        let exact = error == 0.0 && result.to_native_double() == sum;
        (inexact || exact).then_some(result)
    }

    #[inline(always)]
    fn to_native_double(self) -> f64 {
        f64::from(f32::from_bits(self))
    }

    #[inline(always)]
    fn from_native_double(value: f64) -> Self {
        (value as f32).to_bits()
    }
}

impl Native for u64 {
    native_arithmetic!(f64);

    #[inline(always)]
    fn native_fused(a: Self, b: Self, c: Self, inexact: bool) -> Option<Self> {
        if inexact && HOST_FUSES {
            let [a, b, c] = [a, b, c].map(f64::from_bits);
            return Some(a.mul_add(b, c).to_bits());
        }
        let product = a.native_product(b);
        let sum = product.native_sum(c);
        let exact = is_normal(product) && product_is_exact(a, b) && product.native_sum_is_exact(c, sum);
        exact.then_some(sum)
    }

    #[inline(always)]
    fn to_native_double(self) -> f64 {
        f64::from_bits(self)
    }

    #[inline(always)]
    fn from_native_double(value: f64) -> Self {
        value.to_bits()
    }
}

/// `a + b - sum`, exactly, for `sum` the rounded one (Knuth's TwoSum); NaN if one of them is
/// not finite or a step overflows.
#[inline(always)]
fn sum_error<T: Copy + Add<Output = T> + Sub<Output = T>>(a: T, b: T, sum: T) -> T {
    let b_in_sum = sum - a;
    let a_in_sum = sum - b_in_sum;
    (a - a_in_sum) + (b - b_in_sum)
}
