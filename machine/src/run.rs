//! How the harts take turns, and what ends a stretch of execution.
//!
//! All of it is a function of the machine's state and the moment: a hart's slice, the
//! deadlines that cut it, and what happens at its end are the same however `run` was cut.

use crate::board::LINE_MACHINE_TIMER;
use crate::clock::ticks_to_ns;
use crate::config::BootKind;
use crate::contract::{Exit, HostPart, Machine};
use crate::device::syscon::Request;
use crate::device::virtio::HostFault;
use crate::fdt;
use crate::hart::{HartExit, HartRun, HartState};
use crate::machine::RiscvMachine;
use crate::sbi::{self, Action, HartStatus};
use crate::state::{Power, Turn};

const REGISTER_A0: usize = 10;
const REGISTER_A2: usize = 12;

impl RiscvMachine {
    /// See [`Machine::run`].
    pub(crate) fn execute(&mut self, limit: u64) -> Exit {
        self.stops.stop = None;
        loop {
            if let Some(fault) = &self.board.host_fault {
                return Exit::HostFault { part: fault.part };
            }
            if self.core.icount >= limit {
                return Exit::Limit;
            }
            if self.board.outputs.take_fresh() {
                return Exit::Output;
            }
            match self.core.power {
                Power::Halted(code) => return Exit::Halted { code },
                Power::Booting => {
                    self.boot();
                    continue;
                }
                Power::On => {}
            }
            let Some(hart) = self.choose_hart() else {
                return Exit::Idle { wake_ns: self.wake_ns() };
            };
            self.run_hart(hart, limit);
            if self.stops.stop.is_some() {
                return Exit::Stopped;
            }
        }
    }

    /// Whether every hart waits, so that only time or an event can go on.
    pub(crate) fn is_idle(&self) -> bool {
        self.core.power == Power::On
            && self.board.host_fault.is_none()
            && (0..self.harts.len()).all(|hart| !self.is_runnable(hart))
    }

    /// Guest time at which a waiting hart or a device wakes by itself.
    pub(crate) fn wake_ns(&self) -> Option<u64> {
        let harts = (0..self.harts.len()).filter(|hart| self.core.statuses[*hart] != HartStatus::Stopped);
        let timers = harts.filter_map(|hart| self.timer_ns(hart));
        timers.chain(self.board.deadline_ns()).min()
    }

    /// Guest time at which a timer interrupt that the hart has enabled becomes pending.
    fn timer_ns(&self, hart: usize) -> Option<u64> {
        let machine_timer = (self.harts[hart].state().csrs.mie & LINE_MACHINE_TIMER != 0)
            .then(|| self.board.machine_timer_ns(hart));
        self.harts[hart].timer_deadline().map(ticks_to_ns).into_iter().chain(machine_timer).min()
    }

    fn is_runnable(&self, hart: usize) -> bool {
        let registers = &self.harts[hart];
        self.core.statuses[hart] != HartStatus::Stopped
            && (!registers.is_waiting() || registers.has_pending_interrupt(&self.board, self.core.icount))
    }

    /// The hart whose turn it is: the present one until its slice ends, then the next that
    /// does not wait.
    fn choose_hart(&mut self) -> Option<usize> {
        let Turn { mut hart, left } = self.core.turn;
        if left == 0 || !self.is_runnable(hart) {
            let count = self.harts.len();
            let others = (1..=count).map(|step| (hart + step) % count);
            let previous = hart;
            hart = { others }.find(|hart| self.is_runnable(*hart))?;
            if hart != previous && self.config.semantics.turns_end_reservations() {
                // What others stored meanwhile may be what was there before.
                self.harts[hart].end_reservation();
            }
            self.core.turn = Turn { hart, left: self.config.slice_instructions };
        }
        if let HartStatus::Suspended { address, opaque } = self.core.statuses[hart] {
            self.start_hart(hart, address, opaque);
        }
        Some(hart)
    }

    /// Lets a hart execute until its slice, a deadline or the limit, or until it leaves by
    /// itself; then does what it asks for.
    fn run_hart(&mut self, hart: usize, limit: u64) {
        let start = self.core.icount;
        // A hart that is alone has one turn after the other: their ends are counted, not stopped at.
        let slice_end = match self.harts.len() {
            1 => u64::MAX,
            _ => start.saturating_add(self.core.turn.left),
        };
        let supervisor_timer_ns = self.harts[hart].timer_deadline().map(ticks_to_ns);
        let machine_timer_ns = self.board.machine_timer_ns(hart);
        let deadlines = [supervisor_timer_ns, Some(machine_timer_ns), self.board.deadline_ns()];
        let cuts = deadlines.into_iter().flatten().map(|time_ns| self.board.clock.icount_at(time_ns));
        let end = cuts.filter(|icount| *icount > start).fold(limit.min(slice_end), u64::min);
        let end = self.prepare_stop(hart, start, end);
        let HartRun { retired, exit } = self.harts[hart].run(&mut self.board, start, end - start);
        let least = u64::from(exit != HartExit::Stop);
        assert!((least..=end - start).contains(&retired), "{retired} of {} instructions", end - start);
        self.core.icount += retired;
        self.stops.note_executed(hart, start, retired);
        if exit == HartExit::Stop || self.stops.after_hart.is_some() {
            let stopped = self.harts[hart].take_stop();
            self.stops.note_stop(hart, stopped, retired);
        }
        self.core.turn.left = self.left_of_turn(retired);
        self.board.settle(self.core.icount);
        if exit == HartExit::SbiCall {
            self.serve_sbi(hart);
        }
        if let Some(request) = self.board.request.take() {
            self.obey(request);
        }
        if std::mem::take(&mut self.board.yielded) || !self.is_runnable(hart) {
            self.core.turn.left = 0;
        }
        self.board.settle(self.core.icount);
    }

    /// What is left of the present turn after `retired` instructions, which may have been more than one
    /// turn of a hart that is alone.
    fn left_of_turn(&self, retired: u64) -> u64 {
        let left = self.core.turn.left;
        let slice = self.config.slice_instructions;
        left.checked_sub(retired).unwrap_or_else(|| match (retired - left) % slice {
            0 => 0,
            of_last => slice - of_last,
        })
    }

    /// Sees to it that a hart's run from `start` to `end` stops where a debugger wants it to.
    /// Returns where it ends then.
    fn prepare_stop(&mut self, hart: usize, start: u64, end: u64) -> u64 {
        if self.stops.before_icount == Some(start) {
            self.harts[hart].stop_before_next();
        }
        let one = if self.stops.after_hart == Some(hart) { start + 1 } else { end };
        let before = self.stops.before_icount.filter(|icount| *icount > start);
        end.min(one).min(before.unwrap_or(end))
    }

    /// Loads the images and starts the harts.
    fn boot(&mut self) {
        let mut seed = [0; fdt::SEED_BYTES];
        self.board.devices.pool.fill(&mut seed);
        let slots = self.board.devices.slots.len();
        let tree = fdt::build(&self.config, slots, self.plan.initrd, &seed);
        if let Err(error) = self.plan.load(&mut self.board.ram, &tree) {
            let fault = HostFault { part: HostPart::BootImages, message: error.to_string() };
            self.board.host_fault.get_or_insert(fault);
            return;
        }
        self.core.power = Power::On;
        self.core.turn = Turn { hart: 0, left: self.config.slice_instructions };
        let supervisor = self.kind == BootKind::Supervisor;
        for hart in 0..self.harts.len() {
            self.start_hart(hart, self.plan.entry, self.plan.fdt_address);
            if hart != 0 && supervisor {
                self.core.statuses[hart] = HartStatus::Stopped;
            }
        }
    }

    /// Starts a hart as HSM and a reset do: `a0` is its number.
    fn start_hart(&mut self, hart: usize, address: u64, opaque: u64) {
        self.core.statuses[hart] = HartStatus::Started;
        let registers = &mut self.harts[hart];
        match self.kind {
            BootKind::Supervisor => registers.start_supervisor(address, hart as u64, opaque),
            BootKind::Firmware | BootKind::Bare => {
                registers.start_machine(address, hart as u64, opaque);
                registers.set_register(REGISTER_A2, self.plan.dynamic_info_address());
            }
        }
    }

    /// Resets everything but memory, disks and time; the boot comes when execution goes on.
    pub(crate) fn reset(&mut self) {
        if !matches!(self.core.power, Power::Halted(_)) {
            self.board.reset(self.config.harts);
            self.core.power = Power::Booting;
        }
    }

    fn obey(&mut self, request: Request) {
        match request {
            Request::PowerOff { code } => {
                self.board.outputs.flush_console(self.moment());
                self.core.power = Power::Halted(code);
            }
            Request::Reset => self.reset(),
        }
    }

    fn serve_sbi(&mut self, caller: usize) {
        let arguments = std::array::from_fn(|index| self.harts[caller].register(REGISTER_A0 + index));
        let ram = &self.board.ram;
        let in_ram = |address, len| usize::try_from(len).is_ok_and(|len| ram.slice(address, len).is_ok());
        let (action, mut answer) = sbi::handle(&arguments, &self.core.statuses, in_ram);
        match action {
            // Caches of translations and code never disagree with memory, on any hart.
            Action::Nothing | Action::FenceInstruction(_) | Action::FenceAddress(_) => {}
            Action::SetTimer { ticks } => self.harts[caller].set_timer(ticks),
            Action::SendIpi(set) => {
                for hart in (0..self.harts.len()).filter(|hart| set.contains(*hart)) {
                    self.harts[hart].set_software_interrupt(true);
                    self.board.yielded |= hart != caller;
                }
            }
            Action::Start { hart, address, opaque } => self.start_hart(hart, address, opaque),
            Action::Stop => self.core.statuses[caller] = HartStatus::Stopped,
            Action::Wait => self.wait(caller),
            Action::Suspend { address, opaque } => {
                self.wait(caller);
                self.core.statuses[caller] = HartStatus::Suspended { address, opaque };
            }
            Action::System(request) => self.board.request = Some(request),
            Action::ConsoleByte(byte) => self.board.outputs.console_byte(self.board.now(), byte),
            Action::ConsoleWrite { address, len } => self.board.write_console(address, len),
            Action::ConsoleRead { address, len } => answer.value = self.board.read_console(address, len),
        }
        self.harts[caller].set_register(REGISTER_A0, answer.error as u64);
        self.harts[caller].set_register(REGISTER_A0 + 1, answer.value);
    }

    /// Lets a hart wait as `wfi` does.
    fn wait(&mut self, hart: usize) {
        let state = self.harts[hart].state();
        self.harts[hart].set_state(HartState { waiting: true, ..state });
    }
}
