//! Generated programs on QEMU and on our hart: see `secondwind_tests::differential`.
//!
//! QEMU is found through the environment variable `SECONDWIND_QEMU`, in `PATH`, or where
//! `bench/qemu` puts it.
//!
//! - `SECONDWIND_DIFFERENTIAL_INSTRUCTIONS=N` executes at least N generated instructions in
//!   each class, instead of a quick run.
//! - `SECONDWIND_DIFFERENTIAL_SEED=S` starts with another seed.
//! - `SECONDWIND_DIFFERENTIAL=CLASS:SEED` is what `differential_repeat` runs.

use secondwind_tests::differential::encode::addi;
use secondwind_tests::differential::{Class, Oracle, Program, Recipe, Verdict, compare};

/// Generated instructions per class in a quick run.
const QUICK_INSTRUCTIONS: u64 = 400_000;

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}"))
}

fn oracle() -> Oracle {
    Oracle::find().unwrap_or_else(|error| panic!("{error}"))
}

fn compare_recipe(oracle: &Oracle, recipe: Recipe) -> u64 {
    let program = Program::generate(recipe);
    match compare(oracle, &program) {
        Ok(Verdict::Same) => program.instructions,
        Ok(Verdict::Different(report)) => panic!("{report}"),
        Err(error) => panic!("{error}"),
    }
}

fn compare_class(class: Class) {
    let oracle = oracle();
    let wanted = number("SECONDWIND_DIFFERENTIAL_INSTRUCTIONS", QUICK_INSTRUCTIONS);
    let first_seed = number("SECONDWIND_DIFFERENTIAL_SEED", 1);
    let (mut executed, mut programs) = (0, 0);
    while executed < wanted {
        executed += compare_recipe(&oracle, Recipe { class, seed: first_seed + programs });
        programs += 1;
    }
    println!("{}: {executed} generated instructions in {programs} programs, no difference", class.name());
}

macro_rules! tests {
    ($($name:ident: $class:ident;)*) => { $(
        #[test]
        fn $name() {
            compare_class(Class::$class);
        }
    )* };
}

tests! {
    differential_integer: Integer;
    differential_multiplication: Multiplication;
    differential_bits: Bits;
    differential_compressed: Compressed;
    differential_memory: Memory;
    differential_atomic: Atomic;
    differential_single: Single;
    differential_double: Double;
    differential_decode: Decode;
    differential_control: Control;
    differential_trap: Trap;
    differential_interrupt: Interrupt;
    differential_paging: Paging;
    differential_protection: Protection;
    differential_modification: Modification;
    differential_mixed: Mixed;
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
    compare_recipe(&oracle(), recipe);
}

/// A defect in one instruction of ours is found, and that instruction named.
#[test]
fn differential_search_finds_a_defect() {
    let mut program = Program::generate(Recipe { class: Class::Integer, seed: 1 });
    // The last instruction of a block: nothing hides what it does.
    let address = program.blocks[9].end - 4;
    let word = addi(7, 7, 1);
    program.defect = Some((address, word));
    match compare(&oracle(), &program) {
        Ok(Verdict::Different(report)) => {
            let place = format!("first differing instruction: {word:08x} at {address:#x}");
            assert!(report.contains(&place), "{report}");
            assert!(report.contains("SECONDWIND_DIFFERENTIAL=integer:1 cargo test"), "{report}");
        }
        Ok(Verdict::Same) => panic!("the defect was not noticed"),
        Err(error) => panic!("{error}"),
    }
}
