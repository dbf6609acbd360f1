//! Cases by hand, from the text of the specification.

use crate::softfloat::*;

const RNE: Rounding = Rounding::NearestEven;
const RTZ: Rounding = Rounding::TowardZero;
const RDN: Rounding = Rounding::Down;
const RUP: Rounding = Rounding::Up;
const RMM: Rounding = Rounding::NearestMaxMagnitude;

const NONE: Flags = Flags::NONE;
const NX: Flags = Flags::INEXACT;
const DZ: Flags = Flags::DIVIDE_BY_ZERO;
const NV: Flags = Flags::INVALID;

const ZERO: u64 = 0;
const MIN_SUBNORMAL: u64 = 1;
const MAX_SUBNORMAL: u64 = MIN_NORMAL - 1;
const MIN_NORMAL: u64 = 0x0010_0000_0000_0000;
const MAX: u64 = 0x7fef_ffff_ffff_ffff;
const INF: u64 = 0x7ff0_0000_0000_0000;
const SNAN: u64 = 0x7ff0_0000_0000_0001;
const QNAN_WITH_PAYLOAD: u64 = 0xfff8_0000_0000_1234;
const CANONICAL: u64 = u64::CANONICAL_NAN;
const NEGATIVE: u64 = 1 << 63;

/// Result and flags of an operation that starts with none raised.
fn run<T>(operation: impl FnOnce(&mut Flags) -> T) -> (T, Flags) {
    let mut flags = NONE;
    let result = operation(&mut flags);
    (result, flags)
}

fn d(value: f64) -> u64 {
    value.to_bits()
}

fn s(value: f32) -> u32 {
    value.to_bits()
}

#[test]
fn overflow_ends_where_the_mode_points() {
    let raised = Flags::OVERFLOW | NX;
    for (rounding, positive, negative) in
        [(RNE, INF, INF), (RTZ, MAX, MAX), (RDN, MAX, INF), (RUP, INF, MAX), (RMM, INF, INF)]
    {
        assert_eq!(run(|f| mul(MAX, d(2.0), rounding, f)), (positive, raised));
        assert_eq!(run(|f| mul(MAX, d(-2.0), rounding, f)), (negative | NEGATIVE, raised));
        assert_eq!(run(|f| add(MAX, MAX, rounding, f)), (positive, raised));
        let narrow = if positive == INF { s(f32::INFINITY) } else { s(f32::MAX) };
        assert_eq!(run(|f| convert_format::<u64, u32>(MAX, rounding, f)), (narrow, raised));
    }
}

#[test]
fn rounding_to_the_largest_number_is_no_overflow() {
    // A quarter and a half of the largest number's last place.
    let quarter = d(2f64.powi(969));
    let half = d(2f64.powi(970));
    assert_eq!(run(|f| add(MAX, quarter, RNE, f)), (MAX, NX));
    assert_eq!(run(|f| add(MAX, half, RTZ, f)), (MAX, NX));
    let overflow = Flags::OVERFLOW | NX;
    assert_eq!(run(|f| add(MAX, half, RNE, f)), (INF, overflow));
    assert_eq!(run(|f| add(MAX, quarter, RUP, f)), (INF, overflow));
}

#[test]
fn tininess_is_detected_after_rounding() {
    let tiny = Flags::UNDERFLOW | NX;
    // 2^-1022 (1 - 2^-53) has full precision, so it is tiny, though as a subnormal it rounds to
    // the smallest normal number; 2^-1022 (1 - 2^-54) rounds up to that at full precision too.
    let below = |factor: f64, rounding| {
        run(|f| fused_multiply_add(MIN_SUBNORMAL, d(-factor), MIN_NORMAL, rounding, f))
    };
    for rounding in [RNE, RMM, RUP] {
        assert_eq!(below(0.5, rounding), (MIN_NORMAL, tiny), "{rounding:?}");
        assert_eq!(below(0.25, rounding), (MIN_NORMAL, NX), "{rounding:?}");
    }
    for rounding in [RTZ, RDN] {
        assert_eq!(below(0.5, rounding), (MAX_SUBNORMAL, tiny), "{rounding:?}");
        assert_eq!(below(0.25, rounding), (MAX_SUBNORMAL, tiny), "{rounding:?}");
    }
    // The first again, as a product.
    assert_eq!(run(|f| mul(MIN_NORMAL, d(1.0) - 1, RNE, f)), (MIN_NORMAL, tiny));
    // The same places in binary32, from the wider format: 2^-126 (1 - 2^-24) and (1 - 2^-25).
    let narrow = |value: f64| run(|f| convert_format::<u64, u32>(d(value), RNE, f));
    let min_normal = f64::from(f32::MIN_POSITIVE);
    assert_eq!(narrow(min_normal * (1.0 - 2f64.powi(-24))), (s(f32::MIN_POSITIVE), tiny));
    assert_eq!(narrow(min_normal * (1.0 - 2f64.powi(-25))), (s(f32::MIN_POSITIVE), NX));
}

#[test]
fn exact_subnormals_do_not_underflow() {
    assert_eq!(run(|f| mul(MIN_NORMAL, d(0.5), RNE, f)), (MIN_NORMAL / 2, NONE));
    assert_eq!(run(|f| sub(MIN_NORMAL, MIN_SUBNORMAL, RNE, f)), (MAX_SUBNORMAL, NONE));
    assert_eq!(run(|f| add(MAX_SUBNORMAL, MIN_SUBNORMAL, RNE, f)), (MIN_NORMAL, NONE));
    let tiny = Flags::UNDERFLOW | NX;
    // Half the smallest number: a tie.
    for (rounding, expected) in [(RNE, 0), (RTZ, 0), (RDN, 0), (RUP, 1), (RMM, 1)] {
        let result = run(|f| mul(MIN_SUBNORMAL, d(0.5), rounding, f));
        assert_eq!(result, (expected, tiny), "{rounding:?}");
    }
    for (rounding, expected) in [(RNE, 0), (RTZ, 0), (RDN, 1), (RUP, 0), (RMM, 1)] {
        let result = run(|f| mul(MIN_SUBNORMAL, d(-0.5), rounding, f));
        assert_eq!(result, (expected | NEGATIVE, tiny), "{rounding:?}");
    }
}

#[test]
fn nans_become_canonical_and_only_signalling_ones_raise() {
    for (nan, raised) in [(QNAN_WITH_PAYLOAD, NONE), (SNAN, NV)] {
        let expected = (CANONICAL, raised);
        let one = d(1.0);
        for (a, b) in [(nan, one), (one, nan), (nan, INF), (nan, ZERO), (CANONICAL, nan)] {
            assert_eq!(run(|f| add(a, b, RNE, f)), expected);
            assert_eq!(run(|f| sub(a, b, RNE, f)), expected);
            assert_eq!(run(|f| mul(a, b, RNE, f)), expected);
            assert_eq!(run(|f| div(a, b, RNE, f)), expected);
            assert_eq!(run(|f| fused_multiply_add(a, b, one, RNE, f)), expected);
            assert_eq!(run(|f| fused_multiply_add(a, one, b, RNE, f)), expected);
        }
        assert_eq!(run(|f| sqrt(nan, RNE, f)), expected);
        let narrow = run(|f| convert_format::<u64, u32>(nan, RNE, f));
        assert_eq!(narrow, (u32::CANONICAL_NAN, raised));
    }
    let wide = run(|f| convert_format::<u32, u64>(0xff80_0001, RNE, f));
    assert_eq!(wide, (CANONICAL, NV));
}

#[test]
fn operations_without_meaning_are_invalid() {
    let expected = (CANONICAL, NV);
    assert_eq!(run(|f| add(INF, INF | NEGATIVE, RNE, f)), expected);
    assert_eq!(run(|f| sub(INF, INF, RNE, f)), expected);
    assert_eq!(run(|f| mul(INF, ZERO, RNE, f)), expected);
    assert_eq!(run(|f| div(ZERO, ZERO | NEGATIVE, RNE, f)), expected);
    assert_eq!(run(|f| div(INF, INF, RNE, f)), expected);
    assert_eq!(run(|f| sqrt(d(-1.0), RNE, f)), expected);
    assert_eq!(run(|f| sqrt(INF | NEGATIVE, RNE, f)), expected);
    let fused = |a, b, c| run(|f| fused_multiply_add(a, b, c, RNE, f));
    assert_eq!(fused(INF, d(1.0), INF | NEGATIVE), expected);
    // Whatever is added, a quiet NaN too.
    for c in [d(1.0), INF, QNAN_WITH_PAYLOAD, CANONICAL] {
        assert_eq!(fused(INF, ZERO, c), expected);
        assert_eq!(fused(ZERO | NEGATIVE, INF, c), expected);
    }
}

#[test]
fn infinities_and_zeros_follow_their_signs() {
    assert_eq!(run(|f| div(d(1.0), ZERO, RNE, f)), (INF, DZ));
    assert_eq!(run(|f| div(d(-1.0), ZERO, RNE, f)), (INF | NEGATIVE, DZ));
    assert_eq!(run(|f| div(INF, ZERO | NEGATIVE, RNE, f)), (INF | NEGATIVE, NONE));
    assert_eq!(run(|f| div(d(-1.0), INF, RNE, f)), (NEGATIVE, NONE));
    assert_eq!(run(|f| div(ZERO, d(-1.0), RNE, f)), (NEGATIVE, NONE));
    assert_eq!(run(|f| sqrt(NEGATIVE, RNE, f)), (NEGATIVE, NONE));
    assert_eq!(run(|f| sqrt(INF, RNE, f)), (INF, NONE));
    assert_eq!(run(|f| sub(INF, MAX, RDN, f)), (INF, NONE));
    for rounding in Rounding::ALL {
        let of_different_signs = if rounding == RDN { NEGATIVE } else { ZERO };
        let expected = (of_different_signs, NONE);
        assert_eq!(run(|f| add(d(1.5), d(-1.5), rounding, f)), expected);
        assert_eq!(run(|f| add(ZERO, NEGATIVE, rounding, f)), expected);
        assert_eq!(run(|f| add(NEGATIVE, NEGATIVE, rounding, f)), (NEGATIVE, NONE));
        assert_eq!(run(|f| sub(ZERO, ZERO, rounding, f)), expected);
        let fused = run(|f| fused_multiply_add(d(3.0), d(0.5), d(-1.5), rounding, f));
        assert_eq!(fused, expected);
        let fused = run(|f| fused_multiply_add(d(-3.0), ZERO, ZERO, rounding, f));
        assert_eq!(fused, expected);
    }
}

#[test]
fn fusion_rounds_once() {
    // (1 + 2^-52)² - (1 + 2^-51) is 2^-104, which a rounded product would lose.
    let x = d(1.0) + 1;
    let square = d(-1.0) + 2;
    let result = run(|f| fused_multiply_add(x, x, square, RNE, f));
    assert_eq!(result, (d(2f64.powi(-104)), NONE));
    // A product far below the addend's last place decides a tie.
    let tie = d(2f64.powi(-53));
    let fused = |addend, rounding| run(|f| fused_multiply_add(tie, addend, d(1.0), rounding, f));
    assert_eq!(fused(d(1.0), RNE), (d(1.0), NX));
    assert_eq!(fused(d(1.0) + 1, RNE), (d(1.0) + 1, NX));
    assert_eq!(fused(MIN_SUBNORMAL, RUP), (d(1.0) + 1, NX));
    assert_eq!(fused(MIN_SUBNORMAL | NEGATIVE, RTZ), (d(1.0) - 1, NX));
}

#[test]
fn the_five_modes_round_halves_apart() {
    for (value, nearest_even, toward_zero, down, up, max_magnitude) in [
        (2.5, 2, 2, 2, 3, 3),
        (3.5, 4, 3, 3, 4, 4),
        (-2.5, -2, -2, -3, -2, -3),
        (0.5, 0, 0, 0, 1, 1),
        (-0.5, 0, 0, -1, 0, -1),
        (1.25, 1, 1, 1, 2, 1),
        (1e-300, 0, 0, 0, 1, 0),
        (-1e-300, 0, 0, -1, 0, 0),
    ] {
        let expected = [nearest_even, toward_zero, down, up, max_magnitude];
        for (rounding, expected) in Rounding::ALL.into_iter().zip(expected) {
            let result = run(|f| to_i64(d(value), rounding, f));
            assert_eq!(result, (expected, NX), "{value} {rounding:?}");
        }
    }
}

#[test]
fn integer_conversions_saturate_with_nv_alone() {
    let i32_of = |value| run(|f| to_i32(d(value), RTZ, f));
    assert_eq!(i32_of(2147483647.0), (i32::MAX, NONE));
    assert_eq!(i32_of(2147483647.5), (i32::MAX, NX));
    assert_eq!(i32_of(2147483648.0), (i32::MAX, NV));
    assert_eq!(i32_of(-2147483648.0), (i32::MIN, NONE));
    assert_eq!(i32_of(-2147483648.5), (i32::MIN, NX));
    assert_eq!(i32_of(-2147483649.0), (i32::MIN, NV));
    // The range is that of the rounded value.
    assert_eq!(run(|f| to_i32(d(2147483647.5), RNE, f)), (i32::MAX, NV));
    assert_eq!(run(|f| to_i32(d(-2147483648.5), RDN, f)), (i32::MIN, NV));

    let u32_of = |value, rounding| run(|f| to_u32(d(value), rounding, f));
    assert_eq!(u32_of(4294967295.0, RNE), (u32::MAX, NONE));
    assert_eq!(u32_of(4294967295.5, RTZ), (u32::MAX, NX));
    assert_eq!(u32_of(4294967295.5, RNE), (u32::MAX, NV));
    assert_eq!(u32_of(-1.0, RNE), (0, NV));
    assert_eq!(u32_of(-0.75, RTZ), (0, NX));
    assert_eq!(u32_of(-0.75, RNE), (0, NV));
    assert_eq!(u32_of(-0.5, RNE), (0, NX));
    assert_eq!(u32_of(-0.5, RMM), (0, NV));
    assert_eq!(u32_of(-0.0, RDN), (0, NONE));

    let two_to_63 = 2f64.powi(63);
    assert_eq!(run(|f| to_i64(d(two_to_63), RNE, f)), (i64::MAX, NV));
    assert_eq!(run(|f| to_i64(d(two_to_63) - 1, RNE, f)), (i64::MAX - 1023, NONE));
    assert_eq!(run(|f| to_i64(d(-two_to_63), RNE, f)), (i64::MIN, NONE));
    assert_eq!(run(|f| to_i64(d(-two_to_63) + 1, RNE, f)), (i64::MIN, NV));
    assert_eq!(run(|f| to_u64(d(two_to_63), RNE, f)), (1 << 63, NONE));
    assert_eq!(run(|f| to_u64(d(2.0 * two_to_63), RNE, f)), (u64::MAX, NV));
    assert_eq!(run(|f| to_u64(d(-1.0), RNE, f)), (0, NV));
    assert_eq!(run(|f| to_u64(d(-1.0) - 1, RTZ, f)), (0, NX));
}

#[test]
fn integer_conversions_take_nan_as_positive_infinity() {
    for nan in [CANONICAL, QNAN_WITH_PAYLOAD, SNAN, SNAN | NEGATIVE, INF] {
        assert_eq!(run(|f| to_i32(nan, RNE, f)), (i32::MAX, NV));
        assert_eq!(run(|f| to_u32(nan, RNE, f)), (u32::MAX, NV));
        assert_eq!(run(|f| to_i64(nan, RNE, f)), (i64::MAX, NV));
        assert_eq!(run(|f| to_u64(nan, RNE, f)), (u64::MAX, NV));
    }
    let negative = INF | NEGATIVE;
    assert_eq!(run(|f| to_i32(negative, RNE, f)), (i32::MIN, NV));
    assert_eq!(run(|f| to_u32(negative, RNE, f)), (0, NV));
    assert_eq!(run(|f| to_i64(negative, RNE, f)), (i64::MIN, NV));
    assert_eq!(run(|f| to_u64(negative, RNE, f)), (0, NV));
}

#[test]
fn integers_convert_to_the_nearest_float() {
    assert_eq!(run(|f| from_i32::<u32>(i32::MIN, RNE, f)), (s(-2147483648.0), NONE));
    assert_eq!(run(|f| from_i32::<u32>(i32::MAX, RNE, f)), (s(2147483648.0), NX));
    assert_eq!(run(|f| from_i32::<u32>(i32::MAX, RTZ, f)), (s(2147483648.0) - 1, NX));
    assert_eq!(run(|f| from_u32::<u64>(u32::MAX, RNE, f)), (d(4294967295.0), NONE));
    assert_eq!(run(|f| from_i64::<u64>(i64::MIN, RNE, f)), (d(-(2f64.powi(63))), NONE));
    assert_eq!(run(|f| from_u64::<u64>(u64::MAX, RNE, f)), (d(2f64.powi(64)), NX));
    assert_eq!(run(|f| from_u64::<u64>(u64::MAX, RDN, f)), (d(2f64.powi(64)) - 1, NX));
    // A tie.
    assert_eq!(run(|f| from_u64::<u64>((1 << 53) + 1, RNE, f)), (d(2f64.powi(53)), NX));
    assert_eq!(run(|f| from_u64::<u64>((1 << 53) + 1, RMM, f)), (d(2f64.powi(53)) + 1, NX));
    assert_eq!(run(|f| from_i64::<u64>(0, RDN, f)), (ZERO, NONE));
}

#[test]
fn comparisons_signal_as_they_should() {
    let one = d(1.0);
    for (a, b, is_less, is_equal) in [
        (one, d(2.0), true, false),
        (d(-2.0), one, true, false),
        (d(-1.0), d(-2.0), false, false),
        (ZERO, NEGATIVE, false, true),
        (NEGATIVE, ZERO, false, true),
        (NEGATIVE | MIN_SUBNORMAL, ZERO, true, false),
        (MAX, INF, true, false),
        (INF, INF, false, true),
    ] {
        assert_eq!(run(|f| less(a, b, f)), (is_less, NONE), "{a:x} < {b:x}");
        assert_eq!(run(|f| equal(a, b, f)), (is_equal, NONE), "{a:x} == {b:x}");
        let at_most = is_less || is_equal;
        assert_eq!(run(|f| less_or_equal(a, b, f)), (at_most, NONE), "{a:x} <= {b:x}");
    }
    for (nan, raised_by_equal) in [(CANONICAL, NONE), (QNAN_WITH_PAYLOAD, NONE), (SNAN, NV)] {
        for (a, b) in [(nan, one), (one, nan), (nan, nan)] {
            assert_eq!(run(|f| equal(a, b, f)), (false, raised_by_equal));
            assert_eq!(run(|f| less(a, b, f)), (false, NV));
            assert_eq!(run(|f| less_or_equal(a, b, f)), (false, NV));
        }
    }
}

#[test]
fn minimum_and_maximum_prefer_numbers() {
    let one = d(1.0);
    assert_eq!(run(|f| minimum(one, d(-1.0), f)), (d(-1.0), NONE));
    assert_eq!(run(|f| maximum(one, d(-1.0), f)), (one, NONE));
    for (a, b) in [(ZERO, NEGATIVE), (NEGATIVE, ZERO)] {
        assert_eq!(run(|f| minimum(a, b, f)), (NEGATIVE, NONE));
        assert_eq!(run(|f| maximum(a, b, f)), (ZERO, NONE));
    }
    for (nan, raised) in [(QNAN_WITH_PAYLOAD, NONE), (SNAN, NV)] {
        for (a, b) in [(nan, one), (one, nan)] {
            assert_eq!(run(|f| minimum(a, b, f)), (one, raised));
            assert_eq!(run(|f| maximum(a, b, f)), (one, raised));
        }
        for (a, b) in [(nan, CANONICAL), (QNAN_WITH_PAYLOAD, nan)] {
            assert_eq!(run(|f| minimum(a, b, f)), (CANONICAL, raised));
            assert_eq!(run(|f| maximum(a, b, f)), (CANONICAL, raised));
        }
    }
}

#[test]
fn every_value_has_one_class() {
    for (value, class) in [
        (INF | NEGATIVE, 0),
        (d(-1.0), 1),
        (MIN_NORMAL | NEGATIVE, 1),
        (MAX_SUBNORMAL | NEGATIVE, 2),
        (NEGATIVE, 3),
        (ZERO, 4),
        (MIN_SUBNORMAL, 5),
        (MIN_NORMAL, 6),
        (MAX, 6),
        (INF, 7),
        (SNAN, 8),
        (SNAN | NEGATIVE, 8),
        (CANONICAL, 9),
        (QNAN_WITH_PAYLOAD, 9),
    ] {
        assert_eq!(classify(value), 1 << class, "{value:x}");
    }
    assert_eq!(classify(0x7f80_0001_u32), 1 << 8);
    assert_eq!(classify(0xffc0_0000_u32), 1 << 9);
    assert_eq!(classify(0x8000_0001_u32), 1 << 2);
    assert_eq!(classify(0xff80_0000_u32), 1 << 0);
}

#[test]
fn registers_hold_binary32_in_a_box() {
    assert_eq!(box_f32(0x3f80_0000), 0xffff_ffff_3f80_0000);
    assert_eq!(unbox_f32(0xffff_ffff_3f80_0000), 0x3f80_0000);
    assert_eq!(unbox_f32(0xffff_ffff_ff80_0001), 0xff80_0001);
    for not_boxed in [0x3f80_0000, 0x7fff_ffff_3f80_0000, 0xffff_fffe_3f80_0000] {
        assert_eq!(unbox_f32(not_boxed), u32::CANONICAL_NAN);
    }
}

#[test]
fn modes_and_flags_have_the_numbers_of_fcsr() {
    let modes: Vec<_> = (0..8).map(Rounding::from_bits).collect();
    let named = [RNE, RTZ, RDN, RUP, RMM].map(Some);
    assert_eq!(modes[..5], named);
    assert_eq!(modes[5..], [None; 3]);
    let flags = [NX, Flags::UNDERFLOW, Flags::OVERFLOW, DZ, NV];
    assert_eq!(flags.map(Flags::bits), [1, 2, 4, 8, 16]);
    assert_eq!(Flags::from_bits(0xff).bits(), 0x1f);
}
