//! From instruction words to ops.

use super::kind::Kind;
use crate::semantics::Semantics;

/// A decoded instruction, before it has a place in a block.
#[derive(Clone, Copy)]
pub(super) struct Decoded {
    pub kind: Kind,
    pub rd: u8,
    pub rs1: u8,
    pub rs2: u8,
    pub imm: i32,
    pub flow: Flow,
}

/// Where execution goes after an instruction.
#[derive(Clone, Copy)]
pub(super) enum Flow {
    /// On.
    Next,
    /// By offset `to` from the instruction if the condition holds.
    Branch { to: i32 },
    /// By offset `to`, always.
    Jump { to: i32 },
    /// To a computed address; needs the return address.
    Indirect,
    /// Out of the chain, always.
    Leave,
}

/// A register that nobody reads: the destination of instructions that write to `x0`.
pub(super) const SINK: u8 = 32;

fn rd(code: u32) -> u8 {
    match code >> 7 & 31 {
        0 => SINK,
        register => register as u8,
    }
}

fn rd_float(code: u32) -> u8 {
    (code >> 7 & 31) as u8
}

fn rs1(code: u32) -> u8 {
    (code >> 15 & 31) as u8
}

fn rs2(code: u32) -> u8 {
    (code >> 20 & 31) as u8
}

fn funct3(code: u32) -> u32 {
    code >> 12 & 7
}

fn funct7(code: u32) -> u32 {
    code >> 25
}

fn imm_i(code: u32) -> i32 {
    code as i32 >> 20
}

fn imm_s(code: u32) -> i32 {
    code as i32 >> 25 << 5 | (code >> 7 & 31) as i32
}

fn imm_b(code: u32) -> i32 {
    let high = code as i32 >> 31 << 12;
    high | ((code >> 7 & 1) << 11 | (code >> 25 & 63) << 5 | (code >> 8 & 15) << 1) as i32
}

fn imm_j(code: u32) -> i32 {
    let high = code as i32 >> 31 << 20;
    high | (code & 0xf_f000 | (code >> 20 & 1) << 11 | (code >> 21 & 0x3ff) << 1) as i32
}

impl Decoded {
    fn new(kind: Kind, rd: u8, rs1: u8, rs2: u8, imm: i32) -> Decoded {
        Decoded { kind, rd, rs1, rs2, imm, flow: Flow::Next }
    }

    fn register(kind: Kind, code: u32) -> Decoded {
        Decoded::new(kind, rd(code), rs1(code), rs2(code), code as i32)
    }

    fn immediate(kind: Kind, code: u32) -> Decoded {
        Decoded::new(kind, rd(code), rs1(code), 0, imm_i(code))
    }

    fn store(kind: Kind, code: u32) -> Decoded {
        Decoded::new(kind, SINK, rs1(code), rs2(code), imm_s(code))
    }

    fn flowing(self, flow: Flow) -> Decoded {
        Decoded { flow, ..self }
    }
}

/// What is no instruction.
fn illegal(code: u32) -> Decoded {
    Decoded::register(Kind::Illegal, code).flowing(Flow::Leave)
}

/// Decodes a 32-bit instruction at `offset` in its page, of `len` bytes before expansion.
pub(super) fn decode(code: u32, offset: u32, len: u32, semantics: Semantics) -> Decoded {
    let decoded = match code & 0x7f {
        0x03 => load(code),
        0x07 => float_load(code),
        0x0f => fence(code, semantics),
        0x13 => op_imm(code),
        0x17 => {
            let imm = (code & 0xffff_f000) as i32 + offset as i32;
            Some(Decoded::new(Kind::Auipc, rd(code), 0, 0, imm))
        }
        0x1b => op_imm_32(code),
        0x23 => store(code),
        0x27 => float_store(code),
        0x2f => atomic(code),
        0x33 => op(code, semantics),
        0x37 => Some(Decoded::new(Kind::LoadImmediate, rd(code), 0, 0, (code & 0xffff_f000) as i32)),
        0x3b => op_32(code),
        0x43 => fused(code, Kind::FmaddS, Kind::FmaddD),
        0x47 => fused(code, Kind::FmsubS, Kind::FmsubD),
        0x4b => fused(code, Kind::FnmsubS, Kind::FnmsubD),
        0x4f => fused(code, Kind::FnmaddS, Kind::FnmaddD),
        0x53 => float_op(code),
        0x63 => conditional(code),
        0x67 if funct3(code) == 0 => Some(Decoded::immediate(Kind::Jalr, code).flowing(Flow::Indirect)),
        0x6f => {
            let return_offset = (offset + len) as i32;
            let flow = Flow::Jump { to: imm_j(code) };
            Some(Decoded::new(Kind::Jal, rd(code), 0, 0, return_offset).flowing(flow))
        }
        0x73 => system(code),
        _ => None,
    };
    decoded.unwrap_or_else(|| illegal(code))
}

fn load(code: u32) -> Option<Decoded> {
    let kind = match funct3(code) {
        0 => Kind::Lb,
        1 => Kind::Lh,
        2 => Kind::Lw,
        3 => Kind::Ld,
        4 => Kind::Lbu,
        5 => Kind::Lhu,
        6 => Kind::Lwu,
        _ => return None,
    };
    Some(Decoded::immediate(kind, code))
}

fn float_load(code: u32) -> Option<Decoded> {
    let kind = match funct3(code) {
        2 => Kind::Flw,
        3 => Kind::Fld,
        _ => return None,
    };
    Some(Decoded::new(kind, rd_float(code), rs1(code), 0, imm_i(code)))
}

fn store(code: u32) -> Option<Decoded> {
    let kind = match funct3(code) {
        0 => Kind::Sb,
        1 => Kind::Sh,
        2 => Kind::Sw,
        3 => Kind::Sd,
        _ => return None,
    };
    Some(Decoded::store(kind, code))
}

fn float_store(code: u32) -> Option<Decoded> {
    let kind = match funct3(code) {
        2 => Kind::Fsw,
        3 => Kind::Fsd,
        _ => return None,
    };
    Some(Decoded::store(kind, code))
}

/// `pause`: a `fence` of nothing before what is written after.
const PAUSE: u32 = 0x0100_000f;

/// `fence`, `fence.i`, `cbo.*`. Stores are seen by fetches at once, so a fence does nothing.
fn fence(code: u32, semantics: Semantics) -> Option<Decoded> {
    match funct3(code) {
        _ if code == PAUSE && semantics.pauses_end_turns() => Some(Decoded::register(Kind::Pause, code)),
        0 | 1 => Some(Decoded::register(Kind::Nothing, code)),
        2 if code >> 7 & 31 == 0 => match code >> 20 {
            0..=2 => Some(Decoded::register(Kind::CboMaintain, code)),
            4 => Some(Decoded::register(Kind::CboZero, code)),
            _ => None,
        },
        _ => None,
    }
}

fn op_imm(code: u32) -> Option<Decoded> {
    let shift = |kind| Some(Decoded::new(kind, rd(code), rs1(code), 0, (code >> 20 & 63) as i32));
    let unary = |kind| Some(Decoded::new(kind, rd(code), rs1(code), 0, 0));
    let (source, imm) = (rs1(code), imm_i(code));
    match funct3(code) {
        0 if source == 0 => Some(Decoded::immediate(Kind::LoadImmediate, code)),
        0 if imm == 0 => Some(Decoded::immediate(Kind::Copy, code)),
        0 => Some(Decoded::immediate(Kind::Addi, code)),
        2 => Some(Decoded::immediate(Kind::Slti, code)),
        3 => Some(Decoded::immediate(Kind::Sltiu, code)),
        4 => Some(Decoded::immediate(Kind::Xori, code)),
        6 => Some(Decoded::immediate(Kind::Ori, code)),
        7 => Some(Decoded::immediate(Kind::Andi, code)),
        1 => match code >> 26 {
            0x00 => shift(Kind::Slli),
            0x0a => shift(Kind::Bseti),
            0x12 => shift(Kind::Bclri),
            0x1a => shift(Kind::Binvi),
            0x18 => match code >> 20 & 63 {
                0 => unary(Kind::Clz),
                1 => unary(Kind::Ctz),
                2 => unary(Kind::Cpop),
                4 => unary(Kind::SextB),
                5 => unary(Kind::SextH),
                _ => None,
            },
            _ => None,
        },
        _ => match code >> 26 {
            0x00 => shift(Kind::Srli),
            0x10 => shift(Kind::Srai),
            0x12 => shift(Kind::Bexti),
            0x18 => shift(Kind::Rori),
            0x0a if code >> 20 & 63 == 7 => unary(Kind::OrcB),
            0x1a if code >> 20 & 63 == 56 => unary(Kind::Rev8),
            _ => None,
        },
    }
}

fn op_imm_32(code: u32) -> Option<Decoded> {
    let shift = |kind| Some(Decoded::new(kind, rd(code), rs1(code), 0, (code >> 20 & 63) as i32));
    match (funct3(code), funct7(code)) {
        (0, _) => Some(Decoded::immediate(Kind::Addiw, code)),
        (1, 0x00) => shift(Kind::Slliw),
        (1, 0x04 | 0x05) => shift(Kind::SlliUw),
        (1, 0x30) => match code >> 20 & 31 {
            0 => shift(Kind::Clzw),
            1 => shift(Kind::Ctzw),
            2 => shift(Kind::Cpopw),
            _ => None,
        },
        (5, 0x00) => shift(Kind::Srliw),
        (5, 0x20) => shift(Kind::Sraiw),
        (5, 0x30) => shift(Kind::Roriw),
        _ => None,
    }
}

fn op(code: u32, semantics: Semantics) -> Option<Decoded> {
    let kind = match (funct7(code), funct3(code)) {
        (0x00, 0) if rs1(code) == 0 => {
            return Some(Decoded::new(Kind::Copy, rd(code), rs2(code), 0, 0));
        }
        (0x00, 0) => Kind::Add,
        (0x00, 1) => Kind::Sll,
        (0x00, 2) => Kind::Slt,
        (0x00, 3) => Kind::Sltu,
        (0x00, 4) => Kind::Xor,
        (0x00, 5) => Kind::Srl,
        (0x00, 6) => Kind::Or,
        (0x00, 7) => Kind::And,
        (0x20, 0) => Kind::Sub,
        (0x20, 5) => Kind::Sra,
        (0x01, 0) => Kind::Mul,
        (0x01, 1) => Kind::Mulh,
        (0x01, 2) => Kind::Mulhsu,
        (0x01, 3) => Kind::Mulhu,
        (0x01, 4) => Kind::Div,
        (0x01, 5) => Kind::Divu,
        (0x01, 6) => Kind::Rem,
        (0x01, 7) => Kind::Remu,
        (0x10, 2) => Kind::Sh1add,
        (0x10, 4) => Kind::Sh2add,
        (0x10, 6) => Kind::Sh3add,
        (0x20, 4) => Kind::Xnor,
        (0x20, 6) => Kind::Orn,
        (0x20, 7) => Kind::Andn,
        (0x05, 4) => Kind::Min,
        (0x05, 5) => Kind::Minu,
        (0x05, 6) => Kind::Max,
        (0x05, 7) => Kind::Maxu,
        (0x30, 1) => Kind::Rol,
        (0x30, 5) => Kind::Ror,
        (0x24, 1) => Kind::Bclr,
        (0x24, 5) => Kind::Bext,
        (0x34, 1) => Kind::Binv,
        (0x14, 1) => Kind::Bset,
        (0x07, 5) if semantics.has_zicond() => Kind::CzeroEqz,
        (0x07, 7) if semantics.has_zicond() => Kind::CzeroNez,
        _ => return None,
    };
    Some(Decoded::register(kind, code))
}

fn op_32(code: u32) -> Option<Decoded> {
    let kind = match (funct7(code), funct3(code)) {
        (0x00, 0) => Kind::Addw,
        (0x00, 1) => Kind::Sllw,
        (0x00, 5) => Kind::Srlw,
        (0x20, 0) => Kind::Subw,
        (0x20, 5) => Kind::Sraw,
        (0x01, 0) => Kind::Mulw,
        (0x01, 4) => Kind::Divw,
        (0x01, 5) => Kind::Divuw,
        (0x01, 6) => Kind::Remw,
        (0x01, 7) => Kind::Remuw,
        (0x04, 0) => Kind::AddUw,
        (0x04, 4) if rs2(code) == 0 => Kind::ZextH,
        (0x10, 2) => Kind::Sh1addUw,
        (0x10, 4) => Kind::Sh2addUw,
        (0x10, 6) => Kind::Sh3addUw,
        (0x30, 1) => Kind::Rolw,
        (0x30, 5) => Kind::Rorw,
        _ => return None,
    };
    Some(Decoded::register(kind, code))
}

fn atomic(code: u32) -> Option<Decoded> {
    let is_double = match funct3(code) {
        2 => false,
        3 => true,
        _ => return None,
    };
    let pick = |word: Kind, double: Kind| if is_double { double } else { word };
    let sized = |kind| {
        let size = if is_double { 8 } else { 4 };
        Some(Decoded { imm: size, ..Decoded::register(kind, code) })
    };
    let kind = match code >> 27 {
        0x02 if rs2(code) == 0 => return sized(Kind::LoadReserved),
        0x03 => return sized(Kind::StoreConditional),
        0x00 => pick(Kind::AmoaddW, Kind::AmoaddD),
        0x01 => pick(Kind::AmoswapW, Kind::AmoswapD),
        0x04 => pick(Kind::AmoxorW, Kind::AmoxorD),
        0x08 => pick(Kind::AmoorW, Kind::AmoorD),
        0x0c => pick(Kind::AmoandW, Kind::AmoandD),
        0x10 => pick(Kind::AmominW, Kind::AmominD),
        0x14 => pick(Kind::AmomaxW, Kind::AmomaxD),
        0x18 => pick(Kind::AmominuW, Kind::AmominuD),
        0x1c => pick(Kind::AmomaxuW, Kind::AmomaxuD),
        _ => return None,
    };
    Some(Decoded::register(kind, code))
}

fn conditional(code: u32) -> Option<Decoded> {
    let kind = match funct3(code) {
        0 => Kind::Beq,
        1 => Kind::Bne,
        4 => Kind::Blt,
        5 => Kind::Bge,
        6 => Kind::Bltu,
        7 => Kind::Bgeu,
        _ => return None,
    };
    let flow = Flow::Branch { to: imm_b(code) };
    Some(Decoded::new(kind, SINK, rs1(code), rs2(code), 0).flowing(flow))
}

fn system(code: u32) -> Option<Decoded> {
    if funct3(code) == 4 {
        return None;
    }
    if funct3(code) != 0 {
        return Some(Decoded::register(Kind::Csr, code));
    }
    let plain = |kind, flow| Some(Decoded::register(kind, code).flowing(flow));
    match code {
        0x0000_0073 => plain(Kind::Ecall, Flow::Next),
        0x0010_0073 => plain(Kind::Ebreak, Flow::Leave),
        0x1020_0073 => plain(Kind::Sret, Flow::Next),
        0x3020_0073 => plain(Kind::Mret, Flow::Next),
        0x1050_0073 => plain(Kind::Wfi, Flow::Next),
        _ if funct7(code) == 0x09 && code >> 7 & 31 == 0 => plain(Kind::SfenceVma, Flow::Next),
        _ => None,
    }
}

/// One of two handlers by the format field: 0 is single, 1 double.
fn by_format(code: u32, single: Kind, double: Kind) -> Option<Kind> {
    match code >> 25 & 3 {
        0 => Some(single),
        1 => Some(double),
        _ => None,
    }
}

fn fused(code: u32, single: Kind, double: Kind) -> Option<Decoded> {
    let kind = by_format(code, single, double)?;
    Some(Decoded { rd: rd_float(code), ..Decoded::register(kind, code) })
}

fn float_op(code: u32) -> Option<Decoded> {
    let to_float = |single: Kind, double: Kind| {
        let kind = by_format(code, single, double)?;
        Some(Decoded { rd: rd_float(code), ..Decoded::register(kind, code) })
    };
    let to_integer =
        |single: Kind, double: Kind| Some(Decoded::register(by_format(code, single, double)?, code));
    let second = rs2(code);
    match (code >> 27, funct3(code)) {
        (0x00, _) => to_float(Kind::FaddS, Kind::FaddD),
        (0x01, _) => to_float(Kind::FsubS, Kind::FsubD),
        (0x02, _) => to_float(Kind::FmulS, Kind::FmulD),
        (0x03, _) => to_float(Kind::FdivS, Kind::FdivD),
        (0x0b, _) if second == 0 => to_float(Kind::FsqrtS, Kind::FsqrtD),
        (0x04, 0) => to_float(Kind::FsgnjS, Kind::FsgnjD),
        (0x04, 1) => to_float(Kind::FsgnjnS, Kind::FsgnjnD),
        (0x04, 2) => to_float(Kind::FsgnjxS, Kind::FsgnjxD),
        (0x05, 0) => to_float(Kind::FminS, Kind::FminD),
        (0x05, 1) => to_float(Kind::FmaxS, Kind::FmaxD),
        (0x08, _) => match (code >> 25 & 3, second) {
            (0, 1) => to_float(Kind::FcvtSD, Kind::FcvtSD),
            (1, 0) => to_float(Kind::FcvtDS, Kind::FcvtDS),
            _ => None,
        },
        (0x14, 0) => to_integer(Kind::FleS, Kind::FleD),
        (0x14, 1) => to_integer(Kind::FltS, Kind::FltD),
        (0x14, 2) => to_integer(Kind::FeqS, Kind::FeqD),
        (0x18, _) => match second {
            0 => to_integer(Kind::FcvtWS, Kind::FcvtWD),
            1 => to_integer(Kind::FcvtWuS, Kind::FcvtWuD),
            2 => to_integer(Kind::FcvtLS, Kind::FcvtLD),
            3 => to_integer(Kind::FcvtLuS, Kind::FcvtLuD),
            _ => None,
        },
        (0x1a, _) => match second {
            0 => to_float(Kind::FcvtSW, Kind::FcvtDW),
            1 => to_float(Kind::FcvtSWu, Kind::FcvtDWu),
            2 => to_float(Kind::FcvtSL, Kind::FcvtDL),
            3 => to_float(Kind::FcvtSLu, Kind::FcvtDLu),
            _ => None,
        },
        (0x1c, 0) if second == 0 => to_integer(Kind::FmvXW, Kind::FmvXD),
        (0x1c, 1) if second == 0 => to_integer(Kind::FclassS, Kind::FclassD),
        (0x1e, 0) if second == 0 => to_float(Kind::FmvWX, Kind::FmvDX),
        _ => None,
    }
}
