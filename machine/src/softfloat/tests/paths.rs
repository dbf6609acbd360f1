//! The host's path against the reference path, where the former is taken at all: to nearest,
//! ties to even, with NX raised before and not.

use super::operands::Random;
use crate::softfloat::*;

const CASES: u32 = 1_000_000;

/// Asserts that both give the same result and flags, after `before`.
fn compare<T: PartialEq + std::fmt::Debug>(
    before: Flags,
    ours: impl Fn(&mut Flags) -> T,
    reference: impl Fn(&mut Flags) -> T,
    context: impl Fn() -> String,
) {
    let (mut flags, mut reference_flags) = (before, before);
    let results = (ours(&mut flags), reference(&mut reference_flags));
    assert!(
        results.0 == results.1 && flags == reference_flags,
        "{} after {before:?}: {:x?} {flags:?}, not {:x?} {reference_flags:?}",
        context(),
        results.0,
        results.1
    );
}

fn check<F: Format>(a: F, b: F, c: F, before: Flags) {
    const R: Rounding = Rounding::NearestEven;
    let context = |name| move || format!("{name} {a:x} {b:x} {c:x}");
    compare(before, |f| add(a, b, R, f), |f| arithmetic::add(a, b, R, f), context("add"));
    compare(before, |f| mul(a, b, R, f), |f| arithmetic::mul(a, b, R, f), context("mul"));
    compare(before, |f| div(a, b, R, f), |f| arithmetic::div(a, b, R, f), context("div"));
    compare(before, |f| sqrt(a, R, f), |f| arithmetic::sqrt(a, R, f), context("sqrt"));
    compare(
        before,
        |f| fused_multiply_add(a, b, c, R, f),
        |f| arithmetic::fused_multiply_add(a, b, c, R, f),
        context("fma"),
    );
    compare(
        before,
        |f| (convert_format::<F, u32>(a, R, f), convert_format::<F, u64>(a, R, f)),
        |f| {
            let to_binary32 = convert::convert_format::<F, u32>(a, R, f);
            (to_binary32, convert::convert_format::<F, u64>(a, R, f))
        },
        context("convert"),
    );
}

fn both_paths<F: Format>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        let a: F = random.operand();
        let b: F = random.operand_near(a);
        let c: F = match random.below(3) {
            0 => random.operand_near(a),
            1 => {
                let product = arithmetic::mul(a, b, random.rounding(), &mut Flags::default());
                negate(F::from_bits64(product.to_bits64() ^ random.below(4)))
            }
            _ => random.operand(),
        };
        for before in [Flags::NONE, Flags::INEXACT] {
            check(a, b, c, before);
            // Squares, exact quotients and roots.
            let square = arithmetic::mul(a, a, Rounding::NearestEven, &mut Flags::default());
            check(square, a, b, before);
        }
    }
}

#[test]
fn binary32_paths_agree() {
    both_paths::<u32>(14);
}

#[test]
fn binary64_paths_agree() {
    both_paths::<u64>(15);
}

/// Sums, products, quotients and roots of small integers: what exactness is shown for.
#[test]
fn paths_agree_on_integers() {
    let mut random = Random::new(16);
    for _ in 0..CASES {
        let [a, b, c] = [0; 3].map(|_: i32| random.integer() as i32 >> random.below(24));
        let ignored = &mut Flags::default();
        let [x, y, z] = [a, b, c].map(|v| from_i32::<u64>(v, Rounding::NearestEven, ignored));
        check(x, y, z, Flags::NONE);
        let [x, y, z] = [a, b, c].map(|v| from_i32::<u32>(v, Rounding::NearestEven, ignored));
        check(x, y, z, Flags::NONE);
    }
}
