//! The F and D extensions: registers, rounding modes and flags around [`crate::softfloat`].
//!
//! Every instruction that may write a register or a flag makes `mstatus.FS` dirty.

use super::Hart;
use super::csr::STATUS_FS;
use super::op::{OpRef, go_on};
use crate::bus::Bus;
use crate::softfloat::{self, Flags, Rounding, box_f32, unbox_f32};

/// Set in `mstatus` unless floating point is off.
pub(super) const FS_CHECK: u64 = STATUS_FS;

/// A single-precision value as a register holds it.
pub(super) fn box_single(value: u32) -> u64 {
    box_f32(value)
}

/// Instructions from floating-point registers to one: `a`, `b`, `c` are the whole registers.
macro_rules! to_float {
    ($($name:ident: |$a:ident, $b:ident, $c:ident, $rounding:ident, $flags:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let Some($rounding) = hart.rounding(op) else { return hart.leave_with_illegal(op, slack) };
            let ($a, $b, $c) = (hart.f1(op), hart.f2(op), hart.f3(op));
            let mut accrued = Flags::from_bits(hart.csrs.fflags);
            let $flags = &mut accrued;
            let _ = ($a, $b, $c, $rounding, &$flags);
            let value = $value;
            hart.csrs.fflags = accrued.bits();
            hart.set_float(op.rd, value);
            go_on(hart, op, slack, bus)
        }
    )* };
}

/// Instructions from floating-point registers to an integer one.
macro_rules! to_integer {
    ($($name:ident: |$a:ident, $b:ident, $rounding:ident, $flags:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let Some($rounding) = hart.rounding(op) else { return hart.leave_with_illegal(op, slack) };
            let ($a, $b) = (hart.f1(op), hart.f2(op));
            let mut accrued = Flags::from_bits(hart.csrs.fflags);
            let $flags = &mut accrued;
            let _ = ($a, $b, $rounding, &$flags);
            let value = $value;
            if accrued.bits() != hart.csrs.fflags {
                hart.csrs.fflags = accrued.bits();
                hart.csrs.mstatus |= STATUS_FS;
            }
            hart.set_rd(op, value);
            go_on(hart, op, slack, bus)
        }
    )* };
}

/// Instructions from an integer register to a floating-point one.
macro_rules! from_integer {
    ($($name:ident: |$a:ident, $rounding:ident, $flags:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let Some($rounding) = hart.rounding(op) else { return hart.leave_with_illegal(op, slack) };
            let $a = hart.rs1(op);
            let mut accrued = Flags::from_bits(hart.csrs.fflags);
            let $flags = &mut accrued;
            let _ = ($rounding, &$flags);
            let value = $value;
            hart.csrs.fflags = accrued.bits();
            hart.set_float(op.rd, value);
            go_on(hart, op, slack, bus)
        }
    )* };
}

const SIGN_S: u32 = 1 << 31;
const SIGN_D: u64 = 1 << 63;

/// Applies a function of single-precision operands to whole registers.
macro_rules! single {
    ($function:path, $($register:ident),+; $($rest:expr),*) => {
        box_f32($function($(unbox_f32($register)),+, $($rest),*))
    };
}

to_float! {
    fadd_s: |a, b, _c, rounding, flags| single!(softfloat::add, a, b; rounding, flags);
    fsub_s: |a, b, _c, rounding, flags| single!(softfloat::sub, a, b; rounding, flags);
    fmul_s: |a, b, _c, rounding, flags| single!(softfloat::mul, a, b; rounding, flags);
    fdiv_s: |a, b, _c, rounding, flags| single!(softfloat::div, a, b; rounding, flags);
    fsqrt_s: |a, _b, _c, rounding, flags| single!(softfloat::sqrt, a; rounding, flags);
    fmadd_s: |a, b, c, rounding, flags| single!(softfloat::fused_multiply_add, a, b, c; rounding, flags);
    fmsub_s: |a, b, c, rounding, flags|
        box_f32(softfloat::fused_multiply_add(unbox_f32(a), unbox_f32(b), unbox_f32(c) ^ SIGN_S, rounding, flags));
    fnmsub_s: |a, b, c, rounding, flags|
        box_f32(softfloat::fused_multiply_add(unbox_f32(a) ^ SIGN_S, unbox_f32(b), unbox_f32(c), rounding, flags));
    fnmadd_s: |a, b, c, rounding, flags|
        box_f32(softfloat::fused_multiply_add(
            unbox_f32(a) ^ SIGN_S, unbox_f32(b), unbox_f32(c) ^ SIGN_S, rounding, flags,
        ));
    fadd_d: |a, b, _c, rounding, flags| softfloat::add(a, b, rounding, flags);
    fsub_d: |a, b, _c, rounding, flags| softfloat::sub(a, b, rounding, flags);
    fmul_d: |a, b, _c, rounding, flags| softfloat::mul(a, b, rounding, flags);
    fdiv_d: |a, b, _c, rounding, flags| softfloat::div(a, b, rounding, flags);
    fsqrt_d: |a, _b, _c, rounding, flags| softfloat::sqrt(a, rounding, flags);
    fmadd_d: |a, b, c, rounding, flags| softfloat::fused_multiply_add(a, b, c, rounding, flags);
    fmsub_d: |a, b, c, rounding, flags| softfloat::fused_multiply_add(a, b, c ^ SIGN_D, rounding, flags);
    fnmsub_d: |a, b, c, rounding, flags| softfloat::fused_multiply_add(a ^ SIGN_D, b, c, rounding, flags);
    fnmadd_d: |a, b, c, rounding, flags|
        softfloat::fused_multiply_add(a ^ SIGN_D, b, c ^ SIGN_D, rounding, flags);
    fcvt_s_d: |a, _b, _c, rounding, flags| box_f32(softfloat::convert_format(a, rounding, flags));
    fcvt_d_s: |a, _b, _c, rounding, flags| softfloat::convert_format(unbox_f32(a), rounding, flags);
}

/// As `to_float`, for instructions whose `rm` field is part of the opcode.
macro_rules! to_float_unrounded {
    ($($name:ident: |$a:ident, $b:ident, $flags:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            if hart.csrs.mstatus & FS_CHECK == 0 {
                return hart.leave_with_illegal(op, slack);
            }
            let ($a, $b) = (hart.f1(op), hart.f2(op));
            let mut accrued = Flags::from_bits(hart.csrs.fflags);
            let $flags = &mut accrued;
            let _ = &$flags;
            let value = $value;
            hart.csrs.fflags = accrued.bits();
            hart.set_float(op.rd, value);
            go_on(hart, op, slack, bus)
        }
    )* };
}

to_float_unrounded! {
    fsgnj_s: |a, b, _flags| box_f32(unbox_f32(a) & !SIGN_S | unbox_f32(b) & SIGN_S);
    fsgnjn_s: |a, b, _flags| box_f32(unbox_f32(a) & !SIGN_S | !unbox_f32(b) & SIGN_S);
    fsgnjx_s: |a, b, _flags| box_f32(unbox_f32(a) ^ unbox_f32(b) & SIGN_S);
    fmin_s: |a, b, flags| single!(softfloat::minimum, a, b; flags);
    fmax_s: |a, b, flags| single!(softfloat::maximum, a, b; flags);
    fsgnj_d: |a, b, _flags| a & !SIGN_D | b & SIGN_D;
    fsgnjn_d: |a, b, _flags| a & !SIGN_D | !b & SIGN_D;
    fsgnjx_d: |a, b, _flags| a ^ b & SIGN_D;
    fmin_d: |a, b, flags| softfloat::minimum(a, b, flags);
    fmax_d: |a, b, flags| softfloat::maximum(a, b, flags);
}

/// As `to_integer`, for instructions whose `rm` field is part of the opcode.
macro_rules! to_integer_unrounded {
    ($($name:ident: |$a:ident, $b:ident, $flags:ident| $value:expr;)*) => { $(
        pub(super) fn $name(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            if hart.csrs.mstatus & FS_CHECK == 0 {
                return hart.leave_with_illegal(op, slack);
            }
            let ($a, $b) = (hart.f1(op), hart.f2(op));
            let mut accrued = Flags::from_bits(hart.csrs.fflags);
            let $flags = &mut accrued;
            let _ = ($b, &$flags);
            let value = $value;
            if accrued.bits() != hart.csrs.fflags {
                hart.csrs.fflags = accrued.bits();
                hart.csrs.mstatus |= STATUS_FS;
            }
            hart.set_rd(op, value);
            go_on(hart, op, slack, bus)
        }
    )* };
}

to_integer_unrounded! {
    feq_s: |a, b, flags| u64::from(softfloat::equal(unbox_f32(a), unbox_f32(b), flags));
    flt_s: |a, b, flags| u64::from(softfloat::less(unbox_f32(a), unbox_f32(b), flags));
    fle_s: |a, b, flags| u64::from(softfloat::less_or_equal(unbox_f32(a), unbox_f32(b), flags));
    fclass_s: |a, _b, _flags| softfloat::classify(unbox_f32(a));
    fmv_x_w: |a, _b, _flags| a as i32 as u64;
    feq_d: |a, b, flags| u64::from(softfloat::equal(a, b, flags));
    flt_d: |a, b, flags| u64::from(softfloat::less(a, b, flags));
    fle_d: |a, b, flags| u64::from(softfloat::less_or_equal(a, b, flags));
    fclass_d: |a, _b, _flags| softfloat::classify(a);
    fmv_x_d: |a, _b, _flags| a;
}

to_integer! {
    fcvt_w_s: |a, _b, rounding, flags| softfloat::to_i32(unbox_f32(a), rounding, flags) as u64;
    fcvt_wu_s: |a, _b, rounding, flags| softfloat::to_u32(unbox_f32(a), rounding, flags) as i32 as u64;
    fcvt_l_s: |a, _b, rounding, flags| softfloat::to_i64(unbox_f32(a), rounding, flags) as u64;
    fcvt_lu_s: |a, _b, rounding, flags| softfloat::to_u64(unbox_f32(a), rounding, flags);
    fcvt_w_d: |a, _b, rounding, flags| softfloat::to_i32(a, rounding, flags) as u64;
    fcvt_wu_d: |a, _b, rounding, flags| softfloat::to_u32(a, rounding, flags) as i32 as u64;
    fcvt_l_d: |a, _b, rounding, flags| softfloat::to_i64(a, rounding, flags) as u64;
    fcvt_lu_d: |a, _b, rounding, flags| softfloat::to_u64(a, rounding, flags);
}

from_integer! {
    fcvt_s_w: |a, rounding, flags| box_f32(softfloat::from_i32(a as i32, rounding, flags));
    fcvt_s_wu: |a, rounding, flags| box_f32(softfloat::from_u32(a as u32, rounding, flags));
    fcvt_s_l: |a, rounding, flags| box_f32(softfloat::from_i64(a as i64, rounding, flags));
    fcvt_s_lu: |a, rounding, flags| box_f32(softfloat::from_u64(a, rounding, flags));
    fcvt_d_w: |a, rounding, flags| softfloat::from_i32(a as i32, rounding, flags);
    fcvt_d_wu: |a, rounding, flags| softfloat::from_u32(a as u32, rounding, flags);
    fcvt_d_l: |a, rounding, flags| softfloat::from_i64(a as i64, rounding, flags);
    fcvt_d_lu: |a, rounding, flags| softfloat::from_u64(a, rounding, flags);
}

/// `fmv.w.x`.
pub(super) fn fmv_w_x(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    if hart.csrs.mstatus & FS_CHECK == 0 {
        return hart.leave_with_illegal(op, slack);
    }
    hart.set_float(op.rd, box_f32(hart.rs1(op) as u32));
    go_on(hart, op, slack, bus)
}

/// `fmv.d.x`.
pub(super) fn fmv_d_x(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    if hart.csrs.mstatus & FS_CHECK == 0 {
        return hart.leave_with_illegal(op, slack);
    }
    hart.set_float(op.rd, hart.rs1(op));
    go_on(hart, op, slack, bus)
}

impl Hart {
    /// Writes a floating-point register and makes the state dirty.
    #[inline(always)]
    pub(super) fn set_float(&mut self, register: u8, value: u64) {
        self.f[register as usize & 31] = value;
        self.csrs.mstatus |= STATUS_FS;
    }

    #[inline(always)]
    fn f1(&self, op: OpRef) -> u64 {
        self.f[op.rs1 as usize & 31]
    }

    #[inline(always)]
    fn f2(&self, op: OpRef) -> u64 {
        self.f[op.rs2 as usize & 31]
    }

    /// The third operand of a fused operation, from the instruction in the immediate.
    #[inline(always)]
    fn f3(&self, op: OpRef) -> u64 {
        self.f[op.imm as u32 as usize >> 27]
    }

    /// The rounding mode of the instruction in the immediate; `None` when there is none or
    /// floating point is off.
    #[inline(always)]
    fn rounding(&self, op: OpRef) -> Option<Rounding> {
        if self.csrs.mstatus & FS_CHECK == 0 {
            return None;
        }
        const DYNAMIC: u32 = 7;
        let mode = match op.imm as u32 >> 12 & 7 {
            DYNAMIC => u32::from(self.csrs.frm),
            mode => mode,
        };
        Rounding::from_bits(mode)
    }
}
