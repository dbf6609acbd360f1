//! Our machine, as far as a bare program needs it: one hart, memory, power-off.

use machine::bus::{AccessFault, Bus};
use machine::hart::{Hart, HartExit, HartOptions, HartState};
use machine::ram::{PAGE_BYTES, Ram};

use super::layout;
use super::program::Program;
use crate::sim::random::Random;

/// Memory, a power switch, and as much of the ACLINT as raises interrupts.
struct Board {
    ram: Ram,
    is_off: bool,
    software_interrupt: bool,
    /// `mtimecmp`.
    machine_timer: u64,
    /// Raised from outside, for good: bits of `mip`.
    lines: u64,
}

impl Board {
    fn new(ram: Ram) -> Board {
        Board { ram, is_off: false, software_interrupt: false, machine_timer: u64::MAX, lines: 0 }
    }
}

impl Bus for Board {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }

    fn mmio_read(
        &mut self,
        _hart: usize,
        _icount: u64,
        _address: u64,
        _size: u8,
    ) -> Result<u64, AccessFault> {
        Err(AccessFault)
    }

    fn mmio_write(
        &mut self,
        _hart: usize,
        _icount: u64,
        address: u64,
        _size: u8,
        value: u64,
    ) -> Result<(), AccessFault> {
        match address {
            layout::SYSCON => self.is_off |= value == layout::SYSCON_PASS,
            layout::SOFTWARE_INTERRUPT => self.software_interrupt = value & 1 != 0,
            layout::MACHINE_TIMER => self.machine_timer = value,
            _ => return Err(AccessFault),
        }
        Ok(())
    }

    fn time(&self, icount: u64) -> u64 {
        icount / 100
    }

    fn interrupt_lines(&self, _hart: usize) -> u64 {
        // Timers are in the past or at the end of time: see the class of interrupts.
        let is_timer_due = self.machine_timer == 0;
        self.lines | u64::from(self.software_interrupt) << 3 | u64::from(is_timer_due) << 7
    }

    fn wants_exit(&self) -> bool {
        self.is_off
    }
}

/// Into what pieces execution is cut. It must not matter (law 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// None.
    Whole,
    /// Pieces of random length, with the hart's caches lost now and then: the seed.
    Random(u64),
}

/// Why a run of ours ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The program powered off.
    PowerOff,
    /// It did not within [`Program::limit`].
    Limit,
    /// It waits for an interrupt that cannot come.
    Wait,
}

/// Our machine with a program in memory.
pub struct Subject {
    hart: Hart,
    board: Board,
    icount: u64,
}

impl Subject {
    /// At power-on.
    pub fn new(program: &Program) -> Subject {
        let mut subject = Subject::with_memory(&program.memory);
        if let Some((address, word)) = program.defect {
            subject.board.ram.write(address, &word.to_le_bytes()).expect("code lies in memory");
        }
        subject
    }

    /// At power-on, with these addresses and bytes in memory.
    ///
    /// # Panics
    /// When they lie outside memory.
    pub fn with_memory(memory: &[(u64, Vec<u8>)]) -> Subject {
        let mut ram = Ram::new(layout::RAM_BYTES / PAGE_BYTES as u64);
        for (address, bytes) in memory {
            ram.write(*address, bytes).expect("programs lie in memory");
        }
        let mut hart = Hart::new(0, HartOptions { translate_after: 0, ..HartOptions::default() });
        hart.start_machine(layout::CODE, 0, 0);
        Subject { hart, board: Board::new(ram), icount: 0 }
    }

    /// Raises these interrupts from outside, for good: bits of `mip`.
    pub fn raise(&mut self, lines: u64) {
        self.board.lines = lines;
    }

    /// Runs until power-off, or until `limit` instructions have retired.
    pub fn run(&mut self, cut: Cut, limit: u64) -> End {
        let mut random = match cut {
            Cut::Whole => None,
            Cut::Random(seed) => Some(Random::new(seed)),
        };
        while self.icount < limit {
            let budget = random.as_mut().map_or(limit, |random| 1 << random.between(0, 12));
            let run = self.hart.run(&mut self.board, self.icount, budget.min(limit - self.icount));
            self.icount += run.retired;
            if self.board.is_off {
                return End::PowerOff;
            }
            if run.exit == HartExit::Wait {
                return End::Wait;
            }
            if random.as_mut().is_some_and(|random| random.chance(20)) {
                self.hart.set_state(self.hart.state());
            }
        }
        End::Limit
    }

    /// Runs until power-off, or until `limit` instructions have retired, one instruction at a
    /// time; `look` is given the pc before and after each.
    pub fn run_singly(&mut self, limit: u64, mut look: impl FnMut(u64, u64)) -> End {
        while self.icount < limit {
            let before = self.hart.pc();
            let run = self.hart.run(&mut self.board, self.icount, 1);
            self.icount += run.retired;
            look(before, self.hart.pc());
            if self.board.is_off {
                return End::PowerOff;
            }
            if run.exit == HartExit::Wait {
                return End::Wait;
            }
        }
        End::Limit
    }

    /// Executes one instruction, or enters one handler. Returns whether the machine is on.
    pub fn step(&mut self) -> bool {
        let run = self.hart.run(&mut self.board, self.icount, 1);
        self.icount += run.retired;
        !self.board.is_off && run.retired > 0
    }

    /// Instructions that have retired.
    pub fn icount(&self) -> u64 {
        self.icount
    }

    /// The hart's registers.
    pub fn state(&self) -> HartState {
        self.hart.state()
    }

    /// Memory.
    ///
    /// # Panics
    /// When the range lies outside memory.
    pub fn memory(&self, address: u64, len: usize) -> &[u8] {
        self.board.ram.slice(address, len).expect("within memory")
    }
}
