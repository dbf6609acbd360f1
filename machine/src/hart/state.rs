//! What a hart is, apart from its caches, and how the board reaches it.

use serde::{Deserialize, Serialize};

use super::Hart;
use super::atomic::Reservation;
use super::csr::{Csrs, MIP_SSIP, MIP_STIP, Privilege};
use super::mmu::is_satp_supported;
use crate::bus::Bus;

/// The whole architectural state of a hart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HartState {
    /// Integer registers.
    pub x: [u64; 32],
    /// Floating-point registers.
    pub f: [u64; 32],
    /// Program counter.
    pub pc: u64,
    /// Present mode.
    pub privilege: Privilege,
    /// Control and status registers.
    pub csrs: Csrs,
    /// What `lr` left.
    pub reservation: Option<Reservation>,
    /// In `wfi`.
    pub waiting: bool,
}

impl Hart {
    /// The state.
    pub fn state(&self) -> HartState {
        HartState {
            x: std::array::from_fn(|register| self.x[register]),
            f: self.f,
            pc: self.pc,
            privilege: self.privilege,
            csrs: self.csrs.clone(),
            reservation: self.reservation,
            waiting: self.waiting,
        }
    }

    /// Replaces the state. The caches start empty.
    pub fn set_state(&mut self, state: HartState) {
        self.x[..32].copy_from_slice(&state.x);
        self.x[0] = 0;
        self.f = state.f;
        self.pc = state.pc & !1;
        self.privilege = state.privilege;
        self.csrs = state.csrs;
        self.csrs.pmp = std::mem::take(&mut self.csrs.pmp).legalized();
        if !is_satp_supported(self.csrs.satp, self.options.semantics) {
            self.csrs.satp = 0;
        }
        self.reservation = state.reservation;
        self.waiting = state.waiting;
        self.blocks.clear();
        self.drop_translations();
        self.attention = false;
        self.privilege_changed();
    }

    /// Starts at `pc` in M-mode as after reset, for firmware or a bare program.
    pub fn start_machine(&mut self, pc: u64, a0: u64, a1: u64) {
        self.start_in(Privilege::Machine, Csrs::reset(), pc, a0, a1);
    }

    /// Starts at `pc` in S-mode without translation, as firmware hands over to a kernel and as
    /// the SBI starts a hart: everything delegated, all counters and extensions open.
    pub fn start_supervisor(&mut self, pc: u64, a0: u64, a1: u64) {
        self.start_in(Privilege::Supervisor, Csrs::after_firmware(), pc, a0, a1);
    }

    fn start_in(&mut self, privilege: Privilege, csrs: Csrs, pc: u64, a0: u64, a1: u64) {
        let mut x = [0; 32];
        (x[10], x[11]) = (a0, a1);
        self.set_state(HartState { x, f: [0; 32], pc, privilege, csrs, reservation: None, waiting: false });
    }

    /// An integer register.
    pub fn register(&self, number: usize) -> u64 {
        self.x[number & 31]
    }

    /// Writes an integer register; `x0` stays zero.
    pub fn set_register(&mut self, number: usize, value: u64) {
        if !number.is_multiple_of(32) {
            self.x[number & 31] = value;
        }
    }

    /// The program counter.
    pub fn pc(&self) -> u64 {
        self.pc
    }

    /// The present mode.
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// Whether the hart is in `wfi`. It wakes when [`Hart::has_pending_interrupt`].
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether an interrupt that `mie` enables is pending at `icount`.
    pub fn has_pending_interrupt<B: Bus>(&self, bus: &B, icount: u64) -> bool {
        self.pending(bus, icount) & self.csrs.mie != 0
    }

    /// The `time` at which STIP rises by itself; `None` when no such interrupt is enabled. May
    /// be past, in which case STIP is pending.
    pub fn timer_deadline(&self) -> Option<u64> {
        let enabled = self.csrs.has_timer() && self.csrs.mie & MIP_STIP != 0;
        enabled.then_some(self.csrs.stimecmp).filter(|&deadline| deadline != u64::MAX)
    }

    /// Ends the reservation of `lr`, as another hart's store may.
    pub fn end_reservation(&mut self) {
        self.reservation = None;
    }

    /// Sets the supervisor timer, as the SBI does.
    pub fn set_timer(&mut self, deadline: u64) {
        self.csrs.stimecmp = deadline;
    }

    /// Raises or clears the supervisor software interrupt, as the SBI does.
    pub fn set_software_interrupt(&mut self, raised: bool) {
        self.csrs.mip_software &= !MIP_SSIP;
        self.csrs.mip_software |= if raised { MIP_SSIP } else { 0 };
    }
}
