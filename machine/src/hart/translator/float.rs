//! Translation of floating point: the host's own, where result and flags are those of
//! [`crate::softfloat`], by the conditions that its host path has. All else is the handlers' affair.
//!
//! [`State::level`] says what holds of the hart's floating-point state. It changes by handlers only, and
//! is tested before each instruction that relies on it. At [`ROUNDED`] NX is raised already, so that
//! of a normal result below the largest nothing more is to be found out: NV, DZ and OF come with
//! infinities, NaNs and (rounded down) the largest number, UF with what is no larger than the
//! smallest normal number. See [`crate::softfloat`]'s host path, which is the same for one rounding
//! mode.
//!
//! While translated code executes, the host rounds as `frm` says; around it, and around every
//! handler, it rounds to nearest, as everybody expects it to.

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};

use super::emitter::{Buffer, Cond, Pending, RAX, RCX, Reg, from_rbp};
use super::{Emitter, View};
use crate::hart::Hart;
use crate::hart::csr::STATUS_FS;
use crate::hart::kind::Kind;
use crate::hart::op::Op;
use crate::softfloat::{Flags, Rounding};

/// Floating point is off, or its state is not dirty: an instruction may trap or change `mstatus`.
const OFF: u8 = 0;
/// Registers can be read and written, and that changes nothing else.
const MOVED: u8 = 1;
/// Also, NX is raised, and the host rounds as `frm` says.
const ROUNDED: u8 = 2;
/// Also, that is to nearest, ties to even.
const NEAREST: u8 = 3;

/// The host's control register as everybody has it: all exceptions masked, to nearest.
pub(super) const MXCSR_DEFAULT: u32 = 0x1f80;
const MXCSR_ROUNDING_SHIFT: u32 = 13;

/// From `rbp` to where the level is.
const LEVEL: i32 = from_rbp(offset_of!(Hart, view) + offset_of!(View, float) + offset_of!(State, level));

/// What translated code may take for granted.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct State {
    /// The host's control register for it.
    pub mxcsr: u32,
    /// [`MXCSR_DEFAULT`], for it to be in memory.
    pub mxcsr_default: u32,
    pub level: u8,
}

impl Default for State {
    fn default() -> State {
        State { mxcsr: MXCSR_DEFAULT, mxcsr_default: MXCSR_DEFAULT, level: OFF }
    }
}

impl State {
    /// That of a hart.
    pub fn of(hart: &Hart) -> State {
        let is_dirty = hart.csrs.mstatus & STATUS_FS == STATUS_FS;
        let is_inexact = Flags::from_bits(hart.csrs.fflags).contains(Flags::INEXACT);
        let (level, rounding) = match Rounding::from_bits(u32::from(hart.csrs.frm)) {
            _ if !is_dirty => (OFF, 0),
            _ if !is_inexact => (MOVED, 0),
            Some(Rounding::NearestEven) => (NEAREST, 0),
            Some(Rounding::Down) => (ROUNDED, 1),
            Some(Rounding::Up) => (ROUNDED, 2),
            Some(Rounding::TowardZero) => (ROUNDED, 3),
            Some(Rounding::NearestMaxMagnitude) | None => (MOVED, 0),
        };
        State { level, mxcsr: MXCSR_DEFAULT | rounding << MXCSR_ROUNDING_SHIFT, ..State::default() }
    }
}

/// Floating-point registers with their host registers. While translated code executes and the level is
/// not [`OFF`], each host register holds what is in the hart: what is written goes to both.
/// The others, of numbers below 3, hold nothing between two instructions.
const PAIRS: [(u8, Reg); 13] = [
    (10, 3),
    (11, 4),
    (12, 5),
    (13, 6),
    (14, 7),
    (15, 8),
    (16, 9),
    (17, 10),
    (0, 11),
    (1, 12),
    (8, 13),
    (9, 14),
    (18, 15),
];

/// The host register of a floating-point register.
fn mapped_float(register: u8) -> Option<Reg> {
    PAIRS.iter().find(|(guest, _)| *guest == register).map(|(_, reg)| *reg)
}

/// Copies the mapped floating-point registers from the hart, if floating point is in use.
pub(super) fn fill(code: &mut Buffer) {
    dynasm!(code; cmp BYTE [rbp + LEVEL], BYTE OFF as i8);
    let off = code.jump_if(Cond::Equal);
    for (guest, reg) in PAIRS {
        dynasm!(code; movsd Rx(reg), [rbp + place(guest)]);
    }
    code.bind(off);
}

/// Where a floating-point register is from `rbp`.
fn place(register: u8) -> i32 {
    from_rbp(offset_of!(Hart, f)) + i32::from(register & 31) * 8
}

/// The format of an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Single,
    Double,
}
use Format::{Double, Single};

#[derive(Clone, Copy)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Root,
}

#[derive(Clone, Copy)]
enum Fused {
    MultiplyAdd,
    MultiplySub,
    NegatedSub,
    NegatedAdd,
}

/// What becomes of the sign.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Taken,
    Negated,
    Multiplied,
}

/// Integers that are converted from or to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Integer {
    Word,
    UnsignedWord,
    Long,
    UnsignedLong,
}

const NEAREST_EVEN: u32 = 0;
const TOWARD_ZERO: u32 = 1;
const DYNAMIC: u32 = 7;

fn rounding(op: &Op) -> u32 {
    op.imm as u32 >> 12 & 7
}

/// The level at which the host rounds as an instruction says, if there is one.
fn level_to_round(op: &Op) -> Option<u8> {
    match rounding(op) {
        DYNAMIC => Some(ROUNDED),
        NEAREST_EVEN => Some(NEAREST),
        _ => None,
    }
}

impl Emitter<'_> {
    /// Translates a floating-point instruction; `false` if it is none, or one that is left to its
    /// handler.
    pub(super) fn float(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        self.float_access(kind, op, index)
            || self.float_move(kind, op, index)
            || self.float_arithmetic(kind, op, index)
            || self.float_comparison(kind, op, index)
            || self.float_conversion(kind, op, index)
    }

    /// Jumps where the level is not at least this.
    fn test_level(&mut self, level: u8) -> Pending {
        dynasm!(self.code; cmp BYTE [rbp + LEVEL], BYTE level as i8);
        self.code.jump_if(Cond::Below)
    }

    /// Jumps where the registers do not hold a boxed single.
    fn test_boxed(&mut self, format: Format, registers: &[u8], missed: &mut Vec<Pending>) {
        if format == Single {
            for &register in registers {
                dynasm!(self.code; cmp DWORD [rbp + place(register) + 4], DWORD -1);
                missed.push(self.code.jump_if(Cond::NotEqual));
            }
        }
    }

    /// The host register that holds a register; `scratch`, loaded with it, where none does.
    fn float_source(&mut self, register: u8, scratch: Reg) -> Reg {
        mapped_float(register).unwrap_or_else(|| {
            dynasm!(self.code; movsd Rx(scratch), [rbp + place(register)]);
            scratch
        })
    }

    /// `to = register`.
    fn load_float(&mut self, to: Reg, register: u8) {
        match mapped_float(register) {
            Some(from) => dynasm!(self.code; movaps Rx(to), Rx(from)),
            None => dynasm!(self.code; movsd Rx(to), [rbp + place(register)]),
        }
    }

    /// `register = xmm0`. A single is boxed.
    fn store_float(&mut self, format: Format, register: u8) {
        if format == Single {
            dynasm!(self.code; pcmpeqd xmm1, xmm1; unpcklps xmm0, xmm1);
        }
        dynasm!(self.code; movsd [rbp + place(register)], xmm0);
        if let Some(to) = mapped_float(register) {
            dynasm!(self.code; movaps Rx(to), xmm0);
        }
    }

    /// `to = register`, as bits.
    fn load_bits(&mut self, to: Reg, register: u8) {
        match mapped_float(register) {
            Some(from) => dynasm!(self.code; movq Rq(to), Rx(from)),
            None => dynasm!(self.code; mov Rq(to), [rbp + place(register)]),
        }
    }

    /// `register = from`, as bits.
    fn store_bits(&mut self, register: u8, from: Reg) {
        dynasm!(self.code; mov [rbp + place(register)], Rq(from));
        if let Some(to) = mapped_float(register) {
            dynasm!(self.code; movq Rx(to), Rq(from));
        }
    }

    /// Boxes the single in the low half of `rax`.
    fn box_bits(&mut self) {
        self.code.constant(RCX, -1 << 32);
        dynasm!(self.code; or rax, rcx);
    }

    /// Jumps where `xmm0` is an infinity, a NaN, or nearly as large.
    fn test_finite(&mut self, format: Format) -> Pending {
        match format {
            Single => dynasm!(self.code; pextrw eax, xmm0, 1; and eax, DWORD 0x7f80; cmp eax, DWORD 0x7f00),
            Double => dynasm!(self.code; pextrw eax, xmm0, 3; and eax, DWORD 0x7ff0; cmp eax, DWORD 0x7fe0),
        }
        self.code.jump_if(Cond::AboveEqual)
    }

    /// Jumps where [`Emitter::test_finite`] does, or where `xmm0` is below twice the smallest normal number.
    fn test_normal(&mut self, format: Format) -> Pending {
        match format {
            Single => dynasm!(self.code
                ; pextrw eax, xmm0, 1
                ; and eax, DWORD 0x7f80
                ; sub eax, DWORD 0x100
                ; cmp eax, DWORD 0x7d80
            ),
            Double => dynasm!(self.code
                ; pextrw eax, xmm0, 3
                ; and eax, DWORD 0x7ff0
                ; sub eax, DWORD 0x20
                ; cmp eax, DWORD 0x7fb0
            ),
        }
        self.code.jump_if(Cond::Above)
    }

    fn float_access(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        let (size, writes) = match kind {
            Kind::Flw => (4, false),
            Kind::Fld => (8, false),
            Kind::Fsw => (4, true),
            Kind::Fsd => (8, true),
            _ => return false,
        };
        let off = self.test_level(MOVED);
        let (memory, missed) = self.find_place(op, size, writes);
        if writes {
            self.load_bits(RAX, op.rs2);
            self.write(size, RAX, memory);
        } else {
            self.read_raw(size, memory);
            if size == 4 {
                self.box_bits();
            }
            self.store_bits(op.rd, RAX);
        }
        self.slow_access(vec![missed], index, memory);
        self.slow_path(vec![off], index);
        true
    }

    fn float_move(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        use Kind::*;
        let (format, sign) = match kind {
            FsgnjS => (Single, Sign::Taken),
            FsgnjnS => (Single, Sign::Negated),
            FsgnjxS => (Single, Sign::Multiplied),
            FsgnjD => (Double, Sign::Taken),
            FsgnjnD => (Double, Sign::Negated),
            FsgnjxD => (Double, Sign::Multiplied),
            FmvXW | FmvXD | FmvWX | FmvDX => {
                let off = self.test_level(MOVED);
                self.move_bits(kind, op);
                self.slow_path(vec![off], index);
                return true;
            }
            _ => return false,
        };
        let mut missed = vec![self.test_level(MOVED)];
        self.test_boxed(format, &[op.rs1, op.rs2], &mut missed);
        self.move_sign(format, sign, op);
        self.slow_path(missed, index);
        true
    }

    fn move_bits(&mut self, kind: Kind, op: &Op) {
        match kind {
            Kind::FmvXW => {
                self.load_bits(RAX, op.rs1);
                dynasm!(self.code; movsxd rax, eax);
                self.code.finish(op.rd, RAX);
            }
            Kind::FmvXD => {
                self.load_bits(RAX, op.rs1);
                self.code.finish(op.rd, RAX);
            }
            Kind::FmvWX => {
                self.code.load_word(RAX, op.rs1);
                self.box_bits();
                self.store_bits(op.rd, RAX);
            }
            _ => {
                let from = self.code.source(op.rs1, RAX);
                self.store_bits(op.rd, from);
            }
        }
    }

    /// The magnitude of the first operand, with a sign that depends on the second's.
    fn move_sign(&mut self, format: Format, sign: Sign, op: &Op) {
        if format == Double && sign == Sign::Taken && op.rs1 == op.rs2 {
            self.load_float(0, op.rs1);
            return self.store_float(Double, op.rd);
        }
        self.load_bits(RAX, op.rs1);
        self.load_bits(RCX, op.rs2);
        if format == Single {
            dynasm!(self.code; shl rax, 32; shl rcx, 32);
        }
        match sign {
            Sign::Taken => dynasm!(self.code; add rax, rax; add rcx, rcx; rcr rax, 1),
            Sign::Negated => dynasm!(self.code; add rax, rax; add rcx, rcx; cmc; rcr rax, 1),
            Sign::Multiplied => dynasm!(self.code; shr rcx, 63; shl rcx, 63; xor rax, rcx),
        }
        if format == Single {
            dynasm!(self.code; shr rax, 32);
            self.box_bits();
        }
        self.store_bits(op.rd, RAX);
    }

    fn float_arithmetic(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        use Kind::*;
        let (format, arithmetic) = match kind {
            FaddS => (Single, Arithmetic::Add),
            FsubS => (Single, Arithmetic::Sub),
            FmulS => (Single, Arithmetic::Mul),
            FdivS => (Single, Arithmetic::Div),
            FsqrtS => (Single, Arithmetic::Root),
            FaddD => (Double, Arithmetic::Add),
            FsubD => (Double, Arithmetic::Sub),
            FmulD => (Double, Arithmetic::Mul),
            FdivD => (Double, Arithmetic::Div),
            FsqrtD => (Double, Arithmetic::Root),
            _ => return self.fused(kind, op, index),
        };
        let Some(level) = level_to_round(op) else { return false };
        let mut missed = vec![self.test_level(level)];
        match arithmetic {
            Arithmetic::Root => self.test_boxed(format, &[op.rs1], &mut missed),
            _ => self.test_boxed(format, &[op.rs1, op.rs2], &mut missed),
        }
        let a = self.float_source(op.rs1, 0);
        if a != 0 && !matches!(arithmetic, Arithmetic::Root) {
            dynasm!(self.code; movaps xmm0, Rx(a));
        }
        let b = match arithmetic {
            Arithmetic::Root => a,
            _ => self.float_source(op.rs2, 1),
        };
        match (arithmetic, format) {
            (Arithmetic::Add, Single) => dynasm!(self.code; addss xmm0, Rx(b)),
            (Arithmetic::Sub, Single) => dynasm!(self.code; subss xmm0, Rx(b)),
            (Arithmetic::Mul, Single) => dynasm!(self.code; mulss xmm0, Rx(b)),
            (Arithmetic::Div, Single) => dynasm!(self.code; divss xmm0, Rx(b)),
            (Arithmetic::Root, Single) => dynasm!(self.code; sqrtss xmm0, Rx(b)),
            (Arithmetic::Add, Double) => dynasm!(self.code; addsd xmm0, Rx(b)),
            (Arithmetic::Sub, Double) => dynasm!(self.code; subsd xmm0, Rx(b)),
            (Arithmetic::Mul, Double) => dynasm!(self.code; mulsd xmm0, Rx(b)),
            (Arithmetic::Div, Double) => dynasm!(self.code; divsd xmm0, Rx(b)),
            (Arithmetic::Root, Double) => dynasm!(self.code; sqrtsd xmm0, Rx(b)),
        }
        // A sum that is no larger than the smallest normal number is exact.
        missed.push(match arithmetic {
            Arithmetic::Add | Arithmetic::Sub => self.test_finite(format),
            _ => self.test_normal(format),
        });
        self.store_float(format, op.rd);
        self.slow_path(missed, index);
        true
    }

    fn fused(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        use Kind::*;
        let (format, fused) = match kind {
            FmaddS => (Single, Fused::MultiplyAdd),
            FmsubS => (Single, Fused::MultiplySub),
            FnmsubS => (Single, Fused::NegatedAdd),
            FnmaddS => (Single, Fused::NegatedSub),
            FmaddD => (Double, Fused::MultiplyAdd),
            FmsubD => (Double, Fused::MultiplySub),
            FnmsubD => (Double, Fused::NegatedAdd),
            FnmaddD => (Double, Fused::NegatedSub),
            _ => return false,
        };
        let Some(level) = level_to_round(op).filter(|_| self.features.fuses) else { return false };
        let third = (op.imm as u32 >> 27) as u8;
        let mut missed = vec![self.test_level(level)];
        self.test_boxed(format, &[op.rs1, op.rs2, third], &mut missed);
        self.load_float(0, third);
        let (a, b) = (self.float_source(op.rs1, 1), self.float_source(op.rs2, 2));
        match (fused, format) {
            (Fused::MultiplyAdd, Single) => dynasm!(self.code; vfmadd231ss xmm0, Rx(a), Rx(b)),
            (Fused::MultiplySub, Single) => dynasm!(self.code; vfmsub231ss xmm0, Rx(a), Rx(b)),
            (Fused::NegatedAdd, Single) => dynasm!(self.code; vfnmadd231ss xmm0, Rx(a), Rx(b)),
            (Fused::NegatedSub, Single) => dynasm!(self.code; vfnmsub231ss xmm0, Rx(a), Rx(b)),
            (Fused::MultiplyAdd, Double) => dynasm!(self.code; vfmadd231sd xmm0, Rx(a), Rx(b)),
            (Fused::MultiplySub, Double) => dynasm!(self.code; vfmsub231sd xmm0, Rx(a), Rx(b)),
            (Fused::NegatedAdd, Double) => dynasm!(self.code; vfnmadd231sd xmm0, Rx(a), Rx(b)),
            (Fused::NegatedSub, Double) => dynasm!(self.code; vfnmsub231sd xmm0, Rx(a), Rx(b)),
        }
        missed.push(self.test_normal(format));
        self.store_float(format, op.rd);
        self.slow_path(missed, index);
        true
    }

    /// Comparisons, minimum and maximum of what is no NaN: they are exact, and raise nothing.
    fn float_comparison(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        use Kind::*;
        let format = match kind {
            FeqS | FltS | FleS | FminS | FmaxS => Single,
            FeqD | FltD | FleD | FminD | FmaxD => Double,
            _ => return false,
        };
        let mut missed = vec![self.test_level(MOVED)];
        self.test_boxed(format, &[op.rs1, op.rs2], &mut missed);
        // Less is tested as greater, which leaves unordered ones out.
        let (a, b) = match kind {
            FltS | FleS | FltD | FleD => (op.rs2, op.rs1),
            _ => (op.rs1, op.rs2),
        };
        let (a, b) = (self.float_source(a, 0), self.float_source(b, 1));
        match format {
            Single => dynasm!(self.code; ucomiss Rx(a), Rx(b)),
            Double => dynasm!(self.code; ucomisd Rx(a), Rx(b)),
        }
        missed.push(self.code.jump_if(Cond::Parity));
        let cond = match kind {
            FeqS | FeqD => Cond::Equal,
            FltS | FltD => Cond::Above,
            FleS | FleD => Cond::AboveEqual,
            _ => {
                self.extremum(format, matches!(kind, FminS | FminD), (a, b));
                self.store_float(format, op.rd);
                self.slow_path(missed, index);
                return true;
            }
        };
        let to = self.code.target(op.rd, RAX);
        self.code.set_if(cond, to);
        self.code.finish(op.rd, to);
        self.slow_path(missed, index);
        true
    }

    /// `xmm0` becomes the smaller or the larger of two, which were just compared. Of equal ones only
    /// the zeros differ, by their sign.
    fn extremum(&mut self, format: Format, smaller: bool, (a, b): (Reg, Reg)) {
        if a != 0 {
            dynasm!(self.code; movaps xmm0, Rx(a));
        }
        let differ = self.code.jump_if(Cond::NotEqual);
        match smaller {
            true => dynasm!(self.code; orps xmm0, Rx(b)),
            false => dynasm!(self.code; andps xmm0, Rx(b)),
        }
        let done = self.code.jump();
        self.code.bind(differ);
        match (format, smaller) {
            (Single, true) => dynasm!(self.code; minss xmm0, Rx(b)),
            (Single, false) => dynasm!(self.code; maxss xmm0, Rx(b)),
            (Double, true) => dynasm!(self.code; minsd xmm0, Rx(b)),
            (Double, false) => dynasm!(self.code; maxsd xmm0, Rx(b)),
        }
        self.code.bind(done);
    }

    fn float_conversion(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        use Kind::*;
        let (format, integer) = match kind {
            FcvtWS | FcvtSW => (Single, Integer::Word),
            FcvtWuS | FcvtSWu => (Single, Integer::UnsignedWord),
            FcvtLS | FcvtSL => (Single, Integer::Long),
            FcvtLuS | FcvtSLu => (Single, Integer::UnsignedLong),
            FcvtWD | FcvtDW => (Double, Integer::Word),
            FcvtWuD | FcvtDWu => (Double, Integer::UnsignedWord),
            FcvtLD | FcvtDL => (Double, Integer::Long),
            FcvtLuD | FcvtDLu => (Double, Integer::UnsignedLong),
            FcvtSD | FcvtDS => return self.convert_format(kind, op, index),
            _ => return false,
        };
        let to_integer =
            matches!(kind, FcvtWS | FcvtWuS | FcvtLS | FcvtLuS | FcvtWD | FcvtWuD | FcvtLD | FcvtLuD);
        let level = match rounding(op) {
            TOWARD_ZERO if to_integer => Some(ROUNDED),
            _ => level_to_round(op),
        };
        let Some(level) = level else { return false };
        let mut missed = vec![self.test_level(level)];
        if to_integer {
            self.test_boxed(format, &[op.rs1], &mut missed);
            self.float_to_integer(format, integer, op, &mut missed);
        } else {
            self.integer_to_float(format, integer, op, &mut missed);
        }
        self.slow_path(missed, index);
        true
    }

    /// What does not fit 64 bits with a sign gives the smallest number there, and what does not fit
    /// the instruction's integer is not taken either.
    fn float_to_integer(&mut self, format: Format, integer: Integer, op: &Op, missed: &mut Vec<Pending>) {
        let from = self.float_source(op.rs1, 0);
        match (format, rounding(op) == TOWARD_ZERO) {
            (Single, true) => dynasm!(self.code; cvttss2si rax, Rx(from)),
            (Single, false) => dynasm!(self.code; cvtss2si rax, Rx(from)),
            (Double, true) => dynasm!(self.code; cvttsd2si rax, Rx(from)),
            (Double, false) => dynasm!(self.code; cvtsd2si rax, Rx(from)),
        }
        match integer {
            Integer::Word => {
                dynasm!(self.code; movsxd rcx, eax; cmp rcx, rax);
                missed.push(self.code.jump_if(Cond::NotEqual));
            }
            Integer::UnsignedWord => {
                dynasm!(self.code; mov ecx, eax; cmp rcx, rax);
                missed.push(self.code.jump_if(Cond::NotEqual));
                dynasm!(self.code; movsxd rax, eax);
            }
            Integer::Long => {
                self.code.constant(RCX, i64::MIN);
                dynasm!(self.code; cmp rax, rcx);
                missed.push(self.code.jump_if(Cond::Equal));
            }
            Integer::UnsignedLong => {
                dynasm!(self.code; test rax, rax);
                missed.push(self.code.jump_if(Cond::Negative));
            }
        }
        self.code.finish(op.rd, RAX);
    }

    fn integer_to_float(&mut self, format: Format, integer: Integer, op: &Op, missed: &mut Vec<Pending>) {
        match integer {
            Integer::Word => {
                self.code.load_word(RAX, op.rs1);
                dynasm!(self.code; movsxd rax, eax);
            }
            Integer::UnsignedWord => self.code.load_word(RAX, op.rs1),
            Integer::Long => self.code.load(RAX, op.rs1),
            Integer::UnsignedLong => {
                self.code.load(RAX, op.rs1);
                dynasm!(self.code; test rax, rax);
                missed.push(self.code.jump_if(Cond::Negative));
            }
        }
        dynasm!(self.code; xorps xmm0, xmm0);
        match format {
            Single => dynasm!(self.code; cvtsi2ss xmm0, rax),
            Double => dynasm!(self.code; cvtsi2sd xmm0, rax),
        }
        self.store_float(format, op.rd);
    }

    fn convert_format(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        let Some(level) = level_to_round(op) else { return false };
        let mut missed = vec![self.test_level(level)];
        dynasm!(self.code; xorps xmm0, xmm0);
        if kind == Kind::FcvtDS {
            self.test_boxed(Single, &[op.rs1], &mut missed);
            // Exact, of whatever is a number.
            let from = self.float_source(op.rs1, 1);
            dynasm!(self.code; cvtss2sd xmm0, Rx(from); ucomisd xmm0, xmm0);
            missed.push(self.code.jump_if(Cond::Parity));
            self.store_float(Double, op.rd);
        } else {
            let from = self.float_source(op.rs1, 1);
            dynasm!(self.code; cvtsd2ss xmm0, Rx(from));
            missed.push(self.test_normal(Single));
            self.store_float(Single, op.rd);
        }
        self.slow_path(missed, index);
        true
    }
}
