//! Exceptions and interrupts.

use super::Hart;
use super::csr::{
    Privilege, STATUS_MIE, STATUS_MPIE, STATUS_MPP, STATUS_MPP_SHIFT, STATUS_SIE, STATUS_SPIE, STATUS_SPP,
};

/// Causes of exceptions, numbered as in `mcause`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cause {
    FetchAccessFault = 1,
    IllegalInstruction = 2,
    Breakpoint = 3,
    LoadMisaligned = 4,
    LoadAccessFault = 5,
    StoreMisaligned = 6,
    StoreAccessFault = 7,
    UserCall = 8,
    SupervisorCall = 9,
    MachineCall = 11,
    FetchPageFault = 12,
    LoadPageFault = 13,
    StorePageFault = 15,
}

/// An exception that an instruction raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trap {
    pub cause: Cause,
    /// For `mtval`.
    pub value: u64,
}

impl Trap {
    pub fn new(cause: Cause, value: u64) -> Trap {
        Trap { cause, value }
    }
}

/// Interrupts by falling priority, as bit numbers of `mip`.
const PRIORITY: [u32; 6] = [11, 3, 7, 9, 1, 5];
const INTERRUPT: u64 = 1 << 63;
const VECTORED: u64 = 1;

impl Hart {
    /// Enters the handler of an exception of the instruction at `pc`.
    pub(super) fn take_exception(&mut self, trap: Trap) {
        let cause = trap.cause as u64;
        let delegated = self.privilege != Privilege::Machine && self.csrs.medeleg >> cause & 1 != 0;
        self.enter_trap(cause, trap.value, delegated);
    }

    /// Enters the handler of the most urgent interrupt that is pending and enabled, if there is
    /// one.
    pub(super) fn take_interrupt(&mut self, pending: u64) {
        let ready = pending & self.csrs.mie;
        if ready == 0 {
            return;
        }
        let status = self.csrs.mstatus;
        let machine_enabled = self.privilege != Privilege::Machine || status & STATUS_MIE != 0;
        let supervisor_enabled = match self.privilege {
            Privilege::User => true,
            Privilege::Supervisor => status & STATUS_SIE != 0,
            Privilege::Machine => false,
        };
        let to_machine = if machine_enabled { ready & !self.csrs.mideleg } else { 0 };
        let to_supervisor = if supervisor_enabled { ready & self.csrs.mideleg } else { 0 };
        let takes = if to_machine != 0 { to_machine } else { to_supervisor };
        if let Some(&number) = PRIORITY.iter().find(|&&number| takes >> number & 1 != 0) {
            self.enter_trap(INTERRUPT | u64::from(number), 0, to_machine == 0);
        }
    }

    fn enter_trap(&mut self, cause: u64, value: u64, to_supervisor: bool) {
        let csrs = &mut self.csrs;
        let mut status = csrs.mstatus;
        let vector = if to_supervisor {
            csrs.sepc = self.pc;
            csrs.scause = cause;
            csrs.stval = value;
            let was_enabled = status & STATUS_SIE != 0;
            status &= !(STATUS_SIE | STATUS_SPIE | STATUS_SPP);
            status |= if was_enabled { STATUS_SPIE } else { 0 };
            status |= if self.privilege == Privilege::Supervisor { STATUS_SPP } else { 0 };
            self.privilege = Privilege::Supervisor;
            csrs.stvec
        } else {
            csrs.mepc = self.pc;
            csrs.mcause = cause;
            csrs.mtval = value;
            let was_enabled = status & STATUS_MIE != 0;
            status &= !(STATUS_MIE | STATUS_MPIE | STATUS_MPP);
            status |= if was_enabled { STATUS_MPIE } else { 0 };
            status |= (self.privilege as u64) << STATUS_MPP_SHIFT;
            self.privilege = Privilege::Machine;
            csrs.mtvec
        };
        csrs.mstatus = status;
        let is_vectored = vector & VECTORED != 0 && cause & INTERRUPT != 0;
        let offset = if is_vectored { 4 * (cause & !INTERRUPT) } else { 0 };
        self.pc = (vector & !3).wrapping_add(offset);
        self.privilege_changed();
    }
}
