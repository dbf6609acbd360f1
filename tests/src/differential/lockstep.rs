//! From a difference at the end of a program to the first instruction that behaved
//! differently: find the block, run both machines up to it, then step them side by side.

use std::fmt::Write;

use machine::hart::{HartState, Pmp};

use super::compare::{Difference, What, memory_difference};
use super::frame::STATUS_FS;
use super::gdb::{Registers, Stub, WATCHED_CSRS};
use super::layout::{self, DUMP_BYTES, DUMP_LOG, LOG_ENTRY_BYTES};
use super::oracle::{Oracle, OracleError};
use super::program::Program;
use super::subject::{Cut, Subject};

/// Steps after which the search is given up.
const MAX_STEPS: u64 = 100_000;
/// Of `mstatus` in [`WATCHED_CSRS`].
const MSTATUS_INDEX: usize = 1;
const FS_AND_SD: u64 = STATUS_FS | 1 << 63;

/// The command that repeats a program.
pub fn command(program: &Program) -> String {
    format!(
        "SECONDWIND_DIFFERENTIAL={}:{} cargo test -p secondwind-tests --test differential differential_repeat -- --nocapture",
        program.recipe.class.name(),
        program.recipe.seed
    )
}

/// Says which instruction makes a difference.
///
/// # Errors
/// When QEMU cannot be run.
pub fn explain(oracle: &Oracle, program: &Program, difference: &Difference) -> Result<String, OracleError> {
    let mut report = format!("{} seed {}: {difference}", program.recipe.class.name(), program.recipe.seed);
    let mut found = None;
    if let Some(place) = locate(oracle, program, difference)? {
        found = walk(oracle, program, &place)?;
        // What is loaded differently was stored differently before.
        let loaded = found.as_ref().and_then(|found| found.loaded);
        if let Some(before) = find_store(oracle, program, place, loaded)? {
            found = Some(before);
        }
    }
    match found {
        Some(found) => report += &found.text,
        None => report += "\n  no single instruction was found that differs when both machines are stepped",
    }
    let _ = write!(report, "\nrepeat: {}", command(program));
    Ok(report)
}

/// The first instruction found to differ.
struct Found {
    text: String,
    /// The physical address that it loads from.
    loaded: Option<u64>,
}

/// Finds what stored a difference: in the same block, or in one before.
fn find_store(
    oracle: &Oracle,
    program: &Program,
    place: Place,
    loaded: Option<u64>,
) -> Result<Option<Found>, OracleError> {
    if let Some(address) = loaded {
        let place = Place { memory: Some(address), ..place };
        let found = walk(oracle, program, &place)?;
        if found.as_ref().is_some_and(|found| found.loaded.is_none()) {
            return Ok(found);
        }
    }
    let until_then = shortened(program, place.block + 1);
    let Some(stored) = memory_difference(oracle, &until_then)? else { return Ok(None) };
    match locate(oracle, &until_then, &stored)? {
        Some(place) => walk(oracle, program, &place),
        None => Ok(None),
    }
}

/// Where a difference comes from.
struct Place {
    block: usize,
    /// The first iteration that may differ, and how many of them.
    iteration: u64,
    iterations: u64,
    /// What to look at, beside registers.
    memory: Option<u64>,
}

/// Finds the block, and the iteration if possible, that makes a difference.
fn locate(oracle: &Oracle, program: &Program, difference: &Difference) -> Result<Option<Place>, OracleError> {
    let iterations = program.iterations;
    let by_dump = |index: u64, memory| {
        let done = index.checked_sub(1)?;
        let block = (done / iterations) as usize;
        Some(Place { block, iteration: done % iterations, iterations: 1, memory })
    };
    match difference.what {
        What::Dump { index, .. } => Ok(by_dump(index, None)),
        What::Trap { index, field } => {
            let end = (index + 1) * LOG_ENTRY_BYTES;
            let memory = Some(layout::LOG + index * LOG_ENTRY_BYTES + field * 8);
            let mut subject = Subject::new(program);
            subject.run(Cut::Whole, program.limit());
            let dumps = program.dumps_bytes() / DUMP_BYTES;
            let log_offset = |dump: u64| {
                let at = layout::DUMPS + dump * DUMP_BYTES + DUMP_LOG * 8;
                u64::from_le_bytes(subject.memory(at, 8).try_into().expect("8 bytes"))
            };
            Ok((0..dumps).find(|dump| log_offset(*dump) >= end).and_then(|dump| by_dump(dump, memory)))
        }
        What::Memory(address) => {
            // The first block after which memory differs.
            let (mut same, mut different) = (0, program.blocks.len());
            while different - same > 1 {
                let middle = usize::midpoint(same, different);
                match memory_difference(oracle, &shortened(program, middle))? {
                    Some(_) => different = middle,
                    None => same = middle,
                }
            }
            let memory = Some(address).filter(|address| *address >= layout::RAM);
            Ok(Some(Place { block: same, iteration: 0, iterations, memory }))
        }
    }
}

/// A program of which only the first blocks are executed and compared.
fn shortened(program: &Program, blocks: usize) -> Program {
    let mut shortened = program.truncated(blocks);
    shortened.blocks.truncate(blocks);
    shortened
}

/// Steps both machines through a block until they differ.
fn walk(oracle: &Oracle, program: &Program, place: &Place) -> Result<Option<Found>, OracleError> {
    let block = program.blocks[place.block];
    let mut stub = Stub::start(oracle, &program.memory)?;
    let mut subject = Subject::new(program);
    for iteration in 0..=place.iteration {
        if iteration > 0 {
            stub.step()?;
            subject.step();
        }
        stub.run_to(block.start)?;
        if !run_to(&mut subject, block.start, program.limit()) {
            return Ok(None);
        }
    }
    let mut iterations_left = place.iterations;
    let mut watched = place.memory;
    if let Some(address) = watched {
        watched = (stub.memory(address, 8)? == subject.memory(address, 8)).then_some(address);
    }
    for _ in 0..MAX_STEPS {
        let before = subject.state();
        let (was_on, is_on) = (stub.step()?, subject.step());
        if !was_on || !is_on {
            return Ok((was_on != is_on).then(|| describe(&subject, &before, place, "power".into())));
        }
        let expected = stub.registers()?;
        let found = registers(&subject.state());
        let mut text = differences(&expected, &found);
        if let Some(address) = watched {
            let bytes = stub.memory(address, 8)?;
            let ours = subject.memory(address, 8);
            if bytes != ours {
                let _ = write!(text, "\n    memory at {address:#x}: {bytes:02x?} on QEMU, {ours:02x?} here");
            }
        }
        if !text.is_empty() {
            return Ok(Some(describe(&subject, &before, place, text)));
        }
        iterations_left -= u64::from(found.core[32] == block.end);
        if iterations_left == 0 {
            break;
        }
    }
    Ok(None)
}

fn run_to(subject: &mut Subject, address: u64, limit: u64) -> bool {
    while subject.state().pc != address {
        if !subject.step() || subject.icount() > limit {
            return false;
        }
    }
    true
}

/// The registers of a hart, in the order in which QEMU's stub gives them.
fn registers(state: &HartState) -> Registers {
    let csrs = &state.csrs;
    let dirty = if csrs.mstatus >> 13 & 3 == 3 { 1 << 63 } else { 0 };
    let mut core = [0; 33];
    core[..32].copy_from_slice(&state.x);
    core[32] = state.pc;
    let fcsr = u64::from(csrs.frm) << 5 | u64::from(csrs.fflags);
    let mstatus = csrs.mstatus | 0xa << 32 | dirty;
    Registers {
        core,
        float: state.f,
        csrs: [
            fcsr,
            mstatus,
            csrs.mepc,
            csrs.mcause,
            csrs.mtval,
            csrs.sepc,
            csrs.scause,
            csrs.stval,
            csrs.satp,
        ],
    }
}

fn differences(expected: &Registers, found: &Registers) -> String {
    let mut text = String::new();
    let is_float_off = found.csrs[MSTATUS_INDEX] & STATUS_FS == 0;
    let mut compare = |name: String, expected: u64, found: u64| {
        if expected != found {
            let _ = write!(text, "\n    {name}: {expected:#x} on QEMU, {found:#x} here");
        }
    };
    for register in 0..32 {
        compare(format!("x{register}"), expected.core[register], found.core[register]);
        compare(format!("f{register}"), expected.float[register], found.float[register]);
    }
    compare("pc".into(), expected.core[32], found.core[32]);
    for (index, (name, _)) in WATCHED_CSRS.into_iter().enumerate() {
        // Nobody can read `fcsr` while the float registers are off; QEMU's stub can, or cannot.
        if name == "fcsr" && is_float_off {
            continue;
        }
        // How dirty the float registers are is up to the machine; a difference shows when read.
        let mask = if name == "mstatus" { !FS_AND_SD } else { u64::MAX };
        compare(name.into(), expected.csrs[index] & mask, found.csrs[index] & mask);
    }
    text
}

/// The instruction at fault, what went in, and what came out.
fn describe(subject: &Subject, before: &HartState, place: &Place, differences: String) -> Found {
    let physical = before.pc & 0x3fff_ffff | layout::RAM;
    let bytes = subject.memory(physical & !1, 4);
    let word = u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
    let instruction = if word & 3 == 3 { format!("{word:08x}") } else { format!("{:04x}", word as u16) };
    let mut text = format!(
        "\n  first differing instruction: {instruction} at {:#x} ({:?} mode, block {}, iteration {} or later)",
        before.pc, before.privilege, place.block, place.iteration
    );
    let _ = write!(text, "\n  before it:");
    let (rd, rs1, rs2, rs3) = (word >> 7 & 31, word >> 15 & 31, word >> 20 & 31, word >> 27);
    let mut named = vec![rd, rs1, rs2, rs3];
    named.sort_unstable();
    named.dedup();
    for register in named {
        let index = register as usize;
        let _ =
            write!(text, "\n    x{register} = {:#x}, f{register} = {:#x}", before.x[index], before.f[index]);
    }
    let csrs = &before.csrs;
    let _ = write!(
        text,
        "\n    fflags = {:#x}, frm = {}, mstatus = {:#x}, satp = {:#x}, menvcfg = {:#x}",
        csrs.fflags, csrs.frm, csrs.mstatus, csrs.satp, csrs.menvcfg
    );
    if before.csrs.pmp != Pmp::open() {
        let _ = write!(text, "\n    {:x?}", before.csrs.pmp);
    }
    if csrs.satp != 0 {
        for address in [before.pc, before.x[rs1 as usize]] {
            let _ = write!(
                text,
                "\n    page-table entries of {address:#x}: {:x?}",
                page_walk(subject, csrs.satp, address)
            );
        }
    }
    if let Some(reservation) = before.reservation {
        let _ = write!(text, "\n    {reservation:x?}");
    }
    let _ = write!(text, "\n  after it:{differences}");
    let is_load = matches!(word & 0x7f, 0x03 | 0x07 | 0x2f);
    let displacement = if word & 0x7f == 0x2f { 0 } else { word as i32 >> 20 };
    let address = before.x[rs1 as usize].wrapping_add(displacement as u64);
    let loaded = is_load.then(|| physical_address(subject, before, address)).flatten();
    Found { text, loaded }
}

/// Where in RAM a data access goes.
fn physical_address(subject: &Subject, before: &HartState, address: u64) -> Option<u64> {
    let entries = page_walk(subject, before.csrs.satp, address);
    let physical = match entries.last() {
        Some(leaf) if before.csrs.satp != 0 => {
            let shift = top_shift(before.csrs.satp) - 9 * (entries.len() as u32 - 1);
            let offset = address & ((1 << shift) - 1);
            (leaf >> 10 << 12) & ((1 << 56) - 1) & !((1 << shift) - 1) | offset
        }
        _ => address,
    };
    (layout::RAM..layout::RAM + layout::RAM_BYTES - 8).contains(&physical).then_some(physical)
}

/// Where the index into the root table lies in an address: Sv39, or Sv48.
fn top_shift(satp: u64) -> u32 {
    if satp >> 60 == 9 { 39 } else { 30 }
}

/// The page-table entries on the way to an address, as they are after the instruction.
fn page_walk(subject: &Subject, satp: u64, address: u64) -> Vec<u64> {
    let mut entries = Vec::new();
    let mut table = satp << 12;
    for shift in (12..=top_shift(satp)).rev().step_by(9) {
        let at = (table & ((1 << 56) - 1)) + (address >> shift & 0x1ff) * 8;
        if !(layout::RAM..layout::RAM + layout::RAM_BYTES).contains(&at) {
            break;
        }
        let entry = u64::from_le_bytes(subject.memory(at, 8).try_into().expect("8 bytes"));
        entries.push(entry);
        if entry & 0xf != 1 {
            break;
        }
        table = entry >> 10 << 12;
    }
    entries
}
