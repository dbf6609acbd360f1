//! Translation of integer instructions.

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};

use super::Emitter;
use super::emitter::{Alu, Cond, RAX, RCX, RDX, Reg, Width, from_rbp, mapped};
use crate::hart::Hart;
use crate::hart::decode::SINK;
use crate::hart::kind::Kind;
use crate::hart::op::Op;

/// From `rbp` to the guest-virtual page of the code.
pub(super) const PAGE: i32 = from_rbp(offset_of!(Hart, page_virtual));

/// Shifts and rotations.
#[derive(Clone, Copy)]
enum Shift {
    Left,
    Right,
    Arithmetic,
    RotateLeft,
    RotateRight,
}

impl Emitter<'_> {
    /// Translates an instruction that computes with integer registers; `false` if it is none, or
    /// one that is left to its handler.
    pub(super) fn integer(&mut self, kind: Kind, op: &Op) -> bool {
        // Nothing but its result can be seen of such an instruction.
        let unseen = op.rd == SINK;
        self.integer_register(kind, op, unseen)
            || self.integer_immediate(kind, op, unseen)
            || self.bits(kind, op, unseen)
            || self.products(kind, op, unseen)
    }

    fn integer_immediate(&mut self, kind: Kind, op: &Op, unseen: bool) -> bool {
        use Kind::*;
        let (rd, rs1, imm) = (op.rd, op.rs1, op.imm);
        match kind {
            Nothing => return true,
            LoadImmediate | Copy | Addi | Xori | Ori | Andi | Slti | Sltiu | Addiw | Slli | Srli | Srai
            | Slliw | Srliw | Sraiw | Auipc
                if unseen =>
            {
                return true;
            }
            _ => {}
        }
        let to = self.code.target(rd, RAX);
        match kind {
            LoadImmediate => self.code.constant(to, i64::from(imm)),
            Copy => self.code.load(to, rs1),
            Auipc => {
                dynasm!(self.code; mov Rq(to), [rbp + PAGE]);
                self.code.alu_constant(Alu::Add, to, imm);
            }
            Addi => {
                let from = self.code.source(rs1, RAX);
                if from == to {
                    self.code.alu_constant(Alu::Add, to, imm);
                } else {
                    self.code.add_to(to, from, imm);
                }
            }
            Xori | Ori | Andi => {
                let alu = match kind {
                    Xori => Alu::Xor,
                    Ori => Alu::Or,
                    _ => Alu::And,
                };
                self.code.load(to, rs1);
                if kind == Andi && imm == 255 {
                    dynasm!(self.code; movzx Rd(to), Rb(to));
                } else if kind == Xori && imm == -1 {
                    dynasm!(self.code; not Rq(to));
                } else {
                    self.code.alu_constant(alu, to, imm);
                }
            }
            Slti | Sltiu => {
                let from = self.code.source(rs1, RAX);
                self.code.alu_constant(Alu::Cmp, from, imm);
                self.code.set_if(if kind == Slti { Cond::Less } else { Cond::Below }, to);
            }
            Addiw => {
                let from = self.code.source(rs1, RAX);
                if imm == 0 {
                    dynasm!(self.code; movsxd Rq(to), Rd(from));
                } else {
                    dynasm!(self.code; lea eax, [Rq(from) + imm]; movsxd Rq(to), eax);
                }
            }
            Slli | Srli | Srai => self.shift_double(kind, to, rs1, imm),
            Slliw | Srliw | Sraiw => self.shift_word(kind, to, rs1, imm),
            _ => return false,
        }
        self.code.finish(rd, to);
        true
    }

    fn shift_double(&mut self, kind: Kind, to: Reg, rs1: u8, imm: i32) {
        let shift = imm as i8 & 63;
        self.code.load(to, rs1);
        match kind {
            Kind::Slli => dynasm!(self.code; shl Rq(to), BYTE shift),
            Kind::Srli => dynasm!(self.code; shr Rq(to), BYTE shift),
            _ => dynasm!(self.code; sar Rq(to), BYTE shift),
        }
    }

    fn shift_word(&mut self, kind: Kind, to: Reg, rs1: u8, imm: i32) {
        let shift = imm as i8 & 31;
        self.code.load_word(to, rs1);
        match kind {
            Kind::Slliw => dynasm!(self.code; shl Rd(to), BYTE shift),
            Kind::Srliw => dynasm!(self.code; shr Rd(to), BYTE shift),
            _ => dynasm!(self.code; sar Rd(to), BYTE shift),
        }
        // Shifted right by something, it is no negative number.
        if kind != Kind::Srliw || shift == 0 {
            dynasm!(self.code; movsxd Rq(to), Rd(to));
        }
    }

    fn integer_register(&mut self, kind: Kind, op: &Op, unseen: bool) -> bool {
        use Kind::*;
        let (alu, width) = match kind {
            Add => (Alu::Add, Width::Double),
            Sub => (Alu::Sub, Width::Double),
            And => (Alu::And, Width::Double),
            Or => (Alu::Or, Width::Double),
            Xor => (Alu::Xor, Width::Double),
            Mul => (Alu::Mul, Width::Double),
            Addw => (Alu::Add, Width::Word),
            Subw => (Alu::Sub, Width::Word),
            Mulw => (Alu::Mul, Width::Word),
            Slt | Sltu => {
                if !unseen {
                    let from = self.code.source(op.rs1, RAX);
                    self.code.alu(Alu::Cmp, Width::Double, from, op.rs2);
                    let to = self.code.target(op.rd, RAX);
                    self.code.set_if(if kind == Slt { Cond::Less } else { Cond::Below }, to);
                    self.code.finish(op.rd, to);
                }
                return true;
            }
            Sll | Srl | Sra | Sllw | Srlw | Sraw | Rol | Ror | Rolw | Rorw => {
                if !unseen {
                    self.shift_by_register(kind, op);
                }
                return true;
            }
            _ => return false,
        };
        if !unseen {
            self.two_operands(alu, width, op);
        }
        true
    }

    fn two_operands(&mut self, alu: Alu, width: Width, op: &Op) {
        let to = self.code.target(op.rd, RAX);
        let other = mapped(op.rs2);
        let commutes = alu != Alu::Sub;
        if alu == Alu::Add
            && let (Some(a), Some(b)) = (mapped(op.rs1), other)
            && a != to
            && b != to
        {
            match width {
                Width::Double => dynasm!(self.code; lea Rq(to), [Rq(a) + Rq(b)]),
                Width::Word => dynasm!(self.code; lea Rd(to), [Rq(a) + Rq(b)]),
            }
        } else if other == Some(to) && mapped(op.rs1) != Some(to) {
            if commutes {
                self.code.alu(alu, width, to, op.rs1);
            } else {
                self.code.load(RAX, op.rs1);
                self.code.alu(alu, width, RAX, op.rs2);
                self.code.copy(to, RAX);
            }
        } else {
            self.code.load(to, op.rs1);
            self.code.alu(alu, width, to, op.rs2);
        }
        if width == Width::Word {
            dynasm!(self.code; movsxd Rq(to), Rd(to));
        }
        self.code.finish(op.rd, to);
    }

    fn shift_by_register(&mut self, kind: Kind, op: &Op) {
        use Kind::*;
        let (shift, width) = match kind {
            Sll => (Shift::Left, Width::Double),
            Srl => (Shift::Right, Width::Double),
            Sra => (Shift::Arithmetic, Width::Double),
            Rol => (Shift::RotateLeft, Width::Double),
            Ror => (Shift::RotateRight, Width::Double),
            Sllw => (Shift::Left, Width::Word),
            Srlw => (Shift::Right, Width::Word),
            Sraw => (Shift::Arithmetic, Width::Word),
            Rolw => (Shift::RotateLeft, Width::Word),
            _ => (Shift::RotateRight, Width::Word),
        };
        self.code.load(RAX, op.rs1);
        self.code.load(RCX, op.rs2);
        match (shift, width) {
            (Shift::Left, Width::Double) => dynasm!(self.code; shl rax, cl),
            (Shift::Right, Width::Double) => dynasm!(self.code; shr rax, cl),
            (Shift::Arithmetic, Width::Double) => dynasm!(self.code; sar rax, cl),
            (Shift::RotateLeft, Width::Double) => dynasm!(self.code; rol rax, cl),
            (Shift::RotateRight, Width::Double) => dynasm!(self.code; ror rax, cl),
            (Shift::Left, Width::Word) => dynasm!(self.code; shl eax, cl),
            (Shift::Right, Width::Word) => dynasm!(self.code; shr eax, cl),
            (Shift::Arithmetic, Width::Word) => dynasm!(self.code; sar eax, cl),
            (Shift::RotateLeft, Width::Word) => dynasm!(self.code; rol eax, cl),
            (Shift::RotateRight, Width::Word) => dynasm!(self.code; ror eax, cl),
        }
        if width == Width::Word {
            dynasm!(self.code; movsxd rax, eax);
        }
        self.code.finish(op.rd, RAX);
    }

    /// Zba, Zbb, Zbs and Zicond.
    fn bits(&mut self, kind: Kind, op: &Op, unseen: bool) -> bool {
        use Kind::*;
        match kind {
            Sh1add | Sh2add | Sh3add | Sh1addUw | Sh2addUw | Sh3addUw | AddUw | SlliUw | Andn | Orn
            | Xnor | Max | Min | Maxu | Minu | Rori | Roriw | Bclr | Bext | Binv | Bset | Bclri | Bexti
            | Binvi | Bseti | SextB | SextH | ZextH | Rev8 | OrcB | CzeroEqz | CzeroNez
                if unseen =>
            {
                return true;
            }
            Sh1add | Sh2add | Sh3add | Sh1addUw | Sh2addUw | Sh3addUw | AddUw => self.shifted_sum(kind, op),
            Andn | Orn | Xnor => {
                self.code.load(RAX, op.rs2);
                dynasm!(self.code; not rax);
                let alu = match kind {
                    Andn => Alu::And,
                    Orn => Alu::Or,
                    _ => Alu::Xor,
                };
                self.code.alu(alu, Width::Double, RAX, op.rs1);
            }
            Max | Min | Maxu | Minu => {
                let b = self.code.source(op.rs2, RCX);
                self.code.load(RAX, op.rs1);
                dynasm!(self.code; cmp rax, Rq(b));
                match kind {
                    Max => dynasm!(self.code; cmovl rax, Rq(b)),
                    Min => dynasm!(self.code; cmovg rax, Rq(b)),
                    Maxu => dynasm!(self.code; cmovb rax, Rq(b)),
                    _ => dynasm!(self.code; cmova rax, Rq(b)),
                }
            }
            CzeroEqz | CzeroNez => {
                self.code.load(RAX, op.rs1);
                let b = self.code.source(op.rs2, RCX);
                dynasm!(self.code; test Rq(b), Rq(b); mov ecx, 0);
                match kind {
                    CzeroEqz => dynasm!(self.code; cmovz rax, rcx),
                    _ => dynasm!(self.code; cmovnz rax, rcx),
                }
            }
            Bclr | Bext | Binv | Bset => {
                let b = self.code.source(op.rs2, RCX);
                self.code.load(RAX, op.rs1);
                match kind {
                    Bclr => dynasm!(self.code; btr rax, Rq(b)),
                    Binv => dynasm!(self.code; btc rax, Rq(b)),
                    Bset => dynasm!(self.code; bts rax, Rq(b)),
                    _ => dynasm!(self.code; bt rax, Rq(b); setb al; movzx eax, al),
                }
            }
            _ => return self.bits_of_one(kind, op),
        }
        self.code.finish(op.rd, RAX);
        true
    }

    fn shifted_sum(&mut self, kind: Kind, op: &Op) {
        use Kind::*;
        let is_word = matches!(kind, Sh1addUw | Sh2addUw | Sh3addUw | AddUw);
        let b = self.code.source(op.rs2, RCX);
        if is_word {
            self.code.load_word(RAX, op.rs1);
        } else {
            self.code.load(RAX, op.rs1);
        }
        match kind {
            AddUw => dynasm!(self.code; add rax, Rq(b)),
            Sh1add | Sh1addUw => dynasm!(self.code; lea rax, [Rq(b) + rax * 2]),
            Sh2add | Sh2addUw => dynasm!(self.code; lea rax, [Rq(b) + rax * 4]),
            _ => dynasm!(self.code; lea rax, [Rq(b) + rax * 8]),
        }
    }

    fn bits_of_one(&mut self, kind: Kind, op: &Op) -> bool {
        use Kind::*;
        let shift = op.imm as i8 & 63;
        match kind {
            SlliUw => {
                self.code.load_word(RAX, op.rs1);
                dynasm!(self.code; shl rax, BYTE shift);
            }
            Rori => {
                self.code.load(RAX, op.rs1);
                dynasm!(self.code; ror rax, BYTE shift);
            }
            Roriw => {
                self.code.load(RAX, op.rs1);
                dynasm!(self.code; ror eax, BYTE shift & 31; movsxd rax, eax);
            }
            Bclri | Bexti | Binvi | Bseti => {
                self.code.load(RAX, op.rs1);
                match kind {
                    Bclri => dynasm!(self.code; btr rax, BYTE shift),
                    Binvi => dynasm!(self.code; btc rax, BYTE shift),
                    Bseti => dynasm!(self.code; bts rax, BYTE shift),
                    _ => dynasm!(self.code; bt rax, BYTE shift; setb al; movzx eax, al),
                }
            }
            SextB | SextH | ZextH => {
                let from = self.code.source(op.rs1, RAX);
                match kind {
                    SextB => dynasm!(self.code; movsx rax, Rb(from)),
                    SextH => dynasm!(self.code; movsx rax, Rw(from)),
                    _ => dynasm!(self.code; movzx eax, Rw(from)),
                }
            }
            Rev8 => {
                self.code.load(RAX, op.rs1);
                dynasm!(self.code; bswap rax);
            }
            OrcB => {
                let from = self.code.source(op.rs1, RAX);
                dynasm!(self.code
                    ; movq xmm0, Rq(from)
                    ; pxor xmm1, xmm1
                    ; pcmpeqb xmm0, xmm1
                    ; movq rax, xmm0
                    ; not rax
                );
            }
            Clz | Clzw | Ctz | Ctzw | Cpop | Cpopw if self.features.counts_bits => {
                let from = self.code.source(op.rs1, RAX);
                match kind {
                    Clz => dynasm!(self.code; lzcnt rax, Rq(from)),
                    Clzw => dynasm!(self.code; lzcnt eax, Rd(from)),
                    Ctz => dynasm!(self.code; tzcnt rax, Rq(from)),
                    Ctzw => dynasm!(self.code; tzcnt eax, Rd(from)),
                    Cpop => dynasm!(self.code; popcnt rax, Rq(from)),
                    _ => dynasm!(self.code; popcnt eax, Rd(from)),
                }
            }
            _ => return false,
        }
        self.code.finish(op.rd, RAX);
        true
    }

    /// Products of 128 bits, quotients and remainders.
    fn products(&mut self, kind: Kind, op: &Op, unseen: bool) -> bool {
        use Kind::*;
        match kind {
            Mulh | Mulhu | Div | Divu | Rem | Remu | Divw | Divuw | Remw | Remuw if unseen => return true,
            Mulh | Mulhu => {
                self.begin_wide(op);
                match kind {
                    Mulh => dynasm!(self.code; imul rcx),
                    _ => dynasm!(self.code; mul rcx),
                }
                dynasm!(self.code; mov rax, rdx);
            }
            Div | Rem | Divw | Remw => self.divide_signed(kind, op),
            Divu | Remu | Divuw | Remuw => self.divide_unsigned(kind, op),
            _ => return false,
        }
        if let Some(guest) = super::emitter::PAIRS.iter().find(|(_, reg)| *reg == RDX) {
            self.code.fill_one(guest.0, RDX);
        }
        self.code.finish(op.rd, RAX);
        true
    }

    /// Brings the operands into `rax` and `rcx` and frees `rdx`.
    fn begin_wide(&mut self, op: &Op) {
        if let Some(guest) = super::emitter::PAIRS.iter().find(|(_, reg)| *reg == RDX) {
            self.code.spill_one(guest.0, RDX);
        }
        self.code.load(RAX, op.rs1);
        self.code.load(RCX, op.rs2);
    }

    fn divide_unsigned(&mut self, kind: Kind, op: &Op) {
        use Kind::*;
        let is_word = matches!(kind, Divuw | Remuw);
        self.begin_wide(op);
        match is_word {
            true => dynasm!(self.code; test ecx, ecx),
            false => dynasm!(self.code; test rcx, rcx),
        }
        let by_zero = self.code.jump_if(Cond::Equal);
        match is_word {
            true => dynasm!(self.code; xor edx, edx; div ecx),
            false => dynasm!(self.code; xor edx, edx; div rcx),
        }
        let done = self.code.jump();
        self.code.bind(by_zero);
        dynasm!(self.code; mov rdx, rax; mov rax, -1);
        self.code.bind(done);
        self.end_division(matches!(kind, Remu | Remuw), is_word);
    }

    fn divide_signed(&mut self, kind: Kind, op: &Op) {
        use Kind::*;
        let is_word = matches!(kind, Divw | Remw);
        self.begin_wide(op);
        match is_word {
            true => dynasm!(self.code; test ecx, ecx),
            false => dynasm!(self.code; test rcx, rcx),
        }
        let by_zero = self.code.jump_if(Cond::Equal);
        // By -1 the quotient may be one too many for the host.
        match is_word {
            true => dynasm!(self.code; cmp ecx, BYTE -1),
            false => dynasm!(self.code; cmp rcx, BYTE -1),
        }
        let by_minus_one = self.code.jump_if(Cond::Equal);
        match is_word {
            true => dynasm!(self.code; cdq; idiv ecx),
            false => dynasm!(self.code; cqo; idiv rcx),
        }
        let done = self.code.jump();
        self.code.bind(by_zero);
        dynasm!(self.code; mov rdx, rax; mov rax, -1);
        let also_done = self.code.jump();
        self.code.bind(by_minus_one);
        dynasm!(self.code; neg rax; xor edx, edx);
        self.code.bind(done);
        self.code.bind(also_done);
        self.end_division(matches!(kind, Rem | Remw), is_word);
    }

    /// Brings the quotient in `rax`, or the remainder in `rdx`, into `rax`.
    fn end_division(&mut self, remainder: bool, is_word: bool) {
        match (remainder, is_word) {
            (false, false) => {}
            (false, true) => dynasm!(self.code; movsxd rax, eax),
            (true, false) => dynasm!(self.code; mov rax, rdx),
            (true, true) => dynasm!(self.code; movsxd rax, edx),
        }
    }
}
