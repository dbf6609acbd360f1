//! Decoded operations, and how one hands over to the next.
//!
//! A block of guest code is a row of [`Op`]s in the arena of the block cache. Each op holds
//! the address of the function that executes it; that function ends by calling the next
//! op's function with the same arguments. The compiler turns such a call into a jump, so
//! that the guest's registers' base, the op, the fuel and the bus stay in host registers.
//! Where it does not, nothing breaks: a chain is at most [`BURST`] instructions long, so
//! the stack it takes is bounded.

use std::cell::Cell;
use std::ops::Deref;
use std::ptr::NonNull;

use super::Hart;
use super::entry::Entry;
use crate::bus::Bus;

/// Most instructions in a block.
pub(super) const MAX_BLOCK: i64 = 64;
/// Most instructions executed before the chain of calls is unwound.
pub(super) const BURST: u64 = 4096;

/// Executes one op and those after it.
///
/// `slack` is the fuel (instructions that may still retire, counted at the start of the
/// block that the op is in) minus [`MAX_BLOCK`]: a block may be entered by a jump as long as it is
/// not negative.
pub(super) type Handler = fn(&mut Hart, OpRef, i64, &mut dyn Bus);

/// A decoded instruction. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Op {
    pub handler: Handler,
    /// The immediate; for `auipc` relative to the page, for CSR instructions and illegal
    /// ones the bits of the instruction.
    pub imm: i32,
    /// Destination; 32, a slot that nobody reads, where the guest says `x0`.
    pub rd: u8,
    pub rs1: u8,
    pub rs2: u8,
    /// Instructions of the block up to and including this one.
    pub count: u8,
}

/// Second half of an op that jumps.
#[repr(C)]
pub(super) struct Link {
    /// First op of the block jumped to; null as long as that is not known.
    pub target: Cell<*const Op>,
    /// For targets in another page: the fetch context in which `target` is right.
    pub context: Cell<u32>,
    /// Target (for `jalr`: return address) relative to the page the op is in.
    pub offset: i32,
}

const _: () = assert!(size_of::<Op>() == 16 && size_of::<Link>() == 16);

/// An op in the arena.
///
/// Invariant: points to an op of a block that is whole. A block ends with an op whose handler
/// never asks for its successor, and an op whose handler asks for the link has one behind it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct OpRef(NonNull<Op>);

impl OpRef {
    /// # Safety
    /// The invariant of the type must hold for `op` for as long as the result is used: until
    /// the arena is cleared.
    #[inline(always)]
    pub unsafe fn new(op: *const Op) -> OpRef {
        // SAFETY: the caller says it points to an op.
        OpRef(unsafe { NonNull::new_unchecked(op.cast_mut()) })
    }

    #[inline(always)]
    pub fn as_ptr(self) -> *const Op {
        self.0.as_ptr()
    }

    /// The op `slots` places on.
    #[inline(always)]
    fn successor(self, slots: usize) -> OpRef {
        // SAFETY: only handlers of ops that are not the last of their block get here.
        OpRef(unsafe { self.0.add(slots) })
    }

    /// What is behind the op that enters a block.
    ///
    /// # Safety
    /// The op must be of [`super::kind::Kind::Enter`].
    #[inline(always)]
    pub unsafe fn entry<'a>(self) -> &'a Entry {
        // SAFETY: said by the caller; entries change through `Cell` only.
        unsafe { self.0.add(1).cast::<Entry>().as_ref() }
    }

    /// The second half of a jump.
    #[inline(always)]
    pub fn link<'a>(self) -> &'a Link {
        // SAFETY: only handlers of ops that have a link get here; the arena outlives the
        // handler, and links change through `Cell` only.
        unsafe { self.0.add(1).cast::<Link>().as_ref() }
    }
}

impl Deref for OpRef {
    type Target = Op;

    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: the invariant of the type.
        unsafe { self.0.as_ref() }
    }
}

/// Goes on with the op after `op`.
#[inline(always)]
pub(super) fn go_on(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let next = op.successor(1);
    (next.handler)(hart, next, slack, bus)
}

/// Goes on with the op after `op`, which did what may have asked for attention.
#[inline(always)]
pub(super) fn go_on_unless_attention(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    if hart.attention {
        return hart.leave_after(op, slack);
    }
    go_on(hart, op, slack, bus)
}

/// Goes on behind `op` and its link.
#[inline(always)]
pub(super) fn go_on_behind_link(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let next = op.successor(2);
    (next.handler)(hart, next, slack, bus)
}

/// Goes on with the block whose first op is `target`.
///
/// # Safety
/// `target` must be the first op of a block that is whole and in the arena.
#[inline(always)]
pub(super) unsafe fn enter(hart: &mut Hart, target: *const Op, slack: i64, bus: &mut dyn Bus) {
    // SAFETY: said by the caller.
    let target = unsafe { OpRef::new(target) };
    (target.handler)(hart, target, slack, bus)
}

impl Hart {
    #[inline(always)]
    pub(super) fn rs1(&self, op: OpRef) -> u64 {
        self.x[op.rs1 as usize]
    }

    #[inline(always)]
    pub(super) fn rs2(&self, op: OpRef) -> u64 {
        self.x[op.rs2 as usize]
    }

    #[inline(always)]
    pub(super) fn set_rd(&mut self, op: OpRef, value: u64) {
        self.x[op.rd as usize] = value;
    }

    /// Leaves the chain before `op`, which has not retired.
    #[cold]
    pub(super) fn leave_before(&mut self, op: OpRef, slack: i64) {
        self.pc = self.pc_of(op);
        self.fuel_left = slack + MAX_BLOCK - (i64::from(op.count) - 1);
    }

    /// Leaves the chain after `op`, which has retired and is not a jump.
    #[cold]
    pub(super) fn leave_after(&mut self, op: OpRef, slack: i64) {
        self.pc = self.pc_of(op.successor(1));
        self.fuel_left = slack + MAX_BLOCK - i64::from(op.count);
    }

    /// Guest-virtual address of `op`.
    pub(super) fn pc_of(&self, op: OpRef) -> u64 {
        self.page_virtual.wrapping_add(u64::from(self.blocks.offset_of(op)))
    }

    /// The machine's icount before `op`.
    pub(super) fn icount_of(&self, op: OpRef, slack: i64) -> u64 {
        let fuel = slack + MAX_BLOCK - (i64::from(op.count) - 1);
        self.burst_end_icount.wrapping_sub(fuel as u64)
    }
}
