//! Translation of atomic memory operations. There is one thread, so that each is a load and a store.

use dynasmrt::{DynasmApi, dynasm};

use super::Emitter;
use super::emitter::{Alu, RAX, RCX, Width, mapped};
use crate::hart::kind::Kind;
use crate::hart::op::Op;

/// What becomes of the value in memory.
#[derive(Clone, Copy)]
enum Change {
    Swap,
    Add,
    Xor,
    Or,
    And,
}

impl Emitter<'_> {
    /// Translates an atomic operation; `false` if it is none, or one that is left to its handler.
    pub(super) fn atomic(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        let (change, size) = match kind {
            Kind::AmoswapW => (Change::Swap, 4),
            Kind::AmoswapD => (Change::Swap, 8),
            Kind::AmoaddW => (Change::Add, 4),
            Kind::AmoaddD => (Change::Add, 8),
            Kind::AmoxorW => (Change::Xor, 4),
            Kind::AmoxorD => (Change::Xor, 8),
            Kind::AmoorW => (Change::Or, 4),
            Kind::AmoorD => (Change::Or, 8),
            Kind::AmoandW => (Change::And, 4),
            Kind::AmoandD => (Change::And, 8),
            _ => return false,
        };
        self.code.load(RAX, op.rs1);
        let (_, missed) = self.test_page(size, true);
        self.code.alu(Alu::Add, Width::Double, RCX, op.rs1);
        self.operand(op.rs2);
        if size == 4 {
            dynasm!(self.code; movsxd rax, DWORD [rcx]);
        } else {
            dynasm!(self.code; mov rax, [rcx]);
        }
        if !matches!(change, Change::Swap) {
            dynasm!(self.code; movq xmm1, rax);
        }
        match change {
            Change::Swap => {}
            Change::Add if size == 4 => dynasm!(self.code; paddd xmm0, xmm1),
            Change::Add => dynasm!(self.code; paddq xmm0, xmm1),
            Change::Xor => dynasm!(self.code; pxor xmm0, xmm1),
            Change::Or => dynasm!(self.code; por xmm0, xmm1),
            Change::And => dynasm!(self.code; pand xmm0, xmm1),
        }
        if size == 4 {
            dynasm!(self.code; movd [rcx], xmm0);
        } else {
            dynasm!(self.code; movq [rcx], xmm0);
        }
        self.code.finish(op.rd, RAX);
        self.slow_path(vec![missed], index);
        true
    }

    /// `xmm0 = guest`.
    fn operand(&mut self, guest: u8) {
        match mapped(guest) {
            Some(from) => dynasm!(self.code; movq xmm0, Rq(from)),
            None if guest == 0 => dynasm!(self.code; pxor xmm0, xmm0),
            None => {
                self.code.load(RAX, guest);
                dynasm!(self.code; movq xmm0, rax);
            }
        }
    }
}
