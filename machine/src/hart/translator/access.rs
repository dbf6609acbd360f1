//! Translation of loads and stores.
//!
//! An access goes to host memory only behind the test that its page is in the TLB and its address
//! is aligned: [`Emitter::test_page`]. All else is its handler's affair, by the slow path.

use dynasmrt::{DynasmApi, dynasm};

use super::Emitter;
use super::emitter::{Alu, Buffer, Cond, Pending, RAX, RCX, Reg, Width, mapped};
use crate::hart::decode::SINK;
use crate::hart::kind::Kind;
use crate::hart::op::Op;
use crate::hart::tlb::native::{ADDEND, ENTRY_SHIFT, INDEX_MASK, TAG, WRITES};
use crate::ram::{PAGE_BYTES, PAGE_SHIFT};

/// The register that holds the TLBs.
const TLB: Reg = 15;

/// Where an access goes once its page was found: to the address in `base` and `rcx`, and `offset`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    base: Option<Reg>,
    offset: i32,
    /// The guest register that the address is relative to.
    rs1: u8,
    size: u32,
    writes: bool,
    /// Where in the code `rcx` is what the host address is more than the guest's.
    found: usize,
}

/// A second look for an access that is not aligned, before its handler is called.
#[derive(Clone, Copy)]
pub(super) struct Misaligned {
    place: Place,
    thunk: u32,
}

impl Emitter<'_> {
    /// Translates a load or store of an integer register; `false` if it is none.
    pub(super) fn access(&mut self, kind: Kind, op: &Op, index: u32) -> bool {
        use Kind::*;
        match kind {
            Lb | Lbu => self.integer_load(kind, op, index, 1),
            Lh | Lhu => self.integer_load(kind, op, index, 2),
            Lw | Lwu => self.integer_load(kind, op, index, 4),
            Ld => self.integer_load(kind, op, index, 8),
            Sb => self.integer_store(op, index, 1),
            Sh => self.integer_store(op, index, 2),
            Sw => self.integer_store(op, index, 4),
            Sd => self.integer_store(op, index, 8),
            _ => return false,
        }
        true
    }

    fn integer_load(&mut self, kind: Kind, op: &Op, index: u32, size: u32) {
        let (place, missed) = self.find_place(op, size, false);
        let to = self.code.target(op.rd, RAX);
        self.read(kind, to, place);
        self.code.finish(op.rd, to);
        self.slow_access(vec![missed], index, place);
    }

    fn read(&mut self, kind: Kind, to: Reg, place: Place) {
        use Kind::*;
        let at = place.offset;
        match place.base {
            Some(base) => match kind {
                Lb => dynasm!(self.code; movsx Rq(to), BYTE [rcx + Rq(base) + at]),
                Lbu => dynasm!(self.code; movzx Rd(to), BYTE [rcx + Rq(base) + at]),
                Lh => dynasm!(self.code; movsx Rq(to), WORD [rcx + Rq(base) + at]),
                Lhu => dynasm!(self.code; movzx Rd(to), WORD [rcx + Rq(base) + at]),
                Lw => dynasm!(self.code; movsxd Rq(to), DWORD [rcx + Rq(base) + at]),
                Lwu => dynasm!(self.code; mov Rd(to), [rcx + Rq(base) + at]),
                _ => dynasm!(self.code; mov Rq(to), [rcx + Rq(base) + at]),
            },
            None => match kind {
                Lb => dynasm!(self.code; movsx Rq(to), BYTE [rcx + at]),
                Lbu => dynasm!(self.code; movzx Rd(to), BYTE [rcx + at]),
                Lh => dynasm!(self.code; movsx Rq(to), WORD [rcx + at]),
                Lhu => dynasm!(self.code; movzx Rd(to), WORD [rcx + at]),
                Lw => dynasm!(self.code; movsxd Rq(to), DWORD [rcx + at]),
                Lwu => dynasm!(self.code; mov Rd(to), [rcx + at]),
                _ => dynasm!(self.code; mov Rq(to), [rcx + at]),
            },
        }
    }

    fn integer_store(&mut self, op: &Op, index: u32, size: u32) {
        let (place, missed) = self.find_place(op, size, true);
        let value = self.code.source(op.rs2, RAX);
        self.write(size, value, place);
        self.slow_access(vec![missed], index, place);
    }

    /// Writes the low `size` bytes of a host register.
    pub(super) fn write(&mut self, size: u32, value: Reg, place: Place) {
        let at = place.offset;
        match place.base {
            Some(base) => match size {
                1 => dynasm!(self.code; mov [rcx + Rq(base) + at], Rb(value)),
                2 => dynasm!(self.code; mov [rcx + Rq(base) + at], Rw(value)),
                4 => dynasm!(self.code; mov [rcx + Rq(base) + at], Rd(value)),
                _ => dynasm!(self.code; mov [rcx + Rq(base) + at], Rq(value)),
            },
            None => match size {
                1 => dynasm!(self.code; mov [rcx + at], Rb(value)),
                2 => dynasm!(self.code; mov [rcx + at], Rw(value)),
                4 => dynasm!(self.code; mov [rcx + at], Rd(value)),
                _ => dynasm!(self.code; mov [rcx + at], Rq(value)),
            },
        }
    }

    /// Reads `size` bytes, 4 or 8, zero-extended into `rax`.
    pub(super) fn read_raw(&mut self, size: u32, place: Place) {
        self.read(if size == 4 { Kind::Lwu } else { Kind::Ld }, RAX, place);
    }

    /// Looks the address of `op` up in the TLB. Leaves `rcx` such that the place can be accessed.
    pub(super) fn find_place(&mut self, op: &Op, size: u32, writes: bool) -> (Place, Pending) {
        match mapped(op.rs1) {
            Some(base) => {
                self.address(op.rs1, op.imm);
                let (found, missed) = self.test_page(size, writes);
                (Place { base: Some(base), offset: op.imm, rs1: op.rs1, size, writes, found }, missed)
            }
            None => {
                self.address(op.rs1, op.imm);
                let (found, missed) = self.test_page(size, writes);
                self.code.alu(Alu::Add, Width::Double, RCX, op.rs1);
                (Place { base: None, offset: op.imm, rs1: op.rs1, size, writes, found }, missed)
            }
        }
    }

    /// `rax = rs1 + offset`.
    fn address(&mut self, rs1: u8, offset: i32) {
        match mapped(rs1) {
            Some(base) => self.code.add_to(RAX, base, offset),
            None => {
                self.code.load(RAX, rs1);
                if offset != 0 {
                    self.code.alu_constant(Alu::Add, RAX, offset);
                }
            }
        }
    }

    /// Tests that the address in `rax` is a multiple of `size` and that its page is in the TLB; jumps
    /// otherwise. Leaves in `rcx` what the host address is more than the guest's.
    ///
    /// This is what stands between the guest and the host's memory. The tag of an entry is a page's
    /// address, so that the comparison also tells whether the bits below `size` are zero; an empty
    /// entry's tag has all bits set, as no masked address has.
    pub(super) fn test_page(&mut self, size: u32, writes: bool) -> (usize, Pending) {
        let mask = -(PAGE_BYTES as i32) | (size as i32 - 1);
        let at = if writes { WRITES } else { 0 };
        let shift = (PAGE_SHIFT - ENTRY_SHIFT) as i8;
        dynasm!(self.code
            ; mov ecx, eax
            ; shr ecx, BYTE shift
            ; and ecx, DWORD INDEX_MASK
            ; and rax, DWORD mask
            ; cmp rax, [Rq(TLB) + rcx + (at + TAG)]
        );
        let missed = self.code.jump_if(Cond::NotEqual);
        dynasm!(self.code; mov rcx, [Rq(TLB) + rcx + (at + ADDEND)]);
        (self.code.len(), missed)
    }

    /// Has `missed` execute the handler of the op, and then come here.
    pub(super) fn slow_path(&mut self, missed: Vec<Pending>, index: u32) {
        let back = self.code.len();
        self.slow.push(super::SlowPath { missed, index, back, misaligned: None });
    }

    /// The same for an access.
    pub(super) fn slow_access(&mut self, missed: Vec<Pending>, index: u32, place: Place) {
        let back = self.code.len();
        let thunk = self.thunks.misaligned(place.size, place.writes);
        let misaligned = thunk.map(|thunk| Misaligned { place, thunk });
        self.slow.push(super::SlowPath { missed, index, back, misaligned });
    }

    /// Goes back to an access that is misaligned, but within a page that is in the TLB.
    pub(super) fn look_again(&mut self, Misaligned { place, thunk }: Misaligned) {
        self.address(place.rs1, place.offset);
        dynasm!(self.code; call DWORD 0);
        let call = Pending(self.code.len() - 4);
        self.jump_to_thunk(call, thunk);
        let found = self.code.jump_if(Cond::Equal);
        self.code.bind_to(found, place.found);
    }
}

/// Assembles what tells whether `size` bytes at the address in `rax` lie within a page that is in the
/// TLB: then the flags say "equal", and `rcx` holds what the host address is more than the guest's.
pub(super) fn assemble_misaligned(code: &mut Buffer, size: u32, writes: bool) {
    let at = if writes { WRITES } else { 0 };
    let shift = (PAGE_SHIFT - ENTRY_SHIFT) as i8;
    let (offset_mask, last) = (PAGE_BYTES as i32 - 1, PAGE_BYTES as i32 - size as i32);
    dynasm!(code; mov ecx, eax; and ecx, DWORD offset_mask; cmp ecx, DWORD last);
    let crosses = code.jump_if(Cond::Above);
    dynasm!(code
        ; mov ecx, eax
        ; shr ecx, BYTE shift
        ; and ecx, DWORD INDEX_MASK
        ; and rax, DWORD -(PAGE_BYTES as i32)
        ; cmp rax, [Rq(TLB) + rcx + (at + TAG)]
    );
    let missed = code.jump_if(Cond::NotEqual);
    dynasm!(code; mov rcx, [Rq(TLB) + rcx + (at + ADDEND)]);
    code.bind(crosses);
    code.bind(missed);
    dynasm!(code; ret);
}

const _: () = assert!(SINK > 31, "a load to x0 is a load");
