//! Floating point: every rounding mode of every instruction that rounds, flags, NaN boxing,
//! subnormals, classes, and conversions at their limits.

use secondwind_tests::differential::directed::{Directed, Ended};
use secondwind_tests::differential::encode::{csr::*, *};

const INVALID: u64 = 16;
const DIVISION_BY_ZERO: u64 = 8;
const OVERFLOW: u64 = 4;
const UNDERFLOW: u64 = 2;
const INEXACT: u64 = 1;

const SIGN: u64 = 1 << 63;
const ONE: u64 = 0x3ff0_0000_0000_0000;
const TWO: u64 = 0x4000_0000_0000_0000;
const THREE: u64 = 0x4008_0000_0000_0000;
const INFINITY: u64 = 0x7ff0_0000_0000_0000;
const NAN: u64 = 0x7ff8_0000_0000_0000;
const LARGEST: u64 = 0x7fef_ffff_ffff_ffff;
const LEAST_NORMAL: u64 = 0x0010_0000_0000_0000;

const SIGN_S: u64 = 1 << 31;
const ONE_S: u64 = 0x3f80_0000;
const TWO_S: u64 = 0x4000_0000;
const THREE_S: u64 = 0x4040_0000;
const INFINITY_S: u64 = 0x7f80_0000;
const NAN_S: u64 = 0x7fc0_0000;
const LARGEST_S: u64 = 0x7f7f_ffff;
const LEAST_NORMAL_S: u64 = 0x0080_0000;

/// As a single lies in a register.
const fn boxed(single: u64) -> u64 {
    0xffff_ffff_0000_0000 | single
}

/// An instruction of OP-FP with its target in `fa2`, or `a2`.
const fn fp(funct7: u32, rs2: u32, mode: u32) -> u32 {
    r(0x53 | funct7 << 25 | mode << 12, A2, A0, rs2)
}

/// `fmadd` and its like: 0x43, 0x47, 0x4b, 0x4f; format 0 or 1.
const fn fused(opcode: u32, format: u32, mode: u32) -> u32 {
    r4(opcode | format << 25 | mode << 12, A2, A0, A1, 13)
}

const FMV_D_X: u32 = 0xf200_0053;
/// Dynamic: as `frm` says.
const DYNAMIC: u32 = 7;

/// Runs `word` with these bits in `fa0`, `fa1` and `fa3`, and `a0` as `fa0`; flags go to `a4`.
fn run(word: u32, operands: [u64; 3], frm: u64) -> Ended {
    let mut directed = Directed::new();
    for (register, value) in [A0, A1, 13].into_iter().zip(operands) {
        directed.load(register, value).word(r(FMV_D_X, register, register, 0));
    }
    directed.set(FRM, frm).set(FFLAGS, 0).word(word).word(csrrs(14, FFLAGS, ZERO)).run()
}

fn flags(ended: &Ended) -> u64 {
    ended.x(14)
}

/// RNE, RTZ, RDN, RUP, RMM.
const MODES: u32 = 5;

/// Checks an instruction that rounds in each mode, given in it and in `frm`. `make` gives it for
/// a mode; results are by mode.
fn check_modes(
    name: &str,
    make: &dyn Fn(u32) -> u32,
    operands: [u64; 3],
    expected: [u64; 5],
    to_integer: bool,
) {
    let result = |ended: &Ended| if to_integer { ended.x(A2) } else { ended.f(A2) };
    for mode in 0..MODES {
        let other = u64::from((mode + 1) % MODES);
        for ended in [run(make(mode), operands, other), run(make(DYNAMIC), operands, u64::from(mode))] {
            assert!(ended.trap.is_none(), "{name} traps");
            let found = (result(&ended), flags(&ended));
            assert_eq!(found, (expected[mode as usize], INEXACT), "{name} mode {mode}: {:#x}", found.0);
        }
    }
    for (word, frm) in
        [(make(5), 0), (make(6), 0), (make(DYNAMIC), 5), (make(DYNAMIC), 6), (make(DYNAMIC), 7)]
    {
        let taken = run(word, operands, frm).trap();
        assert_eq!((taken.cause, taken.tval), (2, u64::from(word)), "{name}: reserved mode, frm {frm}");
    }
}

/// A result by mode, from the one towards zero: where the next one away from zero is taken.
fn away(toward_zero: u64, taken: [bool; 5]) -> [u64; 5] {
    taken.map(|away| toward_zero + u64::from(away))
}

/// A positive tie on an even number; the same on an odd one; a negative one on an even number.
const TIE: [bool; 5] = [false, false, false, true, true];
const TIE_ODD: [bool; 5] = [true, false, false, true, true];
const TIE_NEGATIVE: [bool; 5] = [false, false, true, false, true];
/// Nearer to zero, and nearer to the one away from it.
const BELOW_HALF: [bool; 5] = [false, false, false, true, false];
const ABOVE_HALF: [bool; 5] = [true, false, false, true, true];

#[test]
fn doubles_round_in_each_mode() {
    let half_ulp = 0x3ca0_0000_0000_0000;
    let binary = |funct7: u32| move |mode| fp(funct7, A1, mode);
    check_modes("fadd.d", &binary(0x01), [ONE, half_ulp, 0], away(ONE, TIE), false);
    check_modes("fsub.d", &binary(0x05), [ONE | SIGN, half_ulp, 0], away(ONE | SIGN, TIE_NEGATIVE), false);
    let one_and_half = 0x3ff8_0000_0000_0000;
    check_modes("fmul.d", &binary(0x09), [ONE + 1, one_and_half, 0], away(one_and_half + 1, TIE_ODD), false);
    check_modes("fdiv.d", &binary(0x0d), [ONE, THREE, 0], away(0x3fd5_5555_5555_5555, BELOW_HALF), false);
    let root = away(0x3ff6_a09e_667f_3bcc, ABOVE_HALF);
    check_modes("fsqrt.d", &|mode| fp(0x2d, 0, mode), [TWO, 0, 0], root, false);
    for (name, opcode, sign_of_product, sign_of_addend) in [
        ("fmadd.d", 0x43, 0, 0),
        ("fmsub.d", 0x47, 0, SIGN),
        ("fnmsub.d", 0x4b, SIGN, 0),
        ("fnmadd.d", 0x4f, SIGN, SIGN),
    ] {
        let operands = [ONE | sign_of_product, ONE, half_ulp | sign_of_addend];
        check_modes(name, &|mode| fused(opcode, 1, mode), operands, away(ONE, TIE), false);
    }
}

#[test]
fn singles_round_in_each_mode() {
    let half_ulp = boxed(0x3380_0000);
    let one = boxed(ONE_S);
    let binary = |funct7: u32| move |mode| fp(funct7, A1, mode);
    check_modes("fadd.s", &binary(0x00), [one, half_ulp, 0], away(one, TIE), false);
    let minus_one = boxed(ONE_S | SIGN_S);
    check_modes("fsub.s", &binary(0x04), [minus_one, half_ulp, 0], away(minus_one, TIE_NEGATIVE), false);
    let one_and_half = boxed(0x3fc0_0000);
    check_modes("fmul.s", &binary(0x08), [one + 1, one_and_half, 0], away(one_and_half + 1, TIE_ODD), false);
    let third = away(boxed(0x3eaa_aaaa), ABOVE_HALF);
    check_modes("fdiv.s", &binary(0x0c), [one, boxed(THREE_S), 0], third, false);
    let root = away(boxed(0x3fb5_04f3), BELOW_HALF);
    check_modes("fsqrt.s", &|mode| fp(0x2c, 0, mode), [boxed(TWO_S), 0, 0], root, false);
    for (name, opcode, sign_of_product, sign_of_addend) in [
        ("fmadd.s", 0x43, 0, 0),
        ("fmsub.s", 0x47, 0, SIGN_S),
        ("fnmsub.s", 0x4b, SIGN_S, 0),
        ("fnmadd.s", 0x4f, SIGN_S, SIGN_S),
    ] {
        let operands = [one ^ sign_of_product, one, half_ulp ^ sign_of_addend];
        check_modes(name, &|mode| fused(opcode, 0, mode), operands, away(one, TIE), false);
    }
}

#[test]
fn conversions_round_in_each_mode() {
    check_modes(
        "fcvt.s.d",
        &|mode| fp(0x20, 1, mode),
        [0x3ff0_0000_1000_0000, 0, 0],
        away(boxed(ONE_S), TIE),
        false,
    );
    let (double, single) = (0x4340_0000_0000_0000, boxed(0x4b80_0000));
    let from = |funct7: u32, kind: u32| move |mode| fp(funct7, kind, mode);
    // 2^53 + 1 and 2^24 + 1 lie between two numbers; `a0` holds them.
    for kind in [2, 3] {
        let operands = [(1 << 53) + 1, 0, 0];
        check_modes("fcvt.d.l", &from(0x69, kind), operands, away(double, TIE), false);
    }
    for kind in 0..4 {
        let operands = [(1 << 24) + 1, 0, 0];
        check_modes("fcvt.s.w", &from(0x68, kind), operands, away(single, TIE), false);
    }
    let (plus, minus) = (0x4004_0000_0000_0000, 0xc004_0000_0000_0000);
    for kind in 0..4 {
        check_modes("fcvt to integer of 2.5", &from(0x61, kind), [plus, 0, 0], away(2, TIE), true);
        check_modes("of 2.5, single", &from(0x60, kind), [boxed(0x4020_0000), 0, 0], away(2, TIE), true);
    }
    for kind in [0, 2] {
        let expected = [2, 2, 3, 2, 3].map(u64::wrapping_neg);
        check_modes("of -2.5", &from(0x61, kind), [minus, 0, 0], expected, true);
        check_modes("of -2.5, single", &from(0x60, kind), [boxed(0xc020_0000), 0, 0], expected, true);
    }
}

#[test]
fn overflow_goes_to_infinity_or_the_largest_number() {
    // By mode: whether a positive, a negative result becomes infinite.
    for (mode, positive, negative) in
        [(0, true, true), (1, false, false), (2, false, true), (3, true, false), (4, true, true)]
    {
        for (sign, infinite) in [(0, positive), (SIGN, negative)] {
            let ended = run(fp(0x09, A1, mode), [LARGEST | sign, TWO, 0], 0);
            let expected = if infinite { INFINITY } else { LARGEST } | sign;
            assert_eq!((ended.f(A2), flags(&ended)), (expected, OVERFLOW | INEXACT), "double, mode {mode}");
            let sign = sign >> 32;
            let ended = run(fp(0x08, A1, mode), [boxed(LARGEST_S | sign), boxed(TWO_S), 0], 0);
            let expected = boxed(if infinite { INFINITY_S } else { LARGEST_S } | sign);
            assert_eq!((ended.f(A2), flags(&ended)), (expected, OVERFLOW | INEXACT), "single, mode {mode}");
        }
    }
}

#[test]
fn subnormals_are_exact_and_tininess_is_seen_after_rounding() {
    let half = 0x3fe0_0000_0000_0000;
    for (name, a, b, expected, raised) in [
        ("half of the least normal number", LEAST_NORMAL, half, LEAST_NORMAL >> 1, 0),
        ("half of the least number", 1, half, 0, UNDERFLOW | INEXACT),
        ("half of three least numbers", 3, half, 2, UNDERFLOW | INEXACT),
        // With more exponents it would be exact, and below the least normal number: tiny.
        ("rounded to the least normal number", LEAST_NORMAL, ONE - 1, LEAST_NORMAL, UNDERFLOW | INEXACT),
        ("a subnormal twice", LEAST_NORMAL - 1, TWO, 2 * LEAST_NORMAL - 2, 0),
    ] {
        let ended = run(fp(0x09, A1, 0), [a, b, 0], 0);
        assert_eq!((ended.f(A2), flags(&ended)), (expected, raised), "{name}");
    }
    // (1 + 2^-52) * (1 - 2^-53) of the least normal number: above it, whatever the exponents.
    let ended = run(fp(0x09, A1, 0), [LEAST_NORMAL + 1, ONE - 1, 0], 0);
    assert_eq!((ended.f(A2), flags(&ended)), (LEAST_NORMAL, INEXACT), "not tiny after rounding");
    let ended = run(fp(0x00, A1, 0), [boxed(1), boxed(LEAST_NORMAL_S - 1), 0], 0);
    assert_eq!((ended.f(A2), flags(&ended)), (boxed(LEAST_NORMAL_S), 0), "sum of single subnormals");
}

#[test]
fn invalid_operations_give_the_canonical_nan() {
    let signalling = INFINITY | 1;
    for (name, word, operands, raised) in [
        ("infinity - infinity", fp(0x05, A1, 0), [INFINITY, INFINITY, 0], INVALID),
        ("0 * infinity", fp(0x09, A1, 0), [0, INFINITY, 0], INVALID),
        ("0 / 0", fp(0x0d, A1, 0), [0, 0, 0], INVALID),
        ("infinity / infinity", fp(0x0d, A1, 0), [INFINITY, INFINITY, 0], INVALID),
        ("root of -1", fp(0x2d, 0, 0), [ONE | SIGN, 0, 0], INVALID),
        ("0 * infinity + quiet NaN", fused(0x43, 1, 0), [0, INFINITY, NAN], INVALID),
        ("quiet NaN with payload", fp(0x01, A1, 0), [NAN | SIGN | 5, ONE, 0], 0),
        ("signalling NaN", fp(0x01, A1, 0), [ONE, signalling, 0], INVALID),
        ("fmin of two NaNs", fp(0x15, A1, 0), [NAN | 1, NAN | SIGN, 0], 0),
        ("fmax of signalling NaNs", fp(0x15, A1, 1), [signalling, NAN, 0], INVALID),
    ] {
        let ended = run(word, operands, 0);
        assert_eq!((ended.f(A2), flags(&ended)), (NAN, raised), "{name}");
    }
    let ended = run(fp(0x0d, A1, 0), [ONE | SIGN, 0, 0], 0);
    assert_eq!((ended.f(A2), flags(&ended)), (INFINITY | SIGN, DIVISION_BY_ZERO));
}

#[test]
fn a_single_that_is_not_boxed_is_the_canonical_nan() {
    // Each has 1.0 in place, under upper halves that are not all ones.
    for upper in [0, 0x7fff_ffff, 0xffff_fffe, 0x8000_0000u64] {
        let (bad, good) = (upper << 32 | ONE_S, boxed(ONE_S));
        for (name, word) in [
            ("fadd.s", fp(0x00, A1, 0)),
            ("fsub.s", fp(0x04, A1, 0)),
            ("fmul.s", fp(0x08, A1, 0)),
            ("fdiv.s", fp(0x0c, A1, 0)),
            ("fmadd.s", fused(0x43, 0, 0)),
            ("fnmsub.s", fused(0x4b, 0, 0)),
        ] {
            for operands in [[bad, good, good], [good, bad, good]] {
                let ended = run(word, operands, 0);
                assert_eq!((ended.f(A2), flags(&ended)), (boxed(NAN_S), 0), "{name} {upper:x}");
            }
        }
        for (name, word, operands, expected) in [
            ("fsqrt.s", fp(0x2c, 0, 0), [bad, 0, 0], boxed(NAN_S)),
            ("fmadd.s", fused(0x43, 0, 0), [good, good, bad], boxed(NAN_S)),
            ("fcvt.d.s", fp(0x21, 0, 0), [bad, 0, 0], NAN),
            ("fmin.s", fp(0x14, A1, 0), [bad, good, 0], good),
            ("fmax.s", fp(0x14, A1, 1), [good, bad, 0], good),
            ("fsgnj.s", fp(0x10, A1, 0), [bad, boxed(ONE_S | SIGN_S), 0], boxed(NAN_S | SIGN_S)),
            ("fsgnjn.s", fp(0x10, A1, 1), [good, bad, 0], boxed(ONE_S | SIGN_S)),
            ("fsgnjx.s", fp(0x10, A1, 2), [boxed(ONE_S | SIGN_S), bad, 0], boxed(ONE_S | SIGN_S)),
        ] {
            assert_eq!(run(word, operands, 0).f(A2), expected, "{name} {upper:x}");
        }
        for (name, word, expected, raised) in [
            ("feq.s", fp(0x50, A1, 2), 0, 0),
            ("flt.s", fp(0x50, A1, 1), 0, INVALID),
            ("fle.s", fp(0x50, A1, 0), 0, INVALID),
            ("fclass.s", fp(0x70, 0, 1), 1 << 9, 0),
            ("fcvt.w.s", fp(0x60, 0, 0), 0x7fff_ffff, INVALID),
            // This one moves bits, whatever they are.
            ("fmv.x.w", fp(0x70, 0, 0), ONE_S, 0),
        ] {
            let ended = run(word, [bad, good, 0], 0);
            assert_eq!((ended.x(A2), flags(&ended)), (expected, raised), "{name} {upper:x}");
        }
    }
    let minus = 0xffff_ffff_8000_0000;
    assert_eq!(run(fp(0x78, 0, 0), [minus, 0, 0], 0).f(A2), boxed(SIGN_S), "fmv.w.x boxes");
    assert_eq!(run(fp(0x68, 0, 0), [1, 0, 0], 0).f(A2), boxed(ONE_S), "fcvt.s.w boxes");
}

#[test]
fn classes_and_comparisons() {
    let classes = [
        (INFINITY | SIGN, INFINITY_S | SIGN_S),
        (ONE | SIGN, ONE_S | SIGN_S),
        (1 | SIGN, 1 | SIGN_S),
        (SIGN, SIGN_S),
        (0, 0),
        (LEAST_NORMAL - 1, LEAST_NORMAL_S - 1),
        (LARGEST, LARGEST_S),
        (INFINITY, INFINITY_S),
        (INFINITY | 1, INFINITY_S | 1),
        (NAN | SIGN, NAN_S | SIGN_S),
    ];
    for (class, (double, single)) in classes.into_iter().enumerate() {
        assert_eq!(run(fp(0x71, 0, 1), [double, 0, 0], 0).x(A2), 1 << class, "fclass.d {double:#x}");
        assert_eq!(run(fp(0x70, 0, 1), [boxed(single), 0, 0], 0).x(A2), 1 << class, "fclass.s {single:#x}");
    }
    // The first eight are in order, but for the zeros, which are equal.
    let rank = |class: usize| if class >= 4 { class - 1 } else { class };
    for a in 0..8 {
        for b in 0..8 {
            let (left, right) = (rank(a), rank(b));
            for (funct3, expected) in [(0, left <= right), (1, left < right), (2, left == right)] {
                let doubles = [classes[a].0, classes[b].0, 0];
                let singles = [boxed(classes[a].1), boxed(classes[b].1), 0];
                assert_eq!(run(fp(0x51, A1, funct3), doubles, 0).x(A2), u64::from(expected), "{a} {b}");
                assert_eq!(run(fp(0x50, A1, funct3), singles, 0).x(A2), u64::from(expected), "{a} {b}");
            }
        }
    }
    for (funct3, a, raised) in [(2, NAN, 0), (2, INFINITY | 1, INVALID), (1, NAN, INVALID), (0, NAN, INVALID)]
    {
        let ended = run(fp(0x51, A1, funct3), [a, ONE, 0], 0);
        assert_eq!((ended.x(A2), flags(&ended)), (0, raised), "{funct3} of {a:#x}");
    }
}

#[test]
fn conversions_to_integers_stop_at_their_limits() {
    // By target (w, wu, l, lu): what positive and negative excess, and NaN, become.
    let limits =
        [(0x7fff_ffff, 0xffff_ffff_8000_0000), (u64::MAX, 0), (u64::MAX >> 1, 1 << 63), (u64::MAX, 0)];
    for (kind, (most, least)) in (0..).zip(limits) {
        for (operand, expected) in
            [(LARGEST, most), (INFINITY, most), (NAN, most), (NAN | SIGN, most), (INFINITY | SIGN, least)]
        {
            let ended = run(fp(0x61, kind, 1), [operand, 0, 0], 0);
            assert_eq!((ended.x(A2), flags(&ended)), (expected, INVALID), "double to {kind}: {operand:#x}");
        }
        for (operand, expected) in [(LARGEST_S, most), (NAN_S, most), (LARGEST_S | SIGN_S, least)] {
            let ended = run(fp(0x60, kind, 1), [boxed(operand), 0, 0], 0);
            assert_eq!((ended.x(A2), flags(&ended)), (expected, INVALID), "single to {kind}: {operand:#x}");
        }
    }
    // The last ones that fit.
    for (kind, operand, expected) in [
        (0, 0x41df_ffff_ffc0_0000, 0x7fff_ffff),
        (0, 0xc1e0_0000_0000_0000, 0xffff_ffff_8000_0000),
        (1, 0x41ef_ffff_ffe0_0000, u64::MAX),
        (2, 0x43df_ffff_ffff_ffff, 0x7fff_ffff_ffff_fc00),
        (2, 0xc3e0_0000_0000_0000, 1 << 63),
        (3, 0x43ef_ffff_ffff_ffff, 0xffff_ffff_ffff_f800),
    ] {
        let ended = run(fp(0x61, kind, 1), [operand, 0, 0], 0);
        assert_eq!((ended.x(A2), flags(&ended)), (expected, 0), "to {kind}: {operand:#x}");
    }
}

#[test]
fn signs_are_injected_and_zeros_told_apart() {
    for (name, word, a, b, expected) in [
        ("fsgnj.d", fp(0x11, A1, 0), ONE, NAN | SIGN, ONE | SIGN),
        ("fsgnjn.d", fp(0x11, A1, 1), ONE | SIGN, SIGN, ONE),
        ("fsgnjx.d", fp(0x11, A1, 2), ONE | SIGN, SIGN, ONE),
        ("fsgnj.d of a signalling NaN", fp(0x11, A1, 0), INFINITY | 1, SIGN, INFINITY | SIGN | 1),
        ("fmin.d of zeros", fp(0x15, A1, 0), 0, SIGN, SIGN),
        ("fmax.d of zeros", fp(0x15, A1, 1), SIGN, 0, 0),
        ("fmin.d", fp(0x15, A1, 0), ONE, ONE | SIGN, ONE | SIGN),
        ("fmax.d with NaN", fp(0x15, A1, 1), NAN, INFINITY | SIGN, INFINITY | SIGN),
        ("1 - 1, down", fp(0x05, A1, 2), ONE, ONE, SIGN),
        ("1 - 1, up", fp(0x05, A1, 3), ONE, ONE, 0),
        ("-0 - 0", fp(0x05, A1, 0), SIGN, 0, SIGN),
        ("root of -0", fp(0x2d, 0, 0), SIGN, 0, SIGN),
    ] {
        let ended = run(word, [a, b, 0], 0);
        assert_eq!((ended.f(A2), flags(&ended)), (expected, 0), "{name}");
    }
}

#[test]
fn flags_gather_until_they_are_cleared() {
    let mut directed = Directed::new();
    directed.load(A0, ONE).load(A1, 0);
    directed.words(&[r(FMV_D_X, A0, A0, 0), r(FMV_D_X, A1, A1, 0), csrrw(ZERO, FCSR, ZERO)]);
    // 1 / 0, then the root of a negative number, then nothing.
    directed.words(&[
        fp(0x0d, A1, 0),
        r(0x2200_1053, 13, A0, A0),
        r(0x5a00_0053, 14, 13, 0),
        fp(0x01, A1, 0),
    ]);
    let ended =
        directed.words(&[csrrs(A2, FFLAGS, ZERO), i(0x7073, 13, 8, FFLAGS as i32), csrrs(14, FCSR, ZERO)]);
    let ended = ended.run();
    assert_eq!((ended.x(A2), ended.x(14)), (DIVISION_BY_ZERO | INVALID, INVALID));
}
