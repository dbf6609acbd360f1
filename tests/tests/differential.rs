//! Generated programs on QEMU and on our hart: see `secondwind_tests::differential`.
//!
//! QEMU is found through the environment variable `SECONDWIND_QEMU`, in `PATH`, or where
//! `bench/qemu` puts it.
//!
//! - `SECONDWIND_DIFFERENTIAL_INSTRUCTIONS=N` executes at least N generated instructions in
//!   each class, instead of a quick run.
//! - `SECONDWIND_DIFFERENTIAL_SEED=S` starts with another seed.
//! - `SECONDWIND_DIFFERENTIAL=CLASS:SEED` is what `differential_repeat` runs.
//!
//! The long mode is a program of its own: `cargo run --release -p secondwind-tests --bin
//! differential`.

use std::sync::atomic::AtomicBool;

use secondwind_tests::differential::encode::{csr::FFLAGS, *};
use secondwind_tests::differential::{Campaign, Class, Coverage, Oracle, Program, Recipe, Verdict, compare};

/// Generated instructions that each class executes at least.
const INSTRUCTIONS_PER_CLASS: u64 = 800_000;
/// Generated instructions that all classes together must have executed.
const LEAST_INSTRUCTIONS: u64 = 10_000_000;

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}"))
}

fn oracle() -> Oracle {
    Oracle::find().unwrap_or_else(|error| panic!("{error}"))
}

/// Programs of every class do the same on QEMU and on our hart, whole and in pieces; and they
/// are programs that mean something.
#[test]
fn differential_every_class() {
    let campaign = Campaign {
        classes: Class::ALL.to_vec(),
        first_seed: number("SECONDWIND_DIFFERENTIAL_SEED", 1),
        instructions_per_class: Some(number("SECONDWIND_DIFFERENTIAL_INSTRUCTIONS", INSTRUCTIONS_PER_CLASS)),
        workers: std::thread::available_parallelism().map_or(2, usize::from),
    };
    let results = campaign.run(&oracle(), &AtomicBool::new(false), |_| ()).unwrap_or_else(|e| panic!("{e}"));
    println!("{}{} instructions in all", results.table(), results.instructions());
    let reports: Vec<&str> = results.reports().collect();
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
    if campaign.instructions_per_class >= Some(INSTRUCTIONS_PER_CLASS) {
        let instructions = results.instructions();
        assert!(instructions >= LEAST_INSTRUCTIONS, "only {instructions} instructions were compared");
        assert_covered(&results.coverage);
    }
}

/// Every instruction was executed to its end, every exception was taken in each mode that can
/// take it, and nothing was executed that has no name.
fn assert_covered(coverage: &Coverage) {
    println!("{}", coverage.report());
    assert!(coverage.nameless.is_empty(), "instructions without a name: {:x?}", coverage.nameless);
    let never = coverage.never_executed();
    assert!(never.is_empty(), "never executed: {never:?}");
    let never = coverage.never_accessed();
    assert!(never.is_empty(), "CSRs never accessed: {never:x?}");
    let never = coverage.never_rounded();
    assert!(never.is_empty(), "rounding modes never used: {never:?}");
    let never = coverage.never_taken();
    assert!(never.is_empty(), "traps never taken: {never:x?}");
}

/// Runs the program of a report again.
#[test]
fn differential_repeat() {
    let Ok(text) = std::env::var("SECONDWIND_DIFFERENTIAL") else { return };
    let recipe = text.split_once(':').and_then(|(class, seed)| {
        let class = *Class::ALL.iter().find(|known| known.name() == class)?;
        Some(Recipe { class, seed: seed.parse().ok()? })
    });
    let recipe = recipe.unwrap_or_else(|| panic!("SECONDWIND_DIFFERENTIAL must be CLASS:SEED, not {text:?}"));
    match compare(&oracle(), &Program::generate(recipe)) {
        Ok(Verdict::Same(coverage)) => println!("no difference\n{}", coverage.report()),
        Ok(Verdict::Different(report)) => panic!("{report}"),
        Err(error) => panic!("{error}"),
    }
}

/// Plants a defect in our machine alone: another word at an address, in a program of a class.
/// Expects the report to name exactly it.
fn expect_defect_found(class: Class, word: u32, place: impl Fn(&Program) -> u64) {
    let mut program = Program::generate(Recipe { class, seed: 1 });
    let address = place(&program);
    program.defect = Some((address, word));
    match compare(&oracle(), &program) {
        Ok(Verdict::Different(report)) => {
            let place = format!("first differing instruction: {word:08x} at {address:#x} ");
            assert!(report.contains(&place), "{word:08x} at {address:#x} was planted\n{report}");
            let repeat = format!("SECONDWIND_DIFFERENTIAL={}:1 cargo test", class.name());
            assert!(report.contains(&repeat), "{report}");
        }
        Ok(Verdict::Same(_)) => panic!("the defect was not noticed"),
        Err(error) => panic!("{error}"),
    }
}

/// The last instruction of a block: nothing hides what it does.
fn last_of_block(program: &Program) -> u64 {
    program.blocks[9].end - 4
}

/// In the middle of a block of the integer class, all of whose instructions have 32 bits.
fn within_block(program: &Program) -> u64 {
    let block = program.blocks[100];
    block.start + (block.end - block.start) / 8 * 4
}

#[test]
fn differential_search_finds_a_wrong_result() {
    expect_defect_found(Class::Integer, addi(7, 7, 1), last_of_block);
}

#[test]
fn differential_search_finds_a_wrong_result_within_a_block() {
    expect_defect_found(Class::Multiplication, addi(SP, SP, 8), within_block);
}

#[test]
fn differential_search_finds_a_wrong_store() {
    expect_defect_found(Class::Multiplication, sd(GP, SP, 0), within_block);
}

#[test]
fn differential_search_finds_an_exception_too_many() {
    const ILLEGAL: u32 = 0xffff_ffff;
    expect_defect_found(Class::Single, ILLEGAL, last_of_block);
}

#[test]
fn differential_search_finds_wrong_float_flags() {
    let set_divide_by_zero = i(0x6073, ZERO, 8, FFLAGS as i32);
    expect_defect_found(Class::Double, set_divide_by_zero, last_of_block);
}
