//! What a program executed, counted: so that a class that lost its teeth is noticed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;

use super::frame::USER_ALIAS;
use super::instruction;
use super::layout::{self, LOG_BYTES, LOG_ENTRY_BYTES};
use super::program::Program;
use super::subject::{End, Subject};

/// `mstatus.SXL`, which `sstatus` does not show.
const STATUS_SXL: u64 = 3 << 34;
const INTERRUPT: u64 = 1 << 63;

/// How often an instruction was executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Executions {
    /// To its end.
    pub retired: u64,
    /// To an exception.
    pub trapped: u64,
}

/// A trap: where it came from, whose handler took it, and the cause register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrapKind {
    /// 0, 1 or 3: the mode before.
    pub from: u8,
    /// 1 or 3: the mode of the handler.
    pub to: u8,
    /// `mcause` or `scause`.
    pub cause: u64,
}

/// CSRs that programs access: all that the hart has, but for the names of the implementation.
const CSRS: [RangeInclusive<u32>; 18] = [
    0x001..=0x003,
    0x100..=0x100,
    0x104..=0x106,
    0x10a..=0x10a,
    0x140..=0x144,
    0x14d..=0x14d,
    0x180..=0x180,
    0x300..=0x306,
    0x30a..=0x30a,
    0x320..=0x320,
    0x340..=0x344,
    0x3a0..=0x3a0,
    0x3a2..=0x3a2,
    0x3b0..=0x3bf,
    0xb00..=0xb00,
    0xb02..=0xb02,
    0xc00..=0xc02,
    0xf14..=0xf15,
];

/// Exceptions that each mode can meet besides `ecall`. Not 0: with compressed instructions
/// there is no misaligned jump.
const EXCEPTIONS: [u64; 10] = [1, 2, 3, 4, 5, 6, 7, 12, 13, 15];
/// From which mode to which, and the cause of `ecall` there. That from S-mode is how programs
/// come back, and never delegated.
const ROUTES: [(u8, u8, Option<u64>); 5] =
    [(0, 1, Some(8)), (0, 3, Some(8)), (1, 1, None), (1, 3, Some(9)), (3, 3, Some(11))];
/// SSI, STI, SEI; for M-mode's handler MSI and MTI too.
const INTERRUPTS: [u64; 5] = [1, 5, 9, 3, 7];
const SUPERVISOR_INTERRUPTS: usize = 3;

/// What was executed, of one program or of many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Generated instructions that were executed, to their end or to an exception; those of
    /// the frame and of handlers are not counted.
    pub generated: u64,
    /// Of these by name.
    pub instructions: BTreeMap<&'static str, Executions>,
    /// Accesses that CSR instructions made, by the CSR's number.
    pub csrs: BTreeMap<u32, u64>,
    /// Rounding modes of float instructions, 7 for that in `frm`.
    pub rounding_modes: BTreeMap<u32, u64>,
    /// Traps.
    pub traps: BTreeMap<TrapKind, u64>,
    /// Words that were executed to their end and have no name.
    pub nameless: BTreeMap<u32, u64>,
}

impl Coverage {
    /// Adds what another program executed.
    pub fn add(&mut self, other: &Coverage) {
        self.generated += other.generated;
        for (name, executions) in &other.instructions {
            let sum = self.instructions.entry(name).or_default();
            sum.retired += executions.retired;
            sum.trapped += executions.trapped;
        }
        add_counts(&mut self.csrs, &other.csrs);
        add_counts(&mut self.rounding_modes, &other.rounding_modes);
        add_counts(&mut self.traps, &other.traps);
        add_counts(&mut self.nameless, &other.nameless);
    }

    /// The instructions that were never executed: to their end, or to the exception that is
    /// their purpose.
    pub fn never_executed(&self) -> Vec<&'static str> {
        let is_missing = |name: &&str| {
            let executions = self.instructions.get(name).copied().unwrap_or_default();
            match *name {
                "ecall" | "ebreak" | "c.ebreak" => executions.trapped == 0,
                _ => executions.retired == 0,
            }
        };
        instruction::names().filter(is_missing).collect()
    }

    /// The CSRs that no instruction accessed.
    pub fn never_accessed(&self) -> Vec<u32> {
        CSRS.into_iter().flatten().filter(|number| !self.csrs.contains_key(number)).collect()
    }

    /// The rounding modes that no instruction had; that in `frm` is 7.
    pub fn never_rounded(&self) -> Vec<u32> {
        [0, 1, 2, 3, 4, 7].into_iter().filter(|mode| !self.rounding_modes.contains_key(mode)).collect()
    }

    /// The traps that were never taken: each from each mode, by both handlers.
    pub fn never_taken(&self) -> Vec<TrapKind> {
        let all = ROUTES.into_iter().flat_map(|(from, to, call)| {
            // M-mode fetches without translation.
            let exceptions = EXCEPTIONS.into_iter().filter(move |cause| (from, *cause) != (3, 12));
            let interrupts = if to == 3 { &INTERRUPTS[..] } else { &INTERRUPTS[..SUPERVISOR_INTERRUPTS] };
            let interrupts = interrupts.iter().map(|number| number | INTERRUPT);
            let causes = call.into_iter().chain(exceptions).chain(interrupts);
            causes.map(move |cause| TrapKind { from, to, cause })
        });
        all.filter(|kind| !self.traps.contains_key(kind)).collect()
    }

    /// Counts of everything, for people.
    pub fn report(&self) -> String {
        let mut text = format!("{} generated instructions", self.generated);
        let _ = write!(text, "\ninstructions (to an exception in brackets):");
        for (name, Executions { retired, trapped }) in &self.instructions {
            let _ = write!(text, "\n  {name} {retired}");
            if *trapped > 0 {
                let _ = write!(text, " ({trapped})");
            }
        }
        let _ = write!(text, "\naccesses to CSRs:");
        self.csrs.iter().for_each(|(number, count)| text += &format!("\n  {number:#05x} {count}"));
        let _ = write!(text, "\nrounding modes:");
        self.rounding_modes.iter().for_each(|(mode, count)| text += &format!("\n  {mode} {count}"));
        let _ = write!(text, "\ntraps:");
        for (TrapKind { from, to, cause }, count) in &self.traps {
            let kind = if cause & INTERRUPT == 0 { "exception" } else { "interrupt" };
            let number = cause & !INTERRUPT;
            let _ =
                write!(text, "\n  {kind} {number} from {} to {} {count}", mode_name(*from), mode_name(*to));
        }
        text
    }

    fn count(&mut self, code: u32, executions: Executions) {
        let Executions { retired, trapped } = executions;
        self.generated += retired + trapped;
        let Some(name) = instruction::name(code) else {
            if retired > 0 {
                *self.nameless.entry(code).or_default() += retired;
            }
            return;
        };
        let sum = self.instructions.entry(name).or_default();
        sum.retired += retired;
        sum.trapped += trapped;
        if retired > 0 && instruction::has_csr(code) {
            *self.csrs.entry(code >> 20).or_default() += retired;
        }
        if retired > 0 && instruction::has_rounding_mode(code) {
            *self.rounding_modes.entry(code >> 12 & 7).or_default() += retired;
        }
    }

    fn count_traps(&mut self, subject: &Subject) {
        for entry in subject.memory(layout::LOG, LOG_BYTES as usize).chunks_exact(LOG_ENTRY_BYTES as usize) {
            let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
            let (cause, epc, status) = (word(0), word(8), word(24));
            if (cause, epc, status) == (0, 0, 0) {
                continue;
            }
            let is_machine = status & STATUS_SXL != 0;
            let (from, to) = if is_machine { (status >> 11 & 3, 3) } else { (status >> 8 & 1, 1) };
            *self.traps.entry(TrapKind { from: from as u8, to, cause }).or_default() += 1;
        }
    }
}

fn add_counts<K: Ord + Copy>(sum: &mut BTreeMap<K, u64>, other: &BTreeMap<K, u64>) {
    other.iter().for_each(|(key, count)| *sum.entry(*key).or_default() += count);
}

fn mode_name(mode: u8) -> &'static str {
    match mode {
        0 => "U",
        1 => "S",
        _ => "M",
    }
}

/// Runs a program one instruction at a time, which must not matter (law 1), and counts what
/// it executes.
pub fn walk(program: &Program) -> (Subject, End, Coverage) {
    let code = &program.memory[0].1;
    let half = |at: usize| u32::from(u16::from_le_bytes([code[at], code[at + 1]]));
    let mut counts = vec![Executions::default(); code.len() / 2];
    let mut coverage = Coverage::default();
    let mut subject = Subject::new(program);
    let end = subject.run_singly(program.limit(), |before, after| {
        // Handlers are entered at their vectors. The entry to an interrupt's handler takes
        // nothing of the budget: the vector's jump is executed too.
        let is_interrupted = program.handlers.contains(&after) && !program.vectors.contains(&after);
        if is_interrupted {
            return;
        }
        let is_trapped = program.vectors.contains(&after);
        match place_in_code(before) {
            Some(place) if place < code.len() => {
                let executions = &mut counts[place / 2];
                executions.retired += u64::from(!is_trapped);
                executions.trapped += u64::from(is_trapped);
            }
            // Routines in the data area, pages of code.
            _ => coverage.generated += 1,
        }
    });
    for block in &program.blocks {
        let places = (block.start - layout::CODE) as usize..(block.end - layout::CODE) as usize;
        for place in places.step_by(2).filter(|place| counts[place / 2] != Executions::default()) {
            let code = half(place) | if place + 2 < code.len() { half(place + 2) << 16 } else { 0 };
            coverage.count(code, counts[place / 2]);
        }
    }
    coverage.count_traps(&subject);
    (subject, end, coverage)
}

/// Where in the code an address points that the identity or the alias maps.
fn place_in_code(pc: u64) -> Option<usize> {
    let physical = if pc >= layout::CODE + USER_ALIAS { pc - USER_ALIAS } else { pc };
    physical.checked_sub(layout::CODE).map(|place| place as usize)
}
