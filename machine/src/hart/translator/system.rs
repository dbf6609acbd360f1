//! Translation of what a kernel does most of privileged instructions: it swaps and saves registers at
//! each entry, and clears pages. The rest is the handlers' affair.

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};

use super::emitter::{Alu, Cond, Pending, RAX, RCX, from_rbp};
use super::{Emitter, View};
use crate::hart::Hart;
use crate::hart::csr::{
    CAUSE_WRITABLE, Csrs, Privilege, STATUS_FS, STATUS_MXR, STATUS_SD, STATUS_SIE, STATUS_SUM,
    STATUS_SUPERVISOR_WRITABLE, STATUS_SUPERVISOR_XLEN, number,
};
use crate::hart::decode::SINK;
use crate::hart::kind::Kind;
use crate::hart::op::Op;
use crate::hart::system::CACHE_BLOCK_BYTES;

const PRIVILEGE: i32 = from_rbp(offset_of!(Hart, privilege));
const ZEROES: i32 = from_rbp(offset_of!(Hart, view) + offset_of!(View, zeroes_blocks));
const MSTATUS: i32 = csr(offset_of!(Csrs, mstatus));

/// Where a field of the CSRs is from `rbp`.
const fn csr(offset: usize) -> i32 {
    from_rbp(offset_of!(Hart, csrs) + offset)
}

/// A CSR of S-mode that is memory, but for bits that cannot be set.
struct Plain {
    at: i32,
    writable: i64,
}

impl Plain {
    fn of(number: u16) -> Option<Plain> {
        let (offset, writable) = match number {
            number::SSCRATCH => (offset_of!(Csrs, sscratch), !0),
            number::SEPC => (offset_of!(Csrs, sepc), !1),
            number::SCAUSE => (offset_of!(Csrs, scause), CAUSE_WRITABLE as i64),
            number::STVAL => (offset_of!(Csrs, stval), !0),
            _ => return None,
        };
        Some(Plain { at: csr(offset), writable })
    }
}

/// What a `csrr*` does to the CSR.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Write,
    Set,
    Clear,
}

/// The fields of a `csrr*`.
struct CsrAccess {
    number: u16,
    change: Change,
    /// A register's number, or the operand itself.
    source: u8,
    is_immediate: bool,
}

impl CsrAccess {
    fn of(op: &Op) -> CsrAccess {
        let instruction = op.imm as u32;
        let source = (instruction >> 15 & 31) as u8;
        let change = match instruction >> 12 & 3 {
            1 => Change::Write,
            _ if source == 0 => Change::Nothing,
            2 => Change::Set,
            _ => Change::Clear,
        };
        let number = (instruction >> 20) as u16;
        CsrAccess { number, change, source, is_immediate: instruction >> 14 & 1 != 0 }
    }
}

impl Emitter<'_> {
    /// Translates a privileged instruction; `false` if it is none, or one that is left to its handler.
    pub(super) fn system(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        match kind {
            Kind::Csr => self.csr(op, index),
            Kind::CboZero => {
                self.zero_block(op, index);
                true
            }
            _ => false,
        }
    }

    fn csr(&mut self, op: &Op, index: u32) -> bool {
        let access = CsrAccess::of(op);
        if let Some(plain) = Plain::of(access.number) {
            self.csr_plain(op, index, &access, &plain);
        } else if access.number == number::SSTATUS {
            self.csr_status(op, index, &access);
        } else {
            return false;
        }
        true
    }

    /// Jumps where S-mode's CSRs may not be accessed.
    fn test_supervisor(&mut self) -> Pending {
        dynasm!(self.code; cmp BYTE [rbp + PRIVILEGE], BYTE Privilege::User as i8);
        self.code.jump_if(Cond::Equal)
    }

    /// `rcx` = what the CSR at a place becomes, before bits that cannot be set are taken away.
    fn changed(&mut self, access: &CsrAccess, at: i32) {
        match access.is_immediate {
            true => self.code.constant(RCX, i64::from(access.source)),
            false => self.code.load(RCX, access.source),
        }
        match access.change {
            Change::Nothing | Change::Write => {}
            Change::Set => dynasm!(self.code; or rcx, [rbp + at]),
            Change::Clear => dynasm!(self.code; not rcx; and rcx, [rbp + at]),
        }
    }

    fn csr_plain(&mut self, op: &Op, index: u32, access: &CsrAccess, plain: &Plain) {
        let missed = self.test_supervisor();
        if access.change != Change::Nothing {
            self.changed(access, plain.at);
            match i8::try_from(plain.writable) {
                Ok(-1) => {}
                Ok(mask) => dynasm!(self.code; and rcx, BYTE mask),
                Err(_) => dynasm!(self.code; mov rax, QWORD plain.writable; and rcx, rax),
            }
        }
        if op.rd != SINK {
            dynasm!(self.code; mov rax, [rbp + plain.at]);
        }
        if access.change != Change::Nothing {
            dynasm!(self.code; mov [rbp + plain.at], rcx);
        }
        self.code.finish(op.rd, RAX);
        self.slow_path(vec![missed], index);
    }

    /// `sstatus`. What has more to follow than the register's change is left to the handler.
    fn csr_status(&mut self, op: &Op, index: u32, access: &CsrAccess) {
        let mut missed = vec![self.test_supervisor()];
        let writable = STATUS_SUPERVISOR_WRITABLE as i32;
        if access.change != Change::Nothing {
            self.changed(access, MSTATUS);
            // The bits that change, and among them the interrupt enable that is not set yet.
            let followed = (STATUS_MXR | STATUS_SUM | STATUS_FS) as i32;
            dynasm!(self.code
                ; xor ecx, [rbp + MSTATUS]
                ; and ecx, DWORD writable
                ; test ecx, DWORD followed
            );
            missed.push(self.code.jump_if(Cond::NotEqual));
            dynasm!(self.code
                ; mov eax, [rbp + MSTATUS]
                ; not eax
                ; and eax, ecx
                ; test eax, DWORD STATUS_SIE as i32
            );
            missed.push(self.code.jump_if(Cond::NotEqual));
            dynasm!(self.code; movd xmm0, ecx);
        }
        if op.rd != SINK {
            // SD is set where both bits of FS are: adding the lower one carries.
            let (dirty, lower) = (STATUS_FS as i32, (STATUS_FS & !(STATUS_FS << 1)) as i32);
            let carry = (STATUS_FS + (STATUS_FS & !(STATUS_FS << 1))).trailing_zeros() as i8;
            dynasm!(self.code
                ; mov eax, [rbp + MSTATUS]
                ; and eax, DWORD writable
                ; mov ecx, eax
                ; and ecx, DWORD dirty
                ; add ecx, DWORD lower
                ; shr ecx, BYTE carry
                ; shl rcx, BYTE (STATUS_SD.trailing_zeros() - 32) as i8
                ; add rcx, BYTE (STATUS_SUPERVISOR_XLEN >> 32) as i8
                ; shl rcx, BYTE 32
                ; or rax, rcx
            );
        }
        if access.change != Change::Nothing {
            dynasm!(self.code; movd ecx, xmm0; xor [rbp + MSTATUS], rcx);
        }
        self.code.finish(op.rd, RAX);
        self.slow_path(missed, index);
    }

    fn zero_block(&mut self, op: &Op, index: u32) {
        dynasm!(self.code; cmp BYTE [rbp + ZEROES], BYTE 0);
        let refused = self.code.jump_if(Cond::Equal);
        let mask = -(CACHE_BLOCK_BYTES as i32);
        self.code.load(RAX, op.rs1);
        self.code.alu_constant(Alu::And, RAX, mask);
        let (_, missed) = self.test_page(8, true);
        self.code.load(RAX, op.rs1);
        self.code.alu_constant(Alu::And, RAX, mask);
        dynasm!(self.code; pxor xmm0, xmm0);
        // The block lies in one page.
        for offset in (0..CACHE_BLOCK_BYTES as i8).step_by(16) {
            dynasm!(self.code; movups [BYTE rcx + rax + offset], xmm0);
        }
        self.slow_path(vec![refused, missed], index);
    }
}
