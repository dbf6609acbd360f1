//! Where a debugger wants a hart to stop: breakpoints, watchpoints, and the place right before
//! an instruction.
//!
//! Nothing of it is part of the machine's state or changes it: the very same instructions
//! execute at the same icounts, whether or not somebody looks. Nothing of it costs anything
//! while there is none:
//! - Code is decoded with a guard before each instruction whose offset in its page is that of
//!   a breakpoint ([`guard`]); the other instructions stay as they are. Offsets are the same in
//!   virtual and in physical pages, so that blocks can still be found by physical address; the
//!   guard then compares the whole guest-virtual address.
//! - A page with a watchpoint is kept out of the TLB, so that accesses to it take the slow
//!   path, which asks [`Hart::stops_for_access`].

use super::mmu::Access;
use super::op::{OpRef, go_on};
use super::{Hart, PAGE_MASK};
use crate::bus::Bus;

/// Bytes at a guest-virtual address whose reads or writes stop a hart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchpoint {
    /// Guest-virtual address of the first byte.
    pub address: u64,
    /// Number of bytes.
    pub len: u64,
    /// Whether loads count.
    pub reads: bool,
    /// Whether stores count; atomics that modify memory do.
    pub writes: bool,
}

impl Watchpoint {
    fn sees(&self, address: u64, size: u64, access: Access) -> bool {
        let counts = if access == Access::Store { self.writes } else { self.reads };
        // Distances instead of ends: a range may end at the last address there is.
        let overlaps = address.wrapping_sub(self.address) < self.len
            || self.address.wrapping_sub(address) < size && self.len > 0;
        counts && overlaps
    }

    fn touches_page(&self, page: u64) -> bool {
        let last = self.address.saturating_add(self.len.saturating_sub(1));
        (self.address & PAGE_MASK..=last & PAGE_MASK).contains(&page)
    }
}

/// Why a hart stopped for a debugger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HartStop {
    /// Right before the instruction at a breakpoint.
    Breakpoint,
    /// Right before the instruction that accesses the bytes of this watchpoint, or would if it
    /// did not raise an exception.
    Watchpoint(Watchpoint),
    /// Right before the next instruction, as [`Hart::stop_before_next`] asked for. What comes
    /// before it has happened: the entry to an interrupt's handler.
    BeforeNext,
}

/// What a hart stops for.
#[derive(Default)]
pub(super) struct Stops {
    /// Sorted guest-virtual addresses.
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    /// Breakpoints at the instruction at this icount were dealt with.
    passed_breakpoint: Option<u64>,
    /// Watchpoints of the instruction at this icount were dealt with.
    passed_watchpoint: Option<u64>,
    before_next: bool,
    hit: Option<HartStop>,
}

impl Hart {
    /// Sets the guest-virtual addresses at which to stop, under any mode and address space.
    pub fn set_breakpoints(&mut self, addresses: &[u64]) {
        let mut breakpoints = addresses.to_vec();
        breakpoints.sort_unstable();
        breakpoints.dedup();
        if breakpoints == self.stops.breakpoints {
            return;
        }
        self.blocks.set_guarded(breakpoints.iter().map(|address| (address & !PAGE_MASK) as u16));
        self.stops.breakpoints = breakpoints;
        self.renew_contexts();
    }

    /// Sets the bytes whose accesses stop the hart.
    pub fn set_watchpoints(&mut self, watchpoints: &[Watchpoint]) {
        if watchpoints != self.stops.watchpoints {
            self.stops.watchpoints = watchpoints.to_vec();
            self.tlb.flush();
        }
    }

    /// Lets the instruction at this icount pass its breakpoint: a debugger stands before it.
    pub fn pass_breakpoint(&mut self, icount: Option<u64>) {
        self.stops.passed_breakpoint = icount;
    }

    /// Lets the instruction at this icount pass its watchpoint.
    pub fn pass_watchpoint(&mut self, icount: Option<u64>) {
        self.stops.passed_watchpoint = icount;
    }

    /// Makes the next run stop right before its first instruction.
    pub fn stop_before_next(&mut self) {
        self.stops.before_next = true;
    }

    /// Takes what the hart stopped for.
    pub fn take_stop(&mut self) -> Option<HartStop> {
        self.stops.before_next = false;
        self.stops.hit.take()
    }

    /// Whether the hart has to stop before it executes anything.
    pub(super) fn stops_before_next(&mut self) -> bool {
        if self.stops.before_next {
            self.stops.hit = Some(HartStop::BeforeNext);
        }
        self.stops.before_next
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stops.hit.is_some()
    }

    /// Whether the TLB may hold the page of a guest-virtual address.
    pub(super) fn is_unwatched(&self, address: u64) -> bool {
        let page = address & PAGE_MASK;
        !self.stops.watchpoints.iter().any(|watchpoint| watchpoint.touches_page(page))
    }

    /// Whether `op`, which is about to access memory by the slow path, must not: the chain was left
    /// before it, for a watchpoint.
    #[inline]
    pub(super) fn stops_for_access(
        &mut self,
        op: OpRef,
        slack: i64,
        address: u64,
        size: usize,
        access: Access,
    ) -> bool {
        !self.stops.watchpoints.is_empty()
            && self.stops_for_watchpoint(op, slack, address, size as u64, access)
    }

    #[cold]
    fn stops_for_watchpoint(
        &mut self,
        op: OpRef,
        slack: i64,
        address: u64,
        size: u64,
        access: Access,
    ) -> bool {
        let seen = self.stops.watchpoints.iter().find(|point| point.sees(address, size, access)).copied();
        let Some(seen) = seen else { return false };
        if self.stops.passed_watchpoint == Some(self.icount_of(op, slack)) {
            return false;
        }
        self.stops.hit = Some(HartStop::Watchpoint(seen));
        self.attention = true;
        self.leave_before(op, slack);
        true
    }

    #[inline(never)]
    fn stops_at(&mut self, op: OpRef, slack: i64) -> bool {
        let is_breakpoint = self.stops.breakpoints.binary_search(&self.pc_of(op)).is_ok();
        if !is_breakpoint || self.stops.passed_breakpoint == Some(self.icount_of(op, slack)) {
            return false;
        }
        self.stops.hit = Some(HartStop::Breakpoint);
        self.attention = true;
        true
    }
}

/// Stands before an instruction at whose offset in its page there is a breakpoint, and counts
/// as nothing.
pub(super) fn guard(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    if hart.stops_at(op, slack) {
        return hart.leave_before(op, slack);
    }
    go_on(hart, op, slack, bus)
}
