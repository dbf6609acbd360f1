//! Jumps and branches.
//!
//! A target in the same page is linked to directly once it is known: the page was
//! translated when its code was entered, and nothing can have changed that since without
//! leaving the chain. A target in another page is good for one fetch context.

use super::op::{MAX_BLOCK, OpRef, enter, go_on_behind_link};
use super::{Hart, PAGE_MASK};
use crate::bus::Bus;

/// A conditional branch, once for targets in its page and once for others.
macro_rules! branches {
    ($($near:ident, $far:ident: |$a:ident, $b:ident| $condition:expr;)*) => { $(
        pub(super) fn $near(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let ($a, $b) = (hart.rs1(op), hart.rs2(op));
            if $condition { jump_near(hart, op, slack, bus) } else { go_on_behind_link(hart, op, slack, bus) }
        }

        pub(super) fn $far(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
            let ($a, $b) = (hart.rs1(op), hart.rs2(op));
            if $condition { jump_far(hart, op, slack, bus) } else { go_on_behind_link(hart, op, slack, bus) }
        }
    )* };
}

branches! {
    beq, beq_far: |a, b| a == b;
    bne, bne_far: |a, b| a != b;
    blt, blt_far: |a, b| (a as i64) < b as i64;
    bge, bge_far: |a, b| a as i64 >= b as i64;
    bltu, bltu_far: |a, b| a < b;
    bgeu, bgeu_far: |a, b| a >= b;
}

/// `jal` within the page; the immediate is the return address relative to the page. Also
/// ends a block that simply goes on.
pub(super) fn jal(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let link = hart.page_virtual.wrapping_add(op.imm as u64);
    hart.set_rd(op, link);
    jump_near(hart, op, slack, bus)
}

/// `jal` to another page.
pub(super) fn jal_far(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let link = hart.page_virtual.wrapping_add(op.imm as u64);
    hart.set_rd(op, link);
    jump_far(hart, op, slack, bus)
}

/// `jalr`: the link's offset is the return address relative to the page.
pub(super) fn jalr(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let target = hart.rs1(op).wrapping_add(op.imm as u64) & !1;
    let link = hart.page_virtual.wrapping_add(op.link().offset as u64);
    hart.set_rd(op, link);
    let slack = slack - i64::from(op.count);
    match hart.blocks.jump_target(target, hart.context) {
        Some(block) if slack >= 0 => {
            hart.page_virtual = target & PAGE_MASK;
            // SAFETY: the jump cache holds first ops of blocks that are in the arena.
            unsafe { enter(hart, block, slack, bus) }
        }
        _ => leave_to(hart, target, slack),
    }
}

#[inline(always)]
fn jump_near(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let slack = slack - i64::from(op.count);
    let target = op.link().target.get();
    if slack < 0 || target.is_null() {
        return leave_by_link(hart, op, slack);
    }
    // SAFETY: a link that is not null points to the first op of a block of the same page;
    // the two are dropped together.
    unsafe { enter(hart, target, slack, bus) }
}

#[inline(always)]
fn jump_far(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let slack = slack - i64::from(op.count);
    let link = op.link();
    if slack < 0 || link.context.get() != hart.context {
        return leave_by_link(hart, op, slack);
    }
    hart.page_virtual = hart.page_virtual.wrapping_add(link.offset as u64) & PAGE_MASK;
    // SAFETY: a context stands only as long as no block was dropped, and context 0, that of a
    // link never set, is no hart's.
    unsafe { enter(hart, link.target.get(), slack, bus) }
}

/// Leaves the chain for the target of a link, asking that the link be set.
#[cold]
#[inline(never)]
fn leave_by_link(hart: &mut Hart, op: OpRef, slack: i64) {
    let target = hart.page_virtual.wrapping_add(op.link().offset as u64);
    hart.link_request = Some(op);
    leave_to(hart, target, slack)
}

#[cold]
#[inline(never)]
fn leave_to(hart: &mut Hart, target: u64, slack: i64) {
    hart.pc = target;
    hart.fuel_left = slack + MAX_BLOCK;
}
