//! Square roots by their definition, in exact integers: with x = m × 2^(2k) and a root of r
//! units of 2^k, x ≥ r² and x < (r + 1)² are comparisons of integers.

use std::cmp::Ordering;

use super::operands::Random;
use crate::softfloat::*;

const CASES: u32 = 300_000;

/// Magnitude as (integer, power of two), the value being their product.
fn parts<F: Format>(value: F) -> (u128, i32) {
    let bits = value.to_bits64();
    let stored = ((bits & F::INFINITY) >> F::FRACTION_BITS) as i32;
    let fraction = u128::from(bits & F::FRACTION);
    let lowest = 1 - F::BIAS - F::FRACTION_BITS as i32;
    if stored == 0 { (fraction, lowest) } else { (fraction | 1 << F::FRACTION_BITS, lowest + stored - 1) }
}

/// How (`root` + `halves` / 2 units in its last place)² compares to `x`.
fn compare_square<F: Format>(root: F, halves: i32, x: F) -> Ordering {
    let (root_integer, root_power) = parts(root);
    let (x_integer, x_power) = parts(x);
    let doubled = (2 * root_integer).checked_add_signed(i128::from(halves)).expect("in range");
    // Both as integers at the power of the square; x always reaches down to no less than it
    // needs, as its root is a normal number.
    let square = doubled * doubled;
    let shift = x_power - (2 * root_power - 2);
    assert!(shift >= 0, "the root of {x_integer} * 2^{x_power} has too few bits");
    square.cmp(&(x_integer << shift))
}

fn check_root<F: Format>(x: F, rounding: Rounding) {
    let mut flags = Flags::NONE;
    let root = arithmetic::sqrt(x, rounding, &mut flags);
    let exact = compare_square(root, 0, x) == Ordering::Equal;
    let context = format!("sqrt {x:x} {rounding:?} = {root:x}");
    assert_eq!(flags, if exact { Flags::NONE } else { Flags::INEXACT }, "{context}");
    if exact {
        return;
    }
    let at_most_x = |halves| compare_square(root, halves, x) != Ordering::Greater;
    match rounding {
        // A root is never halfway: it would need one more bit than its square has room for.
        Rounding::NearestEven | Rounding::NearestMaxMagnitude => {
            assert!(at_most_x(-1) && !at_most_x(1), "{context}");
        }
        Rounding::TowardZero | Rounding::Down => {
            assert!(at_most_x(0) && !at_most_x(2), "{context}");
        }
        Rounding::Up => {
            // One unit below 2^n is half as large: still below the root if it is one.
            assert!(at_most_x(-2) && !at_most_x(0), "{context}");
        }
    }
}

fn roots<F: Format>(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        let operand: F = random.operand();
        let positive = F::from_bits64(operand.to_bits64() & !F::SIGN);
        // Squares and their neighbours too.
        let square = mul(positive, positive, random.rounding(), &mut Flags::default());
        for x in [positive, square, F::from_bits64(square.to_bits64() ^ 1)] {
            let class = classify(x);
            if class & (Classes::POSITIVE_NORMAL | Classes::POSITIVE_SUBNORMAL) != 0 {
                for rounding in Rounding::ALL {
                    check_root(x, rounding);
                }
            }
        }
    }
}

#[test]
fn binary32_roots_are_rounded_exactly() {
    roots::<u32>(12);
}

#[test]
fn binary64_roots_are_rounded_exactly() {
    roots::<u64>(13);
}
