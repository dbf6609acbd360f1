//! What several harts must see of each other: LR/SC, AMOs, fences, interrupts between harts,
//! remote fences, start and stop. The program is tests/programs/smp.c.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use log_format::{Digest, Output};
use machine::{BootImages, Engine, Exit, Machine, MachineConfig, RiscvMachine, Semantics};

const COMPILER: &str = "riscv64-unknown-elf-gcc";
const FLAGS: [&str; 17] = [
    "-march=rv64imac_zicsr_zifencei",
    "-mabi=lp64",
    "-mcmodel=medany",
    "-O2",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-mno-relax",
    "-ffixed-tp",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-nostdlib",
    "-static",
    "-Wl,-n",
    "-Wl,-Ttext=0x80200000",
    "-Wl,--no-warn-rwx-segments",
];

/// Each of them must be said to be right, beside the count of harts at the end.
const TESTS: [&str; 13] = [
    "status-of-a-hart",
    "status-of-a-stopped-hart",
    "start-of-a-hart",
    "start-of-a-started-hart",
    "interrupt-of-a-hart-that-is-not",
    "lr-sc-counter",
    "amo-lock",
    "sc-after-a-foreign-store",
    "messages-over-fences",
    "interrupts-between-harts",
    "remote-sfence-vma-of-a-moved-page",
    "remote-sfence-vma-asid-of-a-right-taken",
    "remote-fence-i",
];

/// Instructions after which a hart that never sees what it waits for has failed.
const LIMIT_INSTRUCTIONS: u64 = 400_000_000;

fn program() -> Bytes {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("smp.elf");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/smp.c");
    let output = Command::new(COMPILER).args(FLAGS).arg("-o").arg(&target).arg(source).output();
    let output = output.expect("the compiler starts (Debian: gcc-riscv64-unknown-elf)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(target).expect("it was made").into()
}

/// Runs the program in pieces of `cut` instructions. What it said, and the digest at its end.
fn run(program: &Bytes, engine: Engine, harts: usize, slice_instructions: u64, cut: u64) -> (String, Digest) {
    let mut machine = Machinery::new(program, engine, harts, slice_instructions, Semantics::NEWEST);
    let said = machine.run_to_end(cut);
    (said, machine.0.digest())
}

struct Machinery(RiscvMachine);

impl Machinery {
    fn new(
        program: &Bytes,
        engine: Engine,
        harts: usize,
        slice_instructions: u64,
        semantics: Semantics,
    ) -> Machinery {
        let memory_bytes = 64 << 20;
        let config =
            MachineConfig { harts, slice_instructions, memory_bytes, semantics, ..MachineConfig::default() };
        let images = BootImages::supervisor(program.clone(), None);
        let mut machine = RiscvMachine::new(config, &images, Vec::new()).expect("it boots");
        machine.set_engine(engine);
        Machinery(machine)
    }

    fn run_to_end(&mut self, cut: u64) -> String {
        let Machinery(machine) = self;
        let mut said = String::new();
        loop {
            let exit = machine.run(machine.moment().icount + cut);
            for made in machine.take_outputs() {
                if let Output::Console(bytes) = made.output {
                    said += &String::from_utf8_lossy(&bytes);
                }
            }
            match exit {
                Exit::Halted { code } => {
                    assert_eq!(code, 0, "{said}");
                    return said;
                }
                Exit::Limit | Exit::Output => {}
                other => panic!("{other:?}: {said}"),
            }
            assert!(machine.moment().icount < LIMIT_INSTRUCTIONS, "it stands still: {said}");
        }
    }
}

#[test]
fn compiled_harts_see_what_others_do() {
    let program = program();
    for (harts, engine) in
        [2, 3, 4, 8].into_iter().flat_map(|harts| Engine::all().iter().map(move |engine| (harts, *engine)))
    {
        // Short slices end between LR and SC, and everywhere else.
        for slice_instructions in [100, 101, 1_000, 100_000] {
            let (said, _) = run(&program, engine, harts, slice_instructions, u64::MAX / 2);
            assert!(said.contains(&format!("SMP-OK {harts}\n")), "{said}");
            assert!(!said.contains("FAILED"), "{said}");
            for test in TESTS {
                assert!(said.contains(&format!("ok {test}\n")), "{test} is missing: {said}");
            }
        }
    }
}

#[test]
fn compiled_harts_do_the_same_however_execution_is_cut() {
    let program = program();
    let whole = run(&program, Engine::Interpreter, 4, 100, u64::MAX / 2);
    for cut in [333, 10_000, 1_000_003] {
        for engine in Engine::all() {
            assert!(run(&program, *engine, 4, 100, cut) == whole, "cut every {cut} instructions, {engine}");
        }
    }
}

#[test]
fn a_compiled_hart_that_pauses_gives_its_turn_away() {
    let program = program();
    let instructions = |semantics| {
        let mut machine = Machinery::new(&program, Engine::Auto, 3, 10_000, semantics);
        let said = machine.run_to_end(u64::MAX / 2);
        assert!(said.contains("SMP-OK 3\n"), "{said}");
        machine.0.moment().icount
    };
    // 2000 messages and as many answers, each waited for.
    let waited = instructions(Semantics::new(2).expect("an earlier version"));
    let paused = instructions(Semantics::NEWEST);
    assert!(waited > 4_000 * 10_000, "{waited}");
    assert!(paused < waited / 5, "{paused} of {waited}");
}
