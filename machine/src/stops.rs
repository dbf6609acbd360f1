//! What a debugger asks of a machine that replays: to stop at places, to tell who executed what,
//! to show registers and memory as a program sees them.
//!
//! None of it is part of the machine's state, and none of it changes what executes: digests
//! are the same with and without it. The one exception says so in its name,
//! [`RiscvMachine::flip_register_bit`].

use crate::hart::{Hart, HartStop, Privilege, Watchpoint};
use crate::machine::RiscvMachine;
use crate::ram::{PAGE_BYTES, Ram};

/// Why [`crate::Machine::run`] came back with [`crate::Exit::Stopped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The hart that stopped.
    pub hart: usize,
    /// Why.
    pub reason: StopReason,
}

/// What a machine can stop for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The hart stands right before the instruction at a breakpoint.
    Breakpoint,
    /// The hart stands right before an instruction that accesses the bytes of this watchpoint.
    Watchpoint(Watchpoint),
    /// The hart stands right before the instruction at the icount of
    /// [`RiscvMachine::stop_before`]. All that comes before it has happened: waiting, events,
    /// and the entry to an interrupt's handler.
    BeforeIcount,
    /// The hart of [`RiscvMachine::stop_after_hart`] executed an instruction.
    HartStepped,
}

/// What a machine stops for, and what is known of the stretch executed last.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    pub before_icount: Option<u64>,
    pub after_hart: Option<usize>,
    pub stop: Option<Stop>,
    /// By hart: icount of its last instruction since the machine was made or restored.
    pub executed: Vec<Option<u64>>,
}

impl Stops {
    /// Notes that a hart used up `retired` of the machine's instructions from `start` on.
    pub(crate) fn note_executed(&mut self, hart: usize, start: u64, retired: u64) {
        if hart >= self.executed.len() {
            self.executed.resize(hart + 1, None);
        }
        if retired > 0 {
            self.executed[hart] = Some(start + retired - 1);
        }
    }

    /// Whether the machine has to stop: at what the hart that just ran stopped for, or because
    /// it ran.
    pub(crate) fn note_stop(&mut self, hart: usize, stopped: Option<HartStop>, retired: u64) {
        let reason = match stopped {
            Some(HartStop::Breakpoint) => StopReason::Breakpoint,
            Some(HartStop::Watchpoint(watchpoint)) => StopReason::Watchpoint(watchpoint),
            Some(HartStop::BeforeNext) => StopReason::BeforeIcount,
            None if self.after_hart == Some(hart) && retired > 0 => StopReason::HartStepped,
            None => return,
        };
        self.stop = Some(Stop { hart, reason });
    }
}

impl RiscvMachine {
    /// Sets the guest-virtual addresses at which to stop before the instruction there, whichever
    /// hart executes it, in whichever mode and address space.
    pub fn set_breakpoints(&mut self, addresses: &[u64]) {
        self.harts.iter_mut().for_each(|hart| hart.set_breakpoints(addresses));
    }

    /// Sets the guest-virtual bytes at whose accesses by any hart to stop. What devices read and
    /// write is not seen.
    pub fn set_watchpoints(&mut self, watchpoints: &[Watchpoint]) {
        self.harts.iter_mut().for_each(|hart| hart.set_watchpoints(watchpoints));
    }

    /// Stops right before the instruction at this icount executes. `None`: nowhere.
    pub fn stop_before(&mut self, icount: Option<u64>) {
        self.stops.before_icount = icount;
    }

    /// Stops after the next instruction of this hart. `None`: of no hart.
    pub fn stop_after_hart(&mut self, hart: Option<usize>) {
        self.stops.after_hart = hart;
    }

    /// Lets the instruction at this icount pass its breakpoint: for a debugger that stands
    /// before it.
    pub fn pass_breakpoint(&mut self, icount: Option<u64>) {
        self.harts.iter_mut().for_each(|hart| hart.pass_breakpoint(icount));
    }

    /// Lets the instruction at this icount pass its watchpoint.
    pub fn pass_watchpoint(&mut self, icount: Option<u64>) {
        self.harts.iter_mut().for_each(|hart| hart.pass_watchpoint(icount));
    }

    /// What the last run stopped for, if it ended with [`crate::Exit::Stopped`].
    pub fn stop(&self) -> Option<Stop> {
        self.stops.stop
    }

    /// The icount of a hart's last instruction since the machine was made or last restored.
    pub fn last_executed_icount(&self, hart: usize) -> Option<u64> {
        self.stops.executed.get(hart).copied().flatten()
    }

    /// The hart that executes next, or that executed last where all wait.
    pub fn hart_in_turn(&self) -> usize {
        self.core.turn.hart
    }

    /// A hart, to look at.
    pub fn hart(&self, hart: usize) -> Option<&Hart> {
        self.harts.get(hart)
    }

    /// Whether a hart was never started, or was stopped by the guest.
    pub fn is_hart_stopped(&self, hart: usize) -> bool {
        self.core.statuses.get(hart) == Some(&crate::sbi::HartStatus::Stopped)
    }

    /// A control and status register of a hart, whatever its mode may read. `None` where there
    /// is no such hart or register.
    pub fn csr(&self, hart: usize, number: u16) -> Option<u64> {
        self.harts.get(hart)?.csr(&self.board, self.core.icount, number)
    }

    /// Copies memory at a guest-virtual address as `hart` sees it. Returns how many bytes could
    /// be read: up to the first page that is not mapped, or not RAM. Changes nothing, no accessed bit
    /// either.
    pub fn read_virtual(&self, hart: usize, address: u64, into: &mut [u8]) -> usize {
        let Some(hart) = self.harts.get(hart) else { return 0 };
        let mut done = 0;
        while done < into.len() {
            let at = address.wrapping_add(done as u64);
            let len = (into.len() - done).min(PAGE_BYTES - (at % PAGE_BYTES as u64) as usize);
            let Some(physical) = hart.translate_to_look(&self.board.ram, at) else { break };
            if self.board.ram.read(physical, &mut into[done..done + len]).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// Copies from guest memory at a physical address. Returns whether it is all RAM.
    pub fn read_physical(&self, address: u64, into: &mut [u8]) -> bool {
        let ram: &Ram = &self.board.ram;
        ram.read(address, into).is_ok()
    }

    /// Flips a bit of an integer register: a divergence made on purpose, for tests and drills.
    /// Returns whether there is such a register (`x1` to `x31`) and bit (0 to 63).
    pub fn flip_register_bit(&mut self, hart: usize, register: usize, bit: u32) -> bool {
        let exists = hart < self.harts.len() && (1..32).contains(&register) && bit < 64;
        if exists {
            let value = self.harts[hart].register(register);
            self.harts[hart].set_register(register, value ^ 1 << bit);
        }
        exists
    }
}

/// A hart's mode, for messages.
impl std::fmt::Display for Privilege {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Privilege::User => "user",
            Privilege::Supervisor => "supervisor",
            Privilege::Machine => "machine",
        })
    }
}
