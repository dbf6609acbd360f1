//! Runs a program on both machines and compares what it left in memory.

use super::coverage::{self, Coverage};
use super::layout::{self, DUMP_BYTES, LOG_ENTRY_BYTES};
use super::lockstep;
use super::oracle::{Oracle, OracleError};
use super::program::Program;
use super::subject::{Cut, End, Subject};
use super::whole;

/// One in so many programs runs on the whole machine too.
const WHOLE_MACHINE_SEEDS: u64 = 4;

/// Something that the machines do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What.
    pub what: What,
    /// On QEMU.
    pub expected: u64,
    /// On ours.
    pub found: u64,
}

/// Where machines can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A field of a register dump. Dump 0 is that before the first block.
    Dump {
        /// Which dump.
        index: u64,
        /// Which field.
        field: u64,
    },
    /// A word of the trap log.
    Trap {
        /// Which trap.
        index: u64,
        /// 0 to 3: cause, epc, tval, status.
        field: u64,
    },
    /// Eight bytes of memory at this address.
    Memory(u64),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.what {
            What::Dump { index, field } => {
                write!(f, "{} after iteration {index}", layout::dump_field_name(field))?;
            }
            What::Trap { index, field } => {
                let field = ["cause", "epc", "tval", "status"][field as usize];
                write!(f, "{field} of trap {index}")?;
            }
            What::Memory(address) => write!(f, "memory at {address:#x}")?,
        }
        write!(f, ": {:#x} on QEMU, {:#x} here", self.expected, self.found)
    }
}

/// What comparing a program came to.
#[derive(Debug)]
pub enum Verdict {
    /// Equal: what was executed.
    Same(Box<Coverage>),
    /// Different: a report that says where, and how to repeat it.
    Different(String),
}

/// Runs a program on both machines; on ours two times more, cut into pieces and one
/// instruction at a time. One in [`WHOLE_MACHINE_SEEDS`] runs on our whole machine too.
///
/// # Errors
/// When QEMU cannot be run.
pub fn compare(oracle: &Oracle, program: &Program) -> Result<Verdict, OracleError> {
    let (whole, difference) = run_both(oracle, program, &regions(program))?;
    if let Some(difference) = difference {
        return lockstep::explain(oracle, program, &difference).map(Verdict::Different);
    }
    let mut cut = Subject::new(program);
    cut.run(Cut::Random(program.recipe.seed), program.limit());
    let (walked, _, coverage) = coverage::walk(program);
    for (subject, how) in [(cut, "cut into pieces"), (walked, "one instruction at a time")] {
        if differs(program, &whole, &subject) {
            return Ok(Verdict::Different(cut_report(program, &whole, &subject, how)));
        }
    }
    // Every so many programs, and with each class's first of CI.
    if program.recipe.seed % WHOLE_MACHINE_SEEDS == 1
        && let Some(difference) = whole::difference(program, &whole)
    {
        return Ok(Verdict::Different(format!(
            "{} seed {}: on the whole machine: {difference}\nrepeat: {}",
            program.recipe.class.name(),
            program.recipe.seed,
            lockstep::command(program)
        )));
    }
    Ok(Verdict::Same(Box::new(coverage)))
}

/// The first difference in what a program leaves: dumps first, as they come in the order of
/// execution, then traps, then memory.
///
/// # Errors
/// When QEMU cannot be run.
pub fn first_difference(oracle: &Oracle, program: &Program) -> Result<Option<Difference>, OracleError> {
    run_both(oracle, program, &regions(program)).map(|(_, difference)| difference)
}

/// The first difference in memory, whatever registers and traps were.
///
/// # Errors
/// When QEMU cannot be run.
pub(super) fn memory_difference(
    oracle: &Oracle,
    program: &Program,
) -> Result<Option<Difference>, OracleError> {
    let regions = regions(program);
    let is_data = |region: &&Region| matches!(region.kind, Kind::Memory) && region.address != layout::CODE;
    let data: Vec<Region> = regions.iter().filter(is_data).cloned().collect();
    run_both(oracle, program, &data).map(|(_, difference)| difference)
}

/// Our machine after a program, and the first difference in some regions.
fn run_both(
    oracle: &Oracle,
    program: &Program,
    regions: &[Region],
) -> Result<(Subject, Option<Difference>), OracleError> {
    // QEMU first: our run, in the same process, fits into its start.
    let running = oracle.start(&program.memory, &[])?;
    let mut subject = Subject::new(program);
    let end = subject.run(Cut::Whole, program.limit());
    let outcome = running.finish()?;
    // A defect that was planted is to be found by what it does.
    let planted = |region: &Region| region.address == layout::CODE && program.defect.is_some();
    for region in regions.iter().filter(|region| !planted(region)) {
        let expected = outcome.memory(region.address, region.len)?;
        let found = subject.memory(region.address, region.len);
        let difference = region.first_difference(&expected, found);
        if difference.is_some() {
            return Ok((subject, difference));
        }
    }
    let ended = [outcome.powered_off, end == End::PowerOff];
    // Reported as a difference of the syscon's word.
    let difference = (ended[0] != ended[1]).then(|| Difference {
        what: What::Memory(layout::SYSCON),
        expected: ended[0].into(),
        found: ended[1].into(),
    });
    Ok((subject, difference))
}

/// Whether two runs of ours left anything different.
fn differs(program: &Program, whole: &Subject, other: &Subject) -> bool {
    let same_memory = regions(program)
        .iter()
        .all(|region| whole.memory(region.address, region.len) == other.memory(region.address, region.len));
    !same_memory || whole.icount() != other.icount() || whole.state() != other.state()
}

fn cut_report(program: &Program, whole: &Subject, other: &Subject, how: &str) -> String {
    format!(
        "{} seed {}: execution {how} differs from execution as a whole (law 1): icount {} and {}\nrepeat: {}",
        program.recipe.class.name(),
        program.recipe.seed,
        whole.icount(),
        other.icount(),
        lockstep::command(program),
    )
}

/// A stretch of memory that both machines must leave alike.
#[derive(Clone)]
struct Region {
    kind: Kind,
    address: u64,
    len: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Dumps,
    Traps,
    Memory,
}

fn regions(program: &Program) -> [Region; 4] {
    let kinds = [Kind::Dumps, Kind::Traps, Kind::Memory, Kind::Memory];
    let mut places = program.compared_memory().into_iter();
    kinds.map(|kind| {
        let (address, len) = places.next().expect("one for each kind");
        Region { kind, address, len }
    })
}

impl Region {
    fn first_difference(&self, expected: &[u8], found: &[u8]) -> Option<Difference> {
        if expected == found {
            return None;
        }
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        let pairs = expected.chunks_exact(8).zip(found.chunks_exact(8));
        let (index, (expected, found)) =
            pairs.enumerate().find(|(_, (expected, found))| expected != found)?;
        let offset = index as u64 * 8;
        let what = match self.kind {
            Kind::Dumps => What::Dump { index: offset / DUMP_BYTES, field: offset % DUMP_BYTES / 8 },
            Kind::Traps => {
                What::Trap { index: offset / LOG_ENTRY_BYTES, field: offset % LOG_ENTRY_BYTES / 8 }
            }
            Kind::Memory => What::Memory(self.address + offset),
        };
        Some(Difference { what, expected: word(expected), found: word(found) })
    }
}
