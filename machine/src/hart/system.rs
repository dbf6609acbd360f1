//! Privileged and CSR instructions, cache-block operations, and what is no instruction.

use super::Hart;
use super::csr::{
    ENVCFG_CBCFE, ENVCFG_CBIE, ENVCFG_CBZE, Privilege, STATUS_MIE, STATUS_MPIE, STATUS_MPP, STATUS_MPP_SHIFT,
    STATUS_MPRV, STATUS_SIE, STATUS_SPIE, STATUS_SPP, STATUS_TSR, STATUS_TVM, STATUS_TW,
};
use super::mmu::Access;
use super::op::{OpRef, go_on, go_on_unless_attention};
use super::trap::{Cause, Trap};
use crate::bus::Bus;

/// Bytes of a cache block, for `cbo.*`.
pub(super) const CACHE_BLOCK_BYTES: u64 = 64;

/// Raises an illegal-instruction exception; the immediate is the instruction.
pub(super) fn illegal(hart: &mut Hart, op: OpRef, slack: i64, _bus: &mut dyn Bus) {
    hart.leave_with_illegal(op, slack)
}

/// `csrr*`; the immediate is the instruction.
pub(super) fn csr(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let Some(old) = hart.access_csr(op, slack, bus) else {
        return hart.leave_with_illegal(op, slack);
    };
    hart.set_rd(op, old);
    go_on_unless_attention(hart, op, slack, bus)
}

/// `ecall`. Retires where the SBI is built in and the caller is the kernel.
pub(super) fn ecall(hart: &mut Hart, op: OpRef, slack: i64, _bus: &mut dyn Bus) {
    let cause = match hart.privilege {
        Privilege::User => Cause::UserCall,
        Privilege::Supervisor if hart.options.sbi_builtin => {
            hart.sbi_called = true;
            return hart.leave_after(op, slack);
        }
        Privilege::Supervisor => Cause::SupervisorCall,
        Privilege::Machine => Cause::MachineCall,
    };
    hart.leave_with_trap(op, slack, Trap::new(cause, 0))
}

/// `ebreak`.
pub(super) fn ebreak(hart: &mut Hart, op: OpRef, slack: i64, _bus: &mut dyn Bus) {
    let trap = Trap::new(Cause::Breakpoint, hart.pc_of(op));
    hart.leave_with_trap(op, slack, trap)
}

/// `sret`.
pub(super) fn sret(hart: &mut Hart, op: OpRef, slack: i64, _bus: &mut dyn Bus) {
    let status = hart.csrs.mstatus;
    let trapped = hart.privilege == Privilege::Supervisor && status & STATUS_TSR != 0;
    if hart.privilege == Privilege::User || trapped {
        return hart.leave_with_illegal(op, slack);
    }
    hart.leave_after(op, slack);
    let user = status & STATUS_SPP == 0;
    let enabled = if status & STATUS_SPIE != 0 { STATUS_SIE } else { 0 };
    let cleared = STATUS_SIE | STATUS_SPP | STATUS_MPRV;
    hart.csrs.mstatus = status & !cleared | enabled | STATUS_SPIE;
    hart.privilege = if user { Privilege::User } else { Privilege::Supervisor };
    hart.pc = hart.csrs.sepc;
    hart.privilege_changed();
}

/// `pause`, which a hart executes while it waits for another one.
pub(super) fn pause(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    if bus.pause() {
        hart.attention = true;
        return hart.leave_after(op, slack);
    }
    go_on(hart, op, slack, bus)
}

/// `mret`.
pub(super) fn mret(hart: &mut Hart, op: OpRef, slack: i64, _bus: &mut dyn Bus) {
    if hart.privilege != Privilege::Machine {
        return hart.leave_with_illegal(op, slack);
    }
    hart.leave_after(op, slack);
    let status = hart.csrs.mstatus;
    let privilege = Privilege::from_bits(status >> STATUS_MPP_SHIFT);
    let enabled = if status & STATUS_MPIE != 0 { STATUS_MIE } else { 0 };
    let lent = if privilege == Privilege::Machine { 0 } else { STATUS_MPRV };
    hart.csrs.mstatus = status & !(STATUS_MIE | STATUS_MPP | lent) | enabled | STATUS_MPIE;
    hart.privilege = privilege;
    hart.pc = hart.csrs.mepc;
    hart.privilege_changed();
}

/// `wfi`: retires, then waits until an interrupt is pending that `mie` enables.
pub(super) fn wfi(hart: &mut Hart, op: OpRef, slack: i64, _bus: &mut dyn Bus) {
    let trapped = match hart.privilege {
        Privilege::User => true,
        Privilege::Supervisor => hart.csrs.mstatus & STATUS_TW != 0,
        Privilege::Machine => false,
    };
    if trapped {
        return hart.leave_with_illegal(op, slack);
    }
    hart.waiting = true;
    hart.check_interrupts = true;
    hart.leave_after(op, slack)
}

/// `sfence.vma`: nothing but its privilege. What is cached of page tables agrees with memory
/// at any time.
pub(super) fn sfence_vma(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let trapped = hart.privilege == Privilege::Supervisor && hart.csrs.mstatus & STATUS_TVM != 0;
    if hart.privilege == Privilege::User || trapped {
        return hart.leave_with_illegal(op, slack);
    }
    go_on(hart, op, slack, bus)
}

// A fault names the start of the block, as in QEMU.

/// `cbo.clean`, `cbo.flush`, `cbo.inval`: there is no cache to be seen, but the block must
/// be one that may be accessed.
pub(super) fn cbo_maintain(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    let invalidates = op.imm as u32 >> 20 == 0;
    if !hart.may_use(if invalidates { ENVCFG_CBIE } else { ENVCFG_CBCFE }) {
        return hart.leave_with_illegal(op, slack);
    }
    if hart.touch_block_or_leave(op, slack, bus) {
        go_on_unless_attention(hart, op, slack, bus)
    }
}

/// `cbo.zero`. Memory only: a device gives an access fault.
pub(super) fn cbo_zero(hart: &mut Hart, op: OpRef, slack: i64, bus: &mut dyn Bus) {
    if !hart.may_use(ENVCFG_CBZE) {
        return hart.leave_with_illegal(op, slack);
    }
    let block = hart.rs1(op) & !(CACHE_BLOCK_BYTES - 1);
    if hart.tlb.write(block, 0u64) {
        // The block lies in one page, so all of it can be written.
        (8..CACHE_BLOCK_BYTES).step_by(8).for_each(|offset| _ = hart.tlb.write(block + offset, 0u64));
        return go_on(hart, op, slack, bus);
    }
    if hart.zero_block_or_leave(op, slack, bus) {
        go_on_unless_attention(hart, op, slack, bus)
    }
}

impl Hart {
    /// What `result` holds; leaves the chain with the exception otherwise.
    pub(super) fn value_or_leave<T>(&mut self, op: OpRef, slack: i64, result: Result<T, Trap>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(trap) => {
                self.leave_with_trap(op, slack, trap);
                None
            }
        }
    }

    /// Makes sure that the cache block `op` names may be read or written.
    #[inline(never)]
    fn touch_block_or_leave(&mut self, op: OpRef, slack: i64, bus: &mut dyn Bus) -> bool {
        let block = self.rs1(op) & !(CACHE_BLOCK_BYTES - 1);
        let size = CACHE_BLOCK_BYTES as usize;
        let result = self
            .translate(bus, block, size, Access::Load)
            .or_else(|_| self.translate(bus, block, size, Access::Store));
        self.value_or_leave(op, slack, result).is_some()
    }

    /// Zeroes the cache block that `op` names.
    #[inline(never)]
    fn zero_block_or_leave(&mut self, op: OpRef, slack: i64, bus: &mut dyn Bus) -> bool {
        let block = self.rs1(op) & !(CACHE_BLOCK_BYTES - 1);
        let size = CACHE_BLOCK_BYTES as usize;
        if self.stops_for_access(op, slack, block, size, Access::Store) {
            return false;
        }
        let result = self.translate(bus, block, size, Access::Store).and_then(|physical| {
            match self.is_plain_memory(bus, physical, size) {
                true => Ok(physical),
                false => Err(Trap::new(Cause::StoreAccessFault, block)),
            }
        });
        let Some(physical) = self.value_or_leave(op, slack, result) else { return false };
        for offset in (0..CACHE_BLOCK_BYTES).step_by(8) {
            self.write_ram(bus, block + offset, physical + offset, 0, 8);
        }
        self.follow_store(bus.ram());
        true
    }

    /// Leaves the chain before `op`, with an exception to take.
    #[cold]
    #[inline(never)]
    pub(super) fn leave_with_trap(&mut self, op: OpRef, slack: i64, trap: Trap) {
        self.trap = Some(trap);
        self.leave_before(op, slack);
    }

    /// Leaves the chain before `op`, whose immediate is its instruction: it is illegal.
    #[cold]
    #[inline(never)]
    pub(super) fn leave_with_illegal(&mut self, op: OpRef, slack: i64) {
        let trap = Trap::new(Cause::IllegalInstruction, u64::from(self.blocks.instruction_of(op)));
        self.leave_with_trap(op, slack, trap);
    }

    /// Does what a `csrr*` says and returns what `rd` gets; `None` if that is illegal.
    fn access_csr(&mut self, op: OpRef, slack: i64, bus: &mut dyn Bus) -> Option<u64> {
        let instruction = op.imm as u32;
        let number = (instruction >> 20) as u16;
        let source = u64::from(instruction >> 15 & 31);
        let is_immediate = instruction >> 14 & 1 != 0;
        let operand = if is_immediate { source } else { self.x[source as usize] };
        let icount = self.icount_of(op, slack);
        let old = self.read_csr(bus, icount, number).ok()?;
        let base = self.csr_modified_from(number, old);
        let new = match instruction >> 12 & 3 {
            1 => operand,
            2 => base | operand,
            _ => base & !operand,
        };
        let writes = instruction >> 12 & 3 == 1 || source != 0;
        if writes {
            self.write_csr(icount, number, new).ok()?;
            // What is pending after it. What comes later ends the chain, or the run.
            self.attention |= self.check_interrupts && self.pending(bus, icount + 1) & self.csrs.mie != 0;
        }
        Some(old)
    }

    /// Whether `menvcfg` and `senvcfg` let the present mode use an instruction.
    pub(super) fn may_use(&self, enable: u64) -> bool {
        let enabled_below = |csr: u64| csr & enable != 0;
        match self.privilege {
            Privilege::Machine => true,
            Privilege::Supervisor => enabled_below(self.csrs.menvcfg),
            Privilege::User => enabled_below(self.csrs.menvcfg) && enabled_below(self.csrs.senvcfg),
        }
    }
}
