//! What all of the translation is written with: the register map, and moves between guest registers
//! and host registers.
//!
//! | host register | holds |
//! | --- | --- |
//! | `rbp` | the hart, as a pointer that reaches all integer registers by one byte |
//! | `r14` | the fuel ("slack" of [`crate::hart::op`]), as it was when the block was entered |
//! | `r15` | the TLBs of the present regime |
//! | `rax`, `rcx` | nothing between two instructions |
//! | [`MAP`] | guest registers, always: a block is entered and left with them in place |
//!
//! The other guest registers are in the hart.

use std::mem::offset_of;

use dynasmrt::{AssemblyOffset, DynasmApi, dynasm};

use crate::hart::Hart;
use crate::hart::decode::SINK;

/// A host register by number, as encoded.
pub(super) type Reg = u8;
pub(super) const RAX: Reg = 0;
pub(super) const RCX: Reg = 1;
pub(super) const RDX: Reg = 2;
const NONE: Reg = u8::MAX;

/// The host register of each guest register that has one.
pub(super) const MAP: [Reg; 32] = {
    let mut map = [NONE; 32];
    let mut at = 0;
    while at < PAIRS.len() {
        map[PAIRS[at].0 as usize] = PAIRS[at].1;
        at += 1;
    }
    map
};

/// Guest registers with their host registers. `rdx` is the one that products and quotients need.
pub(super) const PAIRS: [(u8, Reg); 10] =
    [(2, 3), (8, 12), (9, RDX), (10, 6), (11, 7), (12, 8), (13, 9), (14, 10), (15, 11), (16, 13)];

/// What `rbp` is more than the address of the hart.
pub(super) const BIAS: usize = offset_of!(Hart, x) + 128;

/// Where a field of the hart is from `rbp`.
pub(super) const fn from_rbp(offset: usize) -> i32 {
    offset as i32 - BIAS as i32
}

/// Where an integer register of the guest is from `rbp`.
fn home(guest: u8) -> i8 {
    debug_assert!(guest < 32);
    (i32::from(guest) * 8 - 128) as i8
}

/// The host register of a guest register.
pub(super) fn mapped(guest: u8) -> Option<Reg> {
    MAP.get(usize::from(guest)).copied().filter(|&reg| reg != NONE)
}

/// Code as it is assembled.
#[derive(Default)]
pub(super) struct Buffer {
    pub bytes: Vec<u8>,
}

impl Extend<u8> for Buffer {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.bytes.extend(bytes);
    }
}

impl<'a> Extend<&'a u8> for Buffer {
    fn extend<T: IntoIterator<Item = &'a u8>>(&mut self, bytes: T) {
        self.bytes.extend(bytes);
    }
}

impl DynasmApi for Buffer {
    fn offset(&self) -> AssemblyOffset {
        AssemblyOffset(self.bytes.len())
    }

    fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn align(&mut self, alignment: usize, with: u8) {
        let len = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(len, with);
    }
}

/// Where a jump of which the target is not known yet has its distance.
#[must_use]
#[derive(Clone, Copy)]
pub(super) struct Pending(pub usize);

/// A condition of the host's flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cond {
    Equal,
    NotEqual,
    Less,
    GreaterEqual,
    Below,
    AboveEqual,
    Above,
    Negative,
    Positive,
    Parity,
}

/// Two-operand instructions of the host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Alu {
    Add,
    Sub,
    And,
    Or,
    Xor,
    Cmp,
    Mul,
}

/// How wide an operation is. Of 32 bits the result is sign-extended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Word,
    Double,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Lets a pending jump come here.
    pub fn bind(&mut self, jump: Pending) {
        self.bind_to(jump, self.len());
    }

    pub fn bind_to(&mut self, jump: Pending, target: usize) {
        let distance = target as i32 - (jump.0 as i32 + 4);
        self.bytes[jump.0..jump.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }

    fn pending(&self) -> Pending {
        Pending(self.len() - 4)
    }

    pub fn jump(&mut self) -> Pending {
        dynasm!(self; jmp DWORD 0);
        self.pending()
    }

    pub fn jump_if(&mut self, cond: Cond) -> Pending {
        match cond {
            Cond::Equal => dynasm!(self; je DWORD 0),
            Cond::NotEqual => dynasm!(self; jne DWORD 0),
            Cond::Less => dynasm!(self; jl DWORD 0),
            Cond::GreaterEqual => dynasm!(self; jge DWORD 0),
            Cond::Below => dynasm!(self; jb DWORD 0),
            Cond::AboveEqual => dynasm!(self; jae DWORD 0),
            Cond::Above => dynasm!(self; ja DWORD 0),
            Cond::Negative => dynasm!(self; js DWORD 0),
            Cond::Positive => dynasm!(self; jns DWORD 0),
            Cond::Parity => dynasm!(self; jp DWORD 0),
        }
        self.pending()
    }

    /// Sets a register to 1 where the condition holds, else to 0, by way of `rax`.
    pub fn set_if(&mut self, cond: Cond, to: Reg) {
        match cond {
            Cond::Equal => dynasm!(self; sete al),
            Cond::NotEqual => dynasm!(self; setne al),
            Cond::Less => dynasm!(self; setl al),
            Cond::Below => dynasm!(self; setb al),
            Cond::Above => dynasm!(self; seta al),
            Cond::AboveEqual => dynasm!(self; setae al),
            _ => unreachable!("no instruction of the guest sets a register by it"),
        }
        dynasm!(self; movzx Rd(to), al);
    }

    /// `to = from`.
    pub fn copy(&mut self, to: Reg, from: Reg) {
        if to != from {
            dynasm!(self; mov Rq(to), Rq(from));
        }
    }

    /// `to = value`, leaving the flags alone.
    pub fn constant(&mut self, to: Reg, value: i64) {
        if let Ok(low) = u32::try_from(value) {
            dynasm!(self; mov Rd(to), DWORD low as i32);
        } else if let Ok(low) = i32::try_from(value) {
            dynasm!(self; mov Rq(to), DWORD low);
        } else {
            dynasm!(self; mov Rq(to), QWORD value);
        }
    }

    /// `to = guest`, leaving the flags alone.
    pub fn load(&mut self, to: Reg, guest: u8) {
        match mapped(guest) {
            Some(from) => self.copy(to, from),
            None if guest == 0 => dynasm!(self; mov Rd(to), 0),
            None => dynasm!(self; mov Rq(to), [BYTE rbp + home(guest)]),
        }
    }

    /// `to = guest`, zero-extended from 32 bits, leaving the flags alone.
    pub fn load_word(&mut self, to: Reg, guest: u8) {
        match mapped(guest) {
            Some(from) => dynasm!(self; mov Rd(to), Rd(from)),
            None if guest == 0 => dynasm!(self; mov Rd(to), 0),
            None => dynasm!(self; mov Rd(to), [BYTE rbp + home(guest)]),
        }
    }

    /// The host register that holds a guest register; `scratch`, loaded with it, where none does.
    pub fn source(&mut self, guest: u8, scratch: Reg) -> Reg {
        mapped(guest).unwrap_or_else(|| {
            self.load(scratch, guest);
            scratch
        })
    }

    /// The host register to put a guest register's new value into; [`Buffer::finish`] follows.
    pub fn target(&self, guest: u8, scratch: Reg) -> Reg {
        mapped(guest).unwrap_or(scratch)
    }

    /// Makes `reg` the guest register's value.
    pub fn finish(&mut self, guest: u8, reg: Reg) {
        match mapped(guest) {
            Some(to) => self.copy(to, reg),
            None if guest == SINK || guest == 0 => {}
            None => dynasm!(self; mov [BYTE rbp + home(guest)], Rq(reg)),
        }
    }

    /// Copies the mapped guest registers into the hart.
    pub fn spill(&mut self) {
        for (guest, reg) in PAIRS {
            self.spill_one(guest, reg);
        }
    }

    pub fn spill_one(&mut self, guest: u8, reg: Reg) {
        dynasm!(self; mov [BYTE rbp + home(guest)], Rq(reg));
    }

    /// Copies the mapped guest registers from the hart.
    pub fn fill(&mut self) {
        for (guest, reg) in PAIRS {
            self.fill_one(guest, reg);
        }
    }

    pub fn fill_one(&mut self, guest: u8, reg: Reg) {
        dynasm!(self; mov Rq(reg), [BYTE rbp + home(guest)]);
    }

    /// `to = to op guest`.
    pub fn alu(&mut self, op: Alu, width: Width, to: Reg, guest: u8) {
        match (mapped(guest), width) {
            (Some(from), Width::Double) => self.alu_registers(op, to, from),
            (Some(from), Width::Word) => self.alu_words(op, to, from),
            (None, _) if guest == 0 => self.alu_zero(op, to),
            (None, _) => self.alu_memory(op, width, to, home(guest)),
        }
    }

    pub fn alu_registers(&mut self, op: Alu, to: Reg, from: Reg) {
        match op {
            Alu::Add => dynasm!(self; add Rq(to), Rq(from)),
            Alu::Sub => dynasm!(self; sub Rq(to), Rq(from)),
            Alu::And => dynasm!(self; and Rq(to), Rq(from)),
            Alu::Or => dynasm!(self; or Rq(to), Rq(from)),
            Alu::Xor => dynasm!(self; xor Rq(to), Rq(from)),
            Alu::Cmp => dynasm!(self; cmp Rq(to), Rq(from)),
            Alu::Mul => dynasm!(self; imul Rq(to), Rq(from)),
        }
    }

    fn alu_words(&mut self, op: Alu, to: Reg, from: Reg) {
        match op {
            Alu::Add => dynasm!(self; add Rd(to), Rd(from)),
            Alu::Sub => dynasm!(self; sub Rd(to), Rd(from)),
            Alu::And => dynasm!(self; and Rd(to), Rd(from)),
            Alu::Or => dynasm!(self; or Rd(to), Rd(from)),
            Alu::Xor => dynasm!(self; xor Rd(to), Rd(from)),
            Alu::Cmp => dynasm!(self; cmp Rd(to), Rd(from)),
            Alu::Mul => dynasm!(self; imul Rd(to), Rd(from)),
        }
    }

    fn alu_zero(&mut self, op: Alu, to: Reg) {
        match op {
            Alu::Add | Alu::Sub | Alu::Or | Alu::Xor => {}
            Alu::And | Alu::Mul => dynasm!(self; xor Rd(to), Rd(to)),
            Alu::Cmp => dynasm!(self; test Rq(to), Rq(to)),
        }
    }

    fn alu_memory(&mut self, op: Alu, width: Width, to: Reg, at: i8) {
        match (op, width) {
            (Alu::Add, Width::Double) => dynasm!(self; add Rq(to), [BYTE rbp + at]),
            (Alu::Sub, Width::Double) => dynasm!(self; sub Rq(to), [BYTE rbp + at]),
            (Alu::And, Width::Double) => dynasm!(self; and Rq(to), [BYTE rbp + at]),
            (Alu::Or, Width::Double) => dynasm!(self; or Rq(to), [BYTE rbp + at]),
            (Alu::Xor, Width::Double) => dynasm!(self; xor Rq(to), [BYTE rbp + at]),
            (Alu::Cmp, Width::Double) => dynasm!(self; cmp Rq(to), [BYTE rbp + at]),
            (Alu::Mul, Width::Double) => dynasm!(self; imul Rq(to), [BYTE rbp + at]),
            (Alu::Add, Width::Word) => dynasm!(self; add Rd(to), [BYTE rbp + at]),
            (Alu::Sub, Width::Word) => dynasm!(self; sub Rd(to), [BYTE rbp + at]),
            (Alu::And, Width::Word) => dynasm!(self; and Rd(to), [BYTE rbp + at]),
            (Alu::Or, Width::Word) => dynasm!(self; or Rd(to), [BYTE rbp + at]),
            (Alu::Xor, Width::Word) => dynasm!(self; xor Rd(to), [BYTE rbp + at]),
            (Alu::Cmp, Width::Word) => dynasm!(self; cmp Rd(to), [BYTE rbp + at]),
            (Alu::Mul, Width::Word) => dynasm!(self; imul Rd(to), [BYTE rbp + at]),
        }
    }

    /// `to = to op value`.
    pub fn alu_constant(&mut self, op: Alu, to: Reg, value: i32) {
        match i8::try_from(value) {
            Ok(value) => match op {
                Alu::Add => dynasm!(self; add Rq(to), BYTE value),
                Alu::Sub => dynasm!(self; sub Rq(to), BYTE value),
                Alu::And => dynasm!(self; and Rq(to), BYTE value),
                Alu::Or => dynasm!(self; or Rq(to), BYTE value),
                Alu::Xor => dynasm!(self; xor Rq(to), BYTE value),
                Alu::Cmp => dynasm!(self; cmp Rq(to), DWORD i32::from(value)),
                Alu::Mul => unreachable!("the guest multiplies by no constant"),
            },
            Err(_) => match op {
                Alu::Add => dynasm!(self; add Rq(to), DWORD value),
                Alu::Sub => dynasm!(self; sub Rq(to), DWORD value),
                Alu::And => dynasm!(self; and Rq(to), DWORD value),
                Alu::Or => dynasm!(self; or Rq(to), DWORD value),
                Alu::Xor => dynasm!(self; xor Rq(to), DWORD value),
                Alu::Cmp => dynasm!(self; cmp Rq(to), DWORD value),
                Alu::Mul => unreachable!("the guest multiplies by no constant"),
            },
        }
    }

    /// `to = from + value`, leaving the flags alone.
    pub fn add_to(&mut self, to: Reg, from: Reg, value: i32) {
        match i8::try_from(value) {
            Ok(0) => self.copy(to, from),
            Ok(value) => dynasm!(self; lea Rq(to), [BYTE Rq(from) + value]),
            Err(_) => dynasm!(self; lea Rq(to), [DWORD Rq(from) + value]),
        }
    }
}
