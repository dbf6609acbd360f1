//! Small programs with a known outcome, for tests of single instructions and of traps.

use machine::hart::HartState;

use super::assembler::{Assembler, Label};
use super::encode::{csr::*, *};
use super::frame::STATUS_FS;
use super::layout;
use super::program::Mode;
use super::subject::{Cut, End, Subject};

/// Instructions after which a small program has gone astray.
const LIMIT: u64 = 10_000;

/// Where the handlers leave what they found.
const CAUSE: u32 = 24;
const EPC: u32 = 25;
const TVAL: u32 = 26;
const STATUS: u32 = 27;
/// 1 from the S-mode handler, 3 from the M-mode handler.
const TAKEN_IN: u32 = 23;

/// A small program.
#[derive(Debug)]
pub struct Directed {
    /// Takes the instructions. Handlers and setup are already there.
    pub asm: Assembler,
    finish: Label,
    memory: Vec<(u64, Vec<u8>)>,
    lines: u64,
}

/// What the first trap was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// `mcause` or `scause`.
    pub cause: u64,
    /// `mepc` or `sepc`.
    pub epc: u64,
    /// `mtval` or `stval`.
    pub tval: u64,
    /// `mstatus` or `sstatus`, right after.
    pub status: u64,
    /// Whose handler was entered.
    pub mode: Mode,
    /// How many bytes into the vector table.
    pub vector: u64,
}

/// How a small program ended.
pub struct Ended {
    /// Registers.
    pub state: HartState,
    /// The trap that ended it, if one did.
    pub trap: Option<Taken>,
    subject: Subject,
}

impl Default for Directed {
    fn default() -> Directed {
        Directed::new()
    }
}

impl Directed {
    /// An empty program: the first trap in it ends it, PMP is open, float registers are on.
    pub fn new() -> Directed {
        let mut asm = Assembler::new(layout::CODE);
        let (start, finish) = (asm.label(), asm.label());
        asm.jump(ZERO, start);
        let vectors = [
            (Mode::Machine, [MCAUSE, MEPC, MTVAL, MSTATUS]),
            (Mode::Supervisor, [SCAUSE, SEPC, STVAL, SSTATUS]),
        ]
        .map(|(mode, registers)| put_handler(&mut asm, finish, mode, registers));
        asm.bind(finish);
        asm.constant(T6, layout::SYSCON);
        asm.constant(T5, layout::SYSCON_PASS);
        asm.word(sw(T5, T6, 0));
        asm.bind(start);
        for (number, label) in [MTVEC, STVEC].into_iter().zip(vectors) {
            asm.address_of(T0, label);
            asm.word(csrrw(ZERO, number, T0));
        }
        let mut directed = Directed { asm, finish, memory: Vec::new(), lines: 0 };
        directed.set(PMPADDR0, u64::MAX >> 10);
        directed.set(PMPCFG0, 0x1f);
        directed.set(MSTATUS, STATUS_FS);
        directed
    }

    /// Has these interrupts pending from the outside, throughout: bits of `mip`.
    pub fn lines(&mut self, lines: u64) -> &mut Directed {
        self.lines = lines;
        self
    }

    /// Puts bytes in memory.
    pub fn memory(&mut self, address: u64, bytes: &[u8]) -> &mut Directed {
        self.memory.push((address, bytes.to_vec()));
        self
    }

    /// Puts a 64-bit value in memory.
    pub fn memory_u64(&mut self, address: u64, value: u64) -> &mut Directed {
        self.memory(address, &value.to_le_bytes())
    }

    /// Writes a CSR by way of `t0`.
    pub fn set(&mut self, number: u32, value: u64) -> &mut Directed {
        self.asm.constant(T0, value);
        self.asm.word(csrrw(ZERO, number, T0));
        self
    }

    /// Loads a register.
    pub fn load(&mut self, register: u32, value: u64) -> &mut Directed {
        self.asm.constant(register, value);
        self
    }

    /// Puts an instruction.
    pub fn word(&mut self, word: u32) -> &mut Directed {
        self.asm.word(word);
        self
    }

    /// Puts instructions.
    pub fn words(&mut self, words: &[u32]) -> &mut Directed {
        self.asm.words(words);
        self
    }

    /// Goes on in a mode, with these bits in `mstatus` beside MPP; clobbers `t0`.
    pub fn enter(&mut self, mode: Mode, status: u64) -> &mut Directed {
        self.enter_at(mode, status, 0)
    }

    /// The same, at an alias this far above.
    pub fn enter_at(&mut self, mode: Mode, status: u64, alias: u64) -> &mut Directed {
        self.set(MSTATUS, status | STATUS_FS | (mode as u64) << 11);
        let body = self.asm.label();
        self.asm.address_of(T0, body);
        self.asm.constant(T1, alias);
        self.asm.words(&[add(T0, T0, T1), csrrw(ZERO, MEPC, T0), MRET]);
        self.asm.bind(body);
        self
    }

    /// Runs it to its end, or to its first trap, whole and cut into pieces.
    ///
    /// # Panics
    /// When it does not end, or being cut matters.
    pub fn run(&mut self) -> Ended {
        let mut asm = self.asm.clone();
        asm.jump(ZERO, self.finish);
        let mut memory = self.memory.clone();
        memory.push((layout::CODE, asm.finish()));
        let mut subject = Subject::with_memory(&memory);
        subject.raise(self.lines);
        assert_eq!(subject.run(Cut::Whole, LIMIT), End::PowerOff, "at {:#x}", subject.state().pc);
        let mut cut = Subject::with_memory(&memory);
        cut.raise(self.lines);
        while cut.step() {}
        assert_eq!(cut.state(), subject.state(), "one instruction at a time");
        let state = subject.state();
        let register = |number: u32| state.x[number as usize];
        let taken = register(TAKEN_IN);
        let trap = (taken & 3 != 0).then(|| Taken {
            cause: register(CAUSE),
            epc: register(EPC),
            tval: register(TVAL),
            status: register(STATUS),
            mode: if taken & 3 == 3 { Mode::Machine } else { Mode::Supervisor },
            vector: taken >> 2 << 2,
        });
        Ended { state, trap, subject }
    }
}

/// A table of 16 vectors and what they lead to.
fn put_handler(asm: &mut Assembler, finish: Label, mode: Mode, registers: [u32; 4]) -> Label {
    asm.align(256);
    let table = asm.label_here();
    let entries: Vec<Label> = (0..16).map(|_| asm.label()).collect();
    entries.iter().for_each(|entry| asm.jump(ZERO, *entry));
    for (index, entry) in entries.into_iter().enumerate() {
        asm.bind(entry);
        asm.word(addi(TAKEN_IN, ZERO, (4 * index as i32) | mode as i32));
        for (into, number) in [CAUSE, EPC, TVAL, STATUS].into_iter().zip(registers) {
            asm.word(csrrs(into, number, ZERO));
        }
        asm.jump(ZERO, finish);
    }
    table
}

impl Ended {
    /// A register.
    pub fn x(&self, register: u32) -> u64 {
        self.state.x[register as usize]
    }

    /// A float register.
    pub fn f(&self, register: u32) -> u64 {
        self.state.f[register as usize]
    }

    /// The trap that ended it.
    ///
    /// # Panics
    /// When none did.
    pub fn trap(&self) -> Taken {
        self.trap.expect("a trap")
    }

    /// 64 bits of memory.
    pub fn memory_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.subject.memory(address, 8).try_into().expect("8 bytes"))
    }
}
