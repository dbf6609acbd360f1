//! Translation of branches and jumps: how blocks hand over to each other.
//!
//! A jump pays for what was executed of its block, as the interpreter's does. Then, as long as
//! fuel is left, it goes to its target's translation directly. Until that is known it goes to a
//! stub that leaves with the jump's place, and [`super`] patches it.

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};

use super::emitter::{Alu, Cond, Pending, RAX, RCX, Width, from_rbp};
use super::integer::PAGE;
use super::jumps::native::{CONTEXT as JUMP_CONTEXT, INDEX_MASK, NATIVE as JUMP_NATIVE};
use super::{Emitter, FAR, FAR_DISTANCE};
use crate::hart::Hart;
use crate::hart::blocks::is_near;
use crate::hart::decode::SINK;
use crate::hart::kind::Kind;
use crate::hart::op::Op;
use crate::ram::PAGE_BYTES;

const CONTEXT: i32 = from_rbp(offset_of!(Hart, context));
const PC: i32 = from_rbp(offset_of!(Hart, pc));
const JUMPS: i32 = from_rbp(offset_of!(Hart, view) + offset_of!(super::View, jumps));
const CODE_BASE: i32 = from_rbp(offset_of!(Hart, view) + offset_of!(super::View, code_base));

/// A way out of translated code by a jump whose target is not known.
pub(super) struct Exit {
    pub from: [Option<Pending>; 3],
    /// The op in the arena.
    pub index: u32,
    /// The jump to be patched.
    pub site: u32,
}

impl Emitter<'_> {
    /// Translates a conditional branch.
    pub(super) fn branch(&mut self, kind: Kind, op: &Op, index: u32) {
        let target = self.blocks.link_at(index as usize).offset;
        let is_backward = target <= self.offset;
        let (holds, fails) = match kind {
            Kind::Beq => (Cond::Equal, Cond::NotEqual),
            Kind::Bne => (Cond::NotEqual, Cond::Equal),
            Kind::Blt => (Cond::Less, Cond::GreaterEqual),
            Kind::Bge => (Cond::GreaterEqual, Cond::Less),
            Kind::Bltu => (Cond::Below, Cond::AboveEqual),
            _ => (Cond::AboveEqual, Cond::Below),
        };
        let a = self.code.source(op.rs1, RAX);
        self.code.alu(Alu::Cmp, Width::Double, a, op.rs2);
        if is_backward {
            // A loop goes straight on.
            let on = self.code.jump_if(fails);
            self.jump_to(op, index, target);
            self.code.bind(on);
        } else {
            let taken = self.code.jump_if(holds);
            self.taken.push(super::Taken { taken, index, target, count: op.count });
        }
    }

    /// Translates `jal`, and the jump that ends a block which simply goes on.
    pub(super) fn jump(&mut self, op: &Op, index: u32) {
        if op.rd != SINK {
            let to = self.code.target(op.rd, RAX);
            self.page_relative(to, op.imm);
            self.code.finish(op.rd, to);
        }
        let target = self.blocks.link_at(index as usize).offset;
        self.jump_to(op, index, target);
    }

    fn page_relative(&mut self, to: u8, offset: i32) {
        dynasm!(self.code; mov Rq(to), [rbp + PAGE]);
        self.code.alu_constant(Alu::Add, to, offset);
    }

    /// Goes to a target relative to the page.
    fn jump_to(&mut self, op: &Op, index: u32, target: i32) {
        self.jump_counted(op.count, index, target);
    }

    pub(super) fn jump_counted(&mut self, count: u8, index: u32, target: i32) {
        dynasm!(self.code; sub r14, BYTE count as i8);
        if is_near(target) && target == i32::from(self.start) {
            let again = self.code.jump_if(Cond::Positive);
            self.code.bind_to(again, self.top);
            let out = self.code.jump();
            self.exits.push(Exit { from: [Some(out), None, None], index, site: 0 });
            return;
        }
        let out = self.code.jump_if(Cond::Negative);
        let mut from = [Some(out), None, None];
        if !is_near(target) {
            let page_delta = target & -(PAGE_BYTES as i32);
            dynasm!(self.code; cmp DWORD [rbp + CONTEXT], DWORD 0);
            let context_at = self.code.len() - 4;
            from[1] = Some(self.code.jump_if(Cond::NotEqual));
            dynasm!(self.code; add QWORD [rbp + PAGE], DWORD page_delta);
            let jump = self.code.jump();
            assert_eq!(jump.0 - context_at, FAR_DISTANCE, "the patch finds both places");
            from[2] = Some(jump);
        } else {
            from[2] = Some(self.code.jump());
        }
        let place = from[2].map_or(0, |jump| jump.0);
        let far = if is_near(target) { 0 } else { FAR };
        let site = (self.base + place as u32) | far;
        self.exits.push(Exit { from, index, site });
    }

    /// Translates `jalr`.
    pub(super) fn jump_indirect(&mut self, op: &Op, index: u32) {
        let link = self.blocks.link_at(index as usize).offset;
        self.code.load(RAX, op.rs1);
        if op.imm != 0 {
            self.code.alu_constant(Alu::Add, RAX, op.imm);
        }
        dynasm!(self.code; and rax, BYTE -2; mov [rbp + PC], rax);
        if op.rd != SINK {
            let to = self.code.target(op.rd, RCX);
            self.page_relative(to, link);
            self.code.finish(op.rd, to);
        }
        dynasm!(self.code; sub r14, BYTE op.count as i8);
        let out = self.code.jump_if(Cond::Negative);
        dynasm!(self.code
            ; lea ecx, [rax * 8]
            ; and ecx, DWORD INDEX_MASK
            ; add rcx, [rbp + JUMPS]
            ; cmp rax, [rcx]
        );
        let other = self.code.jump_if(Cond::NotEqual);
        dynasm!(self.code
            ; mov eax, [rbp + CONTEXT]
            ; cmp eax, [BYTE rcx + JUMP_CONTEXT]
        );
        let stale = self.code.jump_if(Cond::NotEqual);
        dynasm!(self.code
            ; mov rax, [rbp + PC]
            ; and rax, -(PAGE_BYTES as i32)
            ; mov [rbp + PAGE], rax
            ; mov eax, [BYTE rcx + JUMP_NATIVE]
            ; add rax, [rbp + CODE_BASE]
            ; jmp rax
        );
        for jump in [out, other, stale] {
            self.jump_to_thunk(jump, self.thunks.leave_to_pc);
        }
    }

    /// Lets a pending jump go to a thunk.
    pub(super) fn jump_to_thunk(&mut self, jump: Pending, thunk: u32) {
        self.code.bind_to(jump, (thunk.wrapping_sub(self.base)) as usize);
    }
}
