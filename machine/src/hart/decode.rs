//! From instruction words to ops.

use super::op::Handler;
use super::{atomic, branch, float, integer, memory, system};
use crate::semantics::Semantics;

/// A decoded instruction, before it has a place in a block.
#[derive(Clone, Copy)]
pub(super) struct Decoded {
    pub handler: Handler,
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
    /// By offset `to` from the instruction if the condition holds; `far` handles a target
    /// in another page.
    Branch { to: i32, far: Handler },
    /// By offset `to`, always.
    Jump { to: i32, far: Handler },
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
    fn new(handler: Handler, rd: u8, rs1: u8, rs2: u8, imm: i32) -> Decoded {
        Decoded { handler, rd, rs1, rs2, imm, flow: Flow::Next }
    }

    fn register(handler: Handler, code: u32) -> Decoded {
        Decoded::new(handler, rd(code), rs1(code), rs2(code), code as i32)
    }

    fn immediate(handler: Handler, code: u32) -> Decoded {
        Decoded::new(handler, rd(code), rs1(code), 0, imm_i(code))
    }

    fn store(handler: Handler, code: u32) -> Decoded {
        Decoded::new(handler, SINK, rs1(code), rs2(code), imm_s(code))
    }

    fn flowing(self, flow: Flow) -> Decoded {
        Decoded { flow, ..self }
    }
}

/// What is no instruction.
fn illegal(code: u32) -> Decoded {
    Decoded::register(system::illegal, code).flowing(Flow::Leave)
}

/// Decodes a 32-bit instruction at `offset` in its page, of `len` bytes before expansion.
pub(super) fn decode(code: u32, offset: u32, len: u32, semantics: Semantics) -> Decoded {
    let decoded = match code & 0x7f {
        0x03 => load(code),
        0x07 => float_load(code),
        0x0f => fence(code),
        0x13 => op_imm(code),
        0x17 => {
            let imm = (code & 0xffff_f000) as i32 + offset as i32;
            Some(Decoded::new(integer::auipc, rd(code), 0, 0, imm))
        }
        0x1b => op_imm_32(code),
        0x23 => store(code),
        0x27 => float_store(code),
        0x2f => atomic(code),
        0x33 => op(code, semantics),
        0x37 => Some(Decoded::new(integer::load_immediate, rd(code), 0, 0, (code & 0xffff_f000) as i32)),
        0x3b => op_32(code),
        0x43 => fused(code, float::fmadd_s, float::fmadd_d),
        0x47 => fused(code, float::fmsub_s, float::fmsub_d),
        0x4b => fused(code, float::fnmsub_s, float::fnmsub_d),
        0x4f => fused(code, float::fnmadd_s, float::fnmadd_d),
        0x53 => float_op(code),
        0x63 => conditional(code),
        0x67 if funct3(code) == 0 => Some(Decoded::immediate(branch::jalr, code).flowing(Flow::Indirect)),
        0x6f => {
            let return_offset = (offset + len) as i32;
            let flow = Flow::Jump { to: imm_j(code), far: branch::jal_far };
            Some(Decoded::new(branch::jal, rd(code), 0, 0, return_offset).flowing(flow))
        }
        0x73 => system(code),
        _ => None,
    };
    decoded.unwrap_or_else(|| illegal(code))
}

fn load(code: u32) -> Option<Decoded> {
    let handler: Handler = match funct3(code) {
        0 => memory::lb,
        1 => memory::lh,
        2 => memory::lw,
        3 => memory::ld,
        4 => memory::lbu,
        5 => memory::lhu,
        6 => memory::lwu,
        _ => return None,
    };
    Some(Decoded::immediate(handler, code))
}

fn float_load(code: u32) -> Option<Decoded> {
    let handler: Handler = match funct3(code) {
        2 => memory::flw,
        3 => memory::fld,
        _ => return None,
    };
    Some(Decoded::new(handler, rd_float(code), rs1(code), 0, imm_i(code)))
}

fn store(code: u32) -> Option<Decoded> {
    let handler: Handler = match funct3(code) {
        0 => memory::sb,
        1 => memory::sh,
        2 => memory::sw,
        3 => memory::sd,
        _ => return None,
    };
    Some(Decoded::store(handler, code))
}

fn float_store(code: u32) -> Option<Decoded> {
    let handler: Handler = match funct3(code) {
        2 => memory::fsw,
        3 => memory::fsd,
        _ => return None,
    };
    Some(Decoded::store(handler, code))
}

/// `fence`, `fence.i`, `cbo.*`. Stores are seen by fetches at once, so a fence does nothing.
fn fence(code: u32) -> Option<Decoded> {
    match funct3(code) {
        0 | 1 => Some(Decoded::register(integer::nothing, code)),
        2 if code >> 7 & 31 == 0 => match code >> 20 {
            0..=2 => Some(Decoded::register(system::cbo_maintain, code)),
            4 => Some(Decoded::register(system::cbo_zero, code)),
            _ => None,
        },
        _ => None,
    }
}

fn op_imm(code: u32) -> Option<Decoded> {
    let shift = |handler| Some(Decoded::new(handler, rd(code), rs1(code), 0, (code >> 20 & 63) as i32));
    let unary = |handler| Some(Decoded::new(handler, rd(code), rs1(code), 0, 0));
    let (source, imm) = (rs1(code), imm_i(code));
    match funct3(code) {
        0 if source == 0 => Some(Decoded::immediate(integer::load_immediate, code)),
        0 if imm == 0 => Some(Decoded::immediate(integer::copy, code)),
        0 => Some(Decoded::immediate(integer::addi, code)),
        2 => Some(Decoded::immediate(integer::slti, code)),
        3 => Some(Decoded::immediate(integer::sltiu, code)),
        4 => Some(Decoded::immediate(integer::xori, code)),
        6 => Some(Decoded::immediate(integer::ori, code)),
        7 => Some(Decoded::immediate(integer::andi, code)),
        1 => match code >> 26 {
            0x00 => shift(integer::slli),
            0x0a => shift(integer::bseti),
            0x12 => shift(integer::bclri),
            0x1a => shift(integer::binvi),
            0x18 => match code >> 20 & 63 {
                0 => unary(integer::clz),
                1 => unary(integer::ctz),
                2 => unary(integer::cpop),
                4 => unary(integer::sext_b),
                5 => unary(integer::sext_h),
                _ => None,
            },
            _ => None,
        },
        _ => match code >> 26 {
            0x00 => shift(integer::srli),
            0x10 => shift(integer::srai),
            0x12 => shift(integer::bexti),
            0x18 => shift(integer::rori),
            0x0a if code >> 20 & 63 == 7 => unary(integer::orc_b),
            0x1a if code >> 20 & 63 == 56 => unary(integer::rev8),
            _ => None,
        },
    }
}

fn op_imm_32(code: u32) -> Option<Decoded> {
    let shift = |handler| Some(Decoded::new(handler, rd(code), rs1(code), 0, (code >> 20 & 63) as i32));
    match (funct3(code), funct7(code)) {
        (0, _) => Some(Decoded::immediate(integer::addiw, code)),
        (1, 0x00) => shift(integer::slliw),
        (1, 0x04 | 0x05) => shift(integer::slli_uw),
        (1, 0x30) => match code >> 20 & 31 {
            0 => shift(integer::clzw),
            1 => shift(integer::ctzw),
            2 => shift(integer::cpopw),
            _ => None,
        },
        (5, 0x00) => shift(integer::srliw),
        (5, 0x20) => shift(integer::sraiw),
        (5, 0x30) => shift(integer::roriw),
        _ => None,
    }
}

fn op(code: u32, semantics: Semantics) -> Option<Decoded> {
    let handler: Handler = match (funct7(code), funct3(code)) {
        (0x00, 0) if rs1(code) == 0 => {
            return Some(Decoded::new(integer::copy, rd(code), rs2(code), 0, 0));
        }
        (0x00, 0) => integer::add,
        (0x00, 1) => integer::sll,
        (0x00, 2) => integer::slt,
        (0x00, 3) => integer::sltu,
        (0x00, 4) => integer::xor,
        (0x00, 5) => integer::srl,
        (0x00, 6) => integer::or,
        (0x00, 7) => integer::and,
        (0x20, 0) => integer::sub,
        (0x20, 5) => integer::sra,
        (0x01, 0) => integer::mul,
        (0x01, 1) => integer::mulh,
        (0x01, 2) => integer::mulhsu,
        (0x01, 3) => integer::mulhu,
        (0x01, 4) => integer::div,
        (0x01, 5) => integer::divu,
        (0x01, 6) => integer::rem,
        (0x01, 7) => integer::remu,
        (0x10, 2) => integer::sh1add,
        (0x10, 4) => integer::sh2add,
        (0x10, 6) => integer::sh3add,
        (0x20, 4) => integer::xnor,
        (0x20, 6) => integer::orn,
        (0x20, 7) => integer::andn,
        (0x05, 4) => integer::min,
        (0x05, 5) => integer::minu,
        (0x05, 6) => integer::max,
        (0x05, 7) => integer::maxu,
        (0x30, 1) => integer::rol,
        (0x30, 5) => integer::ror,
        (0x24, 1) => integer::bclr,
        (0x24, 5) => integer::bext,
        (0x34, 1) => integer::binv,
        (0x14, 1) => integer::bset,
        (0x07, 5) if semantics.has_zicond() => integer::czero_eqz,
        (0x07, 7) if semantics.has_zicond() => integer::czero_nez,
        _ => return None,
    };
    Some(Decoded::register(handler, code))
}

fn op_32(code: u32) -> Option<Decoded> {
    let handler: Handler = match (funct7(code), funct3(code)) {
        (0x00, 0) => integer::addw,
        (0x00, 1) => integer::sllw,
        (0x00, 5) => integer::srlw,
        (0x20, 0) => integer::subw,
        (0x20, 5) => integer::sraw,
        (0x01, 0) => integer::mulw,
        (0x01, 4) => integer::divw,
        (0x01, 5) => integer::divuw,
        (0x01, 6) => integer::remw,
        (0x01, 7) => integer::remuw,
        (0x04, 0) => integer::add_uw,
        (0x04, 4) if rs2(code) == 0 => integer::zext_h,
        (0x10, 2) => integer::sh1add_uw,
        (0x10, 4) => integer::sh2add_uw,
        (0x10, 6) => integer::sh3add_uw,
        (0x30, 1) => integer::rolw,
        (0x30, 5) => integer::rorw,
        _ => return None,
    };
    Some(Decoded::register(handler, code))
}

fn atomic(code: u32) -> Option<Decoded> {
    let is_double = match funct3(code) {
        2 => false,
        3 => true,
        _ => return None,
    };
    let pick = |word: Handler, double: Handler| if is_double { double } else { word };
    let sized = |handler| {
        let size = if is_double { 8 } else { 4 };
        Some(Decoded { imm: size, ..Decoded::register(handler, code) })
    };
    let handler = match code >> 27 {
        0x02 if rs2(code) == 0 => return sized(atomic::load_reserved),
        0x03 => return sized(atomic::store_conditional),
        0x00 => pick(atomic::amoadd_w, atomic::amoadd_d),
        0x01 => pick(atomic::amoswap_w, atomic::amoswap_d),
        0x04 => pick(atomic::amoxor_w, atomic::amoxor_d),
        0x08 => pick(atomic::amoor_w, atomic::amoor_d),
        0x0c => pick(atomic::amoand_w, atomic::amoand_d),
        0x10 => pick(atomic::amomin_w, atomic::amomin_d),
        0x14 => pick(atomic::amomax_w, atomic::amomax_d),
        0x18 => pick(atomic::amominu_w, atomic::amominu_d),
        0x1c => pick(atomic::amomaxu_w, atomic::amomaxu_d),
        _ => return None,
    };
    Some(Decoded::register(handler, code))
}

fn conditional(code: u32) -> Option<Decoded> {
    let (near, far): (Handler, Handler) = match funct3(code) {
        0 => (branch::beq, branch::beq_far),
        1 => (branch::bne, branch::bne_far),
        4 => (branch::blt, branch::blt_far),
        5 => (branch::bge, branch::bge_far),
        6 => (branch::bltu, branch::bltu_far),
        7 => (branch::bgeu, branch::bgeu_far),
        _ => return None,
    };
    let flow = Flow::Branch { to: imm_b(code), far };
    Some(Decoded::new(near, SINK, rs1(code), rs2(code), 0).flowing(flow))
}

fn system(code: u32) -> Option<Decoded> {
    if funct3(code) == 4 {
        return None;
    }
    if funct3(code) != 0 {
        return Some(Decoded::register(system::csr, code));
    }
    let plain = |handler, flow| Some(Decoded::register(handler, code).flowing(flow));
    match code {
        0x0000_0073 => plain(system::ecall, Flow::Next),
        0x0010_0073 => plain(system::ebreak, Flow::Leave),
        0x1020_0073 => plain(system::sret, Flow::Next),
        0x3020_0073 => plain(system::mret, Flow::Next),
        0x1050_0073 => plain(system::wfi, Flow::Next),
        _ if funct7(code) == 0x09 && code >> 7 & 31 == 0 => plain(system::sfence_vma, Flow::Next),
        _ => None,
    }
}

/// One of two handlers by the format field: 0 is single, 1 double.
fn by_format(code: u32, single: Handler, double: Handler) -> Option<Handler> {
    match code >> 25 & 3 {
        0 => Some(single),
        1 => Some(double),
        _ => None,
    }
}

fn fused(code: u32, single: Handler, double: Handler) -> Option<Decoded> {
    let handler = by_format(code, single, double)?;
    Some(Decoded { rd: rd_float(code), ..Decoded::register(handler, code) })
}

fn float_op(code: u32) -> Option<Decoded> {
    let to_float = |single: Handler, double: Handler| {
        let handler = by_format(code, single, double)?;
        Some(Decoded { rd: rd_float(code), ..Decoded::register(handler, code) })
    };
    let to_integer =
        |single: Handler, double: Handler| Some(Decoded::register(by_format(code, single, double)?, code));
    let second = rs2(code);
    match (code >> 27, funct3(code)) {
        (0x00, _) => to_float(float::fadd_s, float::fadd_d),
        (0x01, _) => to_float(float::fsub_s, float::fsub_d),
        (0x02, _) => to_float(float::fmul_s, float::fmul_d),
        (0x03, _) => to_float(float::fdiv_s, float::fdiv_d),
        (0x0b, _) if second == 0 => to_float(float::fsqrt_s, float::fsqrt_d),
        (0x04, 0) => to_float(float::fsgnj_s, float::fsgnj_d),
        (0x04, 1) => to_float(float::fsgnjn_s, float::fsgnjn_d),
        (0x04, 2) => to_float(float::fsgnjx_s, float::fsgnjx_d),
        (0x05, 0) => to_float(float::fmin_s, float::fmin_d),
        (0x05, 1) => to_float(float::fmax_s, float::fmax_d),
        (0x08, _) => match (code >> 25 & 3, second) {
            (0, 1) => to_float(float::fcvt_s_d, float::fcvt_s_d),
            (1, 0) => to_float(float::fcvt_d_s, float::fcvt_d_s),
            _ => None,
        },
        (0x14, 0) => to_integer(float::fle_s, float::fle_d),
        (0x14, 1) => to_integer(float::flt_s, float::flt_d),
        (0x14, 2) => to_integer(float::feq_s, float::feq_d),
        (0x18, _) => match second {
            0 => to_integer(float::fcvt_w_s, float::fcvt_w_d),
            1 => to_integer(float::fcvt_wu_s, float::fcvt_wu_d),
            2 => to_integer(float::fcvt_l_s, float::fcvt_l_d),
            3 => to_integer(float::fcvt_lu_s, float::fcvt_lu_d),
            _ => None,
        },
        (0x1a, _) => match second {
            0 => to_float(float::fcvt_s_w, float::fcvt_d_w),
            1 => to_float(float::fcvt_s_wu, float::fcvt_d_wu),
            2 => to_float(float::fcvt_s_l, float::fcvt_d_l),
            3 => to_float(float::fcvt_s_lu, float::fcvt_d_lu),
            _ => None,
        },
        (0x1c, 0) if second == 0 => to_integer(float::fmv_x_w, float::fmv_x_d),
        (0x1c, 1) if second == 0 => to_integer(float::fclass_s, float::fclass_d),
        (0x1e, 0) if second == 0 => to_float(float::fmv_w_x, float::fmv_d_x),
        _ => None,
    }
}
