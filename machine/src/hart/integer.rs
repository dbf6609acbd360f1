//! Integer instructions: RV64I, M, Zba, Zbb, Zbs, Zicond.

use super::Hart;
use super::op::{OpRef, go_on};
use crate::bus::Bus;

/// Register-register operations.
macro_rules! register_ops {
    ($($name:ident: |$a:ident, $b:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let ($a, $b) = (hart.rs1(op), hart.rs2(op));
            hart.set_rd(op, $value);
            go_on(hart, op, slack, bus)
        }
    )* };
}

/// Register-immediate operations.
macro_rules! immediate_ops {
    ($($name:ident: |$a:ident, $imm:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let ($a, $imm) = (hart.rs1(op), op.imm as u64);
            hart.set_rd(op, $value);
            go_on(hart, op, slack, bus)
        }
    )* };
}

/// A 32-bit result, sign-extended.
#[inline(always)]
fn word(value: u32) -> u64 {
    value as i32 as u64
}

immediate_ops! {
    addi: |a, imm| a.wrapping_add(imm);
    slti: |a, imm| u64::from((a as i64) < imm as i64);
    sltiu: |a, imm| u64::from(a < imm);
    xori: |a, imm| a ^ imm;
    ori: |a, imm| a | imm;
    andi: |a, imm| a & imm;
    slli: |a, imm| a << (imm & 63);
    srli: |a, imm| a >> (imm & 63);
    srai: |a, imm| (a as i64 >> (imm & 63)) as u64;
    addiw: |a, imm| word((a as u32).wrapping_add(imm as u32));
    slliw: |a, imm| word((a as u32) << (imm & 31));
    srliw: |a, imm| word(a as u32 >> (imm & 31));
    sraiw: |a, imm| (a as i32 >> (imm & 31)) as u64;
    rori: |a, imm| a.rotate_right((imm & 63) as u32);
    roriw: |a, imm| word((a as u32).rotate_right((imm & 31) as u32));
    slli_uw: |a, imm| u64::from(a as u32) << (imm & 63);
    bclri: |a, imm| a & !(1 << (imm & 63));
    bexti: |a, imm| a >> (imm & 63) & 1;
    binvi: |a, imm| a ^ 1 << (imm & 63);
    bseti: |a, imm| a | 1 << (imm & 63);
    load_immediate: |_a, imm| imm;
    copy: |a, _imm| a;
    clz: |a, _imm| u64::from(a.leading_zeros());
    clzw: |a, _imm| u64::from((a as u32).leading_zeros());
    ctz: |a, _imm| u64::from(a.trailing_zeros());
    ctzw: |a, _imm| u64::from((a as u32).trailing_zeros());
    cpop: |a, _imm| u64::from(a.count_ones());
    cpopw: |a, _imm| u64::from((a as u32).count_ones());
    sext_b: |a, _imm| a as i8 as u64;
    sext_h: |a, _imm| a as i16 as u64;
    zext_h: |a, _imm| u64::from(a as u16);
    orc_b: |a, _imm| or_combine(a);
    rev8: |a, _imm| a.swap_bytes();
}

register_ops! {
    add: |a, b| a.wrapping_add(b);
    sub: |a, b| a.wrapping_sub(b);
    sll: |a, b| a << (b & 63);
    slt: |a, b| u64::from((a as i64) < b as i64);
    sltu: |a, b| u64::from(a < b);
    xor: |a, b| a ^ b;
    srl: |a, b| a >> (b & 63);
    sra: |a, b| (a as i64 >> (b & 63)) as u64;
    or: |a, b| a | b;
    and: |a, b| a & b;
    addw: |a, b| word((a as u32).wrapping_add(b as u32));
    subw: |a, b| word((a as u32).wrapping_sub(b as u32));
    sllw: |a, b| word((a as u32) << (b & 31));
    srlw: |a, b| word(a as u32 >> (b & 31));
    sraw: |a, b| (a as i32 >> (b & 31)) as u64;
    mul: |a, b| a.wrapping_mul(b);
    mulh: |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64;
    mulhsu: |a, b| (i128::from(a as i64).wrapping_mul(i128::from(b)) >> 64) as u64;
    mulhu: |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64;
    mulw: |a, b| word((a as u32).wrapping_mul(b as u32));
    div: |a, b| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 };
    divu: |a, b| a.checked_div(b).unwrap_or(u64::MAX);
    rem: |a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 };
    remu: |a, b| a.checked_rem(b).unwrap_or(a);
    divw: |a, b| if b as u32 == 0 { u64::MAX } else { (a as i32).wrapping_div(b as i32) as u64 };
    divuw: |a, b| word((a as u32).checked_div(b as u32).unwrap_or(u32::MAX));
    remw: |a, b| if b as u32 == 0 { word(a as u32) } else { (a as i32).wrapping_rem(b as i32) as u64 };
    remuw: |a, b| word((a as u32).checked_rem(b as u32).unwrap_or(a as u32));
    add_uw: |a, b| u64::from(a as u32).wrapping_add(b);
    sh1add: |a, b| (a << 1).wrapping_add(b);
    sh2add: |a, b| (a << 2).wrapping_add(b);
    sh3add: |a, b| (a << 3).wrapping_add(b);
    sh1add_uw: |a, b| (u64::from(a as u32) << 1).wrapping_add(b);
    sh2add_uw: |a, b| (u64::from(a as u32) << 2).wrapping_add(b);
    sh3add_uw: |a, b| (u64::from(a as u32) << 3).wrapping_add(b);
    andn: |a, b| a & !b;
    orn: |a, b| a | !b;
    xnor: |a, b| !(a ^ b);
    max: |a, b| (a as i64).max(b as i64) as u64;
    maxu: |a, b| a.max(b);
    min: |a, b| (a as i64).min(b as i64) as u64;
    minu: |a, b| a.min(b);
    rol: |a, b| a.rotate_left((b & 63) as u32);
    rolw: |a, b| word((a as u32).rotate_left((b & 31) as u32));
    ror: |a, b| a.rotate_right((b & 63) as u32);
    rorw: |a, b| word((a as u32).rotate_right((b & 31) as u32));
    bclr: |a, b| a & !(1 << (b & 63));
    bext: |a, b| a >> (b & 63) & 1;
    binv: |a, b| a ^ 1 << (b & 63);
    bset: |a, b| a | 1 << (b & 63);
    czero_eqz: |a, b| if b == 0 { 0 } else { a };
    czero_nez: |a, b| if b == 0 { a } else { 0 };
}

/// `orc.b`: each byte becomes all ones unless it is zero.
fn or_combine(value: u64) -> u64 {
    u64::from_le_bytes(value.to_le_bytes().map(|byte| if byte == 0 { 0 } else { 0xff }))
}

/// `auipc`: the immediate is relative to the page.
pub(super) fn auipc(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let value = hart.page_virtual.wrapping_add(op.imm as u64);
    hart.set_rd(op, value);
    go_on(hart, op, slack, bus)
}

/// Does nothing: `fence`, and hints.
pub(super) fn nothing(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    go_on(hart, op, slack, bus)
}
