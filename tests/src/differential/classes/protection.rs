//! Physical memory protection, as S- and U-mode feel it, and M-mode with MPRV.

use super::{atomic, integer};
use crate::differential::encode::{csr::*, *};
use crate::differential::frame::{STATUS_FS, STATUS_MPRV};
use crate::differential::layout::DATA;
use crate::differential::program::{Block, Entry, Mode};

/// Entries that restrict; those after keep the rest open.
const ENTRIES: u64 = 7;
/// What they restrict: these bytes from the start of the data area.
const WINDOW_BYTES: u64 = 0x4000;
const SEGMENTS: usize = 6;
const ITEMS_PER_SEGMENT: usize = 12;
/// NAPOT, readable, writable, executable.
const OPEN: u64 = 0x1f;
const NAPOT: u64 = 3 << 3;
const TOR: u64 = 1 << 3;

pub(super) fn put_body(block: &mut Block<'_>) {
    for _ in 0..SEGMENTS {
        put_entries(block);
        let mode = *block.random.pick(&[Mode::Machine, Mode::Supervisor, Mode::User]);
        if mode == Mode::Machine {
            put_borrowed_segment(block);
            continue;
        }
        let medeleg = block.random.next_u64() & 0xa0;
        block.enter(Entry { mode, status: STATUS_FS, medeleg, mideleg: 0, satp: 0 });
        block.some_items(ITEMS_PER_SEGMENT, put_item);
        block.leave();
    }
    write(block, PMPCFG0, OPEN);
    write(block, PMPADDR0, u64::MAX >> 10);
}

fn put_borrowed_segment(block: &mut Block<'_>) {
    for _ in 0..ITEMS_PER_SEGMENT / 2 {
        let mode = block.random.between(0, 1) << 11;
        write(block, MSTATUS, STATUS_FS | STATUS_MPRV | mode);
        put_access(block);
    }
    write(block, MSTATUS, STATUS_FS);
}

fn write(block: &mut Block<'_>, number: u32, value: u64) {
    let register = block.scratch(ZERO);
    block.asm.constant(register, value);
    block.asm.word(csrrw(ZERO, number, register));
}

fn put_entries(block: &mut Block<'_>) {
    write(block, PMPADDR0 + 15, u64::MAX >> 10);
    write(block, PMPCFG0 + 2, OPEN << 56);
    let modes: Vec<u64> = (0..ENTRIES).map(|entry| address_matching(block, entry)).collect();
    let mut configuration = 0;
    for entry in 0..ENTRIES as usize {
        // What bounds a range from below or above is a multiple of 8 bytes.
        let is_bound = modes[entry] == TOR || modes.get(entry + 1) == Some(&TOR);
        let address = address(block, is_bound);
        write(block, PMPADDR0 + entry as u32, address);
        // W without R is reserved.
        let permissions = *block.random.pick(&[0, 1, 3, 4, 5, 7, 3, 1]);
        configuration |= (modes[entry] | permissions) << (8 * entry);
    }
    write(block, PMPCFG0, configuration);
    block.asm.word(SFENCE_VMA);
}

/// How an entry's address is to be understood. Not NA4: an access of 8 bytes may have such
/// a range inside and reach beyond it on both sides, which QEMU takes for no match.
fn address_matching(block: &mut Block<'_>, entry: u64) -> u64 {
    match block.random.between(0, 4) {
        0 => 0,
        // From 0 up to the first address lies the code.
        1 | 2 if entry > 0 => TOR,
        _ => NAPOT,
    }
}

/// An address register for a range in the window: of 8 bytes to 8 KiB, if naturally aligned.
fn address(block: &mut Block<'_>, is_bound: bool) -> u64 {
    let size_bits = if is_bound { 0 } else { block.random.between(0, 10) };
    let address = (DATA + block.random.between(0, WINDOW_BYTES - 1)) >> 2;
    // A zero above the ones ends the size.
    let ones = (1 << size_bits) - 1;
    address & !(ones << 1 | 1) | ones
}

fn put_item(block: &mut Block<'_>) {
    if block.random.chance(100) { integer::put_item(block) } else { put_access(block) }
}

fn put_access(block: &mut Block<'_>) {
    let pointer = block.scratch(ZERO);
    let address = DATA + block.random.between(0, WINDOW_BYTES + 0x100);
    // What crosses a page is one access for QEMU, and may be two.
    let may_cross = address % 4096 > 4096 - 8;
    let address = if may_cross || block.random.chance(500) { address & !7 } else { address };
    block.asm.constant(pointer, address);
    let word = match block.random.between(0, 9) {
        0 => return atomic::put_access(block, pointer),
        1..=4 => {
            let funct3 = block.random.between(0, 6) as u32;
            i(0x03 | funct3 << 12, block.target(), pointer, 0)
        }
        5..=8 => {
            let funct3 = block.random.between(0, 3) as u32;
            s(0x23 | funct3 << 12, pointer, block.register(), 0)
        }
        _ => fld(block.register(), pointer, 0),
    };
    block.asm.word(word);
}
