//! Names of the instructions that the hart knows: for reports, and to see that each of them
//! was executed.
//!
//! Written from the specification's opcode lists, not from the hart's decoder: an instruction
//! that executes without a name here fails the tests, and so does a name that never executes.

/// A pattern: the bits that count, their values, and the name.
type Pattern = (u32, u32, &'static str);

/// Opcode and funct3.
const FUNCT3: u32 = 0x707f;
/// Opcode, funct3 and funct7.
const FUNCT7: u32 = 0xfe00_707f;
/// The same without the highest bit of a 6-bit shift amount.
const SHIFT_64: u32 = 0xfc00_707f;
/// Opcode, funct3, funct7 and rs2.
const UNARY: u32 = 0xfff0_707f;
/// Opcode, funct3 and funct5.
const AMO: u32 = 0xf800_707f;
/// Opcode and format of a fused multiply-add.
const FUSED: u32 = 0x0600_007f;
/// Opcode and funct7; funct3 is the rounding mode.
const ROUNDED: u32 = 0xfe00_007f;
/// The same and rs2.
const ROUNDED_UNARY: u32 = 0xfff0_007f;

/// Instructions of 32 bits.
const WORDS: &[Pattern] = &[
    // RV64I.
    (0x7f, 0x37, "lui"),
    (0x7f, 0x17, "auipc"),
    (0x7f, 0x6f, "jal"),
    (FUNCT3, 0x67, "jalr"),
    (FUNCT3, 0x0063, "beq"),
    (FUNCT3, 0x1063, "bne"),
    (FUNCT3, 0x4063, "blt"),
    (FUNCT3, 0x5063, "bge"),
    (FUNCT3, 0x6063, "bltu"),
    (FUNCT3, 0x7063, "bgeu"),
    (FUNCT3, 0x0003, "lb"),
    (FUNCT3, 0x1003, "lh"),
    (FUNCT3, 0x2003, "lw"),
    (FUNCT3, 0x3003, "ld"),
    (FUNCT3, 0x4003, "lbu"),
    (FUNCT3, 0x5003, "lhu"),
    (FUNCT3, 0x6003, "lwu"),
    (FUNCT3, 0x0023, "sb"),
    (FUNCT3, 0x1023, "sh"),
    (FUNCT3, 0x2023, "sw"),
    (FUNCT3, 0x3023, "sd"),
    (FUNCT3, 0x0013, "addi"),
    (FUNCT3, 0x2013, "slti"),
    (FUNCT3, 0x3013, "sltiu"),
    (FUNCT3, 0x4013, "xori"),
    (FUNCT3, 0x6013, "ori"),
    (FUNCT3, 0x7013, "andi"),
    (SHIFT_64, 0x0000_1013, "slli"),
    (SHIFT_64, 0x0000_5013, "srli"),
    (SHIFT_64, 0x4000_5013, "srai"),
    (FUNCT7, 0x0000_0033, "add"),
    (FUNCT7, 0x4000_0033, "sub"),
    (FUNCT7, 0x0000_1033, "sll"),
    (FUNCT7, 0x0000_2033, "slt"),
    (FUNCT7, 0x0000_3033, "sltu"),
    (FUNCT7, 0x0000_4033, "xor"),
    (FUNCT7, 0x0000_5033, "srl"),
    (FUNCT7, 0x4000_5033, "sra"),
    (FUNCT7, 0x0000_6033, "or"),
    (FUNCT7, 0x0000_7033, "and"),
    (FUNCT3, 0x001b, "addiw"),
    (FUNCT7, 0x0000_101b, "slliw"),
    (FUNCT7, 0x0000_501b, "srliw"),
    (FUNCT7, 0x4000_501b, "sraiw"),
    (FUNCT7, 0x0000_003b, "addw"),
    (FUNCT7, 0x4000_003b, "subw"),
    (FUNCT7, 0x0000_103b, "sllw"),
    (FUNCT7, 0x0000_503b, "srlw"),
    (FUNCT7, 0x4000_503b, "sraw"),
    (FUNCT3, 0x000f, "fence"),
    (FUNCT3, 0x100f, "fence.i"),
    (!0, 0x0000_0073, "ecall"),
    (!0, 0x0010_0073, "ebreak"),
    // Privileged.
    (!0, 0x1020_0073, "sret"),
    (!0, 0x3020_0073, "mret"),
    (!0, 0x1050_0073, "wfi"),
    (0xfe00_7fff, 0x1200_0073, "sfence.vma"),
    // Zicsr.
    (FUNCT3, 0x1073, "csrrw"),
    (FUNCT3, 0x2073, "csrrs"),
    (FUNCT3, 0x3073, "csrrc"),
    (FUNCT3, 0x5073, "csrrwi"),
    (FUNCT3, 0x6073, "csrrsi"),
    (FUNCT3, 0x7073, "csrrci"),
    // Zicbom and Zicboz.
    (0xfff0_7fff, 0x0000_200f, "cbo.inval"),
    (0xfff0_7fff, 0x0010_200f, "cbo.clean"),
    (0xfff0_7fff, 0x0020_200f, "cbo.flush"),
    (0xfff0_7fff, 0x0040_200f, "cbo.zero"),
    // M.
    (FUNCT7, 0x0200_0033, "mul"),
    (FUNCT7, 0x0200_1033, "mulh"),
    (FUNCT7, 0x0200_2033, "mulhsu"),
    (FUNCT7, 0x0200_3033, "mulhu"),
    (FUNCT7, 0x0200_4033, "div"),
    (FUNCT7, 0x0200_5033, "divu"),
    (FUNCT7, 0x0200_6033, "rem"),
    (FUNCT7, 0x0200_7033, "remu"),
    (FUNCT7, 0x0200_003b, "mulw"),
    (FUNCT7, 0x0200_403b, "divw"),
    (FUNCT7, 0x0200_503b, "divuw"),
    (FUNCT7, 0x0200_603b, "remw"),
    (FUNCT7, 0x0200_703b, "remuw"),
    // Zba.
    (FUNCT7, 0x0800_003b, "add.uw"),
    (FUNCT7, 0x2000_2033, "sh1add"),
    (FUNCT7, 0x2000_4033, "sh2add"),
    (FUNCT7, 0x2000_6033, "sh3add"),
    (FUNCT7, 0x2000_203b, "sh1add.uw"),
    (FUNCT7, 0x2000_403b, "sh2add.uw"),
    (FUNCT7, 0x2000_603b, "sh3add.uw"),
    (SHIFT_64, 0x0800_101b, "slli.uw"),
    // Zbb.
    (FUNCT7, 0x4000_7033, "andn"),
    (FUNCT7, 0x4000_6033, "orn"),
    (FUNCT7, 0x4000_4033, "xnor"),
    (UNARY, 0x6000_1013, "clz"),
    (UNARY, 0x6010_1013, "ctz"),
    (UNARY, 0x6020_1013, "cpop"),
    (UNARY, 0x6000_101b, "clzw"),
    (UNARY, 0x6010_101b, "ctzw"),
    (UNARY, 0x6020_101b, "cpopw"),
    (FUNCT7, 0x0a00_4033, "min"),
    (FUNCT7, 0x0a00_5033, "minu"),
    (FUNCT7, 0x0a00_6033, "max"),
    (FUNCT7, 0x0a00_7033, "maxu"),
    (UNARY, 0x6040_1013, "sext.b"),
    (UNARY, 0x6050_1013, "sext.h"),
    (UNARY, 0x0800_403b, "zext.h"),
    (FUNCT7, 0x6000_1033, "rol"),
    (FUNCT7, 0x6000_5033, "ror"),
    (SHIFT_64, 0x6000_5013, "rori"),
    (FUNCT7, 0x6000_103b, "rolw"),
    (FUNCT7, 0x6000_503b, "rorw"),
    (FUNCT7, 0x6000_501b, "roriw"),
    (UNARY, 0x2870_5013, "orc.b"),
    (UNARY, 0x6b80_5013, "rev8"),
    // Zbs.
    (FUNCT7, 0x4800_1033, "bclr"),
    (FUNCT7, 0x4800_5033, "bext"),
    (FUNCT7, 0x6800_1033, "binv"),
    (FUNCT7, 0x2800_1033, "bset"),
    (SHIFT_64, 0x4800_1013, "bclri"),
    (SHIFT_64, 0x4800_5013, "bexti"),
    (SHIFT_64, 0x6800_1013, "binvi"),
    (SHIFT_64, 0x2800_1013, "bseti"),
    // Zicond.
    (FUNCT7, 0x0e00_5033, "czero.eqz"),
    (FUNCT7, 0x0e00_7033, "czero.nez"),
    // A.
    (0xf9f0_707f, 0x1000_202f, "lr.w"),
    (0xf9f0_707f, 0x1000_302f, "lr.d"),
    (AMO, 0x1800_202f, "sc.w"),
    (AMO, 0x1800_302f, "sc.d"),
    (AMO, 0x0000_202f, "amoadd.w"),
    (AMO, 0x0000_302f, "amoadd.d"),
    (AMO, 0x0800_202f, "amoswap.w"),
    (AMO, 0x0800_302f, "amoswap.d"),
    (AMO, 0x2000_202f, "amoxor.w"),
    (AMO, 0x2000_302f, "amoxor.d"),
    (AMO, 0x4000_202f, "amoor.w"),
    (AMO, 0x4000_302f, "amoor.d"),
    (AMO, 0x6000_202f, "amoand.w"),
    (AMO, 0x6000_302f, "amoand.d"),
    (AMO, 0x8000_202f, "amomin.w"),
    (AMO, 0x8000_302f, "amomin.d"),
    (AMO, 0xa000_202f, "amomax.w"),
    (AMO, 0xa000_302f, "amomax.d"),
    (AMO, 0xc000_202f, "amominu.w"),
    (AMO, 0xc000_302f, "amominu.d"),
    (AMO, 0xe000_202f, "amomaxu.w"),
    (AMO, 0xe000_302f, "amomaxu.d"),
    // F and D.
    (FUNCT3, 0x2007, "flw"),
    (FUNCT3, 0x3007, "fld"),
    (FUNCT3, 0x2027, "fsw"),
    (FUNCT3, 0x3027, "fsd"),
    (FUSED, 0x0000_0043, "fmadd.s"),
    (FUSED, 0x0200_0043, "fmadd.d"),
    (FUSED, 0x0000_0047, "fmsub.s"),
    (FUSED, 0x0200_0047, "fmsub.d"),
    (FUSED, 0x0000_004b, "fnmsub.s"),
    (FUSED, 0x0200_004b, "fnmsub.d"),
    (FUSED, 0x0000_004f, "fnmadd.s"),
    (FUSED, 0x0200_004f, "fnmadd.d"),
    (ROUNDED, 0x0000_0053, "fadd.s"),
    (ROUNDED, 0x0200_0053, "fadd.d"),
    (ROUNDED, 0x0800_0053, "fsub.s"),
    (ROUNDED, 0x0a00_0053, "fsub.d"),
    (ROUNDED, 0x1000_0053, "fmul.s"),
    (ROUNDED, 0x1200_0053, "fmul.d"),
    (ROUNDED, 0x1800_0053, "fdiv.s"),
    (ROUNDED, 0x1a00_0053, "fdiv.d"),
    (ROUNDED_UNARY, 0x5800_0053, "fsqrt.s"),
    (ROUNDED_UNARY, 0x5a00_0053, "fsqrt.d"),
    (FUNCT7, 0x2000_0053, "fsgnj.s"),
    (FUNCT7, 0x2200_0053, "fsgnj.d"),
    (FUNCT7, 0x2000_1053, "fsgnjn.s"),
    (FUNCT7, 0x2200_1053, "fsgnjn.d"),
    (FUNCT7, 0x2000_2053, "fsgnjx.s"),
    (FUNCT7, 0x2200_2053, "fsgnjx.d"),
    (FUNCT7, 0x2800_0053, "fmin.s"),
    (FUNCT7, 0x2a00_0053, "fmin.d"),
    (FUNCT7, 0x2800_1053, "fmax.s"),
    (FUNCT7, 0x2a00_1053, "fmax.d"),
    (ROUNDED_UNARY, 0x4010_0053, "fcvt.s.d"),
    (ROUNDED_UNARY, 0x4200_0053, "fcvt.d.s"),
    (FUNCT7, 0xa000_0053, "fle.s"),
    (FUNCT7, 0xa200_0053, "fle.d"),
    (FUNCT7, 0xa000_1053, "flt.s"),
    (FUNCT7, 0xa200_1053, "flt.d"),
    (FUNCT7, 0xa000_2053, "feq.s"),
    (FUNCT7, 0xa200_2053, "feq.d"),
    (ROUNDED_UNARY, 0xc000_0053, "fcvt.w.s"),
    (ROUNDED_UNARY, 0xc010_0053, "fcvt.wu.s"),
    (ROUNDED_UNARY, 0xc020_0053, "fcvt.l.s"),
    (ROUNDED_UNARY, 0xc030_0053, "fcvt.lu.s"),
    (ROUNDED_UNARY, 0xc200_0053, "fcvt.w.d"),
    (ROUNDED_UNARY, 0xc210_0053, "fcvt.wu.d"),
    (ROUNDED_UNARY, 0xc220_0053, "fcvt.l.d"),
    (ROUNDED_UNARY, 0xc230_0053, "fcvt.lu.d"),
    (ROUNDED_UNARY, 0xd000_0053, "fcvt.s.w"),
    (ROUNDED_UNARY, 0xd010_0053, "fcvt.s.wu"),
    (ROUNDED_UNARY, 0xd020_0053, "fcvt.s.l"),
    (ROUNDED_UNARY, 0xd030_0053, "fcvt.s.lu"),
    (ROUNDED_UNARY, 0xd200_0053, "fcvt.d.w"),
    (ROUNDED_UNARY, 0xd210_0053, "fcvt.d.wu"),
    (ROUNDED_UNARY, 0xd220_0053, "fcvt.d.l"),
    (ROUNDED_UNARY, 0xd230_0053, "fcvt.d.lu"),
    (UNARY, 0xe000_0053, "fmv.x.w"),
    (UNARY, 0xe200_0053, "fmv.x.d"),
    (UNARY, 0xe000_1053, "fclass.s"),
    (UNARY, 0xe200_1053, "fclass.d"),
    (UNARY, 0xf000_0053, "fmv.w.x"),
    (UNARY, 0xf200_0053, "fmv.d.x"),
];

/// Instructions of 16 bits; of those that a pattern holds in common, the first in order.
const HALVES: &[Pattern] = &[
    (0xe003, 0x0000, "c.addi4spn"),
    (0xe003, 0x2000, "c.fld"),
    (0xe003, 0x4000, "c.lw"),
    (0xe003, 0x6000, "c.ld"),
    (0xe003, 0xa000, "c.fsd"),
    (0xe003, 0xc000, "c.sw"),
    (0xe003, 0xe000, "c.sd"),
    (0xef83, 0x0001, "c.nop"),
    (0xe003, 0x0001, "c.addi"),
    (0xe003, 0x2001, "c.addiw"),
    (0xe003, 0x4001, "c.li"),
    (0xef83, 0x6101, "c.addi16sp"),
    (0xe003, 0x6001, "c.lui"),
    (0xec03, 0x8001, "c.srli"),
    (0xec03, 0x8401, "c.srai"),
    (0xec03, 0x8801, "c.andi"),
    (0xfc63, 0x8c01, "c.sub"),
    (0xfc63, 0x8c21, "c.xor"),
    (0xfc63, 0x8c41, "c.or"),
    (0xfc63, 0x8c61, "c.and"),
    (0xfc63, 0x9c01, "c.subw"),
    (0xfc63, 0x9c21, "c.addw"),
    (0xe003, 0xa001, "c.j"),
    (0xe003, 0xc001, "c.beqz"),
    (0xe003, 0xe001, "c.bnez"),
    (0xe003, 0x0002, "c.slli"),
    (0xe003, 0x2002, "c.fldsp"),
    (0xe003, 0x4002, "c.lwsp"),
    (0xe003, 0x6002, "c.ldsp"),
    (0xf07f, 0x8002, "c.jr"),
    (0xf003, 0x8002, "c.mv"),
    (0xffff, 0x9002, "c.ebreak"),
    (0xf07f, 0x9002, "c.jalr"),
    (0xf003, 0x9002, "c.add"),
    (0xe003, 0xa002, "c.fsdsp"),
    (0xe003, 0xc002, "c.swsp"),
    (0xe003, 0xe002, "c.sdsp"),
];

/// What an instruction is called. `code` holds 32 bits, of which the lower half counts if it
/// is a compressed one. Says nothing about reserved values of its fields.
pub fn name(code: u32) -> Option<&'static str> {
    let (patterns, code) = if code & 3 == 3 { (WORDS, code) } else { (HALVES, code & 0xffff) };
    patterns.iter().find(|(mask, value, _)| code & mask == *value).map(|(_, _, name)| *name)
}

/// The names of all instructions.
pub fn names() -> impl Iterator<Item = &'static str> {
    WORDS.iter().chain(HALVES).map(|(_, _, name)| *name)
}

/// Whether funct3 of an instruction is a rounding mode.
pub fn has_rounding_mode(code: u32) -> bool {
    let rounded = |mask| matches!(mask, FUSED | ROUNDED | ROUNDED_UNARY);
    code & 3 == 3 && WORDS.iter().any(|(mask, value, _)| rounded(*mask) && code & mask == *value)
}

/// Whether an instruction accesses a CSR, which its upper 12 bits name.
pub fn has_csr(code: u32) -> bool {
    code & 0x7f == 0x73 && !matches!(code >> 12 & 7, 0 | 4)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_pattern_stands_for_itself() {
        for (mask, value, expected) in WORDS.iter().chain(HALVES) {
            // With fields of zeros or of ones: a more special one may have either.
            let found = [*value, value | !mask].map(name);
            assert!(found.contains(&Some(*expected)), "{value:#x} {expected}: {found:?}");
        }
        assert_eq!(names().collect::<BTreeSet<_>>().len(), names().count(), "a name is used twice");
    }

    #[test]
    fn words_without_a_meaning_have_no_name() {
        for code in [0xffff_ffff, 0x0000_000b, 0x0200_0057, 0x0000_8000, 0x0000_9c41, 0x0a00_1033] {
            assert_eq!(name(code), None, "{code:#x}");
        }
    }
}
