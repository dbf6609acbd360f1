//! Programs on the whole machine, with its board, clock and slices: it must do what the hart
//! alone does, however its execution is cut (law 1).

use bytes::Bytes;
use machine::hart::HartState;
use machine::{BootImages, Engine, Exit, Machine, MachineConfig, RiscvMachine};

use super::layout;
use super::program::Program;
use super::subject::Subject;
use crate::sim::random::Random;

/// Of an ELF file and of each entry in its table of segments.
const ELF_HEADER_BYTES: u64 = 64;
const SEGMENT_HEADER_BYTES: u64 = 56;
/// Instructions that are executed one by one at a time.
const SINGLE_STEPS: u64 = 500;

/// Runs a program on the whole machine, at once by the interpreter and in pieces by the
/// translator where the host has one, and compares with the hart
/// alone. Says what differs.
pub fn difference(program: &Program, alone: &Subject) -> Option<String> {
    let mut random = Random::new(program.recipe.seed);
    let slice_instructions = random.between(100, 100_000);
    let mut at_once = power_on(program, slice_instructions, Engine::Interpreter);
    let mut in_pieces = power_on(program, slice_instructions, Engine::Auto);
    run(&mut at_once, program, |_| u64::MAX);
    let mut singly = 0;
    run(&mut in_pieces, program, |icount| {
        if singly > 0 {
            singly -= 1;
            return icount + 1;
        }
        singly = if random.chance(10) { SINGLE_STEPS } else { 0 };
        icount + (1 << random.between(0, 12))
    });
    let digests = [&mut at_once, &mut in_pieces].map(RiscvMachine::digest);
    if digests[0] != digests[1] {
        return Some(format!("its digest depends on how it is cut: {:?} and {:?}", digests[0], digests[1]));
    }
    let icount = at_once.moment().icount;
    if icount != alone.icount() {
        return Some(format!("it ends at icount {icount}, the hart alone at {}", alone.icount()));
    }
    let state = at_once.hart(0).map(machine::hart::Hart::state);
    let expected: Option<HartState> = Some(alone.state());
    if state != expected {
        return Some(format!("its registers are {state:x?}, of the hart alone {expected:x?}"));
    }
    let mut regions = program.compared_memory().into_iter();
    let differs = |(address, len): &(u64, usize)| {
        at_once.ram().slice(*address, *len).ok() != Some(alone.memory(*address, *len))
    };
    regions.find(differs).map(|(address, len)| format!("the {len} bytes of memory from {address:#x} differ"))
}

/// A machine with a program in memory.
fn power_on(program: &Program, slice_instructions: u64, engine: Engine) -> RiscvMachine {
    let config = MachineConfig {
        memory_bytes: layout::RAM_BYTES,
        slice_instructions,
        entropy: false,
        ..MachineConfig::default()
    };
    let images = BootImages::bare(elf(program));
    let mut machine = RiscvMachine::new(config, &images, Vec::new()).expect("programs fit the machine");
    machine.set_engine(engine);
    machine
}

/// Runs to the end, or to the program's limit; `next` gives where the next piece ends.
fn run(machine: &mut RiscvMachine, program: &Program, mut next: impl FnMut(u64) -> u64) {
    loop {
        let until = next(machine.moment().icount).min(program.limit());
        match machine.run(until) {
            Exit::Limit if until < program.limit() => (),
            Exit::Output => drop(machine.take_outputs()),
            // The end, or what shows as a difference.
            _ => return,
        }
    }
}

/// The initial memory as an ELF file.
fn elf(program: &Program) -> Bytes {
    let segments = program.memory.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    let mut put = |fields: &[(u64, usize)]| {
        fields.iter().for_each(|(value, len)| file.extend_from_slice(&value.to_le_bytes()[..*len]));
    };
    // An executable for RISC-V; version, entry, table of segments, no sections, flags.
    put(&[(2, 2), (243, 2), (1, 4), (layout::CODE, 8), (ELF_HEADER_BYTES, 8), (0, 8), (0, 4)]);
    // Sizes of this header and of the tables' entries, and how many there are.
    put(&[(ELF_HEADER_BYTES, 2), (SEGMENT_HEADER_BYTES, 2), (segments, 2), (0, 2), (0, 2), (0, 2)]);
    let mut offset = ELF_HEADER_BYTES + segments * SEGMENT_HEADER_BYTES;
    for (address, bytes) in &program.memory {
        let len = bytes.len() as u64;
        // To be loaded, all rights; offset, addresses, sizes in the file and in memory, alignment.
        put(&[(1, 4), (7, 4), (offset, 8), (*address, 8), (*address, 8), (len, 8), (len, 8), (1, 8)]);
        offset += len;
    }
    program.memory.iter().for_each(|(_, bytes)| file.extend_from_slice(bytes));
    file.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::encode::addi;
    use crate::differential::subject::{Cut, End};
    use crate::differential::{Class, Recipe};

    /// What the whole machine and the hart alone make of a program, which the hart alone may
    /// get a defect in.
    fn difference_with(class: Class, has_defect: bool) -> Option<String> {
        let mut program = Program::generate(Recipe { class, seed: 2 });
        program.defect = has_defect.then(|| (program.blocks[9].end - 4, addi(7, 7, 1)));
        let mut alone = Subject::new(&program);
        assert_eq!(alone.run(Cut::Whole, program.limit()), End::PowerOff);
        difference(&program, &alone)
    }

    #[test]
    fn the_whole_machine_does_what_the_hart_does() {
        for class in [Class::Integer, Class::Paging, Class::Interrupt] {
            assert_eq!(difference_with(class, false), None, "{class:?}");
        }
    }

    #[test]
    fn a_difference_is_seen() {
        let difference = difference_with(Class::Integer, true).expect("a difference");
        assert!(difference.contains("memory"), "{difference}");
    }
}
