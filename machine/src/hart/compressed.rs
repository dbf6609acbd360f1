//! The C extension: each 16-bit instruction is another way to write a 32-bit one.

/// Major opcodes of 32-bit instructions.
mod opcode {
    pub const LOAD: u32 = 0x03;
    pub const LOAD_FP: u32 = 0x07;
    pub const OP_IMM: u32 = 0x13;
    pub const OP_IMM_32: u32 = 0x1b;
    pub const STORE: u32 = 0x23;
    pub const STORE_FP: u32 = 0x27;
    pub const OP: u32 = 0x33;
    pub const LUI: u32 = 0x37;
    pub const OP_32: u32 = 0x3b;
    pub const BRANCH: u32 = 0x63;
    pub const JALR: u32 = 0x67;
    pub const JAL: u32 = 0x6f;
}
use opcode::*;

const EBREAK: u32 = 0x0010_0073;
const ZERO: u32 = 0;
const RA: u32 = 1;
const SP: u32 = 2;

/// Bits `high` to `low` of `code`.
fn bits(code: u32, high: u32, low: u32) -> u32 {
    code >> low & ((1 << (high - low + 1)) - 1)
}

/// Sign-extends the low `width` bits.
fn signed(value: u32, width: u32) -> u32 {
    ((value << (32 - width)) as i32 >> (32 - width)) as u32
}

fn i_type(opcode: u32, funct3: u32, rd: u32, rs1: u32, imm: u32) -> u32 {
    imm << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

fn r_type(opcode: u32, funct7: u32, funct3: u32, rd: u32, rs1: u32, rs2: u32) -> u32 {
    funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
}

fn s_type(opcode: u32, funct3: u32, rs1: u32, rs2: u32, imm: u32) -> u32 {
    bits(imm, 11, 5) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | bits(imm, 4, 0) << 7 | opcode
}

fn b_type(funct3: u32, rs1: u32, imm: u32) -> u32 {
    bits(imm, 12, 12) << 31
        | bits(imm, 10, 5) << 25
        | rs1 << 15
        | funct3 << 12
        | bits(imm, 4, 1) << 8
        | bits(imm, 11, 11) << 7
        | BRANCH
}

fn j_type(rd: u32, imm: u32) -> u32 {
    bits(imm, 20, 20) << 31
        | bits(imm, 10, 1) << 21
        | bits(imm, 11, 11) << 20
        | bits(imm, 19, 12) << 12
        | rd << 7
        | JAL
}

/// The 32-bit form of a compressed instruction; `None` if it is reserved.
pub(super) fn expand(half: u16) -> Option<u32> {
    let code = u32::from(half);
    match code & 3 {
        0 => quadrant_0(code),
        1 => quadrant_1(code),
        2 => quadrant_2(code),
        _ => None,
    }
}

fn quadrant_0(code: u32) -> Option<u32> {
    let rd = bits(code, 4, 2) + 8;
    let rs1 = bits(code, 9, 7) + 8;
    let word = bits(code, 5, 5) << 6 | bits(code, 12, 10) << 3 | bits(code, 6, 6) << 2;
    let double = bits(code, 6, 5) << 6 | bits(code, 12, 10) << 3;
    Some(match bits(code, 15, 13) {
        0 => {
            let imm = bits(code, 10, 7) << 6
                | bits(code, 12, 11) << 4
                | bits(code, 5, 5) << 3
                | bits(code, 6, 6) << 2;
            if imm == 0 {
                return None;
            }
            i_type(OP_IMM, 0, rd, SP, imm)
        }
        1 => i_type(LOAD_FP, 3, rd, rs1, double),
        2 => i_type(LOAD, 2, rd, rs1, word),
        3 => i_type(LOAD, 3, rd, rs1, double),
        5 => s_type(STORE_FP, 3, rs1, rd, double),
        6 => s_type(STORE, 2, rs1, rd, word),
        7 => s_type(STORE, 3, rs1, rd, double),
        _ => return None,
    })
}

fn quadrant_1(code: u32) -> Option<u32> {
    let rd = bits(code, 11, 7);
    let imm = signed(bits(code, 12, 12) << 5 | bits(code, 6, 2), 6) & 0xfff;
    let branch_imm = || {
        signed(
            bits(code, 12, 12) << 8
                | bits(code, 6, 5) << 6
                | bits(code, 2, 2) << 5
                | bits(code, 11, 10) << 3
                | bits(code, 4, 3) << 1,
            9,
        )
    };
    let rs1 = bits(code, 9, 7) + 8;
    Some(match bits(code, 15, 13) {
        0 => i_type(OP_IMM, 0, rd, rd, imm),
        1 if rd == ZERO => return None,
        1 => i_type(OP_IMM_32, 0, rd, rd, imm),
        2 => i_type(OP_IMM, 0, rd, ZERO, imm),
        3 if rd == SP => {
            let imm = signed(
                bits(code, 12, 12) << 9
                    | bits(code, 4, 3) << 7
                    | bits(code, 5, 5) << 6
                    | bits(code, 2, 2) << 5
                    | bits(code, 6, 6) << 4,
                10,
            );
            if imm == 0 {
                return None;
            }
            i_type(OP_IMM, 0, SP, SP, imm & 0xfff)
        }
        3 => {
            let imm = signed(bits(code, 12, 12) << 5 | bits(code, 6, 2), 6);
            if imm == 0 {
                return None;
            }
            imm << 12 | rd << 7 | LUI
        }
        4 => return arithmetic(code),
        5 => j_type(
            ZERO,
            signed(
                bits(code, 12, 12) << 11
                    | bits(code, 8, 8) << 10
                    | bits(code, 10, 9) << 8
                    | bits(code, 6, 6) << 7
                    | bits(code, 7, 7) << 6
                    | bits(code, 2, 2) << 5
                    | bits(code, 11, 11) << 4
                    | bits(code, 5, 3) << 1,
                12,
            ),
        ),
        6 => b_type(0, rs1, branch_imm()),
        _ => b_type(1, rs1, branch_imm()),
    })
}

/// `c.srli`, `c.srai`, `c.andi`, and the register-register operations.
fn arithmetic(code: u32) -> Option<u32> {
    let rd = bits(code, 9, 7) + 8;
    let rs2 = bits(code, 4, 2) + 8;
    let imm = bits(code, 12, 12) << 5 | bits(code, 6, 2);
    const ALTERNATE: u32 = 0x20;
    Some(match bits(code, 11, 10) {
        0 => i_type(OP_IMM, 5, rd, rd, imm),
        1 => i_type(OP_IMM, 5, rd, rd, imm | ALTERNATE << 5),
        2 => i_type(OP_IMM, 7, rd, rd, signed(imm, 6) & 0xfff),
        _ => match (bits(code, 12, 12), bits(code, 6, 5)) {
            (0, 0) => r_type(OP, ALTERNATE, 0, rd, rd, rs2),
            (0, 1) => r_type(OP, 0, 4, rd, rd, rs2),
            (0, 2) => r_type(OP, 0, 6, rd, rd, rs2),
            (0, _) => r_type(OP, 0, 7, rd, rd, rs2),
            (_, 0) => r_type(OP_32, ALTERNATE, 0, rd, rd, rs2),
            (_, 1) => r_type(OP_32, 0, 0, rd, rd, rs2),
            _ => return None,
        },
    })
}

fn quadrant_2(code: u32) -> Option<u32> {
    let rd = bits(code, 11, 7);
    let rs2 = bits(code, 6, 2);
    let load_word = bits(code, 3, 2) << 6 | bits(code, 12, 12) << 5 | bits(code, 6, 4) << 2;
    let load_double = bits(code, 4, 2) << 6 | bits(code, 12, 12) << 5 | bits(code, 6, 5) << 3;
    let store_word = bits(code, 8, 7) << 6 | bits(code, 12, 9) << 2;
    let store_double = bits(code, 9, 7) << 6 | bits(code, 12, 10) << 3;
    Some(match bits(code, 15, 13) {
        0 => i_type(OP_IMM, 1, rd, rd, bits(code, 12, 12) << 5 | rs2),
        1 => i_type(LOAD_FP, 3, rd, SP, load_double),
        2 if rd != ZERO => i_type(LOAD, 2, rd, SP, load_word),
        3 if rd != ZERO => i_type(LOAD, 3, rd, SP, load_double),
        4 => match (bits(code, 12, 12), rd, rs2) {
            (0, ZERO, 0) => return None,
            (0, _, 0) => i_type(JALR, 0, ZERO, rd, 0),
            (0, _, _) => r_type(OP, 0, 0, rd, ZERO, rs2),
            (_, ZERO, 0) => EBREAK,
            (_, _, 0) => i_type(JALR, 0, RA, rd, 0),
            _ => r_type(OP, 0, 0, rd, rd, rs2),
        },
        5 => s_type(STORE_FP, 3, SP, rs2, store_double),
        6 => s_type(STORE, 2, SP, rs2, store_word),
        7 => s_type(STORE, 3, SP, rs2, store_double),
        _ => return None,
    })
}
