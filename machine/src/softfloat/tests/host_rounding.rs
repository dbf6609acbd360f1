//! The reference path against the host's own arithmetic, which rounds to nearest, ties to even.

use proptest::prelude::*;

use super::operands::Random;
use crate::softfloat::arithmetic::{add, div, mul, sqrt};
use crate::softfloat::convert::convert_format;
use crate::softfloat::{
    Flags, Format, Rounding, equal, from_i32, from_i64, from_u32, from_u64, less, less_or_equal, negate,
    to_i32, to_i64, to_u32, to_u64,
};

const CASES: u32 = 2_000_000;

const RNE: Rounding = Rounding::NearestEven;

/// The host's result with its NaN made canonical.
fn canonical64(value: f64) -> u64 {
    if value.is_nan() { u64::CANONICAL_NAN } else { value.to_bits() }
}

fn canonical32(value: f32) -> u32 {
    if value.is_nan() { u32::CANONICAL_NAN } else { value.to_bits() }
}

fn check64(a: u64, b: u64) {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    let flags = &mut Flags::default();
    assert_eq!(add(a, b, RNE, flags), canonical64(x + y), "{a:x} + {b:x}");
    assert_eq!(add(a, negate(b), RNE, flags), canonical64(x - y), "{a:x} - {b:x}");
    assert_eq!(mul(a, b, RNE, flags), canonical64(x * y), "{a:x} * {b:x}");
    assert_eq!(div(a, b, RNE, flags), canonical64(x / y), "{a:x} / {b:x}");
    assert_eq!(sqrt(a, RNE, flags), canonical64(x.sqrt()), "sqrt {a:x}");
    assert_eq!(equal(a, b, flags), x == y, "{a:x} == {b:x}");
    assert_eq!(less(a, b, flags), x < y, "{a:x} < {b:x}");
    assert_eq!(less_or_equal(a, b, flags), x <= y, "{a:x} <= {b:x}");
    assert_eq!(convert_format::<u64, u32>(a, RNE, flags), canonical32(x as f32), "{a:x}");
    assert_eq!(from_i64::<u64>(a as i64, RNE, flags), (a as i64 as f64).to_bits(), "{a:x}");
    assert_eq!(from_u64::<u64>(a, RNE, flags), (a as f64).to_bits(), "{a:x}");
    if !x.is_nan() {
        // The casts saturate as RISC-V does, but for NaN.
        let rtz = Rounding::TowardZero;
        assert_eq!(to_i32(a, rtz, flags), x as i32, "{a:x}");
        assert_eq!(to_u32(a, rtz, flags), x as u32, "{a:x}");
        assert_eq!(to_i64(a, rtz, flags), x as i64, "{a:x}");
        assert_eq!(to_u64(a, rtz, flags), x as u64, "{a:x}");
    }
}

fn check32(a: u32, b: u32) {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let flags = &mut Flags::default();
    assert_eq!(add(a, b, RNE, flags), canonical32(x + y), "{a:x} + {b:x}");
    assert_eq!(add(a, negate(b), RNE, flags), canonical32(x - y), "{a:x} - {b:x}");
    assert_eq!(mul(a, b, RNE, flags), canonical32(x * y), "{a:x} * {b:x}");
    assert_eq!(div(a, b, RNE, flags), canonical32(x / y), "{a:x} / {b:x}");
    assert_eq!(sqrt(a, RNE, flags), canonical32(x.sqrt()), "sqrt {a:x}");
    assert_eq!(equal(a, b, flags), x == y, "{a:x} == {b:x}");
    assert_eq!(less(a, b, flags), x < y, "{a:x} < {b:x}");
    assert_eq!(less_or_equal(a, b, flags), x <= y, "{a:x} <= {b:x}");
    assert_eq!(convert_format::<u32, u64>(a, RNE, flags), canonical64(f64::from(x)), "{a:x}");
    assert_eq!(from_i32::<u32>(a as i32, RNE, flags), (a as i32 as f32).to_bits(), "{a:x}");
    assert_eq!(from_u32::<u32>(a, RNE, flags), (a as f32).to_bits(), "{a:x}");
    assert_eq!(from_i32::<u64>(a as i32, RNE, flags), f64::from(a as i32).to_bits(), "{a:x}");
}

#[test]
fn special_operands_give_the_hosts_results() {
    let mut random = Random::new(11);
    for _ in 0..CASES {
        let a: u64 = random.operand();
        check64(a, random.operand_near(a));
        let a: u32 = random.operand();
        check32(a, random.operand_near(a));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_operands_give_the_hosts_results(a: f64, b: f64, c: f32, d: f32) {
        check64(a.to_bits(), b.to_bits());
        check32(c.to_bits(), d.to_bits());
    }

    #[test]
    fn any_bits_give_the_hosts_results(a: u64, b: u64, c: u32, d: u32) {
        check64(a, b);
        check32(c, d);
    }
}
