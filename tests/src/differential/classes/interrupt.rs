//! Interrupts that software and timers raise, in all modes, delegated or not, direct or
//! vectored.
//!
//! Timers are set to the past or to the end of time: when it is does not matter.

use super::integer;
use crate::differential::encode::{csr::*, *};
use crate::differential::frame::STATUS_FS;
use crate::differential::layout::{MACHINE_TIMER, SOFTWARE_INTERRUPT};
use crate::differential::program::{Block, Entry, Mode};

/// SSI, STI, SEI.
const SUPERVISOR_INTERRUPTS: u64 = 0x222;
/// `menvcfg.STCE`.
const TIMER_ENABLE: u64 = 1 << 63;
/// Numbers of two interrupts: one that is delegated, one that is not. MSI and MTI never are.
const NUMBERS: [(u32, u32); 12] =
    [(1, 5), (1, 9), (5, 1), (5, 9), (9, 1), (9, 5), (1, 3), (5, 3), (9, 3), (1, 7), (5, 7), (9, 7)];
const SEGMENTS: usize = 10;
const ITEMS_PER_SEGMENT: usize = 6;

/// What a segment works with. Of the interrupts that go to one mode only one is ever enabled:
/// QEMU without AIA takes the one with the lowest number first, the specification says another
/// order.
struct Segment {
    mode: Mode,
    mideleg: u64,
    enabled: u64,
}

pub(super) fn put_body(block: &mut Block<'_>) {
    // Sstc is switched with nothing pending: see the class of CSRs.
    put_quiet(block);
    let timer = *block.random.pick(&[0, TIMER_ENABLE]);
    put_value(block, MENVCFG, timer);
    let counters = *block.random.pick(&[0, 2]);
    put_value(block, MCOUNTEREN, counters);
    for _ in 0..SEGMENTS {
        put_vector_mode(block);
        let segment = Segment::choose(block);
        // What is not delegated and pending interrupts the way into the segment.
        put_value(block, MIDELEG, segment.mideleg);
        block.asm.word(csrrw(ZERO, MIE, ZERO));
        put_set(block, MIE, segment.enabled);
        if block.random.chance(700) {
            put_set(block, MIP, SUPERVISOR_INTERRUPTS);
        }
        put_timer(block);
        put_board(block);
        if segment.mode == Mode::Machine {
            block.some_items(ITEMS_PER_SEGMENT, |block| put_machine_item(block, &segment));
            continue;
        }
        // SIE, SPIE, MPIE.
        let status = block.random.next_u64() & 0xa2 | STATUS_FS;
        let medeleg = block.random.next_u64() & !0x200;
        let Segment { mode, mideleg, .. } = segment;
        block.enter(Entry { mode, status, medeleg, mideleg, satp: 0 });
        block.some_items(ITEMS_PER_SEGMENT, |block| put_lower_item(block, &segment));
        block.leave();
    }
    put_quiet(block);
    put_value(block, MENVCFG, 0);
}

/// No interrupt enabled, none pending.
fn put_quiet(block: &mut Block<'_>) {
    block.asm.words(&[csrrw(ZERO, MIE, ZERO), csrrw(ZERO, MIP, ZERO)]);
    put_value(block, STIMECMP, u64::MAX);
    let (pointer, value) = (block.scratch(ZERO), T0);
    let pointer = if pointer == value { T1 } else { pointer };
    for (address, idle) in [(SOFTWARE_INTERRUPT, 0), (MACHINE_TIMER, u64::MAX)] {
        block.asm.constant(pointer, address);
        block.asm.constant(value, idle);
        let store = if address == MACHINE_TIMER { sd } else { sw };
        block.asm.word(store(value, pointer, 0));
    }
}

/// `stimecmp`: past, or never. It makes a difference with Sstc only.
fn put_timer(block: &mut Block<'_>) {
    let value = *block.random.pick(&[0, u64::MAX]);
    put_value(block, STIMECMP, value);
}

/// MSI and MTI, from the board. QEMU notices at the end of a translated block: they are closed
/// while that is to come.
fn put_board(block: &mut Block<'_>) {
    let pointer = block.scratch(ZERO);
    let value = block.scratch(pointer);
    // MIE: `csrrci` of 8.
    block.asm.word(i(0x7073, ZERO, 8, MSTATUS as i32));
    if block.random.chance(500) {
        block.asm.constant(pointer, SOFTWARE_INTERRUPT);
        block.asm.words(&[addi(value, ZERO, block.random.between(0, 1) as i32), sw(value, pointer, 0)]);
    } else {
        block.asm.constant(pointer, MACHINE_TIMER);
        block.asm.words(&[addi(value, ZERO, -(block.random.between(0, 1) as i32)), sd(value, pointer, 0)]);
    }
    block.asm.word(FENCE_I);
}

impl Segment {
    fn choose(block: &mut Block<'_>) -> Segment {
        let mode = *block.random.pick(&[Mode::Machine, Mode::Supervisor, Mode::User]);
        let &(delegated, kept) = block.random.pick(&NUMBERS);
        let mideleg = 1 << delegated | block.random.next_u64() & SUPERVISOR_INTERRUPTS & !(1 << kept);
        Segment { mode, mideleg, enabled: 1 << delegated | 1 << kept }
    }
}

fn put_value(block: &mut Block<'_>, number: u32, value: u64) {
    let source = block.scratch(ZERO);
    block.asm.constant(source, value);
    block.asm.word(csrrw(ZERO, number, source));
}

fn put_vector_mode(block: &mut Block<'_>) {
    let funct3 = *block.random.pick(&[6, 7]);
    let number = *block.random.pick(&[MTVEC, STVEC]);
    block.asm.word(i(0x73 | funct3 << 12, ZERO, 1, number as i32));
}

/// Writes, sets or clears some interrupts.
fn put_set(block: &mut Block<'_>, number: u32, interrupts: u64) {
    let source = block.scratch(ZERO);
    let value = block.random.next_u64() & interrupts;
    block.asm.constant(source, value);
    let rd = block.target();
    let instruction = *block.random.pick(&[
        csrrw(rd, number, source),
        csrrs(rd, number, source),
        csrrs(rd, number, source),
        csrrc(rd, number, source),
    ]);
    block.asm.word(instruction);
}

fn put_machine_item(block: &mut Block<'_>, segment: &Segment) {
    match block.random.between(0, 7) {
        0 => put_set(block, MIP, SUPERVISOR_INTERRUPTS),
        1 => put_set(block, MIE, segment.enabled),
        2 | 3 => {
            // MIE: `csrrsi` and `csrrci` of 8.
            let funct3 = *block.random.pick(&[6, 7]);
            block.asm.word(i(0x73 | funct3 << 12, ZERO, 8, MSTATUS as i32));
        }
        4 => put_wait(block, segment),
        5 => match block.random.between(0, 1) {
            0 => put_timer(block),
            _ => put_board(block),
        },
        _ => integer::put_item(block),
    }
}

/// `wfi` that does not wait.
fn put_wait(block: &mut Block<'_>, segment: &Segment) {
    let source = block.scratch(ZERO);
    let seen = block.scratch(source);
    block.asm.constant(source, segment.enabled);
    block.asm.words(&[csrrs(ZERO, MIP, source), csrrs(ZERO, MIE, source), csrrs(ZERO, MIP, source)]);
    // An interrupt taken in between has cleared `mie`: then there is nothing to wait for.
    let behind = block.asm.label();
    for number in [MIE, MIP] {
        block.asm.words(&[csrrs(seen, number, ZERO), r(0x7033, seen, seen, source)]);
        block.asm.branch(1, seen, source, behind);
    }
    block.asm.word(WFI);
    block.asm.bind(behind);
}

fn put_lower_item(block: &mut Block<'_>, segment: &Segment) {
    match block.random.between(0, 7) {
        0 => put_set(block, SIP, SUPERVISOR_INTERRUPTS),
        1 => put_set(block, SIE, segment.enabled),
        2 | 3 => {
            // SIE: `csrrsi` and `csrrci` of 2.
            let funct3 = *block.random.pick(&[6, 7]);
            block.asm.word(i(0x73 | funct3 << 12, ZERO, 2, SSTATUS as i32));
        }
        4 => put_timer(block),
        _ => integer::put_item(block),
    }
}
