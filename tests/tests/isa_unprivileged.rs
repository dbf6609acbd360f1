//! Every unprivileged instruction on operands whose result is known from the specification.

use secondwind_tests::differential::directed::{Directed, Ended};
use secondwind_tests::differential::encode::{csr::*, *};
use secondwind_tests::differential::layout::DATA;

const MIN: u64 = 1 << 63;
const MAX: u64 = u64::MAX >> 1;
const MINUS_1: u64 = u64::MAX;
const MIN_32: u64 = 0xffff_ffff_8000_0000;

/// Name, opcode with funct3 and funct7, operands, result.
type Case = (&'static str, u32, u64, u64, u64);

/// Runs R-type instructions: `a2 = a0 op a1`, also with the result in a source.
fn check_registers(cases: &[Case]) {
    for (name, base, a, b, expected) in cases {
        let ended = Directed::new().load(A0, *a).load(A1, *b).word(r(*base, A2, A0, A1)).run();
        assert_eq!(ended.x(A2), *expected, "{name} {a:#x}, {b:#x}");
        let ended = Directed::new().load(A0, *a).load(A1, *b).word(r(*base, A0, A0, A1)).run();
        assert_eq!(ended.x(A0), *expected, "{name} into its first source");
        let ended = Directed::new().load(A0, *a).load(A1, *b).word(r(*base, A1, A0, A1)).run();
        assert_eq!(ended.x(A1), *expected, "{name} into its second source");
        let ended = Directed::new().load(A0, *a).load(A1, *b).word(r(*base, ZERO, A0, A1)).run();
        assert_eq!(ended.x(ZERO), 0, "{name} into x0");
    }
}

/// Name, whole instruction with `a2` as target and `a0` as source, source, result.
fn check_unary(cases: &[(&str, u32, u64, u64)]) {
    for (name, word, a, expected) in cases {
        let ended = Directed::new().load(A0, *a).word(*word).run();
        assert_eq!(ended.x(A2), *expected, "{name} of {a:#x}");
    }
}

#[test]
fn integer_registers() {
    check_registers(&[
        ("add", op(0x33, 0, 0), MAX, 1, MIN),
        ("sub", op(0x33, 0, 0x20), MIN, 1, MAX),
        ("sll", op(0x33, 1, 0), 1, 64 + 63, MIN),
        ("slt", op(0x33, 2, 0), MINUS_1, 0, 1),
        ("slt", op(0x33, 2, 0), 0, MINUS_1, 0),
        ("sltu", op(0x33, 3, 0), MINUS_1, 0, 0),
        ("sltu", op(0x33, 3, 0), 0, 1, 1),
        ("xor", op(0x33, 4, 0), 0b1100, 0b1010, 0b0110),
        ("srl", op(0x33, 5, 0), MIN, 64 + 63, 1),
        ("sra", op(0x33, 5, 0x20), MIN, 63, MINUS_1),
        ("or", op(0x33, 6, 0), 0b1100, 0b1010, 0b1110),
        ("and", op(0x33, 7, 0), 0b1100, 0b1010, 0b1000),
        ("addw", op(0x3b, 0, 0), 0x7fff_ffff, 1, MIN_32),
        ("subw", op(0x3b, 0, 0x20), 0x1_8000_0000, 1, 0x7fff_ffff),
        ("sllw", op(0x3b, 1, 0), 1, 32 + 31, MIN_32),
        ("srlw", op(0x3b, 5, 0), 0xffff_ffff_8000_0000, 31, 1),
        ("sraw", op(0x3b, 5, 0x20), 0x8000_0000, 31, MINUS_1),
    ]);
}

#[test]
fn integer_immediates() {
    check_unary(&[
        ("addi", addi(A2, A0, -2048), 0, 0xffff_ffff_ffff_f800),
        ("slti", i(0x2013, A2, A0, -1), MIN, 1),
        ("sltiu", i(0x3013, A2, A0, -1), 5, 1),
        ("xori", i(0x4013, A2, A0, -1), 0x0f, !0x0f),
        ("ori", i(0x6013, A2, A0, 0x7f0), 0x00f, 0x7ff),
        ("andi", andi(A2, A0, -16), 0xff, 0xf0),
        ("slli", slli(A2, A0, 63), 3, MIN),
        ("srli", srli(A2, A0, 63), MIN, 1),
        ("srai", i(0x5013, A2, A0, 0x400 | 63), MIN, MINUS_1),
        ("addiw", addiw(A2, A0, 1), 0x7fff_ffff, MIN_32),
        ("slliw", i(0x101b, A2, A0, 31), 1, MIN_32),
        ("srliw", i(0x501b, A2, A0, 31), 0xffff_ffff_8000_0000, 1),
        ("sraiw", i(0x501b, A2, A0, 0x400 | 31), 0x8000_0000, MINUS_1),
        ("lui", lui(A2, 0x8000_0000), 0, MIN_32),
    ]);
    let mut directed = Directed::new();
    let here = directed.asm.here();
    let ended = directed.word(auipc(A2, 0xffff_f000)).run();
    assert_eq!(ended.x(A2), here - 0x1000);
}

#[test]
fn multiplication_and_division() {
    let (mul, div) = (|funct3| op(0x33, funct3, 1), |funct3| op(0x3b, funct3, 1));
    check_registers(&[
        ("mul", mul(0), MIN, MINUS_1, MIN),
        ("mulh", mul(1), MIN, MIN, 1 << 62),
        ("mulh", mul(1), MINUS_1, MINUS_1, 0),
        ("mulhsu", mul(2), MINUS_1, MINUS_1, MINUS_1),
        ("mulhu", mul(3), MINUS_1, MINUS_1, MINUS_1 - 1),
        ("div", mul(4), MIN, MINUS_1, MIN),
        ("div", mul(4), 7u64.wrapping_neg(), 2, 3u64.wrapping_neg()),
        ("div", mul(4), 7, 0, MINUS_1),
        ("divu", mul(5), MINUS_1, 2, MAX),
        ("divu", mul(5), 7, 0, MINUS_1),
        ("rem", mul(6), MIN, MINUS_1, 0),
        ("rem", mul(6), 7u64.wrapping_neg(), 2, MINUS_1),
        ("rem", mul(6), 7, 0, 7),
        ("remu", mul(7), 7, 0, 7),
        ("remu", mul(7), MINUS_1, 10, 5),
        ("mulw", div(0), 0x1_0001_0000, 0x1_0000, 0),
        ("divw", div(4), 0x8000_0000, 0xffff_ffff, MIN_32),
        ("divw", div(4), 5, 0x1_0000_0000, MINUS_1),
        ("divuw", div(5), 0xffff_ffff, 1, MINUS_1),
        ("divuw", div(5), 5, 0, MINUS_1),
        ("remw", div(6), 0x8000_0000, 0xffff_ffff, 0),
        ("remw", div(6), 0x8000_0005, 0, 0xffff_ffff_8000_0005),
        ("remuw", div(7), 0x8000_0005, 0, 0xffff_ffff_8000_0005),
    ]);
}

#[test]
fn conditional_zeroing() {
    let (eqz, nez) = (op(0x33, 5, 0x07), op(0x33, 7, 0x07));
    check_registers(&[
        ("czero.eqz", eqz, MAX, 0, 0),
        ("czero.eqz", eqz, MAX, MIN, MAX),
        ("czero.nez", nez, MAX, 0, MAX),
        ("czero.nez", nez, MAX, 1 << 32, 0),
    ]);
}

#[test]
fn bit_manipulation() {
    check_registers(&[
        ("add.uw", op(0x3b, 0, 0x04), MINUS_1, 1, 1 << 32),
        ("sh1add", op(0x33, 2, 0x10), 3, 4, 10),
        ("sh2add", op(0x33, 4, 0x10), 3, 4, 16),
        ("sh3add", op(0x33, 6, 0x10), 3, 4, 28),
        ("sh1add.uw", op(0x3b, 2, 0x10), MINUS_1, 2, 1 << 33),
        ("sh2add.uw", op(0x3b, 4, 0x10), MINUS_1, 4, 1 << 34),
        ("sh3add.uw", op(0x3b, 6, 0x10), MINUS_1, 8, 1 << 35),
        ("andn", op(0x33, 7, 0x20), 0b1100, 0b1010, 0b0100),
        ("orn", op(0x33, 6, 0x20), 0, 0b1010, !0b1010),
        ("xnor", op(0x33, 4, 0x20), 0b1100, 0b1010, !0b0110),
        ("min", op(0x33, 4, 0x05), MIN, MAX, MIN),
        ("minu", op(0x33, 5, 0x05), MIN, MAX, MAX),
        ("max", op(0x33, 6, 0x05), MIN, MAX, MAX),
        ("maxu", op(0x33, 7, 0x05), MIN, MAX, MIN),
        ("rol", op(0x33, 1, 0x30), MIN | 1, 65, 3),
        ("ror", op(0x33, 5, 0x30), 3, 65, MIN | 1),
        ("rolw", op(0x3b, 1, 0x30), 0x4000_0000, 33, MIN_32),
        ("rorw", op(0x3b, 5, 0x30), 1, 33, MIN_32),
        ("bclr", op(0x33, 1, 0x24), MINUS_1, 64 + 63, MAX),
        ("bext", op(0x33, 5, 0x24), MIN, 63, 1),
        ("binv", op(0x33, 1, 0x34), MIN, 63, 0),
        ("bset", op(0x33, 1, 0x14), 0, 63, MIN),
    ]);
    let shift = |base: u32, amount: u32| r(base, A2, A0, 0) | amount << 20;
    check_unary(&[
        ("clz", r(0x6000_1013, A2, A0, 0), 1, 63),
        ("clz", r(0x6000_1013, A2, A0, 0), 0, 64),
        ("ctz", r(0x6010_1013, A2, A0, 0), 0, 64),
        ("cpop", r(0x6020_1013, A2, A0, 0), MINUS_1, 64),
        ("clzw", r(0x6000_101b, A2, A0, 0), 0xffff_ffff_0000_0000, 32),
        ("ctzw", r(0x6010_101b, A2, A0, 0), 0xffff_ffff_0000_0000, 32),
        ("cpopw", r(0x6020_101b, A2, A0, 0), MINUS_1, 32),
        ("sext.b", r(0x6040_1013, A2, A0, 0), 0x180, 0xffff_ffff_ffff_ff80),
        ("sext.h", r(0x6050_1013, A2, A0, 0), 0x1_8000, 0xffff_ffff_ffff_8000),
        ("zext.h", r(0x0800_403b, A2, A0, 0), MINUS_1, 0xffff),
        ("orc.b", r(0x2870_5013, A2, A0, 0), 0x0100_0080_0000_0001, 0xff00_00ff_0000_00ff),
        ("rev8", r(0x6b80_5013, A2, A0, 0), 0x0102_0304_0506_0708, 0x0807_0605_0403_0201),
        ("rori", shift(op(0x13, 5, 0x30), 1), 1, MIN),
        ("roriw", shift(op(0x1b, 5, 0x30), 1), 1, MIN_32),
        ("slli.uw", shift(op(0x1b, 1, 0x04), 32), MINUS_1, 0xffff_ffff_0000_0000),
        ("bclri", shift(op(0x13, 1, 0x24), 63), MINUS_1, MAX),
        ("bexti", shift(op(0x13, 5, 0x24), 63), MIN, 1),
        ("binvi", shift(op(0x13, 1, 0x34), 63), 0, MIN),
        ("bseti", shift(op(0x13, 1, 0x14), 63), 0, MIN),
    ]);
}

#[test]
fn branches_and_jumps() {
    // funct3, operands, whether taken.
    let cases = [
        (0, 5, 5, true),
        (0, 5, 6, false),
        (1, 5, 6, true),
        (1, 5, 5, false),
        (4, MINUS_1, 0, true),
        (4, 0, MINUS_1, false),
        (5, 0, MINUS_1, true),
        (5, 5, 5, true),
        (5, MINUS_1, 0, false),
        (6, 0, MINUS_1, true),
        (6, MINUS_1, 0, false),
        (7, MINUS_1, 0, true),
        (7, 0, MINUS_1, false),
    ];
    for (funct3, a, b, taken) in cases {
        let mut directed = Directed::new();
        directed.load(A0, a).load(A1, b);
        let to = directed.asm.label();
        directed.asm.branch(funct3, A0, A1, to);
        directed.word(addi(A2, ZERO, 1));
        directed.asm.bind(to);
        assert_eq!(directed.run().x(A2) == 0, taken, "funct3 {funct3} of {a:#x} and {b:#x}");
    }
    // A backward branch: 1 + 2 + ... + 10.
    let mut directed = Directed::new();
    directed.load(A0, 10);
    let again = directed.asm.label_here();
    directed.word(add(A1, A1, A0)).word(addi(A0, A0, -1));
    directed.asm.branch(1, A0, ZERO, again);
    assert_eq!(directed.run().x(A1), 55);
    // `jalr` clears bit 0, and reads its source before it writes the link.
    let mut directed = Directed::new();
    let to = directed.asm.label();
    directed.asm.address_of(A0, to);
    directed.word(addi(A0, A0, 1));
    let link = directed.asm.here() + 4;
    directed.word(jalr(A0, A0, 0)).word(addi(A2, ZERO, 1));
    directed.asm.bind(to);
    let ended = directed.run();
    assert_eq!((ended.x(A0), ended.x(A2)), (link, 0));
}

#[test]
fn loads_and_stores() {
    const VALUE: u64 = 0x8182_8384_8586_8788;
    let load = |funct3: u32, imm| i(0x03 | funct3 << 12, A2, A0, imm);
    let cases = [
        ("lb", load(0, 0), 0xffff_ffff_ffff_ff88),
        ("lh", load(1, 0), 0xffff_ffff_ffff_8788),
        ("lw", load(2, 0), 0xffff_ffff_8586_8788),
        ("ld", load(3, 0), VALUE),
        ("lbu", load(4, 0), 0x88),
        ("lhu", load(5, 0), 0x8788),
        ("lwu", load(6, 0), 0x8586_8788),
        ("lh misaligned", load(1, 1), 0xffff_ffff_ffff_8687),
        ("lwu misaligned", load(6, 3), 0x8283_8485),
    ];
    for (name, word, expected) in cases {
        let ended = Directed::new().memory_u64(DATA, VALUE).load(A0, DATA).word(word).run();
        assert_eq!(ended.x(A2), expected, "{name}");
    }
    // Each size, aligned, misaligned, and across the end of a page.
    for at in [DATA, DATA + 3, DATA + 4093] {
        for (funct3, bytes) in [(0, 1), (1, 2), (2, 4), (3, 8u32)] {
            let mut directed = Directed::new();
            directed.load(A0, at).load(A1, VALUE).word(s(0x23 | funct3 << 12, A0, A1, 0));
            let ended = directed.run();
            let kept = if bytes == 8 { VALUE } else { VALUE & ((1 << (8 * bytes)) - 1) };
            assert_eq!(ended.memory_u64(at), kept, "{bytes} bytes at {at:#x}");
        }
    }
}

/// Where a field's bits lie is what a test of C is about: each half is written out.
#[test]
fn compressed() {
    let stack = DATA + 0x100;
    let cases: [(&str, u16, u32); 20] = [
        ("c.addi a0, -1", 0x157d, addi(A0, A0, -1)),
        ("c.addiw a0, -1", 0x357d, addiw(A0, A0, -1)),
        ("c.li a0, 31", 0x457d, addi(A0, ZERO, 31)),
        ("c.lui a0, 0xfffe0", 0x7501, lui(A0, 0xfffe_0000)),
        ("c.addi16sp sp, -512", 0x7101, addi(SP, SP, -512)),
        ("c.addi4spn a0, 4", 0x0048, addi(A0, SP, 4)),
        ("c.slli a0, 63", 0x157e, slli(A0, A0, 63)),
        ("c.srli a0, 63", 0x917d, srli(A0, A0, 63)),
        ("c.srai a0, 63", 0x957d, i(0x5013, A0, A0, 0x400 | 63)),
        ("c.andi a0, -2", 0x9979, andi(A0, A0, -2)),
        ("c.sub a0, a1", 0x8d0d, r(0x4000_0033, A0, A0, A1)),
        ("c.xor a0, a1", 0x8d2d, r(0x4033, A0, A0, A1)),
        ("c.or a0, a1", 0x8d4d, r(0x6033, A0, A0, A1)),
        ("c.and a0, a1", 0x8d6d, r(0x7033, A0, A0, A1)),
        ("c.subw a0, a1", 0x9d0d, r(0x4000_003b, A0, A0, A1)),
        ("c.addw a0, a1", 0x9d2d, r(0x3b, A0, A0, A1)),
        ("c.mv a0, a1", 0x852e, add(A0, ZERO, A1)),
        ("c.add a0, a1", 0x952e, add(A0, A0, A1)),
        ("c.ldsp a0, 8(sp)", 0x6522, ld(A0, SP, 8)),
        ("c.lwsp a0, 4(sp)", 0x4512, lw(A0, SP, 4)),
    ];
    for (name, half, word) in cases {
        let prepared = || {
            let mut directed = Directed::new();
            directed.memory(stack, &[0x91; 64]).load(SP, stack);
            directed.load(A0, 0x1234_5678_9abc_def0).load(A1, 0xfedc_ba98_7654_3210);
            directed
        };
        let (mut short, mut long) = (prepared(), prepared());
        short.asm.half(half);
        let (short, long) = (short.run(), long.word(word).run());
        assert!(short.trap.is_none(), "{name} traps");
        assert_eq!((short.x(A0), short.x(SP)), (long.x(A0), long.x(SP)), "{name}");
    }
    // Loads and stores through x8 to x15.
    let mut directed = Directed::new();
    directed.load(A0, DATA).load(A1, 0x1122_3344_5566_7788);
    for half in [0xe10c, 0x4110, 0x6114] {
        // c.sd a1, 0(a0); c.lw a2, 0(a0); c.ld a3, 0(a0)
        directed.asm.half(half);
    }
    let ended = directed.run();
    assert_eq!((ended.x(A2), ended.x(13)), (0x5566_7788, 0x1122_3344_5566_7788));
}

#[test]
fn atomics() {
    let amo = |funct5: u32, funct3: u32| r(0x2f | funct3 << 12 | funct5 << 27, A2, A0, A1);
    // funct5, size, memory, operand, memory afterwards.
    let cases = [
        ("amoswap.d", amo(0x01, 3), MIN, 5, 5),
        ("amoadd.d", amo(0x00, 3), MAX, 1, MIN),
        ("amoxor.d", amo(0x04, 3), 0b1100, 0b1010, 0b0110),
        ("amoand.d", amo(0x0c, 3), 0b1100, 0b1010, 0b1000),
        ("amoor.d", amo(0x08, 3), 0b1100, 0b1010, 0b1110),
        ("amomin.d", amo(0x10, 3), MIN, MAX, MIN),
        ("amomax.d", amo(0x14, 3), MIN, MAX, MAX),
        ("amominu.d", amo(0x18, 3), MIN, MAX, MAX),
        ("amomaxu.d", amo(0x1c, 3), MIN, MAX, MIN),
        ("amoadd.w", amo(0x00, 2), 0x1_ffff_ffff, 1, 0x1_0000_0000),
        ("amomin.w", amo(0x10, 2), 0x1_8000_0000, 0xf_0000_0001, 0x1_8000_0000),
        ("amomaxu.w", amo(0x1c, 2), 0x1_0000_0001, 0xf_8000_0000, 0x1_8000_0000),
    ];
    for (name, word, before, operand, after) in cases {
        let mut directed = Directed::new();
        let ended = directed.memory_u64(DATA, before).load(A0, DATA).load(A1, operand).word(word).run();
        let loaded = if word >> 12 & 7 == 2 { before as i32 as u64 } else { before };
        assert_eq!((ended.x(A2), ended.memory_u64(DATA)), (loaded, after), "{name}");
    }
}

/// Each that is not above, in both sizes.
#[test]
fn atomics_of_words_leave_the_rest_alone() {
    let amo = |funct5: u32| r(0x202f | funct5 << 27, A2, A0, A1);
    // Memory and operand: the lower halves count.
    let (before, operand) = (0xaaaa_aaaa_8000_000f, 0x5555_5555_0000_0033u64);
    for (name, word, after) in [
        ("amoswap.w", amo(0x01), 0x33),
        ("amoadd.w", amo(0x00), 0x8000_0042),
        ("amoxor.w", amo(0x04), 0x8000_003c),
        ("amoand.w", amo(0x0c), 0x03),
        ("amoor.w", amo(0x08), 0x8000_003f),
        ("amomin.w", amo(0x10), 0x8000_000f),
        ("amomax.w", amo(0x14), 0x33),
        ("amominu.w", amo(0x18), 0x33),
        ("amomaxu.w", amo(0x1c), 0x8000_000f),
    ] {
        // The ordering bits change nothing here.
        for ordering in 0..4u32 {
            let mut directed = Directed::new();
            directed.memory_u64(DATA, before).load(A0, DATA).load(A1, operand);
            let ended = directed.word(word | ordering << 25).run();
            assert_eq!(ended.x(A2), 0xffff_ffff_8000_000f, "{name}");
            assert_eq!(ended.memory_u64(DATA), 0xaaaa_aaaa_0000_0000 | after, "{name}");
        }
    }
}

#[test]
fn reservations() {
    let lr = |rd, rs1| r(0x1000_302f, rd, rs1, 0);
    let sc = |rd, rs1, rs2| r(0x1800_302f, rd, rs1, rs2);
    let mut directed = Directed::new();
    directed.memory_u64(DATA, 7).load(A0, DATA).load(A1, 8);
    // The first succeeds; the reservation is then gone.
    let ended = directed.word(lr(A2, A0)).word(sc(13, A0, A1)).word(sc(14, A0, A2)).run();
    assert_eq!((ended.x(A2), ended.x(13), ended.x(14)), (7, 0, 1));
    assert_eq!(ended.memory_u64(DATA), 8);
    // None at all, or one for another address.
    let mut directed = Directed::new();
    directed.load(A0, DATA).load(A1, DATA + 64).word(sc(A2, A0, A0)).word(lr(ZERO, A1)).word(sc(13, A0, A0));
    let ended = directed.run();
    assert_eq!((ended.x(A2), ended.x(13), ended.memory_u64(DATA)), (1, 1, 0));
}

const ONE: u64 = 0x3ff0_0000_0000_0000;
const ONE_SINGLE: u64 = 0xffff_ffff_3f80_0000;
const NAN: u64 = 0x7ff8_0000_0000_0000;
const NAN_SINGLE: u64 = 0xffff_ffff_7fc0_0000;
const SIGNALLING: u64 = 0x7ff0_0000_0000_0001;
const INFINITY: u64 = 0x7ff0_0000_0000_0000;
const INVALID: u64 = 16;
const DIVISION_BY_ZERO: u64 = 8;
const OVERFLOW: u64 = 4;
const UNDERFLOW: u64 = 2;
const INEXACT: u64 = 1;

/// Runs `fa2 = fa0 op fa1` (or to a2) and gives both results and the flags.
fn run_float(word: u32, a: u64, b: u64) -> (u64, u64, u64) {
    let mut directed = Directed::new();
    directed.load(A0, a).load(A1, b);
    directed.word(r(0xf200_0053, A0, A0, 0)).word(r(0xf200_0053, A1, A1, 0));
    directed.word(word).word(csrrs(13, FFLAGS, ZERO));
    let ended = directed.run();
    assert!(ended.trap.is_none(), "{word:08x} traps");
    (ended.f(A2), ended.x(A2), ended.x(13))
}

#[test]
fn float_arithmetic() {
    let double = |funct5: u32, mode: u32| r(0x0200_0053 | funct5 << 27 | mode << 12, A2, A0, A1);
    let (huge, tiny) = (0x7fef_ffff_ffff_ffff, 1);
    let minus = |value: u64| value | MIN;
    let cases = [
        ("1 + 1", double(0, 0), ONE, ONE, 0x4000_0000_0000_0000, 0),
        ("1 + tiny, to nearest", double(0, 0), ONE, tiny, ONE, INEXACT),
        ("1 + tiny, up", double(0, 3), ONE, tiny, ONE + 1, INEXACT),
        ("1 - 1, down", double(1, 2), ONE, ONE, MIN, 0),
        ("huge * huge, to nearest", double(2, 0), huge, huge, INFINITY, OVERFLOW | INEXACT),
        ("huge * huge, to zero", double(2, 1), huge, huge, huge, OVERFLOW | INEXACT),
        ("tiny * tiny", double(2, 0), tiny, tiny, 0, UNDERFLOW | INEXACT),
        ("1 / 0", double(3, 0), ONE, 0, INFINITY, DIVISION_BY_ZERO),
        ("0 / 0", double(3, 0), 0, 0, NAN, INVALID),
        ("infinity - infinity", double(1, 0), INFINITY, INFINITY, NAN, INVALID),
        ("signalling NaN", double(0, 0), SIGNALLING, ONE, NAN, INVALID),
        ("quiet NaN loses its payload", double(0, 0), NAN | 5, ONE, NAN, 0),
        ("square root of -1", r(0x5a00_0053, A2, A0, 0), minus(ONE), 0, NAN, INVALID),
        ("square root of -0", r(0x5a00_0053, A2, A0, 0), MIN, 0, MIN, 0),
        ("fsgnjn.d", r(0x2200_1053, A2, A0, A1), ONE, ONE, minus(ONE), 0),
        ("fmin.d of zeros", r(0x2a00_0053, A2, A0, A1), 0, MIN, MIN, 0),
        ("fmax.d with NaN", r(0x2a00_1053, A2, A0, A1), NAN, ONE, ONE, 0),
        ("fmin.d with signalling NaN", r(0x2a00_0053, A2, A0, A1), SIGNALLING, ONE, ONE, INVALID),
        // A single that is not boxed counts as NaN.
        ("fadd.s, not boxed", r(0x0000_0053, A2, A0, A1), 0x3f80_0000, ONE_SINGLE, NAN_SINGLE, 0),
        ("fcvt.s.d", r(0x4010_0053, A2, A0, 0), ONE, 0, ONE_SINGLE, 0),
        ("fcvt.d.s", r(0x4200_0053, A2, A0, 0), ONE_SINGLE, 0, ONE, 0),
    ];
    for (name, word, a, b, expected, flags) in cases {
        let (result, _, found) = run_float(word, a, b);
        assert_eq!((result, found), (expected, flags), "{name}: {result:#x}");
    }
}

#[test]
fn float_to_integer() {
    let (minus_one, half) = (ONE | MIN, 0x3fe0_0000_0000_0000);
    let convert = |to: u32, mode: u32| r(0xc200_0053 | mode << 12 | to << 20, A2, A0, 0);
    let cases = [
        ("fcvt.w.d of NaN", convert(0, 0), NAN, 0x7fff_ffff, INVALID),
        ("fcvt.w.d of -infinity", convert(0, 0), INFINITY | MIN, MIN_32, INVALID),
        ("fcvt.wu.d of -1", convert(1, 0), minus_one, 0, INVALID),
        ("fcvt.wu.d of 2^32 - 1", convert(1, 0), 0x41ef_ffff_ffe0_0000, MINUS_1, 0),
        ("fcvt.l.d of 2^63", convert(2, 0), 0x43e0_0000_0000_0000, MAX, INVALID),
        ("fcvt.lu.d of NaN", convert(3, 0), NAN, MINUS_1, INVALID),
        ("0.5 to even", convert(0, 0), half, 0, INEXACT),
        ("0.5 up", convert(0, 3), half, 1, INEXACT),
        ("0.5 to away", convert(0, 4), half, 1, INEXACT),
        ("-0.5 down to an unsigned", convert(1, 2), half | MIN, 0, INVALID),
        ("-0.5 to zero to an unsigned", convert(1, 1), half | MIN, 0, INEXACT),
        ("fclass.d of -infinity", r(0xe200_1053, A2, A0, 0), INFINITY | MIN, 1, 0),
        ("fclass.d of signalling NaN", r(0xe200_1053, A2, A0, 0), SIGNALLING, 1 << 8, 0),
        ("fclass.d of a subnormal", r(0xe200_1053, A2, A0, 0), 1, 1 << 5, 0),
        ("feq.d with quiet NaN", r(0xa200_2053, A2, A0, A1), NAN, 0, 0),
        ("flt.d with quiet NaN", r(0xa200_1053, A2, A0, A1), NAN, 0, INVALID),
        ("fle.d of zeros", r(0xa200_0053, A2, A0, A1), MIN, 1, 0),
        ("fmv.x.w", r(0xe000_0053, A2, A0, 0), 0x8000_0000, MIN_32, 0),
    ];
    for (name, word, a, expected, flags) in cases {
        let (_, result, found) = run_float(word, a, 0);
        assert_eq!((result, found), (expected, flags), "{name}: {result:#x}");
    }
}

#[test]
fn fused_multiplication() {
    // (1 + 2^-52)^2 - 1 - 2^-51 is 2^-104: no rounding in between.
    let x = ONE + 1;
    let rest = 0x3ff0_0000_0000_0002 | MIN;
    let mut directed = Directed::new();
    directed.load(A0, x).load(A1, rest).word(r(0xf200_0053, A0, A0, 0)).word(r(0xf200_0053, A1, A1, 0));
    let ended = directed.word(r4(0x0200_0043, A2, A0, A0, A1)).word(csrrs(13, FFLAGS, ZERO)).run();
    assert_eq!((ended.f(A2), ended.x(13)), (0x3970_0000_0000_0000, 0));
}

#[test]
fn code_that_changes_itself() {
    let mut directed = Directed::new();
    let slot = directed.asm.label();
    directed.asm.address_of(A0, slot);
    directed.load(A1, u64::from(addi(A2, A2, 2)));
    // Executed once as it was, then changed and executed again.
    let again = directed.asm.label_here();
    directed.asm.bind(slot);
    directed.word(addi(A2, A2, 1)).word(sw(A1, A0, 0)).word(FENCE_I).word(addi(13, 13, 1));
    directed.load(14, 3);
    directed.asm.branch(1, 13, 14, again);
    assert_eq!(directed.run().x(A2), 1 + 2 + 2);
}

#[test]
fn compressed_jumps_branches_and_stores() {
    // Two bytes on: a skipped half is one that would change a2.
    let c_li_a2: u16 = 0x4605;
    for (name, half, a0, taken) in [
        ("c.j .+4", 0xa011, 0, true),
        ("c.beqz a0, .+4", 0xc111, 0, true),
        ("c.beqz a0, .+4", 0xc111, MIN, false),
        ("c.bnez a0, .+4", 0xe111, MIN, true),
        ("c.bnez a0, .+4", 0xe111, 0, false),
    ] {
        let mut directed = Directed::new();
        directed.load(A0, a0);
        [half, c_li_a2, C_NOP].into_iter().for_each(|half| directed.asm.half(half));
        assert_eq!(directed.run().x(A2) == 0, taken, "{name} of {a0:#x}");
    }
    for (name, half, links) in [("c.jr a0", 0x8502, false), ("c.jalr a0", 0x9502, true)] {
        let mut directed = Directed::new();
        let to = directed.asm.label();
        directed.asm.address_of(A0, to);
        let after = directed.asm.here() + 2;
        [half, c_li_a2].into_iter().for_each(|half| directed.asm.half(half));
        directed.asm.bind(to);
        let ended = directed.run();
        assert_eq!((ended.x(A2), ended.x(RA)), (0, if links { after } else { 0 }), "{name}");
    }
    const VALUE: u64 = 0x8877_6655_4433_2211;
    let stack = DATA + 0x100;
    // To 8 bytes above, all of it or the lower half; from float registers as they lie.
    for (name, half, stored) in [
        ("c.sdsp a1, 8", 0xe42e, VALUE),
        ("c.swsp a1, 8", 0xc42e, VALUE & 0xffff_ffff),
        ("c.sd a1, 8(a0)", 0xe50c, VALUE),
        ("c.sw a1, 8(a0)", 0xc50c, VALUE & 0xffff_ffff),
        ("c.fsdsp fa1, 8", 0xa42e, VALUE),
        ("c.fsd fa1, 8(a0)", 0xa50c, VALUE),
    ] {
        let mut directed = Directed::new();
        directed.load(SP, stack).load(A0, stack).load(A1, VALUE).word(r(0xf200_0053, A1, A1, 0));
        directed.asm.half(half);
        assert_eq!(directed.run().memory_u64(stack + 8), stored, "{name}");
    }
    for (name, half) in [("c.fldsp fa2, 8", 0x2622), ("c.fld fa2, 8(a0)", 0x2510)] {
        let mut directed = Directed::new();
        directed.memory_u64(stack + 8, VALUE).load(SP, stack).load(A0, stack);
        directed.asm.half(half);
        assert_eq!(directed.run().f(A2), VALUE, "{name}");
    }
}

#[test]
fn float_loads_and_stores_move_bits() {
    let (flw, fsw) = (i(0x2007, A2, A0, 0), s(0x2027, A0, A1, 0));
    for bits in [0x7f80_0001u64, 0x3f80_0000, 0] {
        let mut directed = Directed::new();
        let ended = directed.memory_u64(DATA, 0x1234_5678 << 32 | bits).load(A0, DATA).word(flw).run();
        assert_eq!(ended.f(A2), 0xffff_ffff_0000_0000 | bits, "flw boxes");
        let mut directed = Directed::new();
        directed.load(A1, 0x1234_5678 << 32 | bits).word(r(0xf200_0053, A1, A1, 0)).load(A0, DATA);
        assert_eq!(directed.word(fsw).run().memory_u64(DATA), bits, "fsw stores whatever is there");
    }
}

#[test]
fn hints_and_fences_do_nothing() {
    let before = Directed::new().load(A0, 5).run();
    for (name, word) in [
        ("lui zero", lui(ZERO, 0x1234_5000)),
        ("addi zero, a0, 1", addi(ZERO, A0, 1)),
        ("slli zero", slli(ZERO, A0, 3)),
        ("add zero", add(ZERO, A0, A0)),
        ("prefetch.r", i(0x6013, ZERO, A0, 1)),
        ("pause", 0x0100_000f),
        ("fence.tso", 0x8330_000f),
        ("fence with reserved fields", 0x0ff0_000f | A0 << 15 | A1 << 7),
        ("fence.i", FENCE_I),
    ] {
        let ended = Directed::new().load(A0, 5).word(word).run();
        assert!(ended.trap.is_none(), "{name}");
        let registers = |ended: &Ended| (ended.x(A0), ended.x(A1), ended.x(A2), ended.x(ZERO));
        assert_eq!(registers(&ended), registers(&before), "{name}");
    }
}
