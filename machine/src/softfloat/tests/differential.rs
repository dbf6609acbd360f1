//! Every operation in every mode against `rustc_apfloat`, results and flags.
//!
//! Two things are not taken from it but from the rules. What NaN operands give, as it keeps
//! payloads. And UF and OF, which by the standard belong to the result rounded as if exponents
//! had no bound: it looks at the result rounded to a subnormal instead, and raises no OF where
//! the largest finite number is the result; see [`Case::out_of_range`].

use rustc_apfloat::ieee::{Double, Single};
use rustc_apfloat::{Float, FloatConvert, Round, Status, StatusAnd};

use super::operands::Random;
use crate::softfloat::*;

const CASES: u32 = 400_000;

/// The oracle's type of each format.
trait Oracle: Format {
    type Float: Float;

    fn float(self) -> Self::Float {
        Self::Float::from_bits(u128::from(self.to_bits64()))
    }

    fn bits_of(float: Self::Float) -> Self {
        Self::from_bits64(float.to_bits() as u64)
    }
}

impl Oracle for u32 {
    type Float = Single;
}

impl Oracle for u64 {
    type Float = Double;
}

fn round_of(rounding: Rounding) -> Round {
    match rounding {
        Rounding::NearestEven => Round::NearestTiesToEven,
        Rounding::TowardZero => Round::TowardZero,
        Rounding::Down => Round::TowardNegative,
        Rounding::Up => Round::TowardPositive,
        Rounding::NearestMaxMagnitude => Round::NearestTiesToAway,
    }
}

fn flags_of(status: Status) -> Flags {
    let mut flags = Flags::NONE;
    for (theirs, ours) in [
        (Status::INVALID_OP, Flags::INVALID),
        (Status::DIV_BY_ZERO, Flags::DIVIDE_BY_ZERO),
        (Status::OVERFLOW, Flags::OVERFLOW),
        (Status::UNDERFLOW, Flags::UNDERFLOW),
        (Status::INEXACT, Flags::INEXACT),
    ] {
        flags.raise_if(status.contains(theirs), ours);
    }
    flags
}

fn is_nan<F: Format>(value: F) -> bool {
    classify(value) & (Classes::QUIET_NAN | Classes::SIGNALLING_NAN) != 0
}

fn is_signalling<F: Format>(value: F) -> bool {
    classify(value) == Classes::SIGNALLING_NAN
}

/// One of our operations.
type Ours<From, To> = dyn Fn(&[From], Rounding, &mut Flags) -> To;

/// An operation of the oracle.
type Theirs<From, To> = dyn Fn(&[From], Round) -> StatusAnd<To>;

/// One operation on given operands, in ours and theirs.
struct Case<'a, From: Oracle, To: Oracle> {
    name: &'a str,
    operands: &'a [From],
    rounding: Rounding,
    /// Both paths.
    ours: [&'a Ours<From, To>; 2],
    theirs: &'a Theirs<From::Float, To::Float>,
}

impl<From: Oracle, To: Oracle> Case<'_, From, To> {
    fn check(&self) {
        let (expected, raised) = self.expected();
        // What was raised before stays, and has no influence.
        for before in [Flags::NONE, Flags::INEXACT, Flags::from_bits(0x1f)] {
            for ours in self.ours {
                let mut flags = before;
                let result = ours(self.operands, self.rounding, &mut flags);
                assert!(
                    result == expected && flags == before | raised,
                    "{} {:x?} {:?} after {before:?}: \
                     {result:x} {flags:?}, not {expected:x} {raised:?}",
                    self.name,
                    self.operands,
                    self.rounding,
                );
            }
        }
    }

    fn expected(&self) -> (To, Flags) {
        let floats: Vec<From::Float> = self.operands.iter().map(|x| x.float()).collect();
        if self.operands.iter().any(|&x| is_nan(x)) {
            let signalling = self.operands.iter().any(|&x| is_signalling(x));
            let product_invalid = self.operands.len() == 3
                && (floats[0].is_infinite() && floats[1].is_zero()
                    || floats[0].is_zero() && floats[1].is_infinite());
            let mut flags = Flags::NONE;
            flags.raise_if(signalling || product_invalid, Flags::INVALID);
            return (To::CANONICAL_NAN, flags);
        }
        let StatusAnd { status, value } = (self.theirs)(&floats, round_of(self.rounding));
        if value.is_nan() {
            return (To::CANONICAL_NAN, flags_of(status));
        }
        let result = To::bits_of(value);
        let mut flags = flags_of(status & !Status::UNDERFLOW);
        if flags.contains(Flags::INEXACT) {
            flags.raise(self.out_of_range(result));
        }
        (result, flags)
    }

    /// UF or OF if the inexact result, rounded as if the exponent had no bound, is out of the
    /// normal range. Only at the ends of that range is this not plain: there the operation is
    /// repeated at a scale where they are in the middle.
    fn out_of_range(&self, result: To) -> Flags {
        let magnitude = result.to_bits64() & !To::SIGN;
        let smallest_normal = To::FRACTION + 1;
        let middle = To::BIAS / 2;
        if magnitude < smallest_normal {
            Flags::UNDERFLOW
        } else if magnitude == smallest_normal {
            let mut flags = Flags::NONE;
            flags.raise_if(self.exponent_at_scale(middle) < 1, Flags::UNDERFLOW);
            flags
        } else if magnitude == To::INFINITY - 1 {
            let exponent = self.exponent_at_scale(-middle);
            let mut flags = Flags::NONE;
            flags.raise_if(exponent >= To::EXPONENT_MAX as i32, Flags::OVERFLOW);
            flags
        } else if magnitude == To::INFINITY {
            Flags::OVERFLOW
        } else {
            Flags::NONE
        }
    }

    /// The stored exponent that the result would have had without bounds.
    fn exponent_at_scale(&self, scale: i32) -> i32 {
        // Scaling the first operand (and the addend) scales the result. A number that is lost
        // by that was far below the result's last place; something there still counts.
        let scaled = |x: From| {
            let exact = x.float();
            let scaled = exact.scalbn(scale);
            if scaled.is_zero() && !exact.is_zero() { From::Float::SMALLEST.copy_sign(exact) } else { scaled }
        };
        let operands: Vec<From::Float> = self
            .operands
            .iter()
            .enumerate()
            .map(|(index, &x)| if index == 1 && !self.is_sum() { x.float() } else { scaled(x) })
            .collect();
        let value = (self.theirs)(&operands, round_of(self.rounding)).value;
        let bits = To::bits_of(value).to_bits64() & !To::SIGN;
        (bits >> To::FRACTION_BITS) as i32 - scale
    }

    fn is_sum(&self) -> bool {
        matches!(self.name, "add" | "sub")
    }
}

fn sums_and_products<F: Oracle>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        let a: F = random.operand();
        let b: F = random.operand_near(a);
        let rounding = random.rounding();
        let check = |name, ours: [&Ours<F, F>; 2], theirs: &Theirs<F::Float, F::Float>| {
            let operands = &[a, b];
            Case { name, operands, rounding, ours, theirs }.check();
        };
        check(
            "add",
            [&|x, r, f| add(x[0], x[1], r, f), &|x, r, f| arithmetic::add(x[0], x[1], r, f)],
            &|x, r| x[0].add_r(x[1], r),
        );
        check(
            "sub",
            [&|x, r, f| sub(x[0], x[1], r, f), &|x, r, f| arithmetic::add(x[0], negate(x[1]), r, f)],
            &|x, r| x[0].sub_r(x[1], r),
        );
        check(
            "mul",
            [&|x, r, f| mul(x[0], x[1], r, f), &|x, r, f| arithmetic::mul(x[0], x[1], r, f)],
            &|x, r| x[0].mul_r(x[1], r),
        );
        check(
            "div",
            [&|x, r, f| div(x[0], x[1], r, f), &|x, r, f| arithmetic::div(x[0], x[1], r, f)],
            &|x, r| x[0].div_r(x[1], r),
        );
    }
}

fn fused<F: Oracle>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        let a: F = random.operand();
        let b: F = random.operand_near(a);
        let c: F = match random.below(3) {
            0 => random.operand_near(mul(a, b, Rounding::TowardZero, &mut Flags::default())),
            // Near total cancellation.
            1 => {
                let product = mul(a, b, random.rounding(), &mut Flags::default());
                negate(F::from_bits64(product.to_bits64() ^ random.below(4)))
            }
            _ => random.operand(),
        };
        Case {
            name: "fma",
            operands: &[a, b, c],
            rounding: random.rounding(),
            ours: [&|x, r, f| fused_multiply_add(x[0], x[1], x[2], r, f), &|x, r, f| {
                arithmetic::fused_multiply_add(x[0], x[1], x[2], r, f)
            }],
            theirs: &|x, r| x[0].mul_add_r(x[1], x[2], r),
        }
        .check();
    }
}

#[test]
fn binary32_arithmetic_is_as_the_oracle_says() {
    sums_and_products::<u32>(1);
}

#[test]
fn binary64_arithmetic_is_as_the_oracle_says() {
    sums_and_products::<u64>(2);
}

#[test]
fn binary32_fusion_is_as_the_oracle_says() {
    fused::<u32>(3);
}

#[test]
fn binary64_fusion_is_as_the_oracle_says() {
    fused::<u64>(4);
}

fn convert_between<From: Oracle, To: Oracle>(seed: u64)
where
    From::Float: FloatConvert<To::Float>,
{
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        let value: From = if random.below(2) == 0 {
            random.operand()
        } else {
            // Around what the narrower format just holds, with bits beyond its precision.
            let narrow: u32 = random.operand();
            let wide: From = convert_format(narrow, Rounding::NearestEven, &mut Flags::default());
            From::from_bits64(wide.to_bits64() ^ random.bits() >> (36 + random.below(28)))
        };
        Case::<From, To> {
            name: "convert",
            operands: &[value],
            rounding: random.rounding(),
            ours: [&|x, r, f| convert_format(x[0], r, f), &|x, r, f| convert::convert_format(x[0], r, f)],
            theirs: &|x, r| x[0].convert_r(r, &mut false),
        }
        .check();
    }
}

#[test]
fn conversions_between_formats_are_as_the_oracle_says() {
    convert_between::<u32, u64>(5);
    convert_between::<u64, u32>(6);
}

/// One conversion to an integer of `width` bits against the oracle's.
fn check_to_integer<F: Oracle>(
    value: F,
    rounding: Rounding,
    width: u32,
    signed: bool,
    result: i128,
    flags: Flags,
) {
    let (lowest, highest) = if signed {
        (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1)
    } else {
        (0, (1i128 << width) - 1)
    };
    let float = value.float();
    let round = round_of(rounding);
    // The oracle's signed conversion in one more bit has room for both ranges.
    let StatusAnd { status, value: wide } = float.to_i128_r(66, round, &mut false);
    let (expected, raised) = if float.is_nan() {
        (highest, Flags::INVALID)
    } else if status.contains(Status::INVALID_OP) {
        (if float.is_negative() { lowest } else { highest }, Flags::INVALID)
    } else if wide < lowest || wide > highest {
        (wide.clamp(lowest, highest), Flags::INVALID)
    } else {
        (wide, flags_of(status))
    };
    assert!(
        result == expected && flags == raised,
        "{value:x} {rounding:?} to {width} signed {signed}: {result:x} {flags:?}, not {expected:x} {raised:?}"
    );
}

fn convert_to_integers<F: Oracle>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        let rounding = random.rounding();
        let value: F = if random.below(2) == 0 {
            random.operand()
        } else {
            // Halves and whole numbers around every power of two.
            let half = F::from_bits64((F::BIAS as u64 - 1) << F::FRACTION_BITS);
            let ignored = &mut Flags::default();
            let integer: F = from_i64(random.integer() as i64, random.rounding(), ignored);
            let scale = if random.below(2) == 0 { half } else { mul(half, half, rounding, ignored) };
            mul(integer, scale, rounding, ignored)
        };
        let mut flags = [Flags::NONE; 4];
        let results = [
            i128::from(to_i32(value, rounding, &mut flags[0])),
            i128::from(to_u32(value, rounding, &mut flags[1])),
            i128::from(to_i64(value, rounding, &mut flags[2])),
            i128::from(to_u64(value, rounding, &mut flags[3])),
        ];
        for (index, (width, signed)) in
            [(32, true), (32, false), (64, true), (64, false)].into_iter().enumerate()
        {
            check_to_integer(value, rounding, width, signed, results[index], flags[index]);
        }
    }
}

#[test]
fn conversions_to_integers_are_as_the_oracle_says() {
    convert_to_integers::<u32>(7);
    convert_to_integers::<u64>(8);
}

fn convert_from_integers<F: Oracle>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        let integer = random.integer();
        let rounding = random.rounding();
        let mut flags = [Flags::NONE; 4];
        let results: [(F, i128); 4] = [
            (from_i32(integer as i32, rounding, &mut flags[0]), i128::from(integer as i32)),
            (from_u32(integer as u32, rounding, &mut flags[1]), i128::from(integer as u32)),
            (from_i64(integer as i64, rounding, &mut flags[2]), i128::from(integer as i64)),
            (from_u64(integer, rounding, &mut flags[3]), i128::from(integer)),
        ];
        for ((result, exact), flags) in results.into_iter().zip(flags) {
            let converted = F::Float::from_i128_r(exact, round_of(rounding));
            let (expected, raised) = (F::bits_of(converted.value), flags_of(converted.status));
            assert!(
                result == expected && flags == raised,
                "{exact} {rounding:?}: {result:x} {flags:?}, not {expected:x} {raised:?}"
            );
        }
    }
}

#[test]
fn conversions_from_integers_are_as_the_oracle_says() {
    convert_from_integers::<u32>(9);
    convert_from_integers::<u64>(10);
}
