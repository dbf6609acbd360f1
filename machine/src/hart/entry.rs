//! Where the interpreter meets translated code: the head of each block that may be translated.
//!
//! The first op of such a block counts how often the block was entered. Once that was often
//! enough the op leaves the chain, and [`super::Hart::run`] goes on in translated code.

use std::cell::Cell;

use super::Hart;
use super::op::{Op, OpRef, go_on_behind_link};
use crate::bus::Bus;

/// A count that is never reached.
const NEVER: u32 = u32::MAX;

/// Second half of the op that enters a block.
#[repr(C)]
pub(super) struct Entry {
    /// Entries until the block is translated.
    countdown: Cell<u32>,
    /// Where the block's translation begins in the code cache; 0 as long as there is none.
    native: Cell<u32>,
    unused: u64,
}

const _: () = assert!(size_of::<Entry>() == size_of::<Op>());

impl Entry {
    pub fn new(countdown: u32) -> Entry {
        Entry { countdown: Cell::new(countdown), native: Cell::new(0), unused: 0 }
    }

    /// Whether the block was entered often enough to be translated.
    pub fn is_hot(&self) -> bool {
        self.countdown.get() == 0
    }

    /// Gives up on translating the block.
    pub fn keep_interpreted(&self) {
        self.countdown.set(NEVER);
    }

    /// Where the block's translation begins.
    pub fn native(&self) -> Option<u32> {
        Some(self.native.get()).filter(|&native| native != 0)
    }

    pub fn set_native(&self, native: u32) {
        self.native.set(native);
    }
}

/// Counts an entry of the block, or leaves the chain before it when the block is hot.
pub(super) fn enter(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    // SAFETY: this is the handler of such ops only.
    let entry = unsafe { op.entry() };
    match entry.countdown.get() {
        0 => return hart.leave_before(op, slack),
        NEVER => {}
        count => entry.countdown.set(count - 1),
    }
    go_on_behind_link(hart, op, slack, bus)
}

/// Stands behind an op that is executed by itself ([`Hart::execute_one`]).
pub(super) fn end(hart: &mut Hart, _op: OpRef, _slack: i64, _bus: &mut dyn Bus) {
    hart.ended_alone = true;
}
